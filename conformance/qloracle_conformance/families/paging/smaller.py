"""Smaller neighbours of a failing program: fewer operations and steps, shorter, plainer arrays."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import plain_arrays
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import (
    BLOCK,
    BLOCKS,
    Operation,
    Program,
    program_of,
    sizes_of,
)

Array = NDArray[Any]

PAGES = (1, 4, 16, 64, 256, 4096)
FEW = 40  # elements of an array whose length is tried one by one


def smaller(case: Case, index: int = 0) -> Iterator[Case]:
    """Smaller neighbours that make sense, the boldest first; `index` does not matter."""
    measure = _measure(case)
    for candidate in _neighbours(case):
        used = _words(program_of(candidate))
        arrays = {name: array for name, array in candidate.arrays.items() if name in used}
        cleaned = replace(candidate, arrays=arrays)
        if _measure(cleaned) < measure and plain_arrays.sensible(cleaned):
            yield cleaned


def _neighbours(case: Case) -> Iterator[Case]:
    """First of all without what names one array, or a `use`."""
    program = program_of(case)
    names = [op[1] for op in program if op[0] in ("empty", "open")]
    without = ([op for op in program if name not in _words(op)] for name in names)
    fewer = itertools.chain(without, _without_operations(program), _plainer(program, "step"))
    yield from (case.with_options(program=each) for each in fewer)
    yield from _plainer_sizes(case)
    yield from _shorter(case)
    yield from _plainer_arrays(case)
    yield from (case.with_options(program=each) for each in _plainer(program, "read", "write"))


def _measure(case: Case) -> tuple[Any, ...]:
    """What there is to read in a program, the heaviest first; what is plain is short as text."""
    program = [op[1] if op[0] == "must_fail" else op for op in program_of(case)]
    shapes = [op[2] for op in program if op[0] == "empty"]
    sizes = [size for size in sizes_of(case) if size is not None]
    return (
        len(program), sum(op[5] for op in program if op[0] == "step"), sum(map(math.prod, shapes)),
        sum(map(len, shapes)), len(sizes), sum(sizes), len(str(program).replace("None", "")),
        sum(map(_oddness, case.arrays.values())),
    )  # fmt: skip


def _oddness(array: Array) -> int:
    """0: nothing but ones; 1: counting; 2: anything else."""
    plain = (np.ones_like(array), _counting(array))
    return next((i for i, other in enumerate(plain) if other.tobytes() == array.tobytes()), 2)


def _counting(array: Array) -> Array:
    """1, 2, 3 and on; what bytes or booleans cannot count begins again."""
    ramp = np.arange(array.size) % 100 + 1
    return np.asarray(ramp, np.float32).astype(array.dtype).reshape(array.shape)


def _words(program: Any) -> set[str]:
    return set(re.findall(r"\w+", json.dumps(program)))


# ---- operations ----------------------------------------------------------------------------------


def _without_operations(program: Program) -> Iterator[Program]:
    """Without a run of operations: a half, a quarter, at last a single one; the end first."""
    for length in (len(program) >> k for k in range(1, len(program).bit_length())):
        for start in range(len(program) - length, -1, -length):
            yield program[:start] + program[start + length :]
    for i, op in enumerate(program):
        closing = {"open": "close", "save": "load"}.get(op[0])  # one makes no sense alone
        for j in range(i + 1, len(program)):
            if program[j][:2] == [closing, *op[1:2]]:
                yield program[:i] + program[i + 1 : j] + program[j + 1 :]


def _plainer(program: Program, *verbs: str) -> Iterator[Program]:
    """With one operation plainer: fewer steps; by the host, in a `use` of its own, whole."""
    for i, op in enumerate(program):
        match op if op[0] in verbs else ():
            case [*state, int(count), _]:
                fewer = [n for n in (1, 2, count // 2, count - 1) if 0 < n < count]
                others = [[*state, n, op[6]] for n in fewer] + [[*op[:6], None]]
            case [verb, name, part, *data, side]:
                others = [[verb, name, part, *data, other] for other in ("host", "device")]
                others += [] if data else [[verb, name, None, side]]
            case _:
                others = []
        yield from ([*program[:i], other, *program[i + 1 :]] for other in others)


# ---- sizes ---------------------------------------------------------------------------------------


def _plainer_sizes(case: Case) -> Iterator[Case]:
    """Without a capacity, without a page; smaller pages, as many; fewer pages."""
    capacity, page = sizes_of(case)
    bare = [op if op[0] != "load" else [*op[:2], None, None] for op in program_of(case)]
    yield replace(case, options={"program": bare})
    if page is None or capacity is None:
        return
    for frames in (1, 2, 3):
        yield case.with_options(capacity_bytes=frames * page)
    for small in (size for size in PAGES if size < page):
        program = [_rescaled(op, page, small) for op in program_of(case)]
        capacity_bytes = capacity // page * small
        yield case.with_options(capacity_bytes=capacity_bytes, page_bytes=small, program=program)


def _rescaled(op: Operation, page: int, small: int) -> Operation:
    """Other pages, and as many of them wherever a capacity stands."""
    if op[0] == "shrink":
        return [op[0], op[1] // page * small]
    if op[0] == "load" and None not in op[2:]:
        return [*op[:2], op[2] // op[3] * small, small]
    return op


def _shorter(case: Case) -> Iterator[Case]:
    """Fewer rows of an array; of a state, of all of it."""
    program = program_of(case)
    steps = [op for op in program if op[0] == "step"]
    for _, function, names, grads, *_ in steps[:1]:
        for n in _lengths(case.arrays[grads].shape[1]):
            parts = (slice(0, -(-n // block)) for block in BLOCKS[function])
            cut = _cut(case, dict(zip(names, parts, strict=True)))
            yield cut.with_arrays(**{grads: case.arrays[grads][:, :n].copy()})
    for name, rows in _shapes(case):
        for n in _lengths(rows):
            yield _cut(case, {name: slice(0, n)})
            yield _cut(case, {name: slice(rows - n, rows)})


def _shapes(case: Case) -> list[tuple[str, int]]:
    """The arrays that have rows and are no state, and how many rows."""
    program = program_of(case)
    stepped = {name for op in program if op[0] == "step" for name in op[2]}
    arrays = [op for op in program if op[0] == "empty" and op[2] and op[1] not in stepped]
    return [(name, shape[0]) for _, name, shape, _ in arrays]


def _lengths(n: int) -> list[int]:
    edges = {0, 1, 2, 3, *PAGES, *(page + 1 for page in PAGES), n // 2, n - n // 4, n - 1, BLOCK}
    return [m for m in sorted(edges | set(range(min(n, FEW)))) if 0 <= m < n]


def _cut(case: Case, kept: dict[str, slice]) -> Case:
    """Some rows of some arrays: parts, and what is written there, begin and end with them."""
    program, arrays = program_of(case), dict(case.arrays)
    for op in program:
        rows = kept.get(str(op[1])) if op[0] in ("empty", "read", "write") else None
        if rows is not None and op[0] == "empty":
            op[2] = [rows.stop - rows.start, *op[2][1:]]
        elif rows is not None:
            low, high = op[2] or (0, rows.stop)
            start, stop = (min(max(end, rows.start), rows.stop) for end in (low, high))
            if op[0] == "write":
                arrays[op[3]] = arrays[op[3]][start - low : stop - low].copy()
            op[2] = op[2] and [start - rows.start, stop - rows.start]
    return replace(case, arrays=arrays, options={**case.options, "program": program})


# ---- arrays --------------------------------------------------------------------------------------


def _plainer_arrays(case: Case) -> Iterator[Case]:
    """Of bytes in one axis, of ones or counting: all at once, then one at a time."""
    names = [name for name, _ in _shapes(case)]
    yield from (_of_bytes(case, chosen) for chosen in (names, *([name] for name in names)))
    for plain in (np.ones_like, _counting):
        for some in (case.arrays, *([name] for name in case.arrays)):
            yield case.with_arrays(**{name: plain(case.arrays[name]) for name in some})


def _of_bytes(case: Case, names: list[str]) -> Case:
    """Some arrays, and what is written into them."""
    program, arrays = program_of(case), dict(case.arrays)
    for op in program:
        if op[0] == "write" and op[1] in names:
            arrays[op[3]] = _counting(np.zeros(arrays[op[3]].shape[:1], np.uint8))
        if op[0] == "empty" and op[1] in names:
            op[2:] = op[2][:1], "uint8"
    return replace(case, arrays=arrays, options={**case.options, "program": program})
