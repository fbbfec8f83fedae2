"""S3. Blocks: x is flattened row-major; a block is `blocksize` consecutive elements.

A block may cross rows; the last one may be short; a shape () is one element; n = 0 gives empty
arrays.  Element i belongs to block i // blocksize whatever the shape, in both directions.

Judged on shapes around every edge (byte, 16-lane vector, block, row), with rows that are no
multiple of the block at every block size, three-dimensional arrays with an odd last axis, and more
than 65,536 blocks.  Every block has a scale of its own, so that a wrong block index cannot hide,
and the data are such that no lawful rounding can move a code or a value: what fails here is
indexing.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import BLOCKSIZES, FLOAT_TYPES
from qloracle_conformance.families.codes.cases import encode_case, packed_case
from qloracle_conformance.families.codes.judge import judge_decoded, judge_encoded
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Check, Plan, in_every_form
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES

Shape = tuple[int, ...]
TYPES = tuple(FLOAT_TYPES)
# More blocks than 16 bits can count; with a few first, on which the check is tried with fakes.
MANY = tuple(((blocks * 32 + 7,), 32, f"{blocks + 1:,} blocks") for blocks in (65, 65_537))


def counts(blocksize: int) -> list[int]:
    """Element counts around the byte, the lane and the block.

    >>> counts(64)[:12]
    [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 62, 63]
    """
    lanes = [15, 16, 17, 31, 32, 33]
    edges = [blocksize * k + d for k in (1, 2, 3) for d in (-2, -1, 0, 1, 2)]
    return sorted({0, 1, 2, 3, *lanes, *edges, 7 * blocksize + 5})


def matrices(blocksize: int) -> Iterator[Shape]:
    """Matrices whose rows are no multiple of the block, and some whose rows are.

    The columns are derived from the block, never from a list of known faults: b/2, 3b/2, b+1,
    2b-2 and their odd neighbours, with three rows and more, so that blocks cross rows.
    """
    b = blocksize
    for columns in (b // 2, 3 * b // 2, b + 1, 2 * b - 2, b, 5 * b // 4, b // 2 + 1):
        yield (3, columns)
    for columns in (b // 4, b // 2, 3 * b // 2):
        yield (8, columns)
    yield (7, 33)


def blocks_and_rows(blocksize: int) -> Iterator[Shape]:
    """All shapes that are tried at one block size."""
    yield from ((n,) for n in counts(blocksize))
    yield from matrices(blocksize)
    yield from ((2, 3, 5), (3, 4, blocksize // 2 + 1), (2, 2, 2, blocksize // 4), ())
    yield from ((1, 2), (2, 1), (1, 1))  # a whole matrix in one byte


def long_rows() -> Iterator[tuple[Shape, int]]:
    """Rows longer than 4,096 that are no multiple of an ordinary block."""
    for blocksize in (64, 128, 256):
        yield (3, 4096 + blocksize // 2), blocksize
        yield (2, 4096 + blocksize + 16), blocksize
        yield (2, 5003), blocksize


def places(plan: Plan) -> Iterator[tuple[Shape, int, str]]:
    """Shape, block size and type: the whole lattice for NF4, a part of it for other tables.

    A shape that is one short block at any block size is tried at one in three of them in smoke.
    """
    main = plan.view.table in ("nf4", "signed")
    sizes = BLOCKSIZES if main or plan.deep else (64, 256)
    for k, blocksize in enumerate(sizes):
        for i, shape in enumerate(blocks_and_rows(blocksize)):
            if plan.deep or (i + k) % 3 == 0 or math.prod(shape) >= min(BLOCKSIZES):
                for dtype in TYPES if plan.deep and main else (TYPES[i % 3],):
                    yield shape, blocksize, dtype
    for shape, blocksize in long_rows():
        for dtype in TYPES if main else ("float32",):
            yield shape, blocksize, dtype


def encode_shapes(plan: Plan) -> Iterator[Case]:
    """Quantize every shape of the lattice."""
    for shape, blocksize, dtype in places(plan):
        x = ramp(plan, shape, blocksize).astype(FLOAT_TYPES[dtype])
        yield encode_case(plan.view, x, blocksize, f"shape {shape}, blocks of {blocksize}")


def encode_many(plan: Plan) -> Iterator[Case]:
    """More than 65,536 blocks."""
    for shape, blocksize, note in MANY:
        yield encode_case(plan.view, ramp(plan, shape, blocksize), blocksize, note)


def ramp(plan: Plan, shape: Shape, blocksize: int) -> NDArray[np.float32]:
    """Outer levels times a power of two that differs from block to block."""
    view = plan.view
    blocks = expected.blocks_of(shape, blocksize, view.dialect["layout"])
    outer = view.levels[np.abs(view.levels) > 0.05]
    place = np.arange(blocks.index.size)
    x = outer[place * 7 % outer.size]
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    x[starts + blocks.sizes * 5 // 7] = view.levels.max()  # the largest lies inside the block
    return np.ldexp(x, exponents(blocks.sizes.size)[blocks.index]).astype("f4").reshape(shape)


def exponents(count: int) -> NDArray[np.int64]:
    """A different power of two for near blocks, without a short period: -8..7."""
    index = np.arange(count, dtype=np.uint64)
    mixed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(60)
    return (mixed.astype(np.int64) + index.astype(np.int64) % 3) % 16 - 8


def decode_shapes(plan: Plan) -> Iterator[Case]:
    """Decode every shape of the lattice: outermost levels, a whole number as each block's scale."""
    for shape, blocksize, dtype in places(plan):
        yield decode_case(plan, shape, blocksize, dtype, f"shape {shape}, blocks of {blocksize}")


