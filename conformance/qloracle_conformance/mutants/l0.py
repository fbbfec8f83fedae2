"""Faulty implementations of L0, in the order of the rules: what goes wrong with NF4 in the wild.

Each is the reference with one step replaced.  The docstring is the story and its source, `kills`
the rule that must notice it.
"""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    NF4,
    Array,
    Right,
    Step,
    block_index,
    coded,
    counted,
    decoder,
    decoder_8bit,
    divided,
    encoder,
    encoder_8bit,
    nf4_as,
    packed_pairs,
    peaks,
    product,
    rounded,
    spread,
    unpacked,
    widened,
    with_entry,
)

# ---- S1: the table -------------------------------------------------------------------------------


class FourDecimals(Right):
    """The table is typed with four decimals (torchao's nf4tensor.py; pytorch/ao #295)."""

    kills = "S1"
    levels = nf4_as(NF4.astype(np.float64).round(4).astype(np.float32))
    quantize_4bit = staticmethod(encoder(levels=levels))
    dequantize_4bit = staticmethod(decoder(levels=levels))


class PaperOffset(Right):
    """The table is computed by the paper's formula, not with bitsandbytes' constant (rule S1)."""

    kills = "S1"
    levels = nf4_as(qloracle.normal_float_codebook(4))
    quantize_4bit = staticmethod(encoder(levels=levels))
    dequantize_4bit = staticmethod(decoder(levels=levels))


class NotesTable(Right):
    """The symmetric table of study notes, which has no zero, is sold as nf4 (rule S1)."""

    kills = "S1"
    levels = nf4_as(qloracle.notes_codebook())
    quantize_4bit = staticmethod(encoder(levels=levels))
    dequantize_4bit = staticmethod(decoder(levels=levels))


class ZeroIsCodeNought(Right):
    """Code 0 names zero and codes 1 to 7 the negatives; a round trip sees nothing (trueno #195)."""

    kills = "S1"
    levels = nf4_as(np.concatenate([NF4[7:8], NF4[:7], NF4[8:]]))
    quantize_4bit = staticmethod(encoder(levels=levels))
    dequantize_4bit = staticmethod(decoder(levels=levels))


class BFloat16Table(Right):
    """The decoder keeps its table in bfloat16 (pytorch/ao #295: a table in the weight's type)."""

    kills = "S1"
    dequantize_4bit = staticmethod(decoder(levels=nf4_as(rounded(NF4, BFLOAT16))))


class TypingSlip(Right):
    """One level is typed as 0.24611294 and not 0.24611230 (trueno #195: hand-typed tables)."""

    kills = "S1"
    dequantize_4bit = staticmethod(decoder(levels=nf4_as(with_entry(NF4, 10, 0.24611294))))


class TwoDigits(Right):
    """One level is rounded to two digits: a mean error over random weights cannot see it (S1)."""

    kills = "S1"
    dequantize_4bit = staticmethod(decoder(levels=nf4_as(with_entry(NF4, 14, 0.72))))


class AlmostZero(Right):
    """The level of zero is 0.001, so that padding and pruned weights move (rule S1)."""

    kills = "S1"
    dequantize_4bit = staticmethod(decoder(levels=nf4_as(with_entry(NF4, 7, 1e-3))))


def _fp4_by_size(quant_type: str) -> Array:
    """FP4 with its codes in the order of the magnitudes."""
    table = qloracle.codebook(quant_type)
    if quant_type != "fp4":
        return table
    return np.concatenate([np.sort(table[:8]), -np.sort(table[:8])])


class FP4BySize(Right):
    """FP4's codes follow the size of the magnitudes, as E2M1's do, and not bitsandbytes' table."""

    kills = "S1"
    dequantize_4bit = staticmethod(decoder(levels=_fp4_by_size))


class FP4Truncated(Right):
    """FP4's smallest level is typed as 0.00520833, 7 ulp too small (bitsandbytes #2025)."""

    kills = "S1"
    dequantize_4bit = staticmethod(
        decoder(
            levels=lambda name: (
                with_entry(qloracle.fp4_codebook(), 1, 0.00520833)
                if name == "fp4"
                else qloracle.codebook(name)
            )
        )
    )


# ---- S2: the thresholds --------------------------------------------------------------------------


