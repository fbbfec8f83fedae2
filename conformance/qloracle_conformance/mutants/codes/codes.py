"""Wrong codes (S5) and wrong packing (S6)."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

import math
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    counted,
    decoder,
    divided,
    encoder,
    encoder_8bit,
    packed_pairs,
    rounded,
    rows_and_columns,
    spread,
    unpacked,
)

# ---- S5: the codes -------------------------------------------------------------------------------


class ZerosAreNaN(Right):
    """0 * (1 / 0) is NaN, so a block of zeros gets code 0, undeclared (bitsandbytes on CUDA)."""

    kills = "S5"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        return flat * spread(np.float32(1) / absmax, flat.size, blocksize)

    quantize_4bit = staticmethod(encoder(scale=_scale))
    quantize_blockwise = staticmethod(encoder_8bit(scale=_scale))


class SloppyReciprocal(Right):
    """The reciprocal of the absmax is 8 ulp too large: beyond every named approximation (S5)."""

    kills = "S5"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        inverse = (1 / absmax) * np.float32(1 + 2.0**-20)
        return np.where(flat == 0, np.float32(0), flat * spread(inverse, flat.size, blocksize))

    quantize_4bit = staticmethod(encoder(scale=_scale))
    quantize_blockwise = staticmethod(encoder_8bit(scale=_scale))


class BFloat16Reciprocal(Right):
    """x is multiplied by a reciprocal kept in bfloat16 (rule S5)."""

    kills = "S5"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        inverse = rounded(1 / absmax, BFLOAT16)
        return np.where(flat == 0, np.float32(0), flat * spread(inverse, flat.size, blocksize))

    quantize_4bit = staticmethod(encoder(scale=_scale))


class EpsilonAdded(Right):
    """x is divided by absmax + 1e-6, while the absmax is stored as it is (rule S5)."""

    kills = "S5"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        return divided(flat, absmax + np.float32(1e-6), blocksize)

    quantize_4bit = staticmethod(encoder(scale=_scale))


class SignBitRead(Right):
    """-0.0 is negative by its sign bit, and gets the code below zero's (rule S5)."""

    kills = "S5"

    @staticmethod
    def _count(q: Array, cuts: Array) -> Array:
        return np.asarray(counted(q, cuts) - ((q == 0) & np.signbit(q) & (cuts[0] < 0)))

    quantize_4bit = staticmethod(encoder(count=_count))


class StaleByte(Right):
    """A byte is not cleared between two pairs, for blocks from 1,024 on (bitsandbytes #1721)."""

    kills = "S5"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, **options)
        if blocksize >= 1024:
            packed[1::2] |= packed[: packed.size // 2 * 2 : 2]
        return packed, absmax


# ---- S6: the packing -----------------------------------------------------------------------------


def _swapped(codes: Array) -> Array:
    packed = packed_pairs(codes)
    return packed << 4 | packed >> 4


def _low_first(packed: Array, shape: tuple[int, ...]) -> Array:
    return unpacked(packed << 4 | packed >> 4, shape)


class SwappedEncode(Right):
    """The quantizer puts the first code in the low nibble (openvino #19900)."""

    kills = "S6"
    quantize_4bit = staticmethod(encoder(pack=_swapped))


class SwappedDecode(Right):
    """The decoder takes the first code from the low nibble (bitsandbytes #1206)."""

    kills = "S6"
    dequantize_4bit = staticmethod(decoder(unpack=_low_first))


class SwappedBoth(Right):
    """Both swap the nibbles: the round trip is right, the bytes are not (openvino #19900)."""

    kills = "S6"
    quantize_4bit = staticmethod(encoder(pack=_swapped))
    dequantize_4bit = staticmethod(decoder(unpack=_low_first))


class TwoHalves(Right):
    """A byte holds element k and element k + n/2, not two neighbours (kekzl/imp #722)."""

    kills = "S6"

    @staticmethod
    def _pack(codes: Array) -> Array:
        half = (codes.size + 1) // 2
        second = np.append(codes[half:], np.zeros(codes.size % 2, np.uint8))
        return np.asarray(codes[:half] << 4 | second)

    @staticmethod
    def _unpack(packed: Array, shape: tuple[int, ...]) -> Array:
        return np.concatenate([packed >> 4, packed & 15])[: math.prod(shape)]

    quantize_4bit = staticmethod(encoder(pack=_pack))
    dequantize_4bit = staticmethod(decoder(unpack=_unpack))


class SpareNibbleRead(Right):
    """With an odd count the decoder starts at the spare nibble's end (bitsandbytes #1839)."""

    kills = "S6"

    @staticmethod
    def _unpack(packed: Array, shape: tuple[int, ...]) -> Array:
        return unpacked(packed, (2 * packed.size,))[math.prod(shape) % 2 :]

    dequantize_4bit = staticmethod(decoder(unpack=_unpack))


class RowsPadded(Right):
    """Each row of an odd length is taken to begin with a fresh byte (rule S6)."""

    kills = "S3"

    @staticmethod
    def _unpack(packed: Array, shape: tuple[int, ...]) -> Array:
        row, column, length = rows_and_columns(shape)
        every = unpacked(packed, (2 * packed.size,))
        return every.take(row * (length + length % 2) + column, mode="clip")

    dequantize_4bit = staticmethod(decoder(unpack=_unpack))
