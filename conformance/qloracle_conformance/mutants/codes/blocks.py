"""Wrong blocks (S3): indices, tails, layouts, sizes that the dispatch forgot."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.mutants.parts import (
    Array,
    Right,
    Step,
    block_index,
    decoder,
    decoder_8bit,
    divided,
    encoder,
    encoder_8bit,
    packed_pairs,
    product,
    rows_and_columns,
)


def _restarting(shape: tuple[int, ...], blocksize: int) -> Array:
    """A block index that restarts at each row, counting whole blocks only."""
    row, column, length = rows_and_columns(shape)
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
        row, column, length = rows_and_columns(shape)
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
