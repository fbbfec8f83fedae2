"""Wrong scales (S4): what becomes of the largest magnitude of a block."""

from __future__ import annotations

import numpy as np

from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    cut_to_bfloat16,
    encoder,
    encoder_8bit,
    peaks,
    rounded,
    widened,
)


class PeakSkipsLast(Right):
    """The absmax leaves out the last element of its block (rule S4)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        place = np.arange(flat.size)
        last = (place % blocksize == blocksize - 1) | (place == flat.size - 1)
        return peaks(np.where(last & (place % blocksize > 0), 0, flat), blocksize)

    quantize_4bit = staticmethod(encoder(peak=_peak))
    quantize_blockwise = staticmethod(encoder_8bit(peak=_peak))


class PeakOfHalfABlock(Right):
    """The reduction runs over 32 lanes of a block of 64 (bitsandbytes #1885: wave32, wave64)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        beyond = (np.arange(flat.size) % blocksize >= 32) & (blocksize == 64)
        return peaks(np.where(beyond, 0, flat), blocksize)

    quantize_4bit = staticmethod(encoder(peak=_peak))


class PeakOfPadding(Right):
    """A short last block is padded with what lies in memory, which counts (bitsandbytes #1884)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        whole = -(-flat.size // blocksize) * blocksize
        return peaks(np.resize(flat, whole), blocksize)

    quantize_4bit = staticmethod(encoder(peak=_peak))


class SignedPeak(Right):
    """The absmax is the largest value, not the largest magnitude (rule S4)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        return np.maximum.reduceat(flat, np.arange(0, flat.size, blocksize))

    quantize_4bit = staticmethod(encoder(peak=_peak))


class BFloat16Scales(Right):
    """The absmax is kept in bfloat16 and not declared so (rule S4)."""

    kills = "S4"
    quantize_4bit = staticmethod(encoder(peak=lambda x, b: rounded(peaks(x, b), BFLOAT16)))


class Float16Scales(Right):
    """The absmax is kept in float16, undeclared: 70,000 is infinite (bitsandbytes #543)."""

    kills = "S4"
    quantize_4bit = staticmethod(encoder(peak=lambda x, b: rounded(peaks(x, b), np.float16)))
    quantize_blockwise = staticmethod(
        encoder_8bit(peak=lambda x, b: rounded(peaks(x, b), np.float16))
    )


class PowerOfTwoScales(Right):
    """The absmax is rounded up to a power of two, as MX formats want it (rule S4)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        mantissa, exponent = np.frexp(peaks(flat, blocksize))
        return np.asarray(np.ldexp(np.ceil(mantissa), exponent - (mantissa == 0.5)))

    quantize_4bit = staticmethod(encoder(peak=_peak))


class PeakAtLeast(Right):
    """The absmax is at least 1e-8, against division by zero (as after GPTQModel #1531)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        return np.maximum(peaks(flat, blocksize), np.float32(1e-8))

    quantize_4bit = staticmethod(encoder(peak=_peak))
    quantize_blockwise = staticmethod(encoder_8bit(peak=_peak))


class ShortZerosStoreTiny(Right):
    """A short block of zeros stores 1e-38 (bitsandbytes 0.50.2, its default backend)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        absmax = peaks(flat, blocksize)
        if flat.size % blocksize and not absmax[-1]:
            absmax[-1] = 1e-38
        return absmax

    quantize_4bit = staticmethod(encoder(peak=_peak))


class ZerosStoreOne(Right):
    """A block of zeros stores the scale 1, which enters the mean of a double quantization (S4)."""

    kills = "S4"

    @staticmethod
    def _peak(flat: Array, blocksize: int) -> Array:
        absmax = peaks(flat, blocksize)
        return np.where(absmax == 0, np.float32(1), absmax)

    quantize_4bit = staticmethod(encoder(peak=_peak))


class InputNarrowed(Right):
    """float32 input is narrowed to bfloat16 on the way in (axolotl #3799: not fp16, so bf16)."""

    kills = "S4"

    @staticmethod
    def _widen(x: Array) -> Array:
        return widened(x if x.dtype == np.float16 else x.astype(BFLOAT16))

    quantize_4bit = staticmethod(encoder(widen=_widen))


class Float16Truncated(Right):
    """float16 input passes through bfloat16, its last bits cut off (rule S4)."""

    kills = "S4"

    @staticmethod
    def _widen(x: Array) -> Array:
        flat = widened(x)
        return cut_to_bfloat16(flat) if x.dtype == np.float16 else flat

    quantize_4bit = staticmethod(encoder(widen=_widen))
