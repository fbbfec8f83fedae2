"""Faulty implementations of L1: how the scales of the scales go wrong."""

from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.nested import steps
from qloracle_conformance.mutants.nested.steps import Nested, Scales, group_index, mean
from qloracle_conformance.mutants.parts import BFLOAT16, Array, fault, insisting, rounded, spread

ZERO = np.float32(0)

BASELINE = Scales(levels=steps.by_default(expected.baseline_map()))
EVEN = np.append(np.arange(-127, 128) / np.float32(127), 1).astype(np.float32)


def _largest_residuals(absmax: Array, *, blocksize: int = 256, **options: Any) -> Nested:
    codes, _, offset = qloracle.quantize_absmax(absmax, blocksize=blocksize, **options)
    starts = np.arange(0, absmax.size, blocksize)
    return codes, np.maximum.reduceat(absmax - offset, starts), offset


def _levels_below(absmax: Array, *, codebook: Array | None = None, blocksize: int = 256) -> Nested:
    levels = qloracle.dynamic_codebook() if codebook is None else codebook
    codes, scales, offset = qloracle.quantize_absmax(absmax, codebook=codebook, blocksize=blocksize)
    above = levels[codes] * spread(scales, codes.size, blocksize) > absmax - offset
    return codes - (above & (codes > 0)).astype(np.uint8), scales, offset


# fmt: off
# ---- the offset ----------------------------------------------------------------------------------
OffsetDropped = fault("S8", "The decoder forgets the offset (rule S8).",
    dequantize_absmax=Scales(combine=lambda levels, scale, _: levels * scale + ZERO).dequantize)
OffsetTwice = fault("S8", "The offset is added by the decoder and again by its caller (rule S8).",
    dequantize_absmax=Scales(combine=lambda levels, scale, offset:
        levels * scale + offset + offset).dequantize)
OffsetReadAsBFloat16 = fault("S8",
    "The decoder reads the offset from a bfloat16 tensor (bitsandbytes #1971).",
    dequantize_absmax=Scales(combine=lambda levels, scale, offset:
        levels * scale + rounded(np.asarray(offset), BFLOAT16)).dequantize)
OffsetInBFloat16 = fault("S8",
    "The mean is rounded to bfloat16 before it is subtracted and stored (bitsandbytes #1971).",
    quantize_absmax=Scales(
        offset=lambda absmax: rounded(np.asarray(mean(absmax)), BFLOAT16)).quantize)
PhantomInMean = fault("S8",
    "The mean counts one block too many (bitsandbytes' Triton backend: a phantom scale of 0).",
    quantize_absmax=Scales(offset=lambda absmax: mean(np.append(absmax, ZERO))).quantize)
MedianForMean = fault("S8", "The offset is the median of the absmax (rule S8).",
    quantize_absmax=Scales(offset=lambda absmax: np.median(absmax) if absmax.size else 0).quantize)
OffsetNotSubtracted = fault("S8",
    "The mean is returned, but the absmax are coded as they are (rule S8).",
    quantize_absmax=Scales(residual=lambda absmax, _: absmax).quantize)
MeanOfNothing = fault("S8",
    "The mean of no scales is NaN (bitsandbytes 0.50.2 on an empty tensor).",
    quantize_absmax=Scales(offset=lambda absmax: mean(absmax) if absmax.size else np.nan).quantize)

# ---- the map -------------------------------------------------------------------------------------
BaselineMap = fault("S1",
    "The map of a PyTorch without fused arithmetic, undeclared: 42 levels differ (rule S1).",
    quantize_absmax=BASELINE.quantize, dequantize_absmax=BASELINE.dequantize)
EvenMap = fault("S1",
    "The default map is int8's: 255 even levels, as torchao nests its scales (pytorch/ao #295).",
    dequantize_absmax=Scales(levels=steps.by_default(EVEN)).dequantize)
MapIgnored = fault("S8",
    "The decoder uses its own map although the file's map is passed in (bitsandbytes' kernels).",
    dequantize_absmax=insisting(qloracle.dequantize_absmax, codebook=None))
MapIgnoredOnEncode = fault("S8",
    "The quantizer uses its own map although another one is passed in (rule S8).",
    quantize_absmax=insisting(qloracle.quantize_absmax, codebook=None))

# ---- the groups ----------------------------------------------------------------------------------
GroupsOf64 = fault("P1",
    "Scales are grouped by the weights' block size, 64, and not by 256 (rule S8).",
    quantize_absmax=insisting(qloracle.quantize_absmax, blocksize=64))
GroupsOf256Always = fault("S8", "The decoder takes every group for one of 256 (rule S8).",
    dequantize_absmax=Scales(group=lambda n, _: group_index(n, 256)).dequantize)
Group8Bit = fault("S8",
    "The group index has 8 bits: group 256 is decoded by the scale of group 0 (rule S8).",
    dequantize_absmax=Scales(
        group=lambda n, blocksize: group_index(n, blocksize) & 0xFF).dequantize)
RaggedGroupsScale = fault("S8",
    "A ragged last group is decoded by the scale of the group before it (rule S8).",
    dequantize_absmax=Scales(group=lambda n, blocksize:
        np.minimum(group_index(n, blocksize), max(n // blocksize - 1, 0))).dequantize)
NestedInFloat16 = fault("S8", "The second-level scales are kept in float16 (rule S8).",
    quantize_absmax=parts.then(qloracle.quantize_absmax,
        lambda codes, scales, offset: (codes, rounded(scales, np.float16), offset)))
NestedSignedPeak = fault("S8",
    "The second-level scale is the largest residual, not the largest magnitude (rule S8).",
    quantize_absmax=_largest_residuals)
EqualScalesAreNaN = fault("S8",
    "Equal scales leave a group of zeros, 0 / 0 and code 0 (bitsandbytes 0.50.2 on CPU).",
    quantize_absmax=Scales(scale=lambda r, scales, b: r / spread(scales, r.size, b)).quantize)
LowerCode = fault("S8",
    "A residual takes the level below it, not the nearest (bitsandbytes #1582).",
    quantize_absmax=_levels_below)

# ---- the decoded scales --------------------------------------------------------------------------
ClampedAtZero = fault("S8", "A scale that comes back negative is clamped to 0 (rule S8: no clamp).",
    dequantize_absmax=parts.then(
        qloracle.dequantize_absmax, lambda values: np.maximum(values, ZERO)))
RawCodes = fault("S8", "The 8-bit codes themselves are used as scales (bitsandbytes #1549).",
    dequantize_absmax=lambda codes, *_, **__: codes.astype(np.float32))
ProductInBFloat16 = fault("S8",
    "The product of level and scale is rounded to bfloat16 before the offset is added (S8).",
    dequantize_absmax=Scales(combine=lambda levels, scale, offset:
        rounded(levels * scale, BFLOAT16) + offset).dequantize)
