"""Faulty implementations of the 8-bit Adam: how a step, and the state that it keeps, go wrong."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import qloracle
from qloracle_conformance.mutants.adam import faulty as adam
from qloracle_conformance.mutants.adam.steps import (
    ZERO,
    K,
    S,
    States,
    after,
    changed,
    coded,
    coded_by,
    decoded,
    quantized,
    stepper_8bit,
    without,
)
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    counted,
    divided,
    encoder_8bit,
    peaks,
    rounded,
)


class NoBiasCorrection8Bit(Right):
    """The 8-bit step forgets the bias correction (rule S11b)."""

    kills = "S11b"
    adam_step_8bit = staticmethod(stepper_8bit(count=without("c1", "c2")))


class EpsInsideRoot8Bit(Right):
    """eps stands inside the root of the 8-bit step (rule S11b)."""

    kills = "S11b"
    adam_step_8bit = staticmethod(stepper_8bit(direct=adam.EpsInsideRoot._direct))


class CoupledDecay8Bit(Right):
    """The 8-bit step sends its decay through the gradient (rule S11b)."""

    kills = "S11b"
    adam_step_8bit = staticmethod(
        stepper_8bit(count=changed(decoupled_weight_decay=lambda _: False))
    )


class DecayAfterUndeclared8Bit(Right):
    """The 8-bit update is decayed too, and the declaration says that it is not (rule S11b)."""

    kills = "S11b"
    dialect: ClassVar = {"decay_order": "before"}
    adam_step_8bit = staticmethod(stepper_8bit(move=after))


class Float32BetasUndeclared8Bit(Right):
    """Its betas are float32, and the declaration says that they are not (rule S11b)."""

    kills = "S11b"
    dialect: ClassVar = {"betas": "float64"}
    adam_step_8bit = staticmethod(
        stepper_8bit(
            count=changed(
                beta1=lambda o: float(np.float32(getattr(o, "beta1", 0.9))),
                beta2=lambda o: float(np.float32(getattr(o, "beta2", 0.999))),
            )
        )
    )


class RawGradientUsed(Right):
    """The parameter moves by the gradient that came in (bitsandbytes' 8-bit RMSProp on CUDA)."""

    kills = "S11b"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray(s.g0 / (np.sqrt(s.v / k.c2) + k.eps))

    adam_step_8bit = staticmethod(stepper_8bit(direct=_direct))


class OldStateCodedAgain(Right):
    """The old state is quantized once more before it is used (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _decode(codes: Array, absmax: Array, levels: Array, blocksize: int) -> Array:
        old = decoded(codes, absmax, levels, blocksize)
        again, scale = quantized(old, levels, blocksize=blocksize)
        return decoded(again, scale, levels, blocksize)

    adam_step_8bit = staticmethod(stepper_8bit(decode=_decode))


class SignedMapForSquares(Right):
    """v is read and coded with the signed map, whose half it never uses (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def adam_step_8bit(*arrays: Array, **options: Any) -> States:
        signed = {"v_codebook": qloracle.dynamic_codebook()}
        new: States = stepper_8bit()(*arrays, **{**signed, **options})
        return new


class FirstScaleForAll(Right):
    """Every block of the state is decoded by the absmax of the first (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _decode(codes: Array, absmax: Array, levels: Array, blocksize: int) -> Array:
        return decoded(codes, np.full_like(absmax, absmax[0]), levels, blocksize)

    adam_step_8bit = staticmethod(stepper_8bit(decode=_decode))


class OneScaleForAll(Right):
    """The new codes of all blocks have the absmax of the whole tensor (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        def largest(flat: Array, size: int) -> Array:
            return np.full_like(peaks(flat, size), np.abs(flat).max())

        return coded_by(s, maps, blocksize, encoder_8bit(peak=largest))

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class ScalesNotUpdated(Right):
    """The codes are new, the absmax are those of the step before (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        m_codes, _, v_codes, _ = coded(s, maps, blocksize)
        return m_codes, s.old[1].copy(), v_codes, s.old[3].copy()

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class CodedOverOldScales(Right):
    """The new moments are coded over the absmax of the step before (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        found = []
        for x, levels, old in zip((s.m, s.v), maps, s.old[1::2], strict=True):
            own = quantized(x, levels, blocksize=blocksize)[1]
            q = divided(x, old, blocksize)
            found += [counted(q, qloracle.thresholds(levels)).astype(np.uint8), own]
        return tuple(found)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class CodesByFloor(Right):
    """Moments are coded to the level below, not to the nearest one (bitsandbytes #1582)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        quantize = encoder_8bit(cuts=lambda levels: levels[1:], count=_reached)
        return coded_by(s, maps, blocksize, quantize)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


def _reached(q: Array, levels: Array) -> Array:
    return np.searchsorted(levels, q, side="right")


class ZeroAs131(Right):
    """Zero gets code 131, which is not zero: parameters drift (bitsandbytes on a CPU)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        m_codes, *others = coded(s, maps, blocksize)
        lost = np.where(m_codes == ZERO, 131, m_codes) if maps[0].size == 256 else m_codes
        return (lost.astype(np.uint8), *others)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class SquaresScaleInBFloat16(Right):
    """The absmax of v is stored in bfloat16 (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        *others, scale = coded(s, maps, blocksize)
        return (*others, rounded(scale, BFLOAT16))

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class RootOfSquaresCoded(Right):
    """The root of v is what is coded (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        s.v = np.sqrt(s.v)
        return coded(s, maps, blocksize)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class ShortBlockLeft(Right):
    """The state of a short last block is never written (bitsandbytes #1884 of codes)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        full = s.m.size // blocksize
        new = coded(s, maps, blocksize)
        ends = (full * blocksize, full)
        return tuple(
            np.concatenate([x[: ends[i % 2]], old[ends[i % 2] :]])
            for i, (x, old) in enumerate(zip(new, s.old, strict=True))
        )

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class MapsIgnored(Right):
    """Maps that are passed in are taken and not used (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def adam_step_8bit(
        *arrays: Array, m_codebook: Any = None, v_codebook: Any = None, **options: Any
    ) -> States:
        new: States = stepper_8bit()(*arrays, **options)
        return new


class ThresholdsMoved(Right):
    """The thresholds are off by 2^-18 of themselves, as if typed with five digits (rule S11b)."""

    kills = "S11b"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        cuts = encoder_8bit(cuts=lambda x: qloracle.thresholds(x) * np.float32(1 + 2.0**-18))
        return coded_by(s, maps, blocksize, cuts)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))
