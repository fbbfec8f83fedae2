"""Faulty 4-bit linear layers: how kernels for products go wrong (S9)."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, ClassVar

import numpy as np

from qloracle_conformance.mutants.calls import forms
from qloracle_conformance.mutants.parts import (
    Array,
    Right,
    Step,
    product,
    rounded,
    rows_and_columns,
    unpacked,
)
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import (
    backward,
    biased,
    biased_in_type_of_x,
    both,
    decoded,
    factors_in_type_of_rows,
    finished,
    forward,
    in_bfloat16,
    in_float16,
    in_type_of_rows,
    weights,
    wide,
)

TILE = 16
FEW = 3  # up to so many rows, a kernel for vectors is chosen


# ---- products left out, or counted twice ---------------------------------------------------------


def whole_tiles(rows: Array, matrix: Array, tile: int = TILE) -> Array:
    """Only the tiles that are full."""
    whole = rows.shape[1] // tile * tile
    return sums.blas(rows[:, :whole], matrix[:, :whole])


def overlapping(rows: Array, matrix: Array) -> Array:
    """The last tile moved back until it is full, what it shares with its neighbour twice."""
    total = whole_tiles(rows, matrix)
    rest = slice(max(rows.shape[1] - TILE, 0), None) if rows.shape[1] % TILE else slice(0, 0)
    return total + sums.blas(rows[:, rest], matrix[:, rest])


class LastTileDropped(Right):
    """The products of the last tile of k, if it is not full, are left out (tiles of 16)."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=whole_tiles)


class TailOf64Dropped(Right):
    """The loop runs over K // 64 tiles: the remainder is left out, from K = 65 on."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(
        total=lambda rows, matrix: whole_tiles(rows, matrix, 64 if rows.shape[1] > 64 else 1)
    )


class LastProductDropped(Right):
    """The loop ends at K - 1, where there is more than one product."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(
        total=lambda rows, matrix: sums.blas(
            rows[:, : max(rows.shape[1] - 1, 1)], matrix[:, : max(rows.shape[1] - 1, 1)]
        )
    )


class LastTileOverlaps(Right):
    """The last tile is moved back to be full: the products that it shares are counted twice."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=overlapping)


class FirstProductTwice(Right):
    """The sum starts with the first product, and the loop starts there as well."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(
        total=lambda rows, matrix: sums.blas(rows, matrix) + rows[:, :1] * matrix[:, 0]
    )


def beyond(matrix: Array, width: int, fill: float) -> Array:
    """Rows read on to a whole tile: the next row's first elements, and `fill` beyond the end."""
    memory = np.append(matrix.reshape(-1), np.full(TILE, fill, np.float32))
    places = np.arange(len(matrix))[:, None] * matrix.shape[1] + np.arange(width)
    return np.asarray(memory[places])


