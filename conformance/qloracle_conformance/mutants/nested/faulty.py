"""Faulty implementations of L1: how the scales of the scales go wrong."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    nested_codes,
    rounded,
)

Nested = tuple[Array, Array, Any]


def _mean(absmax: Array) -> np.float32:
    return np.float32(absmax.astype(np.float64).mean() if absmax.size else 0)


# ---- the offset ----------------------------------------------------------------------------------


class OffsetDropped(Right):
    """The decoder forgets the offset (rule S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        return qloracle.dequantize_absmax(codes, nested_absmax, np.float32(0), **options)


class OffsetTwice(Right):
    """The offset is added by the decoder and again by its caller (rule S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        once = qloracle.dequantize_absmax(codes, nested_absmax, offset, **options)
        return once + np.float32(offset)


class OffsetReadAsBFloat16(Right):
    """The decoder reads the offset from a bfloat16 tensor (bitsandbytes #1971)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        narrow = np.float32(rounded(np.asarray(offset), BFLOAT16))
        return qloracle.dequantize_absmax(codes, nested_absmax, narrow, **options)


class OffsetInBFloat16(Right):
    """The mean is rounded to bfloat16 before it is subtracted and stored (bitsandbytes #1971)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        offset = rounded(np.asarray(_mean(absmax)), BFLOAT16)
        return nested_codes(absmax, offset, codebook, blocksize)


class PhantomInMean(Right):
    """The mean counts one block too many (bitsandbytes' Triton backend: a phantom scale of 0)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        offset = absmax.astype(np.float64).sum() / (absmax.size + 1)
        return nested_codes(absmax, offset, codebook, blocksize)


class MedianForMean(Right):
    """The offset is the median of the absmax (rule S8)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        offset = np.median(absmax) if absmax.size else 0
        return nested_codes(absmax, offset, codebook, blocksize)


class OffsetNotSubtracted(Right):
    """The mean is returned, but the absmax are coded as they are (rule S8)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        codes, nested_absmax, _ = nested_codes(absmax, 0, codebook, blocksize)
        return codes, nested_absmax, _mean(absmax)


class MeanOfNothing(Right):
    """The mean of no scales is NaN (bitsandbytes 0.50.2 on an empty tensor)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(absmax: Array, **options: Any) -> Nested:
        codes, nested_absmax, offset = qloracle.quantize_absmax(absmax, **options)
        return codes, nested_absmax, offset if absmax.size else np.float32(np.nan)


# ---- the map -------------------------------------------------------------------------------------


class BaselineMap(Right):
    """The map of a PyTorch without fused arithmetic, undeclared: 42 levels differ (rule S1)."""

    kills = "S1"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        levels = expected.baseline_map() if codebook is None else codebook
        return nested_codes(absmax, _mean(absmax), levels, blocksize)

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        levels = expected.baseline_map() if codebook is None else codebook
        return qloracle.dequantize_absmax(
            codes, nested_absmax, offset, codebook=levels, blocksize=blocksize
        )


class EvenMap(Right):
    """The default map is int8's: 255 even levels, as torchao nests its scales (pytorch/ao #295)."""

    kills = "S1"
    even = np.arange(-127, 128).astype(np.float32) / np.float32(127)

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        levels = np.append(EvenMap.even, np.float32(1)) if codebook is None else codebook
        return qloracle.dequantize_absmax(
            codes, nested_absmax, offset, codebook=levels, blocksize=blocksize
        )


class MapIgnored(Right):
    """The decoder uses its own map although the file's map is passed in (bitsandbytes' kernels)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        return qloracle.dequantize_absmax(codes, nested_absmax, offset, blocksize=blocksize)


class MapIgnoredOnEncode(Right):
    """The quantizer uses its own map although another one is passed in (rule S8)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        return qloracle.quantize_absmax(absmax, blocksize=blocksize)


# ---- the groups ----------------------------------------------------------------------------------


class GroupsOf64(Right):
    """Scales are grouped by the weights' block size, 64, and not by 256 (rule S8)."""

    kills = "P1"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        return qloracle.quantize_absmax(absmax, codebook=codebook, blocksize=64)


class GroupsOf256Always(Right):
    """The decoder takes every group for one of 256 (rule S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        scales = nested_absmax.take(np.arange(-(-codes.size // 256)), mode="clip")
        return qloracle.dequantize_absmax(codes, scales, offset, codebook=codebook)


class Group8Bit(Right):
    """The group index has 8 bits: group 256 is decoded by the scale of group 0 (rule S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        scales = nested_absmax[np.arange(nested_absmax.size) & 0xFF]
        return qloracle.dequantize_absmax(codes, scales, offset, **options)


class RaggedGroupsScale(Right):
    """A ragged last group is decoded by the scale of the group before it (rule S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, blocksize: int = 256, **options: Any
    ) -> Array:
        scales = nested_absmax.copy()
        if codes.size % blocksize and scales.size > 1:
            scales[-1] = scales[-2]
        return qloracle.dequantize_absmax(codes, scales, offset, blocksize=blocksize, **options)


class NestedInFloat16(Right):
    """The second-level scales are kept in float16 (rule S8)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(absmax: Array, **options: Any) -> Nested:
        codes, nested_absmax, offset = qloracle.quantize_absmax(absmax, **options)
        return codes, rounded(nested_absmax, np.float16), offset


class NestedSignedPeak(Right):
    """The second-level scale is the largest residual, not the largest magnitude (rule S8)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(absmax: Array, *, blocksize: int = 256, **options: Any) -> Nested:
        codes, _, offset = qloracle.quantize_absmax(absmax, blocksize=blocksize, **options)
        starts = np.arange(0, absmax.size, blocksize)
        return codes, np.maximum.reduceat(absmax - offset, starts), offset


class EqualScalesAreNaN(Right):
    """Equal scales leave a group of zeros, 0 / 0 and code 0 (bitsandbytes 0.50.2 on CPU)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(absmax: Array, *, blocksize: int = 256, **options: Any) -> Nested:
        codes, scales, offset = qloracle.quantize_absmax(absmax, blocksize=blocksize, **options)
        codes[np.repeat(scales, blocksize)[: codes.size] == 0] = 0
        return codes, scales, offset


class LowerCode(Right):
    """A residual takes the level below it, not the nearest (bitsandbytes #1582)."""

    kills = "S8"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        levels = qloracle.dynamic_codebook() if codebook is None else codebook
        codes, scales, offset = nested_codes(absmax, _mean(absmax), levels, blocksize)
        scale = np.repeat(scales, blocksize)[: codes.size]
        above = levels[codes] * scale > absmax - offset
        return codes - (above & (codes > 0)).astype(np.uint8), scales, offset


# ---- the decoded scales --------------------------------------------------------------------------


class ClampedAtZero(Right):
    """A scale that comes back negative is clamped to 0 (rule S8: no clamp)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        values = qloracle.dequantize_absmax(codes, nested_absmax, offset, **options)
        return np.maximum(values, np.float32(0))


class RawCodes(Right):
    """The 8-bit codes themselves are used as scales (bitsandbytes #1549)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        return codes.astype(np.float32)


class ProductInBFloat16(Right):
    """The product of level and scale is rounded to bfloat16 before the offset is added (S8)."""

    kills = "S8"

    @staticmethod
    def dequantize_absmax(codes: Array, nested_absmax: Array, offset: Any, **options: Any) -> Array:
        product = qloracle.dequantize_absmax(codes, nested_absmax, np.float32(0), **options)
        return rounded(product, BFLOAT16) + np.float32(offset)
