"""Wrong tables (S1) and wrong thresholds (S2): the lists of numbers that a port types in."""

import numpy as np

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes import steps
from qloracle_conformance.mutants.codes.steps import in_nf4, levels_with, with_entry
from qloracle_conformance.mutants.parts import NF4, Array, Decoder, Encoder, counted, fault

FP4 = qloracle.fp4_codebook()
DYNAMIC = qloracle.dynamic_codebook()
GRID = np.float32(32767.5)


def _both(levels: parts.Levels) -> dict[str, parts.Step]:
    """Both 4-bit functions over the same levels."""
    return {
        "quantize_4bit": Encoder(levels=levels).four_bit,
        "dequantize_4bit": Decoder(levels=levels).four_bit,
    }


def _at_or_above(q: Array, thresholds: Array) -> Array:
    return np.searchsorted(thresholds, q, side="right")


def _moved(place: int, move: parts.Thresholds) -> parts.Thresholds:
    """NF4's thresholds with one of them moved."""

    def thresholds(table: Array) -> Array:
        right = qloracle.thresholds(table)
        known = np.array_equal(table, NF4)
        return with_entry(right, place, move(right)[place]) if known else right

    return thresholds


def _mirrored(q: Array) -> Array:
    """NF4's codes, those of negative values counted from the other end."""
    above = parts.coded(np.abs(q), NF4, "nf4", qloracle.thresholds, counted)
    return np.where(q < 0, 14 - np.minimum(above, 14), above)


# fmt: off
# ---- S1: the table -------------------------------------------------------------------------------
FourDecimals = fault("S1",
    "The table is typed with four decimals (torchao's nf4tensor.py; pytorch/ao #295).",
    **_both(levels_with(nf4=NF4.astype(np.float64).round(4).astype(np.float32))))
PaperOffset = fault("S1",
    "The table is computed by the paper's formula, not with bitsandbytes' constant (rule S1).",
    **_both(levels_with(nf4=qloracle.normal_float_codebook(4))))
NotesTable = fault("S1",
    "The symmetric table of study notes, which has no zero, is sold as nf4 (rule S1).",
    **_both(levels_with(nf4=qloracle.notes_codebook())))
ZeroIsCodeNought = fault("S1",
    "Code 0 names zero and codes 1 to 7 the negatives; a round trip sees nothing (trueno #195).",
    **_both(levels_with(nf4=np.concatenate([NF4[7:8], NF4[:7], NF4[8:]]))))
BFloat16Table = fault("S1",
    "The decoder keeps its table in bfloat16 (pytorch/ao #295: a table in the weight's type).",
    dequantize_4bit=Decoder(levels=levels_with(nf4=parts.rounded(NF4, parts.BFLOAT16))).four_bit)
TypingSlip = fault("S1",
    "One level is typed as 0.24611294 and not 0.24611230 (trueno #195: hand-typed tables).",
    dequantize_4bit=Decoder(levels=levels_with(nf4=with_entry(NF4, 10, 0.24611294))).four_bit)
TwoDigits = fault("S1",
    "One level is rounded to two digits: a mean error over random weights cannot see it (S1).",
    dequantize_4bit=Decoder(levels=levels_with(nf4=with_entry(NF4, 14, 0.72))).four_bit)
AlmostZero = fault("S1",
    "The level of zero is 0.001, so that padding and pruned weights move (rule S1).",
    dequantize_4bit=Decoder(levels=levels_with(nf4=with_entry(NF4, 7, 1e-3))).four_bit)
FP4BySize = fault("S1",
    "FP4's codes follow the size of the magnitudes, as E2M1's do, and not bitsandbytes' table.",
    dequantize_4bit=Decoder(
        levels=levels_with(fp4=np.append(np.sort(FP4[:8]), -np.sort(FP4[:8])))).four_bit)