def unmasked(fill: float, rows_too: bool) -> Step:
    """Whole tiles without a mask on the matrix; on the rows there is one, or none either."""

    def total(rows: Array, matrix: Array) -> Array:
        width = -(-rows.shape[1] // TILE) * TILE
        padded = np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
        read = beyond(rows, width, 0) if rows_too else padded
        return sums.blas(read, beyond(matrix, width, fill))

    return total


class TailUnmasked(Right):
    """The last tile reads on: the next row's x meets the next row's weights."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=unmasked(0, rows_too=True))


class TailTimesPoison(Right):
    """x is masked beyond K and W is not: 0 times what lies behind the weight, a NaN."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=unmasked(np.nan, rows_too=False))


# ---- narrow arithmetic ---------------------------------------------------------------------------


class InputsInTF32(Right):
    """float32 factors are cut to TF32's ten bits, as tensor cores take them."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=sums.narrowed(sums.tf32))


class InputsInBFloat16(Right):
    """All factors are rounded to bfloat16, also those of float32 products."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=sums.narrowed(in_bfloat16))


class RowsInBFloat16(Right):
    """x is rounded to bfloat16, the weight is not (bitsandbytes, evaluation on AVX512-BF16)."""

    kills = "S9"
    matmul_4bit = staticmethod(forward(read=lambda x: in_bfloat16(wide(x))))


class AccumulatorInBFloat16(Right):
    """Every sum is kept in bfloat16."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=partial(sums.in_order, keep=in_bfloat16))


class AccumulatorInFloat16(Right):
    """Every sum is kept in float16."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=partial(sums.in_order, keep=in_float16))


class PartialSumsInFloat16(Right):
    """Sums of 64 products are stored as float16 before they are added up (split k)."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(total=partial(sums.chunks, keep=in_float16))


class ResultThroughBFloat16(Right):
    """The result is rounded to bfloat16, whatever its type."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(end=lambda y, x: finished(in_bfloat16(y), x))


class TreeThatIsNone(Right):
    """A tree of additions is declared, and one thread adds in order."""

    kills = "S9"
    dialect: ClassVar[dict[str, str]] = {"order": "pairwise"}
    matmul_4bit, matmul_4bit_backward = both(total=sums.in_order)


class ChunksThatAreNone(Right):
    """Chunks of 64 are declared, and one thread adds in order."""

    kills = "S9"
    dialect: ClassVar[dict[str, str]] = {"order": "chunk(64)"}
    matmul_4bit, matmul_4bit_backward = both(total=sums.from_the_end)


# ---- other weights -------------------------------------------------------------------------------


class RowsForColumns(Right):
    """W is read as if it were stored [in, out]."""

    kills = "S9"

    @staticmethod
    def _read(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
        w = decoded(packed, absmax, rows, **options)
        return w.reshape(w.shape[::-1]).T

    matmul_4bit, matmul_4bit_backward = both(decode=_read)


class BackwardByTheTranspose(Right):
    """The gradient is multiplied by W' where W is due: its memory is read in the other order."""

    kills = "S9"
    matmul_4bit_backward = staticmethod(backward(decode=RowsForColumns._read))


def by_rows(few: Step, many: Step) -> Step:
    """Other weights for few rows than for many."""

    def decode(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
        lines = rows.size // max(rows.shape[-1], 1)
        chosen = few if lines <= FEW else many
        return np.asarray(chosen(packed, absmax, rows, **options))

    return decode


class OtherWeightsForFewRows(Right):
    """At M <= 3 level and scale are rounded, above that their product (bitsandbytes' gemm_4bit)."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(
        decode=by_rows(factors_in_type_of_rows, in_type_of_rows)
    )


class ExactWeightsForOneRow(Right):
    """Up to three rows meet float32 weights, more rows those of their own type."""

    kills = "S9"
    matmul_4bit, matmul_4bit_backward = both(decode=by_rows(decoded, in_type_of_rows))


class ScaleOfTheNeighbour(Right):
    """A row's block index is that of its start and so many whole blocks: off at ragged edges."""

    kills = "S9"

    @staticmethod
    def _index(shape: tuple[int, ...], blocksize: int) -> Array:
        row, column, length = rows_and_columns(shape)
        return np.asarray(row * length // blocksize + column // blocksize)

    matmul_4bit, matmul_4bit_backward = both(decode=weights(index=_index))


class BlocksByTheRow(Right):
    """Each row of W is taken to start a new block, undeclared."""

    kills = "S9"

    @staticmethod
    def _index(shape: tuple[int, ...], blocksize: int) -> Array:
        row, column, length = rows_and_columns(shape)
        return np.asarray(row * -(-length // blocksize) + column // blocksize)

    matmul_4bit, matmul_4bit_backward = both(decode=weights(index=_index))


class OddColumnSwapped(Right):
    """In the last column of an odd K the other nibble of the byte is read."""

    kills = "S9"

    @staticmethod
    def _unpack(packed: Array, shape: tuple[int, ...]) -> Array:
        codes, last = unpacked(packed, shape), shape[-1] - 1
        if shape[-1] % 2:
            places = np.arange(shape[0]) * shape[-1] + last
            both_codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
            codes = codes.copy()
            codes[places] = both_codes[places ^ 1]
        return codes

    matmul_4bit, matmul_4bit_backward = both(decode=weights(unpack=_unpack))


class WeightsInFloat16Backward(Right):
    """The backward pass decodes into float16, whatever the gradient's type."""

    kills = "S9"
    matmul_4bit_backward = staticmethod(
        backward(decode=weights(multiply=lambda a, b, _: in_float16(product(a, b, np.float32))))
    )


# ---- rows, leading axes and the bias -------------------------------------------------------------


class SecondBatchIsTheFirst(Right):
    """Of three axes or more, every entry of the first reads the rows of entry 0."""

    kills = "S9"

    @staticmethod
    def _read(x: Array) -> Array:
        return wide(np.broadcast_to(x[:1], x.shape) if x.ndim > 2 else x)

    matmul_4bit, matmul_4bit_backward = both(read=_read)


class LastRowsNeverWritten(Right):
    """Beyond 32 rows only whole tiles are written: the rows after them stay zero."""

    kills = "S9"

    @staticmethod
    def _total(rows: Array, matrix: Array) -> Array:
        y = sums.blas(rows, matrix)
        y[len(y) // 32 * 32 if len(y) > 32 else len(y) :] = 0
        return y

    matmul_4bit, matmul_4bit_backward = both(total=_total)


class GradientSummedOverRows(Right):
    """Every row of dx is the sum over all rows, as a bias's gradient is."""

    kills = "S9"
    matmul_4bit_backward = staticmethod(
        backward(
            total=lambda rows, matrix: np.broadcast_to(
                sums.blas(rows, matrix).sum(axis=0), (len(rows), len(matrix))
            )
        )
    )


class BiasLostForOneRow(Right):
    """The kernel for a single row knows no bias."""

    kills = "S9"
    matmul_4bit = staticmethod(
        forward(add=lambda y, bias, x: biased(y, None if len(y) == 1 else bias, x))
    )


class BiasInBFloat16(Right):
    """The bias is rounded to bfloat16, whatever the type of x."""

    kills = "S9"
    matmul_4bit = staticmethod(
        forward(add=lambda y, bias, x: biased(y, None if bias is None else in_bfloat16(bias), x))
    )


class BiasNarrowForManyRows(Right):
    """Beyond three rows a float32 bias is rounded to the type of x, up to three it is not."""

    kills = "S9"

    @staticmethod
    def _add(y: Array, bias: Array | None, x: Array) -> Array:
        return biased(y, bias, x) if len(y) <= FEW else biased_in_type_of_x(y, bias, x)

    matmul_4bit = staticmethod(forward(add=_add))


class BiasTwice(Right):
    """The kernel adds the bias, and so does its caller."""

    kills = "S9"
    matmul_4bit = staticmethod(forward(add=lambda y, bias, x: biased(biased(y, bias, x), bias, x)))


class BiasAfterTheRounding(Right):
    """The product is rounded to the type of x, and again after the bias is added."""

    kills = "S9"
    matmul_4bit = staticmethod(
        forward(add=lambda y, bias, x: biased(y if bias is None else rounded(y, x.dtype), bias, x))
    )


# ---- around the values: P1 to P5 -----------------------------------------------------------------


class ProductInFloat32(Right):
    """The accumulator is returned as it is: float32, whatever the type of x."""

    kills = "P1"
    matmul_4bit, matmul_4bit_backward = both(end=lambda y, x: finished(y, x).astype(np.float32))


class LeadingAxesLost(Right):
    """All leading axes come back as one."""

    kills = "P1"
    matmul_4bit, matmul_4bit_backward = both(end=lambda y, x: y.astype(x.dtype))


class RowsScaledInPlace(Right):
    """x is halved in place, and the weight doubled."""

    kills = "P2"

    @staticmethod
    def _read(x: Array) -> Array:
        rows = wide(x)
        x *= np.asarray(0.5, x.dtype)
        return rows

    matmul_4bit, matmul_4bit_backward = both(read=_read)


def _in_one_buffer() -> Step:
    """Results of one type lie in one buffer, which the next call overwrites."""
    buffers: dict[Any, Array] = {}

    def end(y: Array, x: Array) -> Array:
        due = finished(y, x)
        if buffers.get(x.dtype, due[..., :0]).size < due.size:
            buffers[x.dtype] = np.zeros(2 * due.size, x.dtype)
        view = buffers[x.dtype][: due.size] if due.size else due.reshape(-1)
        view[:] = due.reshape(-1)
        return view.reshape(due.shape)

    return end


class OneResultBuffer(Right):
    """Every product is written into the same buffer."""

    kills = "P3"
    matmul_4bit, matmul_4bit_backward = both(end=_in_one_buffer())


def _racing() -> Step:
    """Sums whose order changes from call to call, as atomic additions make it."""
    orders: list[sums.Total] = [
        sums.in_order, sums.chunks, sums.from_the_end, sums.tree, sums.blas,
    ]  # fmt: skip
    turns = itertools.cycle(orders)

    def total(rows: Array, matrix: Array) -> Array:
        return next(turns)(rows, matrix)

    return total


class AtomicSums(Right):
    """Partial sums meet in whatever order they come: lawful values, other bits in each call."""

    kills = "P4"
    matmul_4bit, matmul_4bit_backward = both(total=_racing())


def dense(tensor: Any) -> Any:
    """The elements from the tensor's pointer on, as if nothing lay between them."""
    expanded = 0 in tensor.stride()  # then there is not so much memory
    return tensor if expanded else forms.from_memory(tensor, tensor.storage_offset())


class RowsReadAsDense(Right):
    """The kernel reads x, bytes and scales as if they were contiguous."""

    kills = "P5"
    arrays = "torch"
    matmul_4bit = staticmethod(forms.kernel("matmul_4bit", dense))
