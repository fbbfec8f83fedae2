"""Programs: what is done to a pager, operation by operation, as data that JSON can hold.

A program is a list; each operation is a list of a verb and its arguments, ["read", "a", [0, 2],
"device"].  `lines_of` tells what each one is in Python: these lines are executed on a pager and on
plain arrays, stand in the scripts that reproduce a failure, and, without what converts arrays, in
reports.  What must be read after them, `PlainArrays` know.

What comes back of a program is four arrays: the bytes that were read, one after the other; the log,
a row for the new pager and one for each operation (LOG names its columns, -1 stands for what is not
shown); words, a text for each operation: its error, the form of what it read, or what it loaded;
and the bytes that the same program read from plain arrays, if a step was run.  A case that is
`counted` is unsupported (NotImplementedError) where the pager shows no counters.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
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
# What a pager need not have, with its options; a prefetch to the device it has
OPTIONAL = {"prefetch": ["to"], "advise": ["preferred", "read_mostly"], "shrink": []}
BLOCK = 256  # elements of a block of an 8-bit state
BLOCKS = {"adam_step": (1, 1, 1), "adam_step_8bit": (1, 1, BLOCK, 1, BLOCK)}  # elements a number
TYPES = {"adam_step": ("float32",) * 3, "adam_step_8bit": ("float32", *("uint8", "float32") * 2)}

READ, LOGGED, WORDS, PLAIN = range(4)  # the results of a program


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


# ---- in Python -----------------------------------------------------------------------------------


class Spelling(NamedTuple):
    """How the lines of a program convert types and arrays, and keep what they read."""

    dtype: str = 'dtype("{}")'
    give: str = "give({})"  # to the device
    host: str = "host({})"
    take: str = "take({})"
    keep: str = "found.append({})"
    step: str = "{}"  # the function of an optimizer


PERFORMED, READABLE = Spelling(), Spelling(*["{}"] * 6)
NAMES_AND_NUMBERS = re.compile(r'(?:"[a-zA-Z]\w*(?:\.\d+)?"|-?\d+|null|true|false|[\[\], ])*', re.A)


def lines_of(operation: Operation, spelling: Spelling = PERFORMED) -> list[str]:
    """An operation in lines of Python; ValueError if it is none, or could be any other code.

    >>> lines_of(["write", "a", [0, 2], "x", "device"])
    ['with pager.use(a) as arrays:', '    arrays[0][0:2] = give(x)']
    """
    if not NAMES_AND_NUMBERS.fullmatch(json.dumps(operation)):
        raise ValueError(f"{operation} holds more than names and numbers")
    dtype, give, host, take, keep, step = (template.format for template in spelling)
    match operation:
        case ["empty", name, shape, kind]:
            return [f"{name} = pager.empty({tuple(shape)}, {dtype(np.dtype(kind).name)})"]
        case ["write", name, part, data, side]:  # an array of the case
            return _at(name, part, side, f"{{}} = {(host if side == 'host' else give)(data)}")
        case ["read", name, part, side]:
            return _at(name, part, side, keep(take("{}")))
        case ["open", label, names]:
            return [f'{label} = opened["{label}"].enter_context(pager.use({", ".join(names)}))']
        case ["close", label]:
            return [f'opened["{label}"].close()']
        case ["step", function, names, grads, first, count, part] if function in BLOCKS:
            # in slices of `part`; a row of `grads`, one after the other, is a step's gradient
            state, numbers = ", ".join(names), f"range({first}, {first + count}), {part}"
            return [f"run_steps(pager, {step(function)}, ({state}), {give(grads)}, {numbers})"]
        case ["prefetch", name, side]:
            return [f"pager.prefetch({name}{'' if side == 'device' else f', to={side!r}'})"]
        case ["advise", name, side, mostly]:
            return [f"pager.advise({name}, preferred={side!r}, read_mostly={mostly})"]
        case ["shrink" | "free" as verb, argument]:  # another capacity, smaller or larger
            return [f"pager.{verb}({argument})"]
        case ["save", file, names]:
            arrays = ", ".join(f'"{name}": {name}' for name in names)
            return [f'files.save_paged(folder / "{file}", {{{arrays}}}, {{"file": "{file}"}})']
        case ["load", file, names, capacity, page]:  # all of a file, into a fresh pager
            loaded = f'loaded, words = files.load_paged(folder / "{file}", pager)'
            return [
                making(capacity, page),
                loaded,
                f"[{', '.join(names)}] = map(loaded.get, {names})",
            ]
        case ["must_fail", refused]:
            return lines_of(refused, spelling._replace(keep="{}"))
    raise ValueError(f"{operation} is no operation")


def _at(name: str, part: Part, side: str, statement: str) -> list[str]:
    """A statement about a part of an array, None for all, as a side or an open `use` sees it."""
    index, (use, _, i) = "..." if part is None else f"{part[0]}:{part[1]}", side.partition(".")
    seen = {"host": name, "device": "arrays[0]"}.get(side, f"{use}[{i}]")
    lines = [statement.format(f"{seen}[{index}]")]
    return lines if side != "device" else [f"with pager.use({name}) as arrays:", f"    {lines[0]}"]


def making(capacity: int | None, page: int | None) -> str:
    """The line that makes a pager of these sizes."""
    sizes = {"capacity_bytes": capacity, "page_bytes": page}
    given = (f"{name}={size:d}" for name, size in sizes.items() if size is not None)
    return f"pager = make_pager({', '.join(given)})"


def text_of(operation: Operation) -> str:
    """An operation in a line for people.

    >>> text_of(["read", "a", [0, 2], "u.1"]), text_of(["must_fail", ["free", "a"]])
    ('u[1][0:2]', 'pager.free(a)')
    """
    return "; ".join(lines_of(operation, READABLE)).replace(":;     ", ": ")


def text_of_case(case: Case) -> str:
    """A program in a line: the pager and all operations.

    >>> program = [["empty", "a", [2], "uint8"], ["write", "a", None, "x", "host"]]
    >>> text_of_case(Case("make_pager", {}, {"capacity_bytes": 64, "program": program}))
    'pager = make_pager(capacity_bytes=64); a = pager.empty((2,), uint8); a[...] = x'
    """
    return "; ".join([making(*sizes_of(case)), *map(text_of, program_of(case))])