def _at_or_above(q: Array, cuts: Array) -> Array:
    return np.searchsorted(cuts, q, side="right")


class TieTakesUpper(Right):
    """A tie takes the upper code, >= for > (web-rwkv's quant_mat_nf4.wgsl)."""

    kills = "S2"
    quantize_4bit = staticmethod(encoder(count=_at_or_above))


class TieTakesUpper8Bit(Right):
    """A tie takes the upper code in the 8-bit quantizer (rule S2)."""

    kills = "S2"
    quantize_blockwise = staticmethod(encoder_8bit(count=_at_or_above))


def _moved(place: int, by: float) -> Step:
    """Thresholds of which one is moved; `by` infinity moves it by one float32."""

    def cuts(table: Array) -> Array:
        right = qloracle.thresholds(table)
        if not np.array_equal(table, NF4):
            return right
        wrong = np.nextafter(right[place], np.float32(by)) if math.isinf(by) else right[place] + by
        return with_entry(right, place, wrong)

    return cuts


class ThresholdOneUlp(Right):
    """One threshold lies one float32 too high (nncf #3387)."""

    kills = "S2"
    quantize_4bit = staticmethod(encoder(cuts=_moved(5, math.inf)))


class ThresholdOff(Right):
    """One threshold lies 0.005 too high; 95 % of the codes still match (rule S2)."""

    kills = "S2"
    quantize_4bit = staticmethod(encoder(cuts=_moved(10, 0.005)))


class Float16Distances(Right):
    """The nearest level is searched by distances in float16 (rule S2)."""

    kills = "S2"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64) -> tuple[Array, Array]:
        flat = widened(x)
        absmax = peaks(flat, blocksize)
        q = divided(flat, absmax, blocksize).astype(np.float16)
        distances = np.abs(q[:, None] - NF4.astype(np.float16))
        return packed_pairs(distances.argmin(axis=1).astype(np.uint8)), absmax


class MirroredThresholds(Right):
    """Negative values take the mirrored code of their magnitude; NF4 is not symmetric (rule S2)."""

    kills = "S2"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64) -> tuple[Array, Array]:
        flat = widened(x)
        absmax = peaks(flat, blocksize)
        q = divided(flat, absmax, blocksize)
        above = coded(np.abs(q), NF4, "nf4", qloracle.thresholds, counted)
        return packed_pairs(np.where(q < 0, 14 - np.minimum(above, 14), above)), absmax


class FP4WithoutSign(Right):
    """FP4's sign bit is never set (rule S5)."""

    kills = "S5"

    @staticmethod
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
        return packed & np.uint8(0x77 if quant_type == "fp4" else 0xFF), absmax


class LowerLevel8Bit(Right):
    """The 8-bit quantizer takes the level below, not the nearest (bitsandbytes #1582)."""

    kills = "S2"
    quantize_blockwise = staticmethod(encoder_8bit(cuts=lambda table: table[1:]))


class GridOf65536(Right):
    """A look-up on 65,536 bins, none of which is zero: 0 is read as 1.5e-5 (bitsandbytes #1901)."""

    kills = "S5"
    quantize_blockwise = staticmethod(
        encoder_8bit(
            count=lambda q, cuts: counted(
                np.floor((q + 1) * np.float32(32767.5) + np.float32(0.5)) / np.float32(32767.5) - 1,
                cuts,
            )
        )
    )


class LastLevelNeverUsed(Right):
    """A binary search over the pivots 127, 63, ... that cannot reach the last level (rule S5)."""

    kills = "S5"
    quantize_blockwise = staticmethod(
        encoder_8bit(count=lambda q, cuts: np.minimum(counted(q, cuts), cuts.size - 1))
    )


class CodebookIgnored(Right):
    """Both 8-bit functions use the signed dynamic map, whatever map is passed in (rule S5)."""

    kills = "S5"

    @staticmethod
    def quantize_blockwise(
        x: Array, codebook: Array, *, blocksize: int = 256
    ) -> tuple[Array, Array]:
        return qloracle.quantize_blockwise(x, qloracle.dynamic_codebook(), blocksize=blocksize)

    @staticmethod
    def dequantize_blockwise(codes: Array, absmax: Array, codebook: Array, **options: Any) -> Array:
        return qloracle.dequantize_blockwise(codes, absmax, qloracle.dynamic_codebook(), **options)


