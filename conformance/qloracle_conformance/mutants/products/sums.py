"""Ways to add up products: rows [m, k] and a matrix [n, k] make rows @ matrix.T, float32 [m, n].

A kernel's loop does one of these.  Columns in which all rows are zero are skipped: an exact zero
changes no sum.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.parts import Array

Total = Callable[[Array, Array], Array]
Narrow = Callable[[Array], Array]


def blas(rows: Array, matrix: Array) -> Array:
    """As NumPy's BLAS adds in float32."""
    total: Array = rows @ matrix.T
    return total


def used(rows: Array) -> Array:
    """The columns in which some row is not zero."""
    return np.flatnonzero(rows.any(axis=0))


def nothing(rows: Array, matrix: Array) -> Array:
    """Sums before anything was added."""
    return np.zeros((len(rows), len(matrix)), np.float32)


def in_order(rows: Array, matrix: Array, keep: Narrow = lambda total: total) -> Array:
    """One after the other, as one thread adds; `keep` is what the accumulator holds of a sum."""
    total = nothing(rows, matrix)
    for k in used(rows):
        total = keep(total + rows[:, k, None] * matrix[:, k])
    return total


def from_the_end(rows: Array, matrix: Array) -> Array:
    """One after the other, the last product first."""
    return in_order(rows[:, ::-1], matrix[:, ::-1])


def fused(rows: Array, matrix: Array) -> Array:
    """One after the other by fused multiply-add: a product is not rounded before it is added."""
    total: Any = nothing(rows, matrix)
    for k in used(rows):
        total = expected.fused(rows[:, k, None], matrix[:, k], total)
    return np.asarray(total)


def tree(rows: Array, matrix: Array) -> Array:
    """In pairs, then in pairs of pairs, as a parallel reduction adds."""
    terms = rows[:, None, :] * matrix  # m, n, k
    while terms.shape[2] > 1:
        if terms.shape[2] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[:, :, :1])], axis=2)
        terms = terms[:, :, 0::2] + terms[:, :, 1::2]
    return np.asarray(terms.sum(axis=2))


def chunks(rows: Array, matrix: Array, size: int = 64, keep: Narrow = lambda part: part) -> Array:
    """In order in each chunk, and then the chunks' sums in order; `keep` is what is kept of one."""
    total = nothing(rows, matrix)
    for start in range(0, rows.shape[1], size):
        part = slice(start, start + size)
        total = total + keep(in_order(rows[:, part], matrix[:, part]))
    return total


def tensor_core(rows: Array, matrix: Array, step: int = 8) -> Array:
    """Exact products and the sum so far, aligned to the largest; what lies below is cut off.

    So do NVIDIA's tensor cores, but for a few more bits that some of them keep.
    """

    def add(total: Array, x: Array, w: Array) -> Array:
        terms = np.concatenate([total[:, :, None], x[:, None] * w], axis=2)  # m, n, 9: exact
        return cut(cut(terms, np.abs(terms).max(axis=2, keepdims=True)).sum(axis=2))

    return _in_steps(rows, matrix, step, add)


def cut_at_the_end(rows: Array, matrix: Array, step: int = 8) -> Array:
    """Exact products are added exactly to the sum so far, and that is cut off to float32.

    A matrix unit with more bits inside.  Every error is toward zero, so that they add up.
    """
    return _in_steps(rows, matrix, step, lambda total, x, w: cut(total + x @ w.T))


def _in_steps(
    rows: Array, matrix: Array, step: int, add: Callable[[Array, Array, Array], Array]
) -> Array:
    """A few products at a time, in float64, added to the sum so far."""
    total = np.zeros((len(rows), len(matrix)))
    places = used(rows)
    for start in range(0, places.size, step):
        at = places[start : start + step]
        total = add(total, rows[:, at].astype(np.float64), matrix[:, at].astype(np.float64))
    return total.astype(np.float32)


def cut(values: Array, largest: Array | None = None) -> Array:
    """Cut off what lies below the 24 bits of the largest value (or of each value itself)."""
    exponent = np.frexp(values if largest is None else largest)[1]
    grid = np.ldexp(1.0, exponent - 24)
    return np.asarray(np.trunc(values / grid) * grid)


def taking_turns(*orders: Total) -> Total:
    """Another order at each call, as atomic additions have it."""
    turns = itertools.cycle(orders)

    def total(rows: Array, matrix: Array) -> Array:
        return next(turns)(rows, matrix)

    return total


def narrowed(narrow: Narrow, total: Total = blas) -> Total:
    """Round both factors of every product before they meet."""
    return lambda rows, matrix: total(narrow(rows), narrow(matrix))


def tf32(values: Array) -> Array:
    """Keep 10 bits of the mantissa, ties away from zero, as `cvt.rna.tf32.f32` does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
