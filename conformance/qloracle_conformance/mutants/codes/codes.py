"""Wrong codes (S5) and wrong packing (S6)."""

import math
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes.steps import by_inverse
from qloracle_conformance.mutants.parts import Array, Shape, decoder, encoder, fault, unpacked


def _below_minus_zero(q: Array, thresholds: Array) -> Array:
    signed = (q == 0) & np.signbit(q) & (thresholds[0] < 0)
    return np.asarray(parts.counted(q, thresholds) - signed)


def _stale_byte(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
    packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, **options)
    if blocksize >= 1024:
        packed[1::2] |= packed[: packed.size // 2 * 2 : 2]
    return packed, absmax


def _swapped(packed: Array) -> Array:
    return packed << 4 | packed >> 4


def _pack_swapped(codes: Array) -> Array:
    return _swapped(parts.packed_pairs(codes))


def _unpack_swapped(packed: Array, shape: Shape) -> Array:
    return unpacked(_swapped(packed), shape)


def _pack_halves(codes: Array) -> Array:
    half = (codes.size + 1) // 2
    second = np.append(codes[half:], np.zeros(codes.size % 2, np.uint8))
    return np.asarray(codes[:half] << 4 | second)


def _unpack_rows(packed: Array, shape: Shape) -> Array:
    row, column, length = parts.rows_and_columns(shape)
    every = unpacked(packed, (2 * packed.size,))
    return every.take(row * (length + length % 2) + column, mode="clip")


# fmt: off
# ---- S5: the codes -------------------------------------------------------------------------------
ZerosAreNaN = fault("S5",
    "0 * (1 / 0) is NaN, so a block of zeros gets code 0, undeclared (bitsandbytes on CUDA).",
    **parts.encoders(scale=lambda flat, absmax, blocksize:
        flat * parts.spread(np.float32(1) / absmax, flat.size, blocksize)))
SloppyReciprocal = fault("S5",
    "The reciprocal of the absmax is 8 ulp too large: beyond every named approximation (S5).",
    **parts.encoders(scale=by_inverse(lambda absmax: (1 / absmax) * np.float32(1 + 2.0**-20))))
BFloat16Reciprocal = fault("S5", "x is multiplied by a reciprocal kept in bfloat16 (rule S5).",
    quantize_4bit=encoder(
        scale=by_inverse(lambda absmax: parts.rounded(1 / absmax, parts.BFLOAT16))))
EpsilonAdded = fault("S5",
    "x is divided by absmax + 1e-6, while the absmax is stored as it is (rule S5).",
    quantize_4bit=encoder(scale=lambda flat, absmax, blocksize:
        parts.divided(flat, absmax + np.float32(1e-6), blocksize)))
SignBitRead = fault("S5",
    "-0.0 is negative by its sign bit, and gets the code below zero's (rule S5).",
    quantize_4bit=encoder(count=_below_minus_zero))
StaleByte = fault("S5",
    "A byte is not cleared between two pairs, for blocks from 1,024 on (bitsandbytes #1721).",
    quantize_4bit=_stale_byte)

# ---- S6: the packing -----------------------------------------------------------------------------
SwappedEncode = fault("S6",
    "The quantizer puts the first code in the low nibble (openvino #19900).",
    quantize_4bit=encoder(pack=_pack_swapped))
SwappedDecode = fault("S6",
    "The decoder takes the first code from the low nibble (bitsandbytes #1206).",
    dequantize_4bit=decoder(unpack=_unpack_swapped))
SwappedBoth = fault("S6",
    "Both swap the nibbles: the round trip is right, the bytes are not (openvino #19900).",
    quantize_4bit=encoder(pack=_pack_swapped), dequantize_4bit=decoder(unpack=_unpack_swapped))
TwoHalves = fault("S6",
    "A byte holds element k and element k + n/2, not two neighbours (kekzl/imp #722).",
    quantize_4bit=encoder(pack=_pack_halves),
    dequantize_4bit=decoder(unpack=lambda packed, shape:
        np.concatenate([packed >> 4, packed & 15])[: math.prod(shape)]))
SpareNibbleRead = fault("S6",
    "With an odd count the decoder starts at the spare nibble's end (bitsandbytes #1839).",
    dequantize_4bit=decoder(unpack=lambda packed, shape:
        unpacked(packed, (2 * packed.size,))[math.prod(shape) % 2 :]))
RowsPadded = fault("S3", "Each row of an odd length is taken to begin with a fresh byte (rule S6).",
    dequantize_4bit=decoder(unpack=_unpack_rows))
