"""Wrong scales (S4), wrong codes (S5) and wrong packing (S6)."""

import math
from functools import partial
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes.steps import by_inverse, cut_to_bfloat16
from qloracle_conformance.mutants.parts import Array, Decoder, Encoder, Shape, fault, peaks, widened

LOW_FIRST = Encoder(pack=partial(expected.pack, order="low_first"))
READS_LOW_FIRST = Decoder(
    unpack=lambda packed, shape: expected.unpack(packed, math.prod(shape), "low_first")
)


def _skips_last(flat: Array, blocksize: int) -> Array:
    place = np.arange(flat.size)
    last = (place % blocksize == blocksize - 1) | (place == flat.size - 1)
    return peaks(np.where(last & (place % blocksize > 0), 0, flat), blocksize)


def _tiny_if_short(flat: Array, blocksize: int) -> Array:
    absmax = peaks(flat, blocksize)
    if flat.size % blocksize and not absmax[-1]:
        absmax[-1] = 1e-38
    return absmax


def _stale_byte(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
    packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, **options)
    if blocksize >= 1024:
        packed[1::2] |= packed[: packed.size // 2 * 2 : 2]
    return packed, absmax


def _unpack_rows(packed: Array, shape: Shape) -> Array:
    row, column, length = parts.rows_and_columns(shape)
    every = parts.unpacked(packed, (2 * packed.size,))
    return every.take(row * (length + length % 2) + column, mode="clip")


# fmt: off
# ---- S4: the largest magnitude of a block --------------------------------------------------------
PeakSkipsLast = fault("S4", "The absmax leaves out the last element of its block (rule S4).",
    **Encoder(peak=_skips_last).both())
PeakOfHalfABlock = fault("S4",
    "The reduction runs over 32 lanes of a block of 64 (bitsandbytes #1885: wave32, wave64).",
    quantize_4bit=Encoder(peak=lambda x, b:
        peaks(np.where((np.arange(x.size) % b >= 32) & (b == 64), 0, x), b)).four_bit)
PeakOfPadding = fault("S4",
    "A short last block is padded with what lies in memory, which counts (bitsandbytes #1884).",
    quantize_4bit=Encoder(peak=lambda x, b: peaks(np.resize(x, -(-x.size // b) * b), b)).four_bit)
SignedPeak = fault("S4", "The absmax is the largest value, not the largest magnitude (rule S4).",
    quantize_4bit=Encoder(
        peak=lambda x, b: np.maximum.reduceat(x, np.arange(0, x.size, b))).four_bit)
BFloat16Scales = fault("S4", "The absmax is kept in bfloat16, undeclared (rule S4).",
    quantize_4bit=Encoder(peak=lambda x, b: parts.rounded(peaks(x, b), parts.BFLOAT16)).four_bit)
Float16Scales = fault("S4",
    "The absmax is kept in float16, undeclared: 70,000 is infinite (bitsandbytes #543).",
    **Encoder(peak=lambda x, b: parts.rounded(peaks(x, b), np.float16)).both())
PowerOfTwoScales = fault("S4",
    "The absmax is rounded up to a power of two, as MX formats want it (rule S4).",
    quantize_4bit=Encoder(peak=lambda x, b:
        np.exp2(np.ceil(np.log2(peaks(x, b), dtype=np.float64))).astype(np.float32)).four_bit)
PeakAtLeast = fault("S4",
    "The absmax is at least 1e-8, against division by zero (as after GPTQModel #1531).",
    **Encoder(peak=lambda x, b: np.maximum(peaks(x, b), np.float32(1e-8))).both())
ShortZerosStoreTiny = fault("S4",
    "A short block of zeros stores 1e-38 (bitsandbytes 0.50.2, its default backend).",
    quantize_4bit=Encoder(peak=_tiny_if_short).four_bit)
ZerosStoreOne = fault("S4",
    "A block of zeros stores the scale 1, which enters the mean of a double quantization (S4).",
    quantize_4bit=Encoder(peak=lambda x, b:
        np.where(peaks(x, b) == 0, np.float32(1), peaks(x, b))).four_bit)
InputNarrowed = fault("S4",
    "float32 input is narrowed to bfloat16 on the way in (axolotl #3799: not fp16, so bf16).",
    quantize_4bit=Encoder(widen=lambda x:
        widened(x if x.dtype == np.float16 else x.astype(parts.BFLOAT16))).four_bit)
Float16Truncated = fault("S4",
    "float16 input passes through bfloat16, its last bits cut off (rule S4).",
    quantize_4bit=Encoder(widen=lambda x:
        cut_to_bfloat16(widened(x)) if x.dtype == np.float16 else widened(x)).four_bit)

# ---- S5: the codes -------------------------------------------------------------------------------
ZerosAreNaN = fault("S5",
    "0 * (1 / 0) is NaN, so a block of zeros gets code 0, undeclared (bitsandbytes on CUDA).",
    **Encoder(scale=lambda flat, absmax, blocksize:
        flat * parts.spread(np.float32(1) / absmax, flat.size, blocksize)).both())
SloppyReciprocal = fault("S5",
    "The reciprocal of the absmax is 8 ulp too large: beyond every named approximation (S5).",
    **Encoder(scale=by_inverse(lambda absmax: (1 / absmax) * np.float32(1 + 2.0**-20))).both())
BFloat16Reciprocal = fault("S5", "x is multiplied by a reciprocal kept in bfloat16 (rule S5).",
    quantize_4bit=Encoder(
        scale=by_inverse(lambda absmax: parts.rounded(1 / absmax, parts.BFLOAT16))).four_bit)
EpsilonAdded = fault("S5",
    "x is divided by absmax + 1e-6, while the absmax is stored as it is (rule S5).",
    quantize_4bit=Encoder(scale=lambda flat, absmax, blocksize:
        parts.divided(flat, absmax + np.float32(1e-6), blocksize)).four_bit)
SignBitRead = fault("S5",
    "-0.0 is negative by its sign bit, and gets the code below zero's (rule S5).",
    quantize_4bit=Encoder(rank=lambda q, thresholds:
        parts.counted(q, thresholds) - ((q == 0) & np.signbit(q) & (thresholds[0] < 0))).four_bit)
StaleByte = fault("S5",
    "A byte is not cleared between two pairs, for blocks from 1,024 on (bitsandbytes #1721).",
    quantize_4bit=_stale_byte)

# ---- S6: the packing -----------------------------------------------------------------------------
SwappedEncode = fault("S6",
    "The quantizer puts the first code in the low nibble (openvino #19900).",
    quantize_4bit=LOW_FIRST.four_bit)
SwappedDecode = fault("S6",
    "The decoder takes the first code from the low nibble (bitsandbytes #1206).",
    dequantize_4bit=READS_LOW_FIRST.four_bit)
SwappedBoth = fault("S6",
    "Both swap the nibbles: the round trip is right, the bytes are not (openvino #19900).",
    quantize_4bit=LOW_FIRST.four_bit,
    dequantize_4bit=READS_LOW_FIRST.four_bit)
TwoHalves = fault("S6",
    "A byte holds element k and element k + n/2, not two neighbours (kekzl/imp #722).",
    quantize_4bit=Encoder(pack=lambda codes: parts.packed_pairs(np.append(
        codes, np.zeros(codes.size % 2, np.uint8)).reshape(2, -1).T.reshape(-1))).four_bit,
    dequantize_4bit=Decoder(unpack=lambda packed, shape:
        np.concatenate([packed >> 4, packed & 15])[: math.prod(shape)]).four_bit)
SpareNibbleRead = fault("S6",
    "With an odd count the decoder starts at the spare nibble's end (bitsandbytes #1839).",
    dequantize_4bit=Decoder(unpack=lambda packed, shape:
        parts.unpacked(packed, (2 * packed.size,))[math.prod(shape) % 2 :]).four_bit)
RowsPadded = fault("S3", "Each row of an odd length is taken to begin with a fresh byte (rule S6).",
    dequantize_4bit=Decoder(unpack=_unpack_rows).four_bit)
