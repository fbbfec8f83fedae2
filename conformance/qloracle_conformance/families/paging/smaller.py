"""Smaller neighbours of a failing program: fewer operations and steps, shorter, plainer arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK, Operation, Program, dtype_of, program_of
from qloracle_conformance.families.paging import plain_arrays

Array = NDArray[Any]

PAGES = (1, 4, 16, 64, 256, 4096)
FEW = 40  # elements of an array whose length is tried one by one


def smaller(case: Case) -> Iterator[Case]:
    """Smaller neighbours that make sense, the boldest first."""
    measure = _measure(case)
    for candidate in _neighbours(case):
        cleaned = _without_unused(candidate)
        if _measure(cleaned) < measure and plain_arrays.sensible(cleaned):
            yield cleaned


def _neighbours(case: Case) -> Iterator[Case]:
    yield from _without_arrays(case)
    yield from _without_operations(case)
    yield from _fewer_steps(case)
    yield from _plainer_sizes(case)
    yield from _shorter(case)
    yield from _plainer_arrays(case)
    yield from _plainer_operations(case)


def _measure(case: Case) -> tuple[Any, ...]:
    """What there is to read in a program, the heaviest first."""
    program = program_of(case)
    flat = [op[1] if op[0] == "must_fail" else op for op in program]
    shapes = [op[2] for op in flat if op[0] == "empty"]
    steps = sum(op[5] + (op[6] is not None) for op in flat if op[0] == "step")
    sizes = [v for k, v in case.options.items() if k != "program" and v is not None]
    parts = sum(part is not None for op in flat if op[0] in ("read", "write") for part in op[2:4])
    sides = sum(op[-1] != "host" for op in flat if op[0] in ("read", "write"))
    kinds = sum(op[3] != "uint8" for op in flat if op[0] == "empty")
    return (
        len(program), steps, sum(map(math.prod, shapes)), sum(map(len, shapes)), len(sizes),
        sum(sizes), kinds, sum(map(_plainness, case.arrays.values())), parts, sides,
    )  # fmt: skip


def _plainness(array: Array) -> int:
    """0: nothing but ones; 1: counting; 2: anything else."""
    plain = (np.ones(array.shape, array.dtype), _counting(array))
    return next((i for i, other in enumerate(plain) if other.tobytes() == array.tobytes()), 2)


def _counting(array: Array) -> Array:
    """1, 2, 3 and on; what bytes or booleans cannot count begins again."""
    ramp = np.arange(array.size) % 100 + 1
    return np.asarray(ramp, np.float32).astype(array.dtype).reshape(array.shape)


def _without_unused(case: Case) -> Case:
    used = {text for op in program_of(case) for text in _texts(op)}
    return replace(case, arrays={name: a for name, a in case.arrays.items() if name in used})


def _texts(operation: Any) -> Iterator[str]:
    for part in operation:
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            yield from _texts(part)


def _with(case: Case, program: Program) -> Case:
    return case.with_options(program=program)


# ---- fewer ---------------------------------------------------------------------------------------


def _without_arrays(case: Case) -> Iterator[Case]:
    """Without all that names one array, or a `use`, or happens before or after a `load`."""
    program = program_of(case)
    names = [op[1] for op in program if op[0] in ("empty", "open")]
    for name in names:
        kept = [op for op in program if name not in {t.partition(".")[0] for t in _texts(op)}]
        yield _with(case, kept)


def _without_operations(case: Case) -> Iterator[Case]:
    """Without a run of operations: a half, a quarter, at last a single one; the end first."""
    program = program_of(case)
    length = len(program) // 2
    while length:
        for start in range(len(program) - length, -1, -length):
            yield _with(case, program[:start] + program[start + length :])
        length //= 2
    pairs = [(i, j) for i, op in enumerate(program) for j in _partners(program, i, op)]
    for i, j in pairs:
        yield _with(case, [op for k, op in enumerate(program) if k not in (i, j)])


def _partners(program: Program, i: int, operation: list[Any]) -> Iterator[int]:
    """What makes sense only beside an operation: the end of a `use`, the load of a file."""
    closing = {"open": "close", "save": "load"}.get(operation[0])
    for j in range(i + 1, len(program)):
        if program[j][0] == closing and program[j][1] == operation[1]:
            yield j


def _fewer_steps(case: Case) -> Iterator[Case]:
    program = program_of(case)
    for i, op in enumerate(program):
        if op[0] != "step":
            continue
        for count in sorted({1, 2, op[5] // 2, op[5] - 1}):
            if 0 < count < op[5]:
                yield _with(case, [*program[:i], [*op[:5], count, op[6]], *program[i + 1 :]])
        if op[6] is not None:
            yield _with(case, [*program[:i], [*op[:6], None], *program[i + 1 :]])


# ---- sizes ---------------------------------------------------------------------------------------


def _plainer_sizes(case: Case) -> Iterator[Case]:
    """Without a capacity, without a page; smaller pages, as many; fewer pages."""
    page, capacity = (case.options.get(name) for name in ("page_bytes", "capacity_bytes"))
    program = program_of(case)
    bare = [op if op[0] != "load" else [*op[:2], None, None] for op in program]
    yield Case(case.function, case.arrays, {"program": bare}, case.note)
    if page is None or capacity is None:
        return
    for frames in (1, 2, 3):
        yield case.with_options(capacity_bytes=frames * page)
    for small in PAGES:
        if small < page:
            yield _rescaled(case, page, small)


def _rescaled(case: Case, page: int, small: int) -> Case:
    """Other pages, and as many of them wherever a capacity stands."""

    def other(op: Operation) -> list[Any]:
        if op[0] == "shrink":
            return [op[0], op[1] // page * small]
        if op[0] == "load" and None not in op[2:]:
            return [*op[:2], op[2] // op[3] * small, small]
        return list(op)

    program = [other(op) for op in program_of(case)]
    capacity = case.options["capacity_bytes"] // page * small
    return case.with_options(capacity_bytes=capacity, page_bytes=small, program=program)


def _shorter(case: Case) -> Iterator[Case]:
    """Fewer rows of an array; of a state, of all of it."""
    program = program_of(case)
    groups = [op for op in program if op[0] == "step"]
    stepped = {name for op in groups for name in op[2]}
    for op in groups[:1]:
        n = case.arrays[op[3]].shape[1]
        for rows in _lengths(n):
            parts = [programs.elements_of(op[1], i, 0, rows) for i in range(len(op[2]))]
            cut = _cut(case, dict(zip(op[2], parts, strict=True)))
            yield cut.with_arrays(**{op[3]: case.arrays[op[3]][:, :rows].copy()})
    for name, shape in [(op[1], op[2]) for op in program if op[0] == "empty" and op[2]]:
        for rows in _lengths(shape[0]) if name not in stepped else ():
            yield _cut(case, {name: slice(0, rows)})
            yield _cut(case, {name: slice(shape[0] - rows, shape[0])})


def _lengths(n: int) -> list[int]:
    edges = {0, 1, 2, 3, *PAGES, *(page + 1 for page in PAGES), n // 2, n - n // 4, n - 1, BLOCK}
    return [m for m in sorted(edges | set(range(min(n, FEW)))) if 0 <= m < n]


def _cut(case: Case, kept: dict[str, slice]) -> Case:
    """Some rows of some arrays: parts, and what is written there, begin and end with them."""
    arrays = dict(case.arrays)

    def shorter(op: Operation) -> list[Any]:
        rows = kept.get(str(op[1])) if op[0] in ("empty", "read", "write") else None
        if rows is None:
            return list(op)
        if op[0] == "empty":
            return [*op[:2], [rows.stop - rows.start, *op[2][1:]], op[3]]
        first, ends = op[2] or 0, op[2:4]
        low, high = (None if e is None else min(max(e, rows.start), rows.stop) for e in ends)
        if op[0] == "write":
            start, stop = (rows.start, rows.stop) if low is None else (low, high or 0)
            arrays[op[4]] = arrays[op[4]][start - first : stop - first].copy()
        moved = [None if end is None else end - rows.start for end in (low, high)]
        return [*op[:2], *moved, *op[4:]]

    program = [shorter(op) for op in program_of(case)]
    return replace(case, arrays=arrays, options={**case.options, "program": program})


# ---- plainer -------------------------------------------------------------------------------------


def _plainer_arrays(case: Case) -> Iterator[Case]:
    """Without further axes, of bytes, of ones or counting: all at once, then one at a time."""
    program = program_of(case)
    stepped = {name for op in program if op[0] == "step" for name in op[2]}
    names = [op[1] for op in program if op[0] == "empty" and op[1] not in stepped]
    for change in (_flat, _of_bytes):
        yield _changed(case, set(names), change)
        yield from (_changed(case, {name}, change) for name in names)
    for plain in (lambda array: np.ones(array.shape, array.dtype), _counting):
        yield case.with_arrays(**{name: plain(array) for name, array in case.arrays.items()})
        for name, array in case.arrays.items():
            yield case.with_arrays(**{name: plain(array)})


def _flat(array: Array) -> Array:
    return np.resize(array, len(array)) if array.ndim > 1 and array.size else array


def _of_bytes(array: Array) -> Array:
    return _counting(np.zeros(array.shape, np.uint8))


def _changed(case: Case, names: set[str], change: Callable[[Array], Array]) -> Case:
    """Some arrays, and all that is written into them, in another form."""
    arrays = dict(case.arrays)

    def other(op: Operation) -> list[Any]:
        if op[0] == "write" and op[1] in names:
            arrays[op[4]] = change(arrays[op[4]])
        if op[0] != "empty" or op[1] not in names:
            return list(op)
        new = change(np.zeros(op[2], dtype_of(op[3])))
        return [*op[:2], list(new.shape), new.dtype.name]

    program = [other(op) for op in program_of(case)]
    return replace(case, arrays=arrays, options={**case.options, "program": program})


def _plainer_operations(case: Case) -> Iterator[Case]:
    """By the host instead of a step, in a `use` of its own, whole instead of a part."""
    program = program_of(case)
    for i, op in enumerate(program):
        if op[0] in ("read", "write"):
            for side in ("host", "device"):
                yield _with(case, [*program[:i], [*op[:-1], side], *program[i + 1 :]])
        if op[0] == "read":
            yield _with(case, [*program[:i], [*op[:2], None, None, op[4]], *program[i + 1 :]])
