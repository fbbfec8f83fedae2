"""Implementations that differ from the reference and are right: the kit must accept them.

`adopts` is what the verdict must say of them, and `dialect` what they must declare because it
decides whether others can read their bytes.
"""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.codes import blocks, codes, scales, tables
from qloracle_conformance.mutants.nested import faulty as l1
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    NF4,
    Array,
    Right,
    decoder,
    decoder_8bit,
    divided,
    encoder,
    encoder_8bit,
    inverted,
    nested_codes,
    packed_pairs,
    peaks,
    product,
    rounded,
    spread,
    widened,
)

NORMAL = np.float32(2.0**-126)


def _flushed(values: Array) -> Array:
    """Replace subnormals by zeros, as flush-to-zero does."""
    return np.where(np.abs(values) < NORMAL, np.copysign(np.float32(0), values), values)


# ---- scaling -------------------------------------------------------------------------------------


class Reciprocal(Right):
    """x * (1 / absmax), as CUDA kernels scale when they are compiled without fast math."""

    adopts = "reciprocal"
    quantize_4bit = staticmethod(encoder(scale=inverted))
    quantize_blockwise = staticmethod(encoder_8bit(scale=inverted))


class FullAndPartial(Right):
    """Full blocks by the reciprocal, a short one by division (bitsandbytes' default backend)."""

    adopts = "full: reciprocal, partial: divide"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        q = inverted(flat, absmax, blocksize)
        short = flat.size // blocksize * blocksize
        q[short:] = divided(flat, absmax, blocksize)[short:]
        return q

    quantize_4bit = staticmethod(encoder(scale=_scale))


class ApproximateReciprocal(Right):
    """A reciprocal rounded up instead of to nearest: within the ulp of PTX's rcp.approx.f32."""

    adopts = "approx(rcp)"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        exact = 1 / absmax.astype(np.float64)
        near = exact.astype(np.float32)
        inverse = np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)
        return np.where(flat == 0, np.float32(0), flat * spread(inverse, flat.size, blocksize))

    quantize_4bit = staticmethod(encoder(scale=_scale))


class ScaledThresholds(Right):
    """No division: x is compared with threshold * absmax, off by less than an ulp."""

    adopts = "approx"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64) -> tuple[Array, Array]:
        flat = widened(x)
        absmax = peaks(flat, blocksize)
        scale = spread(absmax, flat.size, blocksize)
        codes = np.zeros(flat.size, np.uint8)
        for cut in qloracle.thresholds(NF4):
            codes += (scale > 0) & (flat > cut * scale) | (scale == 0) & (cut < 0)
        return packed_pairs(codes), absmax


class OwnType(Right):
    """16-bit input is divided in its own type (torchao's nf4tensor.py)."""

    adopts = "input_type: own"

    @staticmethod
    @np.errstate(all="ignore")
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        def scale(flat: Array, absmax: Array, blocksize: int) -> Array:
            return rounded(divided(flat, absmax, blocksize), x.dtype)

        packed, absmax = encoder(scale=scale)(x, blocksize=blocksize, quant_type=quant_type)
        return packed, absmax


class InputFlushed(Right):
    """Subnormal elements count as zero (hardware that flushes its operands)."""

    adopts = "subnormal_input: flushed"
    quantize_4bit = staticmethod(encoder(widen=lambda x: _flushed(widened(x))))


class ScaleFlushed(Right):
    """A subnormal absmax counts as zero when the block is scaled (flush-to-zero on the divisor)."""

    adopts = "subnormal_scale: flushed"

    @staticmethod
    def _scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        return divided(flat, _flushed(absmax), blocksize)

    quantize_4bit = staticmethod(encoder(scale=_scale))


# ---- thresholds ----------------------------------------------------------------------------------


def _literal(table: Array) -> Array:
    """NF4's published decimals as a C compiler rounds them."""
    cuts = qloracle.thresholds(table)
    if np.array_equal(table, NF4):
        for place, down in ((0, -1), (8, 1), (12, -1), (14, -1)):
            cuts[place] = np.nextafter(cuts[place], np.float32(math.inf * down))
    return cuts


class LiteralThresholds(Right):
    """The published decimals, rounded once by a C compiler (onnxruntime's bnb4 quantizer)."""

    adopts = "thresholds: literal"
    quantize_4bit = staticmethod(encoder(cuts=_literal))


