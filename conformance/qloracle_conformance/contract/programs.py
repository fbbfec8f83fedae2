"""Programs: what is done to a pager, operation by operation, as data that JSON can hold.

A program is a list; each operation is a list of a verb and its arguments::

    empty   a, [3, 4], "float32"          a = pager.empty((3, 4), float32)
    write   a, [0, 2], x, "host"          a[0:2] = x, an array of the case; a part None: a[...]
    read    a, [0, 2], "device"           with pager.use(a) as (on_device,): on_device[0:2]
    open    u, [a, a]                     u = pager.use(a, a), entered
    read    a, [0, 2], "u.1"              u[1][0:2]; `write` likewise
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

A handler is an object that has a method for each verb that matters to it: `TEXT` puts operations in
words, `PlainArrays` hold what is to be read and know what must be copied for it, `Books` know the
pages of that, and `Operations` perform a program on a pager, here and in the scripts that reproduce
a failure.

What comes back of a program is four arrays: the bytes that were read, one after the other; the log,
a row for the new pager and one for each operation (LOG names its columns, -1 stands for what is not
shown); words, a text for each operation: its error, the form of what it read, or what it loaded;
and the bytes that the same program read from plain arrays, if a step was run.
"""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case

Operation = Sequence[Any]
Program = list[list[Any]]
Part = Sequence[int] | None  # of the first axis; None: all of an array

# What a pager shows of itself, as numbers
SIZES = ("capacity", "page_bytes", "resident_bytes")
COUNTERS = (
    "faults", "prefetched", "evictions", "host_faults", "host_prefetched", "bytes_to_device",
    "bytes_to_host",
)  # fmt: skip
LOG = ("status", *SIZES, *COUNTERS)
DONE, RAISED, NOT_OFFERED, NOT_REACHED = range(4)
UNKNOWN = -1  # not shown; what is no whole number is less
BLOCK = 256  # elements of a block of an 8-bit state
BLOCKS = {"adam_step": (1, 1, 1), "adam_step_8bit": (1, 1, BLOCK, 1, BLOCK)}  # elements a number

READ, LOGGED, WORDS, PLAIN = range(4)  # the results of a program


def perform(operation: Operation, handler: object) -> Any:
    """Hand an operation to the method of its name; None where the handler has no such method.

    >>> perform(["free", "a"], TEXT), perform(["free", "a"], "no handler")
    ('pager.free(a)', None)
    """
    verb, *arguments = operation
    method = getattr(handler, verb, None)
    return None if method is None else method(*arguments)


# ---- small things --------------------------------------------------------------------------------


def program_of(case: Case) -> Program:
    """The operations of a case."""
    return [list(operation) for operation in case.options["program"]]


def sizes_of(case: Case) -> tuple[int | None, int | None]:
    """The capacity and the page that a case asks for."""
    return case.options.get("capacity_bytes"), case.options.get("page_bytes")


def steps_in(case: Case) -> bool:
    """Whether a program runs a step of an optimizer: only then something is computed."""
    return any(operation[0] == "step" for operation in case.options.get("program", ()))


def written_out(results: Sequence[NDArray[Any]]) -> list[str]:
    """The words of a program's results, one an operation."""
    found: list[str] = json.loads(results[WORDS].tobytes().decode())
    return found


def form_of(array: NDArray[Any]) -> str:
    """Type and shape.

    >>> import numpy
    >>> form_of(numpy.zeros((3, 4), numpy.float32))
    'float32[3, 4]'
    """
    return f"{array.dtype}{list(array.shape)}"


def where(part: Part) -> Any:
    """The index of a part."""
    return ... if part is None else slice(*part)


# ---- in words ------------------------------------------------------------------------------------


def _place(name: str, part: Part, side: str) -> str:
    label, _, i = side.partition(".")
    sides = {"host": name, "device": f"pager.use({name})[0]"}
    index = "..." if part is None else f"{part[0]}:{part[1]}"
    return f"{sides.get(side, f'{label}[{i}]')}[{index}]"


def text_of(operation: Operation) -> str:
    """An operation in a line of Python.

    >>> text_of(["read", "a", [0, 2], "u.1"]), text_of(["must_fail", ["free", "a"]])
    ('u[1][0:2]', 'pager.free(a)')
    """
    return str(perform(operation, TEXT))


TEXT = SimpleNamespace(  # each operation in a line of Python, as far as a line can say it
    empty=lambda name, shape, dtype: f"{name} = pager.empty({tuple(shape)}, {dtype})",
    write=lambda name, part, data, side: f"{_place(name, part, side)} = {data}",
    read=_place,
    open=lambda label, names: f"{label} = pager.use({', '.join(names)})",
    close=lambda label: f"end of {label}",
    step=lambda function, names, grads, first, count, part: (
        (f"steps {first} to {first + count - 1}" if count > 1 else f"step {first}")
        + f" of {function} on ({', '.join(names)}) by {grads}"
        + (f", {part} elements at a time" if part else "")
    ),
    prefetch=lambda name, to: f"pager.prefetch({name}{'' if to == 'device' else f', {to!r}'})",
    advise=lambda name, side, mostly: (
        f"pager.advise({name}, preferred={side!r}, read_mostly={mostly})"
    ),
    shrink=lambda capacity: f"pager.shrink({capacity})",
    free=lambda name: f"pager.free({name})",
    save=lambda file: f"save {file}",
    load=lambda file, *sizes: f"pager = make_pager{sizes}, and {file} loaded into it",
    counters=lambda: "counters",
    must_fail=text_of,
)


def text_of_case(case: Case) -> str:
    """A program in a line: the pager and all operations.

    >>> program = [["empty", "a", [2], "uint8"], ["write", "a", None, "x", "host"]]
    >>> text_of_case(Case("make_pager", {}, {"capacity_bytes": 64, "program": program}))
    'pager = make_pager(capacity_bytes=64); a = pager.empty((2,), uint8); a[...] = x'
    """
    options = [f"{k}={v!r}" for k, v in case.options.items() if k != "program" and v is not None]
    return "; ".join([f"pager = make_pager({', '.join(options)})", *map(text_of, program_of(case))])
