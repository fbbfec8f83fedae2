"""Implementations of Adam that differ from the reference and are right."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.adam import faulty as adam
from qloracle_conformance.mutants.adam.steps import (
    K,
    Moments,
    S,
    States,
    after,
    changed,
    coded,
    coded_by,
    decoded,
    direction,
    numbers,
    quantized,
    stepper,
    stepper_8bit,
)
from qloracle_conformance.mutants.parts import (
    Array,
    Right,
    encoder_8bit,
    inverted,
)

# ---- other roads to the same step --------------------------------------------------------


def _fused(a: Any, b: Array, c: Any) -> Array:
    return expected.fused(np.broadcast_to(a, b.shape), b, c)


class FusedMoments(Right):
    """Moments and parameter by fused multiply-adds: one rounding for each product and sum."""

    lawful = True

    @staticmethod
    def _first(k: K, s: S) -> Array:
        return _fused(k.w1, s.g, k.b1 * s.m0)

    @staticmethod
    def _second(k: K, s: S) -> Array:
        return _fused(k.b2, s.v0, k.w2 * s.g * s.g)

    @staticmethod
    def _move(k: K, s: S) -> Array:
        return _fused(-k.lr, s.d, s.p * k.kept)

    adam_step = staticmethod(stepper(first=_first, second=_second, move=_move))
    adam_step_8bit = staticmethod(stepper_8bit(first=_first, second=_second, move=_move))


class MeanByLerp(Right):
    """m + (1 - b1) (g - m), as torch interpolates; from the other end where 1 - b1 is above 1/2."""

    lawful = True

    @staticmethod
    def _first(k: K, s: S) -> Array:
        if k.w1 < 0.5:
            return np.asarray(s.m0 + k.w1 * (s.g - s.m0))
        return np.asarray(s.g - (s.g - s.m0) * (1 - k.w1))

    adam_step = staticmethod(stepper(first=_first))
    adam_step_8bit = staticmethod(stepper_8bit(first=_first))


class CorrectedRate(Right):
    """lr c/c1 m / (sqrt(v) + eps c) with c = sqrt(1 - b2^t): bitsandbytes' form, c in float64."""

    lawful = True

    @staticmethod
    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        t, lr = options["step"], options["lr"]
        root = np.sqrt(1 - options.get("beta2", 0.999) ** t)
        size = np.float32(-lr * root / (1 - options.get("beta1", 0.9) ** t))
        least = np.float32(options.get("eps", 1e-8) * root)

        def move(k: K, s: S) -> Array:
            return np.asarray(s.p * k.kept + size * (s.m / (np.sqrt(s.v) + least)))

        new: Moments = stepper(move=move)(param, grad, m, v, **options)
        return new


class RateRoundedOnce(Right):
    """lr / c1 is formed in float64 and rounded once, and v is divided after its root (torch)."""

    lawful = True

    @staticmethod
    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        t = options["step"]
        size = np.float32(options["lr"] / (1 - options.get("beta1", 0.9) ** t))
        root = np.float32(np.sqrt(1 - options.get("beta2", 0.999) ** t))

        def move(k: K, s: S) -> Array:
            return np.asarray(s.p * k.kept - size * (s.m / (np.sqrt(s.v) / root + k.eps)))

        new: Moments = stepper(move=move)(param, grad, m, v, **options)
        return new


class DecayBesideDirection(Right):
    """Decoupled decay is added to the direction, and lr multiplies both (optax)."""

    lawful = True

    @staticmethod
    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        apart = options.get("decoupled_weight_decay", True)
        decay = np.float32(options.get("weight_decay", 0.0) if apart else 0.0)

        def move(k: K, s: S) -> Array:
            return np.asarray(s.p - k.lr * (s.d + decay * s.p))

        new: Moments = stepper(move=move)(param, grad, m, v, **options)
        return new


class DecayAfterDeclared(Right):
    """The decay comes after the update, declared (bitsandbytes on CUDA)."""

    lawful = True
    dialect: ClassVar = {"decay_order": "after"}
    adopts = "decay_order: after"
    adam_step = staticmethod(stepper(move=after))
    adam_step_8bit = staticmethod(stepper_8bit(move=after))


class DecoupledDeclared(Right):
    """Decay is decoupled whatever is asked for, declared (bitsandbytes' Adam)."""

    lawful = True
    dialect: ClassVar = {"decay_mode": "decoupled"}
    adopts = "decay_mode: decoupled"
    adam_step = adam.DecoupledForCoupled.adam_step


class Float32Betas(Right):
    """The betas come as float32, and 1 - beta is exact from there (bitsandbytes on CUDA)."""

    lawful = True
    adopts = "betas: float32"
    _count = changed(
        beta1=lambda o: float(np.float32(getattr(o, "beta1", 0.9))),
        beta2=lambda o: float(np.float32(getattr(o, "beta2", 0.999))),
    )
    adam_step = staticmethod(stepper(count=_count))
    adam_step_8bit = staticmethod(stepper_8bit(count=_count))


class Float32Corrections(Right):
    """1 - beta^t is computed in float32 (optax)."""

    lawful = True
    adopts = "bias_correction: float32"

    @staticmethod
    def _count(**options: Any) -> K:
        k = numbers(**options)
        k.c1 = 1 - np.power(k.b1, np.float32(options["step"]))
        k.c2 = 1 - np.power(k.b2, np.float32(options["step"]))
        return k

    adam_step = staticmethod(stepper(count=_count))
    adam_step_8bit = staticmethod(stepper_8bit(count=_count))


# ---- 8-bit states ------------------------------------------------------------------------


class SignNudged(Right):
    """A code of m whose level has not the sign of m is moved by one (bitsandbytes on CUDA)."""

    lawful = True
    adopts = "sign_nudge: yes"

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        m_codes, *others = coded(s, maps, blocksize)
        level = maps[0][m_codes]
        move = ((s.m > 0) & (level < 0)).astype(int) - ((s.m < 0) & (level >= 0)).astype(int)
        return (np.clip(m_codes + move, 0, maps[0].size - 1).astype(np.uint8), *others)

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))


class RoundedStateUsed(Right):
    """The parameter moves by the new moments as their codes say them."""

    lawful = True
    adopts = "state_used: rounded"

    @staticmethod
    def adam_step_8bit(*arrays: Array, blocksize: int = 256, **options: Any) -> States:
        signed = options.get("m_codebook", qloracle.dynamic_codebook())
        unsigned = options.get("v_codebook", qloracle.dynamic_codebook(signed=False))

        def read(x: Array, levels: Array) -> Array:
            codes, absmax = quantized(x, levels, blocksize=blocksize)
            return decoded(codes, absmax, levels, blocksize)

        def as_coded(k: K, s: S) -> Array:
            return direction(k, SimpleNamespace(m=read(s.m, signed), v=read(s.v, unsigned)))

        new: States = stepper_8bit(direct=as_coded)(*arrays, blocksize=blocksize, **options)
        return new


class CodedByReciprocal(Right):
    """The new moments are scaled by the reciprocal of their absmax, as kernels do."""

    lawful = True

    @staticmethod
    def _code(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
        return coded_by(s, maps, blocksize, encoder_8bit(scale=inverted))

    adam_step_8bit = staticmethod(stepper_8bit(code=_code))
