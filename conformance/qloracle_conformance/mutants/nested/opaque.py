"""Faults of states that cannot be taken apart: only the round trip shows them (rules S1 to S8)."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.parts import NF4, Array, Right, divided, peaks, spread, widened

FOUR_DECIMALS = expected.four_bit_levels("nf4", {"codebook": "four_decimals"})
State = tuple[Array, Array, tuple[int, ...]]  # codes, the scale of each block as coded, the shape


def dynamic(absmax: Array) -> Array:
    """S8: what the scales come back as."""
    return qloracle.dequantize_absmax(*qloracle.quantize_absmax(absmax))


def linear(absmax: Array, most: float = np.inf) -> Array:
    """Scales in 256 equal steps, group by group, the mean removed; `most` is the largest factor."""
    mean = np.float32(absmax.mean(dtype=np.float64))
    residual = absmax - mean
    groups = np.arange(absmax.size) // 256
    largest = np.array([np.abs(residual[groups == g]).max() for g in range(groups.max() + 1)])
    with np.errstate(all="ignore"):
        factor = (np.float32(128) / largest.astype(np.float32))[groups]
        factor = np.where(factor > most, np.float32(np.inf), factor)
        codes = np.clip(np.rint(residual * factor), -128, 127).astype(np.float32)
        return np.where(largest[groups] == 0, mean, codes / factor + mean).astype(np.float32)


def encoded(
    levels: Array = NF4,
    scales: Callable[[Array], Array] = dynamic,
    own: Callable[[Array], Array] = lambda absmax: absmax,
) -> Any:
    """`quantize_nested` with the scales coded in one way, and codes made over `own` scales."""

    def quantize_nested(x: Array, *, blocksize: int = 64, quant_type: str = "nf4") -> State:
        if quant_type != "nf4":
            raise NotImplementedError(quant_type)
        flat = widened(x)
        absmax = peaks(flat, blocksize).astype(np.float32)
        q = divided(flat, own(absmax), blocksize)
        codes = np.searchsorted(qloracle.thresholds(levels), q)
        return codes, spread(scales(absmax), flat.size, blocksize), x.shape

    return staticmethod(quantize_nested)


def decoded(levels: Array = NF4) -> Any:
    """`dequantize_nested`: S7 on the scales of a state."""

    def dequantize_nested(state: State, dtype: Any) -> Array:
        codes, scale, shape = state
        values: Array = (levels[codes] * scale).astype(dtype).reshape(shape)
        return values

    return staticmethod(dequantize_nested)


class RoundTrip(Right):
    """NF4 with nested scales in one opaque state, as specified."""

    lawful = True
    quantize_nested = encoded()
    dequantize_nested = decoded()


class RoundTripInLinearSteps(Right):
    """Scales coded in 256 equal steps, and four decimals a level: both declared."""

    lawful = True
    adopts = "nested_scale: linear"
    dialect: ClassVar[dict[str, str]] = {"codebook": "four_decimals", "nested_scale": "linear"}
    quantize_nested = encoded(FOUR_DECIMALS, linear)
    dequantize_nested = decoded(FOUR_DECIMALS)


class LinearScalesUndeclared(Right):
    """Scales coded in 256 equal steps, without a word (torchao)."""

    kills = "S8"
    quantize_nested = encoded(scales=linear)
    dequantize_nested = decoded()


class FourDecimalsThereAndBack(Right):
    """The published four decimals of each level, in an opaque state (torchao)."""

    kills = "S1"
    quantize_nested = encoded(FOUR_DECIMALS)
    dequantize_nested = decoded(FOUR_DECIMALS)


class MeanNotRemoved(Right):
    """The scales are coded without their mean, so that half of the signed map is idle."""

    kills = "S8"
    quantize_nested = encoded(
        scales=lambda a: qloracle.dequantize_blockwise(
            *qloracle.quantize_blockwise(a, qloracle.dynamic_codebook()),
            qloracle.dynamic_codebook(),
            shape=a.shape,
        )
    )
    dequantize_nested = decoded()


class MeanNotAddedBack(Right):
    """The decoder forgets the offset."""

    kills = "S8"
    quantize_nested = encoded(scales=lambda a: dynamic(a) - np.float32(a.mean()))
    dequantize_nested = decoded()


class ScaleOfThePairsFirst(Right):
    """Each two blocks are decoded with the scale of the first."""

    kills = "S3"
    quantize_nested = encoded(scales=lambda a: dynamic(a)[np.arange(a.size) // 2 * 2])
    dequantize_nested = decoded()


class OneGroupForAll(Right):
    """Every scale is decoded with the nested absmax of the first group."""

    kills = "S8"

    @staticmethod
    def _scales(absmax: Array) -> Array:
        codes, nested, offset = qloracle.quantize_absmax(absmax)
        return qloracle.dequantize_absmax(codes, np.full_like(nested, nested[:1].max()), offset)

    quantize_nested = encoded(scales=_scales)
    dequantize_nested = decoded()


class CodesOverTheCodedScale(Right):
    """The codes are made over the scale as it will come back, not over the block's absmax."""

    kills = "S5"
    quantize_nested = encoded(own=dynamic)
    dequantize_nested = decoded()


class ZeroBlocksAreMinusOne(Right):
    """A block of zeros gets code 0, which its coded scale makes a number (torchao)."""

    kills = "S5"
    dequantize_nested = decoded()

    @staticmethod
    def quantize_nested(x: Array, *, blocksize: int = 64, quant_type: str = "nf4") -> State:
        codes, scale, shape = RoundTrip.quantize_nested(
            x, blocksize=blocksize, quant_type=quant_type
        )
        absmax = spread(peaks(widened(x), blocksize), x.size, blocksize)
        return np.where(absmax == 0, 0, codes), scale, shape


class ScalesInHalfPrecision(Right):
    """The decoder keeps the scales in bfloat16, whatever it returns."""

    kills = "S8"
    quantize_nested = encoded(scales=lambda a: expected.round_to(dynamic(a), "bfloat16"))
    dequantize_nested = decoded()


class FactorOverflows(Right):
    """Equal steps, their number per unit kept in the type of x: in float16 infinite (torchao)."""

    kills = "S8"
    dialect: ClassVar[dict[str, str]] = {"nested_scale": "linear"}
    dequantize_nested = decoded()

    @staticmethod
    def quantize_nested(x: Array, *, blocksize: int = 64, quant_type: str = "nf4") -> State:
        most = 65504 if x.dtype == np.float16 else np.inf
        quantize = encoded(scales=lambda absmax: linear(absmax, most))
        state: State = quantize(x, blocksize=blocksize, quant_type=quant_type)
        return state