class MagnitudesOnly(Right):
    """A map without negative levels is taken for a map of magnitudes (rule S5)."""

    kills = "S5"
    quantize_blockwise = staticmethod(
        encoder_8bit(count=lambda q, cuts: counted(np.abs(q) if cuts[0] > 0 else q, cuts))
    )


class ShortMapPadded(Right):
    """A search of eight steps reads beyond the end of a map of fewer than 256 levels (rule S5)."""

    kills = "S5"
    quantize_blockwise = staticmethod(
        encoder_8bit(
            count=lambda q, cuts: np.where(
                (cuts.size < 255) & (q > cuts[-1]), 255, counted(q, cuts)
            )
        )
    )


# ---- S3: the blocks ------------------------------------------------------------------------------


def _rows(shape: tuple[int, ...]) -> tuple[Array, Array, int]:
    """Row and column of each element, and the length of a row."""
    length = max(shape[-1] if shape else 1, 1)
    place = np.arange(math.prod(shape))
    return place // length, place % length, length


def _restarting(shape: tuple[int, ...], blocksize: int) -> Array:
    """A block index that restarts at each row, counting whole blocks only."""
    row, column, length = _rows(shape)
    return np.asarray(row * (length // blocksize) + column // blocksize)


def _where(applies: Step, wrong: Step = _restarting) -> Step:
    """An index that is wrong where `applies(row length, block size)` says so."""

    def index(shape: tuple[int, ...], blocksize: int) -> Array:
        length = shape[-1] if shape else 1
        chosen = wrong if applies(length, blocksize) else block_index
        return np.asarray(chosen(shape, blocksize))

    return index


class RowsOfVectors(Right):
    """The block index restarts at each row if that is a multiple of 16 (bitsandbytes #1828)."""

    kills = "S3"
    dequantize_4bit = staticmethod(decoder(index=_where(lambda k, b: k % 16 == 0 and k % b)))


class RowsOf24(Right):
    """The same in one case only: blocks of 128 and rows that are a multiple of 24 (rule S3)."""

    kills = "S3"
    dequantize_4bit = staticmethod(
        decoder(index=_where(lambda k, b: b == 128 and k % 24 == 0 and k % b))
    )


class LongRows(Right):
    """The block index restarts at each row longer than a tile of 4,096 (rule S3)."""

    kills = "S3"
    dequantize_4bit = staticmethod(decoder(index=_where(lambda k, b: k > 4096 and k % b)))


class RowsCeiled(Right):
    """Each row is taken to start a block of its own (onnxruntime #29587: a layout per column)."""

    kills = "S3"

    @staticmethod
    def _index(shape: tuple[int, ...], blocksize: int) -> Array:
        row, column, length = _rows(shape)
        return np.asarray(row * -(-length // blocksize) + column // blocksize)

    dequantize_4bit = staticmethod(decoder(index=_index))


class BlocksPerRow(Right):
    """The quantizer starts a new block at each row and does not say so (onnxruntime #31152)."""

    kills = "S3"

    @staticmethod
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        table = qloracle.codebook(quant_type)
        rows = x.reshape(-1, x.shape[-1] if x.ndim and x.size else 1)
        parts = [qloracle.quantize_blockwise(row, table, blocksize=blocksize) for row in rows]
        empty = (np.zeros(0, np.uint8), np.zeros(0, np.float32))
        codes, absmax = (np.concatenate(part) for part in zip(empty, *parts, strict=True))
        return packed_pairs(codes), absmax


def _sixteen_bits(shape: tuple[int, ...], blocksize: int) -> Array:
    return block_index(shape, blocksize) & 0xFFFF


class Index16Bit(Right):
    """The block index has 16 bits: block 65,536 is decoded by the scale of block 0 (rule S3)."""

    kills = "S3"
    dequantize_4bit = staticmethod(decoder(index=_sixteen_bits))
    dequantize_blockwise = staticmethod(decoder_8bit(index=_sixteen_bits))


def _first_65536(flat: Array, absmax: Array, blocksize: int) -> Array:
    """Scale by the absmax whose index has only 16 bits."""
    return divided(flat, absmax[np.arange(absmax.size) & 0xFFFF], blocksize)


class Grid16Bit(Right):
    """A launch of 65,536 blocks at most: the others are scaled by wrong blocks (rule S3)."""

    kills = "S3"
    quantize_4bit = staticmethod(encoder(scale=_first_65536))
    quantize_blockwise = staticmethod(encoder_8bit(scale=_first_65536))


class NeighboursScale(Right):
    """A short last block is scaled by the absmax of the block before it (rule S3)."""

    kills = "S3"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        if flat.size % blocksize and absmax.size > 1:
            absmax = np.append(absmax[:-1], absmax[-2])
        return divided(flat, absmax, blocksize)

    quantize_4bit = staticmethod(encoder(scale=_scale))
    quantize_blockwise = staticmethod(encoder_8bit(scale=_scale))


class TilesOf64(Right):
    """The grid counts whole tiles of 64, and what is left over is never written (rule S3)."""

    kills = "S3"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = product(levels, scale, dtype)
        values[values.size // 64 * 64 :] = 0
        return values

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class ShortBlockUncoded(Right):
    """The grid covers whole blocks only: codes and absmax of a short last block stay 0 (S3)."""

    kills = "S3"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, **options)
        whole = x.size // blocksize
        packed[whole * blocksize // 2 :] = 0
        absmax[whole:] = 0
        return packed, absmax


class LastElementUncoded(Right):
    """The loop ends one element early, and the last code stays 0 (rule S3)."""

    kills = "S3"

    @staticmethod
    def _pack(codes: Array) -> Array:
        return packed_pairs(np.append(codes[:-1], np.zeros(codes.size > 0, np.uint8)))

    quantize_4bit = staticmethod(encoder(pack=_pack))


class NoTail(Right):
    """Vectors of 16 without a tail: what follows the last one is never decoded (rule S3)."""

    kills = "S3"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = product(levels, scale, dtype)
        values[values.size // 16 * 16 :] = 0
        return values

    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class NoBlocksOf512(Right):
    """The dispatch knows no blocks of 512, and the output stays zero (onnxruntime #28551)."""

    kills = "S3"

    @staticmethod
    def dequantize_4bit(
        packed: Array, absmax: Array, *, blocksize: int = 64, **options: Any
    ) -> Array:
        wanted = 0 if blocksize == 512 else 1
        scale = (absmax * np.float32(wanted)).astype(np.float32)
        return qloracle.dequantize_4bit(packed, scale, blocksize=blocksize, **options)


class BlocksOf4096(Right):
    """Blocks of 4,096 are sent to the kernel for 2,048 (as in bitsandbytes #1157)."""

    kills = "S3"

    @staticmethod
    def _index(shape: tuple[int, ...], blocksize: int) -> Array:
        return block_index(shape, min(blocksize, 2048))

    dequantize_4bit = staticmethod(decoder(index=_index))
    dequantize_blockwise = staticmethod(decoder_8bit(index=_index))


class EmptyRefused(Right):
    """An empty array is a launch of no blocks, and that is an error (bitsandbytes on CUDA)."""

    kills = "S3"

    @staticmethod
    def quantize_4bit(x: Array, **options: Any) -> tuple[Array, Array]:
        if not x.size:
            raise RuntimeError("invalid configuration argument")
        return qloracle.quantize_4bit(x, **options)


class OddRefused(Right):
    """An odd count of elements raises, as if padding were the caller's business (rule S3)."""

    kills = "S3"

    @staticmethod
    def quantize_4bit(x: Array, **options: Any) -> tuple[Array, Array]:
        if x.size % 2:
            raise ValueError(f"the number of elements must be even, got {x.size}")
        return qloracle.quantize_4bit(x, **options)


# ---- S4: the scales ------------------------------------------------------------------------------


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
        return _cut(flat) if x.dtype == np.float16 else flat

    quantize_4bit = staticmethod(encoder(widen=_widen))


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
        row, column, length = _rows(shape)
        every = unpacked(packed, (2 * packed.size,))
        return every.take(row * (length + length % 2) + column, mode="clip")

    dequantize_4bit = staticmethod(decoder(unpack=_unpack))


# ---- S7: the decoded values ----------------------------------------------------------------------


def _cut(values: Array) -> Array:
    """Keep bfloat16's bits of float32 and drop the others."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


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
        return (_cut(values) if dtype == BFLOAT16 else values).astype(dtype)

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
