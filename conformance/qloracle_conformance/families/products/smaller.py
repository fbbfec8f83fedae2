"""Smaller neighbours of a failing product or LoRA layer: fewer rows, smaller W, rounder numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.numbers import (
    complexity,
    in_float32,
    rounder,
    shorter,
    simpler_scales,
    zeroed,
)

ROWWISE = ("x", "dy", "dropout_mask")  # arrays that have a row for each row of the result
OPTIONAL = ("bias", "dropout_mask")
SPARSE = ("x", "dy", "a", "b", "w", "bias")


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a call, the boldest first."""
    yield from _without(case)
    yield from _fewer_rows(case, index)
    yield from _smaller_weight(case)
    yield from _lower_rank(case)
    yield from in_float32(case)
    for name in SPARSE:
        yield from (case.with_arrays(**{name: part}) for part in _sparser(case, name))
    yield from _in_front(case)
    yield from _simpler_weight(case)
    for name in SPARSE:
        if name in case.arrays:
            yield from (case.with_arrays(**{name: part}) for part in rounder(case.arrays[name]))
    scaling = case.options.get("scaling", 1.0)
    simple = (1.0, 2.0, 0.5)
    yield from (case.with_options(scaling=s) for s in simple if complexity(s) < complexity(scaling))


def _without(case: Case) -> Iterator[Case]:
    """The call without its bias, or without its mask."""
    for name in OPTIONAL:
        if name in case.arrays:
            kept = {n: array for n, array in case.arrays.items() if n != name}
            yield Case(case.function, kept, case.options, case.note, case.form)


def _fewer_rows(case: Case, index: int) -> Iterator[Case]:
    """Leading axes as one, then the row of the wrong element, halves, all but one."""
    names = [name for name in ROWWISE if name in case.arrays]
    first = case.arrays[names[0]]
    rows = int(np.prod(first.shape[:-1]))
    if first.ndim != 2:
        flat = {n: case.arrays[n].reshape(rows, -1) for n in names}
        yield case.with_arrays(**{n: array.copy() for n, array in flat.items()})
        yield from _narrower(case, names)
        return
    width = _sides(case)[case.function.endswith("backward")]
    own = min(index // max(width, 1), rows - 1)
    for part in (slice(own, own + 1), slice(rows // 2), slice(rows // 2, rows), slice(1, rows)):
        if 0 < len(range(rows)[part]) < rows:
            yield case.with_arrays(**{n: case.arrays[n][part].copy() for n in names})


def _narrower(case: Case, names: list[str]) -> Iterator[Case]:
    """Half of each leading axis: what needs several axes keeps them."""
    first = case.arrays[names[0]]
    for axis, length in enumerate(first.shape[:-1]):
        for part in (slice(length // 2), slice(length // 2, length)) if length > 1 else ():
            at = (slice(None),) * axis + (part,)
            yield case.with_arrays(**{n: case.arrays[n][at].copy() for n in names})


def _sides(case: Case) -> tuple[int, int]:
    """Out and in features of W."""
    out, into = case.arrays["w"].shape if "w" in case.arrays else case.options["shape"]
    return int(out), int(into)


def _smaller_weight(case: Case) -> Iterator[Case]:
    """Fewer output rows of W; then, of a dense W or one of a single row, fewer columns."""
    out, into = _sides(case)
    for n in shorter(out):
        yield _resized(case, n, into)
    if out == 1 or "w" in case.arrays:
        for k in shorter(into):
            yield _resized(case, out, k)


def _resized(case: Case, out: int, into: int) -> Case:
    """The first `out` rows and `into` columns of W, and of all that belongs to them."""
    arrays = dict(case.arrays)
    cuts: dict[str, Any] = {
        "x": (..., slice(into)), "dropout_mask": (..., slice(into)), "dy": (..., slice(out)),
        "a": (..., slice(into)), "b": (slice(out),), "bias": (slice(out),),
        "w": (slice(out), slice(into)),
    }  # fmt: skip
    for name in arrays.keys() & cuts.keys():
        arrays[name] = np.ascontiguousarray(arrays[name][cuts[name]])
    if "packed" not in arrays:
        return Case(case.function, arrays, case.options, case.note, case.form)
    arrays |= _cut_packed(case, out, into)
    options = {**case.options, "shape": [out, into]}
    return Case(case.function, arrays, options, case.note, case.form)


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


def _lower_rank(case: Case) -> Iterator[Case]:
    """Adapters of a smaller rank: the first of it, the last, half."""
    if "a" not in case.arrays:
        return
    a, b = case.arrays["a"], case.arrays["b"]
    rank = a.shape[0]
    for part in (slice(1), slice(rank - 1, rank), slice(rank // 2)):
        if 0 < len(range(rank)[part]) < rank:
            yield case.with_arrays(a=a[part].copy(), b=np.ascontiguousarray(b[:, part]))


def _sparser(case: Case, name: str) -> Iterator[NDArray[Any]]:
    """More zeros in one of the arrays; a mask cannot have them."""
    if name in case.arrays and case.arrays[name].any():
        yield from zeroed(case.arrays[name])


def _in_front(case: Case) -> Iterator[Case]:
    """What is not zero in x (or dy) moved to the first columns, so that others can be cut off."""
    name = "dy" if "dy" in case.arrays else "x"
    rows = case.arrays[name]
    if not rows.size:
        return
    used = np.flatnonzero(rows.reshape(-1, rows.shape[-1]).any(axis=0))
    if used.size and used[0]:
        yield case.with_arrays(**{name: np.roll(rows, -int(used[0]), axis=-1)})


def _simpler_weight(case: Case) -> Iterator[Case]:
    """All scales 1, or 1, 2, 3; all codes alike."""
    if "packed" not in case.arrays:
        return
    packed, scale = case.arrays["packed"], case.arrays["absmax"]
    yield from (case.with_arrays(absmax=simple) for simple in simpler_scales(scale))
    if packed.size and (packed != packed[0]).any():
        yield from (case.with_arrays(packed=np.full_like(packed, v)) for v in (0xFF, packed[0]))
