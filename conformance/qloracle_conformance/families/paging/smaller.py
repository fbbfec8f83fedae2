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
    for candidate in chain(
        (_fitted(case, other) for other in chain(_fewer(program), _plainer(program, "step"))),
        _smaller_pages(case),
        (_fitted(case, o, last=last) for o in _plainer(program, "empty") for last in (False, True)),
        _plainer_arrays(case),
        (_fitted(case, other) for other in _plainer(program, "read", "write")),
    ):
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
    """Another program: arrays that became shorter keep their first or last rows.

    The rest of a state, and its gradients, are as long as its parameters.
    """
    words, program = _words(program), [[*op] for op in program]
    arrays = {name: array for name, array in case.arrays.items() if name in words}
    before = {op[1]: op[2] for op in program_of(case) if op[0] == "empty"}
    empties = {op[1]: op for op in program if op[0] == "empty"}
    for _, function, names, grads, *_ in [op for op in program if op[0] == "step"]:
        if empties.keys() >= set(names):
            (n,) = empties[names[0]][2]
            arrays[grads] = arrays[grads][:, :n].copy()
            for name, block in zip(names, BLOCKS[function], strict=True):
                empties[name][2] = [-(-n // block)]
    rooms = {name: np.broadcast_to(np.zeros((), op[3]), op[2]) for name, op in empties.items()}
    for op in [op for op in program if op[0] in ("read", "write") and op[1] in rooms]:
        _, name, part, *data, _ = op
        if part is not None:
            rows = len(rooms[name])
            gone = before[name][0] - rows if last else 0
            op[2] = [min(max(end - gone, 0), rows) for end in part]
        arrays |= {x: _filled(rooms[name][where(op[2])], arrays[x], last) for x in data}
    return replace(case, arrays=arrays, options={**case.options, "program": program})


def _filled(room: Array, values: Array, last: bool) -> Array:
    """The first or last of some values, as there is room; if they do not fill it, others."""
    start = max(values.size - room.size, 0) if last else 0
    kept = values.reshape(-1)[start : start + room.size]
    same = (kept.size, kept.dtype) == (room.size, room.dtype)
    return kept.reshape(room.shape).copy() if same else _counting(room)


def _fewer(program: Program) -> Iterator[Program]:
    """Without what names one array, file or `use`; without a run of operations, the end first."""
    for name in [op[1] for op in program if op[0] in ("empty", "save", "open")]:
        others = (_without(name, op) if op[0] in ("save", "load") else op for op in program)
        yield [op for op in others if name not in _words(op)]
    for length in (len(program) >> k for k in range(1, len(program).bit_length())):
        for start in range(len(program) - length, -1, -length):
            yield program[:start] + program[start + length :]


def _without(name: str, filed: list[Any]) -> list[Any]:
    """A file without one of its arrays."""
    verb, file, names, *sizes = filed
    return [verb, file, [other for other in names if other != name], *sizes]


def _plainer(program: Program, *verbs: str) -> Iterator[Program]:
    """With one operation plainer: fewer steps, fewer rows, bytes; by the host, in its own `use`."""
    for i, op in enumerate(program):
        others: Program = []
        match op if op[0] in verbs else ():
            case ["step", *_, count, part]:
                others = [[*op[:5], n, part] for n in (1, 2, count // 2, count - 1) if n]
                others += [[*op[:6], None]]
            case ["read" | "write" as verb, name, _, *data, side]:
                others = [[*op[:-1], "host"], [*op[:-1], "device"]]
                others += [] if data else [[verb, name, None, side]]
            case ["empty", name, [rows, *more], dtype]:
                others = [["empty", name, [n, *more], dtype] for n in _lengths(rows)]
                others += [["empty", name, [rows], "uint8"]]
        yield from ([*program[:i], other, *program[i + 1 :]] for other in others)


def _lengths(n: int) -> list[int]:
    return [m for m in sorted(LENGTHS | {n // 2, n - n // 4, n - 1}) if 0 <= m < n]


def _smaller_pages(case: Case) -> Iterator[Case]:
    """Without sizes; of smaller pages, as many; fewer of them."""
    capacity, page = sizes_of(case)

    def scaled(size: int | None) -> int | None:
        return size * small // page if size and page and small else None

    for small in (0, *PAGES) if page else (0,):
        program = [op for op in program_of(case) if small or op[0] != "shrink"]
        for op in program:
            sizes = {"shrink": 1, "load": 3}.get(op[0], len(op))  # where they begin
            op[sizes:] = map(scaled, op[sizes:])
        options = {"capacity_bytes": scaled(capacity), "page_bytes": scaled(page)}
        yield replace(case, options={**options, "program": program})
    if capacity and page:
        yield from (case.with_options(capacity_bytes=frames * page) for frames in (1, 2, 3))


def _plainer_arrays(case: Case) -> Iterator[Case]:
    """Of ones or counting: all at once, then one at a time."""
    for plain in (np.ones_like, _counting):
        for some in (case.arrays, *([name] for name in case.arrays)):
            yield case.with_arrays(**{name: plain(case.arrays[name]) for name in some})
