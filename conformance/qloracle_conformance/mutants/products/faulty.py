"""Faulty 4-bit linear layers: how kernels for products go wrong (S9)."""

from functools import partial
from typing import Any

import numpy as np

from qloracle_conformance.contract.protocol import LINEAR
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.calls import forms
from qloracle_conformance.mutants.parts import Array, each, fault, pooled, rounded, rows_and_columns
from qloracle_conformance.mutants.products import steps, sums
from qloracle_conformance.mutants.products.steps import Linear, biased, finished

TILE = 16
FEW = 3  # up to so many rows, a kernel for vectors is chosen


# ---- steps that go wrong -------------------------------------------------------------------------


def _first_products(rows: Array, matrix: Array, count: int) -> Array:
    return sums.blas(rows[:, :count], matrix[:, :count])


def _whole_tiles(rows: Array, matrix: Array, tile: int = TILE) -> Array:
    return _first_products(rows, matrix, rows.shape[1] // tile * tile)


def _overlapping(rows: Array, matrix: Array) -> Array:
    rest = slice(max(rows.shape[1] - TILE, 0), None) if rows.shape[1] % TILE else slice(0, 0)
    return _whole_tiles(rows, matrix) + sums.blas(rows[:, rest], matrix[:, rest])


def _read_on(matrix: Array, fill: float) -> Array:
    """Rows read on to a whole tile: the next row's first elements, and `fill` beyond the end."""
    memory = np.append(matrix.reshape(-1), np.full(TILE, fill, np.float32))
    length = matrix.shape[1]
    places = np.arange(len(matrix))[:, None] * length + np.arange(-(-length // TILE) * TILE)
    return np.asarray(memory[places])


def _transposed(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    w = steps.decoded(packed, absmax, rows, **options)
    return w.reshape(w.shape[::-1]).T


def _by_rows(few: steps.Decode, many: steps.Decode) -> steps.Decode:
    def decode(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
        count = rows.size // max(rows.shape[-1], 1)
        return (few if count <= FEW else many)(packed, absmax, rows, **options)

    return decode


def _scale_of_the_neighbour(shape: tuple[int, ...], blocksize: int) -> Array:
    row, column, length = rows_and_columns(shape)
    return np.asarray(row * length // blocksize + column // blocksize)


def _odd_column_swapped(packed: Array, shape: tuple[int, ...]) -> Array:
    nibbles = parts.unpacked(packed, (2 * packed.size,))
    places = np.arange(np.prod(shape))
    last = (places % shape[-1] == shape[-1] - 1) & (shape[-1] % 2 == 1)
    return nibbles[np.where(last, places ^ 1, places)]


def _last_rows_unwritten(rows: Array, matrix: Array) -> Array:
    y = sums.blas(rows, matrix)
    y[len(y) // 32 * 32 if len(y) > 32 else len(y) :] = 0
    return y


# fmt: off
# ---- products left out, or counted twice ---------------------------------------------------------

LastTileDropped = fault("S9", "The last tile of k is left out if it is not full (tiles of 16).",
    **Linear(total=_whole_tiles).both())
TailOf64Dropped = fault("S9", "The loop runs K // 64 tiles: from K = 65 on the rest is left out.",
    **Linear(total=lambda x, w: _whole_tiles(x, w, 64 if x.shape[1] > 64 else 1)).both())
LastProductDropped = fault("S9", "The loop ends at K - 1, where there is more than one product.",
    **Linear(total=lambda x, w: _first_products(x, w, max(x.shape[1] - 1, 1))).both())
LastTileOverlaps = fault("S9",
    "The last tile is moved back to be full: the products that it shares are counted twice.",
    **Linear(total=_overlapping).both())
FirstProductTwice = fault("S9", "The sum starts with the first product, and so does the loop.",
    **Linear(total=lambda x, w: sums.blas(x, w) + x[:, :1] * w[:, 0]).both())
TailUnmasked = fault("S9", "The last tile reads on: the next row's x meets the next row's weights.",
    **Linear(total=lambda x, w: sums.blas(_read_on(x, 0), _read_on(w, 0))).both())
TailTimesPoison = fault("S9", "x is masked beyond K and W is not: 0 times what lies there, a NaN.",
    **Linear(total=lambda x, w:
        sums.blas(np.pad(x, ((0, 0), (0, -x.shape[1] % TILE))), _read_on(w, np.nan))).both())

# ---- narrow arithmetic ---------------------------------------------------------------------------

InputsInTF32 = fault("S9", "float32 factors are cut to TF32's ten bits, as tensor cores take them.",
    **Linear(total=sums.narrowed(sums.tf32)).both())
InputsInBFloat16 = fault("S9", "Factors are rounded to bfloat16, even those of float32 products.",
    **Linear(total=sums.narrowed(steps.in_bfloat16)).both())
RowsInBFloat16 = fault("S9",
    "x is rounded to bfloat16, the weight is not (bitsandbytes, evaluation on AVX512-BF16).",
    **Linear(read=lambda x: steps.in_bfloat16(steps.wide(x))).forward())
AccumulatorInBFloat16 = fault("S9", "Every sum is kept in bfloat16.",
    **Linear(total=partial(sums.in_order, keep=steps.in_bfloat16)).both())
AccumulatorInFloat16 = fault("S9", "Every sum is kept in float16.",
    **Linear(total=partial(sums.in_order, keep=steps.in_float16)).both())
PartialSumsInFloat16 = fault("S9",
    "Sums of 64 products are stored as float16 before they are added up (split k).",
    **Linear(total=partial(sums.chunks, keep=steps.in_float16)).both())
ResultThroughBFloat16 = fault("S9", "The result is rounded to bfloat16, whatever its type.",
    **Linear(end=lambda y, x: finished(steps.in_bfloat16(y), x)).both())
TreeThatIsNone = fault("S9", "A tree of additions is declared, and one thread adds in order.",
    {"dialect": {"order": "pairwise"}}, **Linear(total=sums.in_order).both())
ChunksThatAreNone = fault("S9", "Chunks of 64 are declared, and one thread adds in order.",
    {"dialect": {"order": "chunk(64)"}}, **Linear(total=sums.from_the_end).both())

# ---- other weights -------------------------------------------------------------------------------

RowsForColumns = fault("S9", "W is read as if it were stored [in, out].",
    **Linear(decode=_transposed).both())
BackwardByTheTranspose = fault("S9",
    "The gradient is multiplied by W' instead of W: its memory is read in the other order.",
    **Linear(decode=_transposed).backward())
OtherWeightsForFewRows = fault("S9",
    "At M <= 3 level and scale are rounded, above that their product (bitsandbytes' gemm_4bit).",
    **Linear(decode=_by_rows(steps.factors_in_type_of_rows, steps.in_type_of_rows)).both())
ExactWeightsForOneRow = fault("S9",
    "Up to three rows meet float32 weights, more rows those of their own type.",
    **Linear(decode=_by_rows(steps.decoded, steps.in_type_of_rows)).both())
ScaleOfTheNeighbour = fault("S9",
    "A row's block index is that of its start and so many whole blocks: off at ragged edges.",
    **Linear(decode=steps.weights(block=_scale_of_the_neighbour)).both())
BlocksByTheRow = fault("S9", "Each row of W is taken to start a new block, undeclared.",
    **Linear(decode=steps.weights(block=parts.blocks_of_rows)).both())
OddColumnSwapped = fault("S9", "In the last column of an odd K the byte's other nibble is read.",
    **Linear(decode=steps.weights(unpack=_odd_column_swapped)).both())
WeightsInFloat16Backward = fault("S9",
    "The backward pass decodes into float16, whatever the gradient's type.",
    **Linear(
        decode=steps.weights(multiply=lambda a, b, _: steps.in_float16(a * b))).backward())

# ---- rows, leading axes and the bias -------------------------------------------------------------

SecondBatchIsTheFirst = fault("S9",
    "Of three axes or more, every entry of the first reads the rows of entry 0.",
    **Linear(
        read=lambda x: steps.wide(np.broadcast_to(x[:1], x.shape) if x.ndim > 2 else x)).both())
LastRowsNeverWritten = fault("S9",
    "Beyond 32 rows only whole tiles are written, the rest stays zero.",
    **Linear(total=_last_rows_unwritten).both())
GradientSummedOverRows = fault("S9",
    "Every row of dx is the sum over all rows, like a bias gradient.",
    **Linear(total=lambda dy, w:
        np.broadcast_to(sums.blas(dy, w).sum(axis=0), (len(dy), len(w)))).backward())
BiasLostForOneRow = fault("S9", "The kernel for a single row ignores the bias.",
    **Linear(add=lambda y, bias, x: biased(y, None if len(y) == 1 else bias, x)).forward())
BiasInBFloat16 = fault("S9", "The bias is rounded to bfloat16, whatever the type of x.",
    **Linear(add=lambda y, bias, x:
        y if bias is None else biased(y, steps.in_bfloat16(bias), x)).forward())
BiasNarrowForManyRows = fault("S9",
    "Beyond three rows a float32 bias is rounded to the type of x, up to three it is not.",
    **Linear(
        add=lambda y, bias, x: biased(y, bias, x)
        if len(y) <= FEW else steps.biased_in_type_of_x(y, bias, x)).forward())
BiasTwice = fault("S9", "The kernel adds the bias, and so does its caller.",
    **Linear(add=lambda y, bias, x: biased(biased(y, bias, x), bias, x)).forward())
BiasAfterTheRounding = fault("S9",
    "The product is rounded to the type of x, and again after the bias is added.",
    **Linear(add=lambda y, bias, x:
        y if bias is None else biased(rounded(y, x.dtype), bias, x)).forward())

# ---- around the values: P1 to P5 -----------------------------------------------------------------

ProductInFloat32 = fault("P1", "The accumulator is returned as it is, float32, whatever x's type.",
    **Linear(end=lambda y, x: finished(y, x).astype(np.float32)).both())
LeadingAxesLost = fault("P1", "All leading axes come back as one.",
    **Linear(end=lambda y, x: y.astype(x.dtype)).both())
RowsScaledInPlace = fault("P2", "x is halved in place, and the weight doubled.",
    **each(parts.spoiling(lambda x: x / 2), *LINEAR))
OneResultBuffer = fault("P3", "Every product is written into the same buffer.",
    **each(pooled, *LINEAR))
AtomicSums = fault("P4",
    "Partial sums meet in whatever order they come: lawful values, other bits in each call.",
    **Linear(total=sums.taking_turns(
        sums.in_order, sums.chunks, sums.from_the_end, sums.tree, sums.blas)).both())
RowsReadAsDense = fault("P5", "The kernel reads x, bytes and scales as if they were contiguous.",
    {"arrays": "torch"}, matmul_4bit=forms.kernel("matmul_4bit", lambda t:
        t if 0 in t.stride() else forms.from_memory(t, t.storage_offset())))