FP4Truncated = fault("S1",
    "FP4's smallest level is typed as 0.00520833, 7 ulp too small (bitsandbytes #2025).",
    dequantize_4bit=Decoder(levels=levels_with(fp4=with_entry(FP4, 1, 0.00520833))).four_bit)

# ---- S2: the thresholds --------------------------------------------------------------------------
TieTakesUpper = fault("S2", "A tie takes the upper code, >= for > (web-rwkv's quant_mat_nf4.wgsl).",
    quantize_4bit=Encoder(rank=_at_or_above).four_bit)
TieTakesUpper8Bit = fault("S2", "A tie takes the upper code in the 8-bit quantizer (rule S2).",
    quantize_blockwise=Encoder(rank=_at_or_above).eight_bit)
ThresholdOneUlp = fault("S2", "One threshold lies one float32 too high (nncf #3387).",
    quantize_4bit=Encoder(
        thresholds=_moved(5, lambda right: np.nextafter(right, np.float32(1)))).four_bit)
ThresholdOff = fault("S2",
    "One threshold lies 0.005 too high; 95 % of the codes still match (rule S2).",
    quantize_4bit=Encoder(thresholds=_moved(10, lambda right: right + 0.005)).four_bit)
Float16Distances = fault("S2", "The nearest level is found by distances in float16 (rule S2).",
    quantize_4bit=Encoder(rank=in_nf4(
        lambda q: np.abs(np.subtract.outer(q, NF4, dtype=np.float16)).argmin(axis=1))).four_bit)
MirroredThresholds = fault("S2",
    "Negative values take the mirrored code of their magnitude; NF4 is not symmetric (rule S2).",
    quantize_4bit=Encoder(rank=in_nf4(_mirrored)).four_bit)
FP4WithoutSign = fault("S5", "FP4's sign bit is never set (rule S5).",
    quantize_4bit=steps.fp4_encoder(parts.then(qloracle.quantize_4bit,
        lambda packed, absmax: (packed & np.uint8(0x77), absmax))))
LowerLevel8Bit = fault("S2",
    "The 8-bit quantizer takes the level below, not the nearest (bitsandbytes #1582).",
    quantize_blockwise=Encoder(thresholds=lambda table: table[1:]).eight_bit)

# ---- S5: the search in a map of 8 bits -----------------------------------------------------------
GridOf65536 = fault("S5",
    "A look-up on 65,536 bins, none of which is zero: 0 is read as 1.5e-5 (bitsandbytes #1901).",
    quantize_blockwise=Encoder(rank=lambda q, thresholds:
        counted(np.floor((q + 1) * GRID + np.float32(0.5)) / GRID - 1, thresholds)).eight_bit)
LastLevelNeverUsed = fault("S5",
    "A binary search over the pivots 127, 63, ... that cannot reach the last level (rule S5).",
    quantize_blockwise=Encoder(rank=lambda q, thresholds:
        np.minimum(counted(q, thresholds), thresholds.size - 1)).eight_bit)
CodebookIgnored = fault("S5",
    "Both 8-bit functions use the signed dynamic map, whatever map is passed in (rule S5).",
    quantize_blockwise=Encoder(thresholds=lambda _: qloracle.thresholds(DYNAMIC)).eight_bit,
    dequantize_blockwise=Decoder(levels=lambda _: DYNAMIC).eight_bit)
MagnitudesOnly = fault("S5",
    "A map without negative levels is taken for a map of magnitudes (rule S5).",
    quantize_blockwise=Encoder(rank=lambda q, thresholds:
        counted(np.abs(q) if thresholds[0] > 0 else q, thresholds)).eight_bit)
ShortMapPadded = fault("S5",
    "A search of eight steps reads beyond the end of a map of fewer than 256 levels (rule S5).",
    quantize_blockwise=Encoder(rank=lambda q, thresholds: np.where(
        (thresholds.size < 255) & (q > thresholds[-1]), 255, counted(q, thresholds))).eight_bit)