def decode_many(plan: Plan) -> Iterator[Case]:
    """More than 65,536 blocks."""
    for shape, blocksize, note in MANY:
        yield decode_case(plan, shape, blocksize, "float32", note)


def decode_case(plan: Plan, shape: Shape, blocksize: int, dtype: str, note: str = "") -> Case:
    """Top and bottom levels with scales 1, 2, 3, ...: exact products in every type."""
    view = plan.view
    blocks = expected.blocks_of(shape, blocksize, view.dialect["layout"])
    period = {"float32": 65_521, "float16": 2039, "bfloat16": 251}[dtype]
    scale = (np.arange(blocks.sizes.size) % period + 1).astype(np.float32)
    top, bottom = int(np.argmax(view.levels)), int(np.argmin(view.levels))
    n = blocks.index.size
    codes = np.where(np.arange(n) % 3 == 1, bottom, top).astype(np.uint8)
    return packed_case(plan.view, codes, scale, shape, blocksize, dtype, note)


# ---- rule P5, on data that no lawful rounding can move -------------------------------------------


SHAPES: tuple[Shape, ...] = ((192,), (2, 128), (3, 130), (5, 7, 9), (128, 128))


def formed(plan: Plan) -> Iterator[tuple[Shape, int, str]]:
    """Every shape in every type: in blocks of 64 and of 256, in smoke of one or the other."""
    every = itertools.product(SHAPES, TYPES, (64, 256))
    for i, (shape, dtype, blocksize) in enumerate(every):
        if plan.deep or i % 4 in (0, 3):
            yield shape, blocksize, dtype


def encode_forms(plan: Plan) -> Iterator[Case]:
    """Quantize arrays of one to three axes, with a short last block or without."""
    for shape, blocksize, dtype in formed(plan):
        x = ramp(plan, shape, blocksize).astype(FLOAT_TYPES[dtype])
        yield encode_case(plan.view, x, blocksize, f"shape {shape}")


def decode_forms(plan: Plan) -> Iterator[Case]:
    """Decode into the same shapes and types."""
    for shape, blocksize, dtype in formed(plan):
        yield decode_case(plan, shape, blocksize, dtype, f"shape {shape}")


ENCODED = (encode_forms, judge_encoded, (0, 1))
DECODED = (decode_forms, judge_decoded, (0,))
CHECKS = (
    Check("S3", "shapes", "quantize_4bit", encode_shapes, judge_encoded, (0, 1), QUANT_TYPES),
    Check("S3", "many", "quantize_4bit", encode_many, judge_encoded, (0, 1), ("nf4",)),
    Check("S3", "shapes", "dequantize_4bit", decode_shapes, judge_decoded, (0,), QUANT_TYPES),
    Check("S3", "many", "dequantize_4bit", decode_many, judge_decoded, (0,), ("nf4",)),
    Check("S3", "shapes", "quantize_blockwise", encode_shapes, judge_encoded, (0, 1), MAPS),
    Check("S3", "many", "quantize_blockwise", encode_many, judge_encoded, (0, 1), ("signed",)),
    Check("S3", "shapes", "dequantize_blockwise", decode_shapes, judge_decoded, (0,), MAPS),
    Check("S3", "many", "dequantize_blockwise", decode_many, judge_decoded, (0,), ("signed",)),
    *in_every_form("quantize_4bit", *ENCODED, ("nf4",)),
    *in_every_form("dequantize_4bit", *DECODED, ("nf4",), axes=False),
    *in_every_form("quantize_blockwise", *ENCODED, ("signed",)),
    *in_every_form("dequantize_blockwise", *DECODED, ("signed",), axes=False),
)
