"""Implementations that differ from the reference and are right: the kit must accept them.

A row begins with what the verdict must say of it; `dialect` is what it must declare, because that
decides whether others can read its bytes.
"""

from functools import partial
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes import blocks, codes, tables
from qloracle_conformance.mutants.codes.steps import by_inverse, fp4_encoder, in_nf4, only_for
from qloracle_conformance.mutants.parts import NF4, Array, Decoder, Encoder, divided, then, variant

_flushed = partial(expected.flush, how="flushed")  # subnormals to zeros, as hardware flushes


def _full_and_partial(flat: Array, absmax: Array, blocksize: int) -> Array:
    q = parts.inverted(flat, absmax, blocksize)
    short = flat.size // blocksize * blocksize
    q[short:] = divided(flat, absmax, blocksize)[short:]
    return q


def _inverse_rounded_up(absmax: Array) -> Array:
    exact = 1 / absmax.astype(np.float64)
    near = exact.astype(np.float32)
    return np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)


def _by_scaled_thresholds(x: Array, *, blocksize: int = 64) -> tuple[Array, Array]:
    flat = parts.widened(x)
    absmax = parts.peaks(flat, blocksize)
    scale = parts.spread(absmax, flat.size, blocksize)
    codes = np.zeros(flat.size, np.uint8)
    for threshold in qloracle.thresholds(NF4):
        codes += (scale > 0) & (flat > threshold * scale) | (scale == 0) & (threshold < 0)
    return parts.packed_pairs(codes), absmax


def literal(table: Array) -> Array:
    """NF4's published decimals as a C compiler rounds them."""
    thresholds = qloracle.thresholds(table)
    if np.array_equal(table, NF4):
        for place, to in ((0, -np.inf), (8, np.inf), (12, -np.inf), (14, -np.inf)):
            thresholds[place] = np.nextafter(thresholds[place], np.float32(to))
    return thresholds


def cuda_fp4(table: Array) -> Array:
    """FP4's decimals as bitsandbytes' CUDA source has them."""
    thresholds = qloracle.thresholds(table)
    if thresholds.size != 7:
        return thresholds
    return expected.shift(thresholds, expected.CUDA_FP4_ULPS)


def _by_signed_levels(x: Array, *, blocksize: int = 64, **_: Any) -> tuple[Array, Array]:
    levels, codes = np.unique(qloracle.fp4_codebook(), return_index=True)
    ranks, absmax = qloracle.quantize_blockwise(x, levels, blocksize=blocksize)
    return parts.packed_pairs(codes[ranks].astype(np.uint8)), absmax


def _zeros_exchanged(packed: Array, absmax: Array) -> tuple[Array, Array]:
    for mask in (0x70, 0x07):
        packed ^= np.where(packed & mask, 0, 0x88 & ~mask & mask << 1).astype(np.uint8)
    return packed, absmax


