"""Wrong scales (S4): what becomes of the largest magnitude of a block."""

import numpy as np

from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes.steps import cut_to_bfloat16
from qloracle_conformance.mutants.parts import Array, encoder, encoders, fault, peaks, widened


def _skips_last(flat: Array, blocksize: int) -> Array:
    place = np.arange(flat.size)
    last = (place % blocksize == blocksize - 1) | (place == flat.size - 1)
    return peaks(np.where(last & (place % blocksize > 0), 0, flat), blocksize)


def _power_of_two(flat: Array, blocksize: int) -> Array:
    mantissa, exponent = np.frexp(peaks(flat, blocksize))
    return np.asarray(np.ldexp(np.ceil(mantissa), exponent - (mantissa == 0.5)))


def _tiny_if_short(flat: Array, blocksize: int) -> Array:
    absmax = peaks(flat, blocksize)
    if flat.size % blocksize and not absmax[-1]:
        absmax[-1] = 1e-38
    return absmax


# fmt: off

PeakSkipsLast = fault("S4", "The absmax leaves out the last element of its block (rule S4).",
    **encoders(peak=_skips_last))
PeakOfHalfABlock = fault("S4",
    "The reduction runs over 32 lanes of a block of 64 (bitsandbytes #1885: wave32, wave64).",
    quantize_4bit=encoder(peak=lambda x, b:
        peaks(np.where((np.arange(x.size) % b >= 32) & (b == 64), 0, x), b)))
PeakOfPadding = fault("S4",
    "A short last block is padded with what lies in memory, which counts (bitsandbytes #1884).",
    quantize_4bit=encoder(peak=lambda x, b: peaks(np.resize(x, -(-x.size // b) * b), b)))
SignedPeak = fault("S4", "The absmax is the largest value, not the largest magnitude (rule S4).",
    quantize_4bit=encoder(peak=lambda x, b: np.maximum.reduceat(x, np.arange(0, x.size, b))))
BFloat16Scales = fault("S4", "The absmax is kept in bfloat16, undeclared (rule S4).",
    quantize_4bit=encoder(peak=lambda x, b: parts.rounded(peaks(x, b), parts.BFLOAT16)))
Float16Scales = fault("S4",
    "The absmax is kept in float16, undeclared: 70,000 is infinite (bitsandbytes #543).",
    **encoders(peak=lambda x, b: parts.rounded(peaks(x, b), np.float16)))
PowerOfTwoScales = fault("S4",
    "The absmax is rounded up to a power of two, as MX formats want it (rule S4).",
    quantize_4bit=encoder(peak=_power_of_two))
PeakAtLeast = fault("S4",
    "The absmax is at least 1e-8, against division by zero (as after GPTQModel #1531).",
    **encoders(peak=lambda x, b: np.maximum(peaks(x, b), np.float32(1e-8))))
ShortZerosStoreTiny = fault("S4",
    "A short block of zeros stores 1e-38 (bitsandbytes 0.50.2, its default backend).",
    quantize_4bit=encoder(peak=_tiny_if_short))
ZerosStoreOne = fault("S4",
    "A block of zeros stores the scale 1, which enters the mean of a double quantization (S4).",
    quantize_4bit=encoder(peak=lambda x, b:
        np.where(peaks(x, b) == 0, np.float32(1), peaks(x, b))))
InputNarrowed = fault("S4",
    "float32 input is narrowed to bfloat16 on the way in (axolotl #3799: not fp16, so bf16).",
    quantize_4bit=encoder(widen=lambda x:
        widened(x if x.dtype == np.float16 else x.astype(parts.BFLOAT16))))
Float16Truncated = fault("S4",
    "float16 input passes through bfloat16, its last bits cut off (rule S4).",
    quantize_4bit=encoder(widen=lambda x:
        cut_to_bfloat16(widened(x)) if x.dtype == np.float16 else widened(x)))