class Nearest(Right):
    """argmin of float32 distances: another answer at 6 of the 15 midpoints (web-rwkv, torchao)."""

    adopts = "thresholds: nearest"

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64) -> tuple[Array, Array]:
        flat = widened(x)
        absmax = peaks(flat, blocksize)
        q = divided(flat, absmax, blocksize)
        codes = np.abs(q[:, None] - NF4).argmin(axis=1)
        return packed_pairs(codes.astype(np.uint8)), absmax


class CudaFP4(Right):
    """FP4 by the decimals in bitsandbytes' CUDA source, up to 14 ulp from the midpoints."""

    adopts = "thresholds: cuda"

    @staticmethod
    def _cuts(table: Array) -> Array:
        cuts = qloracle.thresholds(table)
        return expected.shift(cuts, expected.CUDA_FP4_ULPS) if cuts.size == 7 else cuts

    quantize_4bit = staticmethod(encoder(cuts=_cuts))


class LowerSignedTies(Right):
    """FP4 by its signed levels: a negative tie goes away from zero (bitsandbytes' default)."""

    adopts = "fp4_ties: lower_signed"

    @staticmethod
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        if quant_type != "fp4":
            return qloracle.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
        levels, codes = np.unique(qloracle.fp4_codebook(), return_index=True)
        ranks, absmax = qloracle.quantize_blockwise(x, levels, blocksize=blocksize)
        return packed_pairs(codes[ranks].astype(np.uint8)), absmax


class MinusZero(Right):
    """FP4's two codes of zero, 0 and 8, are exchanged (bitsandbytes' default backend)."""

    @staticmethod
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
        if quant_type == "fp4":
            for mask in (0x70, 0x07):
                packed ^= np.where(packed & mask, 0, 0x88 & ~mask & mask << 1).astype(np.uint8)
        return packed, absmax


# ---- formats that are declared -------------------------------------------------------------------


class LowNibbleFirst(Right):
    """The low nibble first, declared (OpenVINO's nf4)."""

    dialect: ClassVar = {"nibble_order": "low_first"}
    adopts = "nibble_order: low_first"
    quantize_4bit = codes.SwappedBoth.quantize_4bit
    dequantize_4bit = codes.SwappedBoth.dequantize_4bit


class BlocksRestart(Right):
    """Blocks that start again at each row, declared (onnxruntime's integer formats)."""

    dialect: ClassVar = {
        "quantize_4bit": {"layout": "per_row"},
        "dequantize_4bit": {"layout": "per_row"},
    }
    adopts = "layout: per_row"
    quantize_4bit = blocks.BlocksPerRow.quantize_4bit
    dequantize_4bit = blocks.RowsCeiled.dequantize_4bit


class DeclaredFloat16Scales(Right):
    """The absmax stored in float16, declared."""

    dialect: ClassVar = {"quantize_4bit": {"absmax_type": "float16"}}
    adopts = "absmax_type: float16"
    quantize_4bit = scales.Float16Scales.quantize_4bit


class DeclaredBFloat16Scales(Right):
    """The absmax stored in bfloat16, declared."""

    dialect: ClassVar = {"quantize_4bit": {"absmax_type": "bfloat16"}}
    adopts = "absmax_type: bfloat16"
    quantize_4bit = scales.BFloat16Scales.quantize_4bit


class ZerosFirst(Right):
    """A block of zeros has code 0, declared (bitsandbytes on CUDA)."""

    dialect: ClassVar = {
        "quantize_4bit": {"zero_block": "first"},
        "quantize_blockwise": {"zero_block": "first"},
    }
    adopts = "zero_block: first"
    quantize_4bit = codes.ZerosAreNaN.quantize_4bit
    quantize_blockwise = codes.ZerosAreNaN.quantize_blockwise


class EqualScalesFirst(Right):
    """A group of zeros, which equal scales leave, has code 0, declared (bitsandbytes on CPU)."""

    dialect: ClassVar = {"quantize_absmax": {"zero_block": "first"}}
    adopts = "zero_block: first"
    quantize_absmax = l1.EqualScalesAreNaN.quantize_absmax