def _chunked(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
    flat, step = x.reshape(-1), 2 * blocksize * max(1, 8192 // blocksize)
    pieces = [
        qloracle.quantize_4bit(flat[i : i + step], blocksize=blocksize, **options)
        for i in range(0, max(flat.size, 1), step)
    ]
    packed, absmax = zip(*pieces, strict=True)
    return np.concatenate(packed), np.concatenate(absmax)


# fmt: off
# ---- scaling -------------------------------------------------------------------------------------
Reciprocal = variant("reciprocal",
    "x * (1 / absmax), as CUDA kernels scale when they are compiled without fast math.",
    **Encoder(scale=parts.inverted).both())
FullAndPartial = variant("full: reciprocal, partial: divide",
    "Full blocks by the reciprocal, a short one by division (bitsandbytes' default backend).",
    quantize_4bit=Encoder(scale=_full_and_partial).four_bit)
ApproximateReciprocal = variant("approx(rcp)",
    "A reciprocal rounded up instead of to nearest: within the ulp of PTX's rcp.approx.f32.",
    quantize_4bit=Encoder(scale=by_inverse(_inverse_rounded_up)).four_bit)
ScaledThresholds = variant("approx",
    "No division: x is compared with threshold * absmax, off by less than an ulp.",
    quantize_4bit=_by_scaled_thresholds)
OwnType = variant("input_type: own",
    "16-bit input is divided in its own type (torchao's nf4tensor.py).",
    quantize_4bit=lambda x, **options: Encoder(scale=lambda *block:
        parts.rounded(divided(*block), x.dtype)).four_bit(x, **options))
InputFlushed = variant("subnormal_input: flushed",
    "Subnormal elements count as zero (hardware that flushes its operands).",
    quantize_4bit=Encoder(widen=lambda x: _flushed(parts.widened(x))).four_bit)
ScaleFlushed = variant("subnormal_scale: flushed",
    "A subnormal absmax counts as zero when the block is scaled (flush-to-zero on the divisor).",
    quantize_4bit=Encoder(scale=lambda flat, absmax, blocksize:
        divided(flat, _flushed(absmax), blocksize)).four_bit)

# ---- thresholds ----------------------------------------------------------------------------------
LiteralThresholds = variant("thresholds: literal",
    "The published decimals, rounded once by a C compiler (onnxruntime's bnb4 quantizer).",
    quantize_4bit=Encoder(thresholds=literal).four_bit)
Nearest = variant("thresholds: nearest",
    "argmin of float32 distances: another answer at 6 of the 15 midpoints (web-rwkv, torchao).",
    quantize_4bit=Encoder(
        rank=in_nf4(lambda q: np.abs(q[:, None] - NF4).argmin(axis=1))).four_bit)
CudaFP4 = variant("thresholds: cuda",
    "FP4 by the decimals in bitsandbytes' CUDA source, up to 14 ulp from the midpoints.",
    quantize_4bit=Encoder(thresholds=cuda_fp4).four_bit)
LowerSignedTies = variant("fp4_ties: lower_signed",
    "FP4 by its signed levels: a negative tie goes away from zero (bitsandbytes' default).",
    quantize_4bit=fp4_encoder(_by_signed_levels))
MinusZero = variant("",
    "FP4's two codes of zero, 0 and 8, are exchanged (bitsandbytes' default backend).",
    quantize_4bit=fp4_encoder(then(qloracle.quantize_4bit, _zeros_exchanged)))

# ---- formats that are declared -------------------------------------------------------------------
LowNibbleFirst = variant("nibble_order: low_first",
    "The low nibble first, declared (OpenVINO's nf4).",
    {"dialect": {"nibble_order": "low_first"}},
    quantize_4bit=codes.SwappedBoth.quantize_4bit,
    dequantize_4bit=codes.SwappedBoth.dequantize_4bit)
BlocksRestart = variant("layout: per_row",
    "Blocks that start again at each row, declared (onnxruntime's integer formats).",
    {"dialect": {name: {"layout": "per_row"} for name in ("quantize_4bit", "dequantize_4bit")}},
    quantize_4bit=blocks.BlocksPerRow.quantize_4bit,
    dequantize_4bit=blocks.RowsCeiled.dequantize_4bit)
DeclaredFloat16Scales = variant("absmax_type: float16", "The absmax stored in float16, declared.",
    {"dialect": {"quantize_4bit": {"absmax_type": "float16"}}},
    quantize_4bit=codes.Float16Scales.quantize_4bit)
DeclaredBFloat16Scales = variant("absmax_type: bfloat16",
    "The absmax stored in bfloat16, declared.",
    {"dialect": {"quantize_4bit": {"absmax_type": "bfloat16"}}},
    quantize_4bit=codes.BFloat16Scales.quantize_4bit)
ZerosFirst = variant("zero_block: first",
    "A block of zeros has code 0, declared (bitsandbytes on CUDA).",
    {"dialect": {f"quantize_{kind}": {"zero_block": "first"} for kind in ("4bit", "blockwise")}},
    quantize_4bit=codes.ZerosAreNaN.quantize_4bit,
    quantize_blockwise=codes.ZerosAreNaN.quantize_blockwise)
DeclaredFourDecimals = variant("codebook: four_decimals",
    "The table with four decimals, declared (torchao).",
    {"dialect": {"dequantize_4bit[nf4]": {"codebook": "four_decimals"}}},
    quantize_4bit=tables.FourDecimals.quantize_4bit,
    dequantize_4bit=tables.FourDecimals.dequantize_4bit)
BlocksOf64Only = variant("",
    "One block size and one type, declared as limits; everything else is refused.",
    {"limits": {"quantize_4bit": {"blocksize": [64], "dtype": ["bfloat16"]}}},
    quantize_4bit=parts.refusing(qloracle.quantize_4bit,
        NotImplementedError("blocks of 64 bfloat16 only"),
        lambda x, *, blocksize=64, **_: blocksize != 64 or x.dtype != parts.BFLOAT16))

# ---- decoding ------------------------------------------------------------------------------------
OutputType = variant("decode: output_type",
    "Level and absmax are rounded to the output type and multiplied there (bitsandbytes' SIMT).",
    **Decoder(multiply=lambda levels, scale, dtype:
        parts.product(levels.astype(dtype), scale.astype(dtype), dtype)).both())
OutputFlushed = variant("subnormal_output: flushed",
    "Subnormal products come back as zero (flush-to-zero).",
    **Decoder(multiply=lambda levels, scale, dtype:
        _flushed(levels * scale).astype(dtype)).both())
BFloat16Flushed = variant("subnormal_output: flushed_bfloat16",
    "Only the conversion to bfloat16 flushes (AVX-512's instruction does).",
    dequantize_4bit=Decoder(multiply=only_for(parts.BFLOAT16, _flushed)).four_bit)

# ---- other ways to the same bits -----------------------------------------------------------------
Chunked = variant("",
    "A loop over chunks of whole blocks, as a kernel with a grid works: the same bits.",
    quantize_4bit=_chunked)
ColumnOfBytes = variant("", "Packed bytes as a column, [bytes, 1], as bitsandbytes shapes them.",
    quantize_4bit=then(qloracle.quantize_4bit, lambda packed, absmax: (packed[:, None], absmax)))
