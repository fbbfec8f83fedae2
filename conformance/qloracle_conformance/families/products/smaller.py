"""Smaller neighbours of a failing product or LoRA layer: fewer rows, smaller W, rounder numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.smaller import (
    alike,
    cut,
    in_float32,
    narrowed,
    plainer,
    rounded,
    shorter,
    simpler,
    spans,
    sparser,
    without,
)

OPTIONAL = ("bias", "dropout_mask")
SPARSE = ("x", "dy", "a", "b", "w", "bias")  # a mask cannot have more zeros
ROWS = dict.fromkeys(("x", "dy", "dropout_mask"), (0, 1))
INTO = dict.fromkeys(("x", "dropout_mask", "a", "w"), (-1, 1))
OUT = {"dy": (-1, 1), "b": (0, 1), "bias": (0, 1), "w": (0, 1)}
RANK = {"a": (0, 1), "b": (-1, 1)}


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a call, the boldest first."""
    yield from without(case, OPTIONAL)
    yield from _fewer_rows(case, index)
    out, into = _sides(case)
    yield from (_resized(case, n, into) for n in shorter(out))
    if out == 1 or "w" in case.arrays:  # of a dense W, or one of a single row, fewer columns
        yield from (_resized(case, out, k) for k in shorter(into))
    if "a" in case.arrays:
        rank = case.arrays["a"].shape[0]
        yield from (cut(case, RANK, *span) for span in spans(rank, (0, 1), (rank - 1, rank)))
    yield from in_float32(case)
    yield from sparser(case, SPARSE)
    yield from _in_front(case)
    if "packed" in case.arrays:
        yield from simpler(case, "absmax")
        yield from alike(case, "packed", 0xFF, *case.arrays["packed"][:1])
    yield from rounded(case, SPARSE)
    yield from plainer(case, {"scaling": (1.0, 2.0, 0.5)})


def _fewer_rows(case: Case, index: int) -> Iterator[Case]:
    """Leading axes as one, then the row of the wrong element, halves, all but one."""
    names = [name for name in ROWS if name in case.arrays]
    first = case.arrays[names[0]]
    rows = int(np.prod(first.shape[:-1]))
    if first.ndim != 2:
        flat = {n: case.arrays[n].reshape(rows, -1) for n in names}
        yield case.with_arrays(**{n: array.copy() for n, array in flat.items()})
        yield from narrowed(case, names, first.ndim - 1)
        return
    width = _sides(case)[case.function.endswith("backward")]
    own = min(index // max(width, 1), rows - 1)
    yield from (cut(case, ROWS, *span) for span in spans(rows, (own, own + 1)))


def _sides(case: Case) -> tuple[int, int]:
    """Out and in features of W."""
    out, into = case.arrays["w"].shape if "w" in case.arrays else case.options["shape"]
    return int(out), int(into)


def _resized(case: Case, out: int, into: int) -> Case:
    """The first `out` rows and `into` columns of W, and of all that belongs to them."""
    small = cut(cut(case, OUT, 0, out), INTO, 0, into)
    if "packed" not in case.arrays:
        return small
    return small.with_arrays(**_cut_packed(case, out, into)).with_options(shape=[out, into])


def _cut_packed(case: Case, out: int, into: int) -> dict[str, NDArray[Any]]:
    """The first bytes and scales, whether blocks run on over rows or start again with each."""
    size, absmax = case.option("blocksize"), case.arrays["absmax"]
    rows, _ = _sides(case)
    per_row = rows > 1 and absmax.size % rows == 0 and absmax.size // rows == -(-into // size)
    scales = out * (absmax.size // rows) if per_row else -(-out * into // size)
    return {
        "packed": case.arrays["packed"][: (out * into + 1) // 2].copy(),
        "absmax": absmax[:scales].copy(),
    }


def _in_front(case: Case) -> Iterator[Case]:
    """What is not zero in x (or dy) moved to the first columns, so that others can be cut off."""
    name = "dy" if "dy" in case.arrays else "x"
    rows = case.arrays[name]
    used = np.flatnonzero(rows.reshape(-1, rows.shape[-1]).any(axis=0)) if rows.size else rows
    if used.size and used[0]:
        yield case.with_arrays(**{name: np.roll(rows, -int(used[0]), axis=-1)})