class DeclaredFourDecimals(Right):
    """The table with four decimals, declared (torchao)."""

    dialect: ClassVar = {"dequantize_4bit[nf4]": {"codebook": "four_decimals"}}
    adopts = "codebook: four_decimals"
    quantize_4bit = tables.FourDecimals.quantize_4bit
    dequantize_4bit = tables.FourDecimals.dequantize_4bit


class DeclaredBaselineMap(Right):
    """The 8-bit map of a PyTorch without fused arithmetic, declared."""

    dialect: ClassVar = {"map_8bit": "baseline"}
    adopts = "map_8bit: baseline"
    quantize_absmax = l1.BaselineMap.quantize_absmax
    dequantize_absmax = l1.BaselineMap.dequantize_absmax


class BlocksOf64Only(Right):
    """One block size and one type, declared as limits; everything else is refused."""

    limits: ClassVar = {"quantize_4bit": {"blocksize": [64], "dtype": ["bfloat16"]}}

    @staticmethod
    def quantize_4bit(
        x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        if blocksize != 64 or x.dtype != BFLOAT16:
            raise NotImplementedError("blocks of 64 bfloat16 only")
        return qloracle.quantize_4bit(x, quant_type=quant_type)


# ---- decoding ------------------------------------------------------------------------------------


class OutputType(Right):
    """Level and absmax are rounded to the output type and multiplied there (bitsandbytes' SIMT)."""

    adopts = "decode: output_type"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        return product(levels.astype(dtype), scale.astype(dtype), dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))
    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class OutputFlushed(Right):
    """Subnormal products come back as zero (flush-to-zero)."""

    adopts = "subnormal_output: flushed"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        return _flushed(levels * scale).astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))
    dequantize_blockwise = staticmethod(decoder_8bit(multiply=_multiply))


class BFloat16Flushed(Right):
    """Only the conversion to bfloat16 flushes (AVX-512's instruction does)."""

    adopts = "subnormal_output: flushed_bfloat16"

    @staticmethod
    def _multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = levels * scale
        return (_flushed(values) if dtype == BFLOAT16 else values).astype(dtype)

    dequantize_4bit = staticmethod(decoder(multiply=_multiply))


class FusedNested(Right):
    """Nested scales by one fused multiply-add: one rounding (bitsandbytes' fused kernels)."""

    adopts = "decode: fma"

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        levels = qloracle.dynamic_codebook() if codebook is None else codebook
        scale = spread(nested_absmax, codes.size, blocksize)
        return expected.fused(levels[codes], scale, np.float32(offset))


# ---- other ways to the same bits -----------------------------------------------------------------


class Chunked(Right):
    """A loop over chunks of whole blocks, as a kernel with a grid works: the same bits."""

    @staticmethod
    def quantize_4bit(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
        flat, step = x.reshape(-1), 2 * blocksize * max(1, 8192 // blocksize)
        parts = [
            qloracle.quantize_4bit(flat[i : i + step], blocksize=blocksize, **options)
            for i in range(0, max(flat.size, 1), step)
        ]
        packed, absmax = zip(*parts, strict=True)
        return np.concatenate(packed), np.concatenate(absmax)


class ColumnOfBytes(Right):
    """Packed bytes as a column, [bytes, 1], as bitsandbytes shapes them."""

    @staticmethod
    def quantize_4bit(x: Array, **options: Any) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, **options)
        return packed[:, None], absmax


class SummedInOrder(Right):
    """The offset is summed one by one in float32: within the bound of any order."""

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> l1.Nested:
        total = np.cumsum(absmax)[-1:]  # cumsum adds in order, sum does not
        offset = total / np.float32(max(absmax.size, 1)) if absmax.size else [0]
        return nested_codes(absmax, offset[0], codebook, blocksize)


class NestedReciprocal(Right):
    """Residuals are scaled by the reciprocal of the group's absmax."""

    adopts = "reciprocal"

    @staticmethod
    def quantize_absmax(
        absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> l1.Nested:
        levels = qloracle.dynamic_codebook() if codebook is None else codebook
        offset = qloracle.quantize_absmax(absmax)[2]
        quantize = encoder_8bit(scale=inverted)
        return (*quantize(absmax - offset, levels, blocksize=blocksize), offset)
