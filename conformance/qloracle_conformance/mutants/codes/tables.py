"""Wrong tables (S1) and wrong thresholds (S2): the lists of numbers that a port types in."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

import math
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    NF4,
    Array,
    Right,
    Step,
    coded,
    counted,
    decoder,
    divided,
    encoder,
    encoder_8bit,
    nf4_as,
    packed_pairs,
    peaks,
    rounded,
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
