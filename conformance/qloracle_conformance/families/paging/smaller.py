"""Smaller neighbours of a failing program: fewer operations and steps, shorter, plainer arrays."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import plain_arrays
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCKS, Program, program_of, sizes_of, where

Array = NDArray[Any]

PAGES = (1, 4, 16, 64, 256, 4096)
LENGTHS = {*range(40), *PAGES, *(page + 1 for page in PAGES)}  # of arrays


def smaller(case: Case, index: int = 0) -> Iterator[Case]:
    """Smaller neighbours that make sense, the boldest first; `index` does not matter."""
    measure, program = _measure(case), program_of(case)
    shorter = chain(_fewer(program), _plainer(program, "step"))
    plainer = _plainer(program, "empty", "read", "write")
    for candidate in chain(
        (_fitted(case, other) for other in shorter), _plainer_sizes(case), _shorter(case),
        _plainer_arrays(case), (_fitted(case, other) for other in plainer),
    ):  # fmt: skip
        if _measure(candidate) < measure and plain_arrays.sensible(candidate):
            yield candidate


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


def _fitted(case: Case, program: Program, *, last: bool = False) -> Case:
    """Another program, with what it writes: the first or last rows of it, as there is room."""
    words, rooms = _words(program), dict[str, Array]()
    arrays = {name: array for name, array in case.arrays.items() if name in words}
    for op in program:
        if op[0] == "empty":
            rooms[op[1]] = np.broadcast_to(np.zeros((), op[3]), op[2])
        elif op[0] == "write" and op[1] in rooms:
            room, values = rooms[op[1]][where(op[2])], arrays[op[3]].reshape(-1)
            start = max(values.size - room.size, 0) if last else 0
            kept = values[start : start + room.size]
            same = (kept.size, kept.dtype) == (room.size, room.dtype)
            arrays[op[3]] = kept.reshape(room.shape).copy() if same else _counting(room)
    return replace(case, arrays=arrays, options={**case.options, "program": program})


def _fewer(program: Program) -> Iterator[Program]:
    """Without what names one array, file or `use`; without a run of operations, the end first."""
    for name in [op[1] for op in program if op[0] in ("empty", "save", "open")]:
        yield [op for op in program if name not in _words(op)]
    for length in (len(program) >> k for k in range(1, len(program).bit_length())):
        for start in range(len(program) - length, -1, -length):
            yield program[:start] + program[start + length :]


def _plainer(program: Program, *verbs: str) -> Iterator[Program]:
    """With one operation plainer: fewer steps; by the host, in a `use` of its own, whole; bytes."""
    for i, op in enumerate(program):
        others: Program = []
        match op if op[0] in verbs else ():
            case ["step", *_, count, part]:
                others = [[*op[:5], n, part] for n in (1, 2, count // 2, count - 1) if n]
                others += [[*op[:6], None]]
            case ["read" | "write" as verb, name, _, *data, side]:
                others = [[*op[:-1], "host"], [*op[:-1], "device"]]
                others += [] if data else [[verb, name, None, side]]
            case ["empty", name, shape, _]:
                others = [["empty", name, shape[:1], "uint8"]]
        yield from ([*program[:i], other, *program[i + 1 :]] for other in others)


def _plainer_sizes(case: Case) -> Iterator[Case]:
    """Without a capacity, without a page; fewer pages; smaller ones, as many."""
    (capacity, page), program = sizes_of(case), program_of(case)
    bare = [op if op[0] != "load" else [*op[:2], None, None] for op in program]
    yield replace(case, options={"program": bare})
    if page is None or capacity is None:
        return
    for frames in (1, 2, 3):
        yield case.with_options(capacity_bytes=frames * page)
    for small in PAGES:
        scaled = [
            [n * small // page if isinstance(n, int) else n for n in op]
            if op[0] in ("shrink", "load") else op
            for op in program
        ]  # fmt: skip
        sizes = {"capacity_bytes": capacity // page * small, "page_bytes": small}
        yield case.with_options(**sizes, program=scaled)


def _shorter(case: Case) -> Iterator[Case]:
    """Fewer rows of an array, the first or the last; of a state and its gradients, the first."""
    program, stepped = program_of(case), set[str]()
    for _, function, names, grads, *_ in [op for op in program if op[0] == "step"][:1]:
        stepped, values = set(names), case.arrays[grads]
        for n in _lengths(values.shape[1]):
            cut = program
            for name, block in zip(names, BLOCKS[function], strict=True):
                cut = _cut(cut, name, range(-(-n // block)))
            yield _fitted(case.with_arrays(**{grads: values[:, :n].copy()}), cut)
    for _, name, shape, _ in [op for op in program if op[0] == "empty" and op[2]]:
        for n in _lengths(shape[0]) if name not in stepped else ():
            yield _fitted(case, _cut(program, name, range(n)))
            yield _fitted(case, _cut(program, name, range(shape[0] - n, shape[0])), last=True)


def _lengths(n: int) -> list[int]:
    return [m for m in sorted(LENGTHS | {n // 2, n - n // 4, n - 1}) if 0 <= m < n]


def _cut(program: Program, name: str, rows: range) -> Program:
    """Some rows of an array: its parts begin and end with them."""
    found = []
    for op in program:
        match op:
            case ["empty", own, shape, dtype] if own == name:
                found.append(["empty", name, [len(rows), *shape[1:]], dtype])
            case ["read" | "write" as verb, own, [*part], *rest] if own == name:
                ends = [min(max(end - rows.start, 0), len(rows)) for end in part]
                found.append([verb, name, ends, *rest])
            case _:
                found.append(op)
    return found


def _plainer_arrays(case: Case) -> Iterator[Case]:
    """Of ones or counting: all at once, then one at a time."""
    for plain in (np.ones_like, _counting):
        for some in (case.arrays, *([name] for name in case.arrays)):
            yield case.with_arrays(**{name: plain(case.arrays[name]) for name in some})
