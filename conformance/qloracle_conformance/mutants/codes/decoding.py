"""Wrong decoding (S7): what becomes of level * absmax on its way to the output type."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    cut_to_bfloat16,
    decoder,
    decoder_8bit,
    product,
    rounded,
)


def _halves_up(values: Array) -> Array:
    """Round to float16's 10 bits, a half always up in magnitude."""
    bits = values.view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


class Truncated(Right):
    """The product is cut to bfloat16, not rounded (rule S7)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = levels * scale
        return (cut_to_bfloat16(values) if dtype == BFLOAT16 else values).astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))
    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class HalvesUp(Right):
    """float16 results round a half up: 0x1000 is added (bitsandbytes' portable CPU path)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = levels * scale
        return (_halves_up(values) if dtype == np.float16 else values).astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class Saturated(Right):
    """float16 results end at 65,504 instead of infinity (rule S7)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        most = np.float32(65504 if dtype == np.float16 else np.inf)
        return np.asarray(np.clip(levels * scale, -most, most).astype(dtype))

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))
    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class RoundedTwice(Right):
    """float16 results pass through a bfloat16 buffer (unsloth #4026: one buffer, two types)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = levels * scale
        return (rounded(values, BFLOAT16) if dtype == np.float16 else values).astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class RoundedDirectly(Right):
    """The product is made in float64 and rounded once, past float32 (rule S7)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        exact = levels.astype(np.float64) * scale
        return exact.astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class SmallHalvesLost(Right):
    """Subnormal float16 results are flushed, though their products are normal (rule S7)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = product(levels, scale, dtype)
        small = (np.abs(values) < 2.0**-14) & (dtype == np.float16)
        return np.where(small, np.zeros(1, dtype), values)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class ScaleNarrowed(Right):
    """The absmax is rounded to the output type, the level is not (bitsandbytes on Gaudi)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        return product(levels, rounded(scale, dtype), dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))
    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class SignOfScaleLost(Right):
    """A negative absmax, lawful after double quantization, is taken for its magnitude (rule S7)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        return product(levels, np.abs(scale), dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class HalfABuffer(Right):
    """float32 output by the 16-bit routine fills half the buffer with pairs (axolotl #3799)."""

    kills = "S7"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        if dtype != np.float32:
            return product(levels, scale, dtype)
        narrow = product(levels, scale, BFLOAT16)
        buffer = np.zeros(2 * narrow.size, BFLOAT16)
        buffer[: narrow.size] = narrow
        return buffer.view(np.float32)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class SignedCodes(Right):
    """8-bit codes are read as signed bytes: those above 127 decode to level 0 (rule S7)."""

    kills = "S7"

    @staticmethod
    def dequantize_blockwise(codes: Array, absmax: Array, codebook: Array, **options: Any) -> Array:
        known = np.where(codes < 128, codes, 0).astype(np.uint8)
        return qloracle.dequantize_blockwise(known, absmax, codebook, **options)
