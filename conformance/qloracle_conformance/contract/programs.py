"""Programs: what is done to a pager, operation by operation, as data that JSON can hold.

A program is a list; each operation is a list of a verb and its arguments::

    empty   a, [3, 4], "float32"          a = pager.empty((3, 4), float32)
    write   a, 0, 2, x, "host"            a[0:2] = x, an array of the case; None, None: a[...]
    read    a, 0, 2, "device"             with pager.use(a) as (on_device,): on_device[0:2]
    open    u, [a, a]                     u = pager.use(a, a), entered
    read    a, 0, 2, "u.1"                u[1][0:2]; `write` likewise
    close   u
    step    adam_step, [p, m, v], g, 1, 200, 64
                                          steps 1 to 200 of Adam inside `use`, 64 elements a time;
                                          row t of g, modulo its rows, is the gradient of step t
    prefetch a, "device"                  or "host", where the pager's `prefetch` takes a second one
    advise  a, "host", false              preferred side (or None), and whether it is mostly read
    shrink  4096                          another capacity, smaller or larger
    free    a
    save    f                             all arrays that are alive, in a file
    load    f, 4096, 4096                 a fresh pager of this capacity and page, with all of f
    counters                              NotImplementedError where the pager shows no counters
    must_fail  an operation               one that a pager must refuse

`advise`, `shrink` and a prefetch to the host are left out where a pager has no such thing.

What comes back of a program is four arrays: the bytes that were read, one after the other; the log,
a row for the new pager and one for each operation (LOG names its columns, -1 stands for what is not
shown); words, a text for each operation: its error, the form of what it read, or what it loaded;
and the bytes that the same program read from plain arrays, if a step was run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.books import COUNTERS, SIZES
from qloracle_conformance.contract.cases import Case

Operation = Sequence[Any]
Program = list[list[Any]]

LOG = ("status", *SIZES, *COUNTERS)
DONE, RAISED, NOT_OFFERED, NOT_REACHED = range(4)
UNKNOWN = -1  # not shown; what is no whole number is less
BLOCK = 256  # elements of a block of an 8-bit state
LR = 0.01

READ, LOGGED, WORDS, PLAIN = range(4)  # the results of a program


def dtype_of(name: str) -> np.dtype[Any]:
    """A type by its name.

    >>> dtype_of("bfloat16").itemsize, dtype_of("bool").itemsize
    (2, 1)
    """
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def program_of(case: Case) -> Program:
    """The operations of a case."""
    return [list(operation) for operation in case.options["program"]]


def steps_in(case: Case) -> bool:
    """Whether a program runs a step of an optimizer: only then something is computed."""
    return any(operation[0] == "step" for operation in case.options.get("program", ()))


def written_out(results: Sequence[NDArray[Any]]) -> list[str]:
    """The words of a program's results, one an operation."""
    found: list[str] = json.loads(results[WORDS].tobytes().decode())
    return found


def encoded(words: Sequence[str]) -> NDArray[np.uint8]:
    """Words as bytes: results are arrays."""
    return np.frombuffer(json.dumps(list(words)).encode(), np.uint8)


def form_of(array: NDArray[Any]) -> str:
    """Type and shape.

    >>> form_of(np.zeros((3, 4), np.float32))
    'float32[3, 4]'
    """
    return f"{array.dtype}{list(array.shape)}"


def elements_of(name: str, i: int, low: int, high: int) -> slice:
    """Which part of an array a step takes for elements low to high: i-th argument of `name`.

    >>> elements_of("adam_step_8bit", 2, 256, 700), elements_of("adam_step", 2, 256, 700)
    (slice(1, 3, None), slice(256, 700, None))
    """
    if name == "adam_step_8bit" and i in (2, 4):  # scales: one a block
        return slice(low // BLOCK, -(-high // BLOCK))
    return slice(low, high)


# ---- in words ------------------------------------------------------------------------------------


def text_of(operation: Operation) -> str:
    """An operation in a line of Python, as far as a line can say it.

    >>> text_of(["read", "a", 0, 2, "u.1"]), text_of(["free", "a"])
    ('u[1][0:2]', 'pager.free(a)')
    """
    match operation:
        case ["empty", name, shape, dtype]:
            return f"{name} = pager.empty({tuple(shape)}, {dtype})"
        case ["write", name, start, stop, values, side]:
            return _seen(name, start, stop, side, f" = {values}")
        case ["read", name, start, stop, side]:
            return _seen(name, start, stop, side)
        case ["open", label, names]:
            return f"{label} = pager.use({', '.join(names)})"
        case ["close", label]:
            return f"end of {label}"
        case ["step", *arguments]:
            return _steps(*arguments)
        case ["prefetch", name, to]:
            return f"pager.prefetch({name}{'' if to == 'device' else f', {to!r}'})"
        case ["advise", name, preferred, mostly]:
            return f"pager.advise({name}, preferred={preferred!r}, read_mostly={mostly})"
        case ["must_fail", inner]:
            return text_of(inner)
        case [("shrink" | "free") as verb, value]:
            return f"pager.{verb}({value})"
        case ["load", file, capacity, page]:
            return f"pager = make_pager({capacity}, {page}), and {file} loaded into it"
    return " ".join(map(str, operation))


def _steps(
    function: str, names: list[str], grads: str, first: int, count: int, part: int | None
) -> str:
    steps = f"steps {first} to {first + count - 1}" if count > 1 else f"step {first}"
    size = f", {part} elements at a time" if part else ""
    return f"{steps} of {function} on ({', '.join(names)}) by {grads}{size}"


def _seen(name: str, start: int | None, stop: int | None, side: str, rest: str = "") -> str:
    where = "[...]" if start is None else f"[{start}:{stop}]"
    if side == "host":
        return f"{name}{where}{rest}"
    if side == "device":
        return f"pager.use({name})[0]{where}{rest}"
    label, _, i = side.partition(".")
    return f"{label}[{i}]{where}{rest}"


def text_of_case(case: Case) -> str:
    """A program in a line: the pager and all operations.

    >>> program = [["empty", "a", [2], "uint8"], ["write", "a", None, None, "x", "host"]]
    >>> text_of_case(Case("make_pager", {}, {"capacity_bytes": 64, "program": program}))
    'pager = make_pager(capacity_bytes=64); a = pager.empty((2,), uint8); a[...] = x'
    """
    options = [f"{k}={v!r}" for k, v in case.options.items() if k != "program" and v is not None]
    lines = [f"pager = make_pager({', '.join(options)})"]
    return "; ".join([*lines, *map(text_of, case.options["program"])])
