"""Faults of states that cannot be taken apart: only the round trip shows them (rules S1 to S8)."""

from collections.abc import Callable
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.families.nested.roundtrip import dynamic, linear
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.parts import NF4, Array, Step, fault, peaks, spread, variant

MAP = qloracle.dynamic_codebook()
FOUR_DECIMALS = expected.four_bit_levels("nf4", {"codebook": "four_decimals"})
Scales = Callable[[Array], Array]
State = tuple[Array, Array, tuple[int, ...]]  # codes, the scale of each block as coded, the shape


def encoded(
    levels: Array = NF4, scales: Scales = dynamic, own: Scales = np.asarray, zero: int = 7
) -> Step:
    """`quantize_nested` with the scales coded in one way, and codes made over `own` scales.

    `zero` is the code in a block of zeros.
    """

    def quantize_nested(x: Array, *, blocksize: int = 64, quant_type: str = "nf4") -> State:
        if quant_type != "nf4":
            raise NotImplementedError(quant_type)
        flat = parts.widened(x)
        absmax = peaks(flat, blocksize).astype(np.float32)
        q = parts.divided(flat, own(absmax), blocksize)
        codes = np.searchsorted(qloracle.thresholds(levels), q)
        codes[spread(absmax, flat.size, blocksize) == 0] = zero
        return codes, spread(scales(absmax), flat.size, blocksize), x.shape

    return quantize_nested


def decoded(levels: Array = NF4) -> Step:
    """`dequantize_nested`: S7 on the scales of a state."""

    def dequantize_nested(state: State, dtype: Any) -> Array:
        codes, scale, shape = state
        values: Array = (levels[codes] * scale).astype(dtype).reshape(shape)
        return values

    return dequantize_nested


def _both(levels: Array = NF4, scales: Scales = dynamic, **how: Any) -> dict[str, Step]:
    return {"quantize_nested": encoded(levels, scales, **how), "dequantize_nested": decoded(levels)}


def _one_group(absmax: Array) -> Array:
    codes, nested, offset = qloracle.quantize_absmax(absmax)
    return qloracle.dequantize_absmax(codes, np.full_like(nested, nested[:1].max()), offset)


# fmt: off

RoundTrip = variant("", "NF4 with nested scales in one opaque state, as specified.",
    **_both())
RoundTripInLinearSteps = variant("nested_scale: linear",
    "Scales coded in 256 equal steps, and four decimals a level: both declared.",
    {"dialect": {"codebook": "four_decimals", "nested_scale": "linear"}},
    **_both(FOUR_DECIMALS, linear))
LinearScalesUndeclared = fault("S8", "Scales coded in 256 equal steps, undeclared (torchao).",
    **_both(scales=linear))
FourDecimalsThereAndBack = fault("S1",
    "The published four decimals of each level, in an opaque state (torchao).",
    **_both(FOUR_DECIMALS))
MeanNotRemoved = fault("S8",
    "The scales are coded without their mean, so that half of the signed map is idle.",
    **_both(scales=lambda absmax: qloracle.dequantize_blockwise(
        *qloracle.quantize_blockwise(absmax, MAP), MAP, shape=absmax.shape)))
MeanNotAddedBack = fault("S8", "The decoder forgets the offset.",
    **_both(scales=lambda absmax: dynamic(absmax) - np.float32(absmax.mean())))
ScaleOfThePairsFirst = fault("S3", "Every pair of blocks is decoded with the scale of the first.",
    **_both(scales=lambda absmax: dynamic(absmax)[np.arange(absmax.size) // 2 * 2]))
OneGroupForAll = fault("S8", "Every scale is decoded with the nested absmax of the first group.",
    **_both(scales=_one_group))
CodesOverTheCodedScale = fault("S5",
    "Codes are computed with the scale as it will decode, not with the block's absmax.",
    **_both(own=dynamic))
ZeroBlocksAreMinusOne = fault("S5",
    "A block of zeros gets code 0, which decodes to minus its coded scale (torchao).",
    **_both(zero=0))
ScalesInHalfPrecision = fault("S8",
    "The decoder keeps the scales in bfloat16, whatever it returns.",
    **_both(scales=lambda absmax: parts.rounded(dynamic(absmax), parts.BFLOAT16)))
FactorOverflows = fault("S8",
    "Equal steps whose factor is kept in the type of x: in float16 it overflows (torchao).",
    {"dialect": {"nested_scale": "linear"}},
    quantize_nested=lambda x, **options: encoded(scales=lambda absmax:
        linear(absmax, 65504 if x.dtype == np.float16 else np.inf))(x, **options),
    dequantize_nested=decoded())
