"""Wrong blocks (S3): indices, tails, layouts, sizes that the dispatch forgot."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.parts import Array, Decoder, Encoder, Shape, block_index, fault


def _restarting_if(applies: Callable[[int, int], Any]) -> parts.Index:
    """An index that restarts at each row, and counts whole blocks only, where that `applies`.

    It is asked with the length of a row and the block size.
    """

    def index(shape: Shape, blocksize: int) -> Array:
        row, column, length = parts.rows_and_columns(shape)
        if not applies(length, blocksize):
            return block_index(shape, blocksize)
        return np.asarray(row * (length // blocksize) + column // blocksize)

    return index


def _blocks_of_rows(
    x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Array, Array]:
    table = qloracle.codebook(quant_type)
    rows = x.reshape(-1, x.shape[-1] if x.ndim and x.size else 1)
    pieces = [qloracle.quantize_blockwise(row, table, blocksize=blocksize) for row in rows]
    empty = (np.zeros(0, np.uint8), np.zeros(0, np.float32))
    codes, absmax = (np.concatenate(part) for part in zip(empty, *pieces, strict=True))
    return parts.packed_pairs(codes), absmax


def _whole_tiles(tile: int) -> parts.Multiply:
    """Products of whole tiles; what is left over stays 0."""

    def multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = parts.product(levels, scale, dtype)
        values[values.size // tile * tile :] = 0
        return values

    return multiply


def _whole_blocks(x: Array, *, blocksize: int = 64, **options: Any) -> tuple[Array, Array]:
    packed, absmax = qloracle.quantize_4bit(x, blocksize=blocksize, **options)
    whole = x.size // blocksize
    packed[whole * blocksize // 2 :] = 0
    absmax[whole:] = 0
    return packed, absmax


# fmt: off
# ---- the index of a block ------------------------------------------------------------------------
RowsOfVectors = fault("S3",
    "The block index restarts at each row if that is a multiple of 16 (bitsandbytes #1828).",
    dequantize_4bit=Decoder(block=_restarting_if(lambda k, b: k % 16 == 0 and k % b)).four_bit)
RowsOf24 = fault("S3",
    "The block index restarts in one case only: blocks of 128, rows a multiple of 24 (rule S3).",
    dequantize_4bit=Decoder(
        block=_restarting_if(lambda k, b: b == 128 and k % 24 == 0 and k % b)).four_bit)
LongRows = fault("S3",
    "The block index restarts at each row longer than a tile of 4,096 (rule S3).",
    dequantize_4bit=Decoder(block=_restarting_if(lambda k, b: k > 4096 and k % b)).four_bit)
RowsCeiled = fault("S3",
    "Each row is taken to start a block of its own (onnxruntime #29587: a layout per column).",
    dequantize_4bit=Decoder(block=parts.blocks_of_rows).four_bit)
BlocksPerRow = fault("S3",
    "The quantizer starts a new block at each row and does not say so (onnxruntime #31152).",
    quantize_4bit=_blocks_of_rows)
Index16Bit = fault("S3",
    "The block index has 16 bits: block 65,536 is decoded by the scale of block 0 (rule S3).",
    **Decoder(block=lambda shape, blocksize: block_index(shape, blocksize) & 0xFFFF).both())
Grid16Bit = fault("S3",
    "A launch has at most 65,536 blocks: the others are scaled by the wrong absmax (rule S3).",
    **Encoder(scale=lambda flat, absmax, blocksize:
        parts.divided(flat, absmax[np.arange(absmax.size) & 0xFFFF], blocksize)).both())
BlocksOf4096 = fault("S3",
    "Blocks of 4,096 are sent to the kernel for 2,048 (as in bitsandbytes #1157).",
    **Decoder(block=lambda shape, blocksize: block_index(shape, min(blocksize, 2048))).both())

# ---- the end of an array -------------------------------------------------------------------------
NeighboursScale = fault("S3",
    "A short last block is scaled by the absmax of the block before it (rule S3).",
    **Encoder(scale=lambda flat, absmax, size: parts.divided(flat,
        np.append(absmax[:-1], absmax[-2:][:1]) if flat.size % size else absmax, size)).both())
TilesOf64 = fault("S3",
    "The grid counts whole tiles of 64, and what is left over is never written (rule S3).",
    dequantize_4bit=Decoder(multiply=_whole_tiles(64)).four_bit)
ShortBlockUncoded = fault("S3",
    "The grid covers whole blocks only: codes and absmax of a short last block stay 0 (S3).",
    quantize_4bit=_whole_blocks)
LastElementUncoded = fault("S3",
    "The loop ends one element early, and the last code stays 0 (rule S3).",
    quantize_4bit=Encoder(pack=lambda codes:
        parts.packed_pairs(np.append(codes[:-1], np.zeros_like(codes[-1:])))).four_bit)
NoTail = fault("S3",
    "Vectors of 16 without a tail: what follows the last one is never decoded (rule S3).",
    dequantize_blockwise=Decoder(multiply=_whole_tiles(16)).eight_bit)
NoBlocksOf512 = fault("S3",
    "The dispatch knows no blocks of 512, and the output stays zero (onnxruntime #28551).",
    dequantize_4bit=lambda packed, absmax, *, blocksize=64, **options: qloracle.dequantize_4bit(
        packed, absmax * np.float32(blocksize != 512), blocksize=blocksize, **options))
EmptyRefused = fault("S3",
    "An empty array is a launch of no blocks, and that is an error (bitsandbytes on CUDA).",
    quantize_4bit=parts.refusing(qloracle.quantize_4bit,
        RuntimeError("invalid configuration argument"), lambda x, **_: not x.size))
OddRefused = fault("S3",
    "An odd count of elements raises, as if padding were the caller's business (rule S3).",
    quantize_4bit=parts.refusing(qloracle.quantize_4bit,
        ValueError("the number of elements must be even"), lambda x, **_: x.size % 2))
