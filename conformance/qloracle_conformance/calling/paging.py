"""A program runs on a pager: what happens in the child process for L5.

Where a step is run, the same program runs once more on plain arrays, with the same function: a
paged step must equal that, and no reference can know the bits of somebody else's Adam.  That comes
last, when the pager has answered: while it works, what is expected exists nowhere.  Whatever moves
bytes only is judged in the parent, by what plain arrays hold there.

From `Operations` on all of this needs only NumPy, and stands as it is in the scripts that reproduce
a failure.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: D102 (the verbs are told in `contract.programs`)
import contextlib
import inspect
import json
import pathlib
import tempfile
import types
from typing import Any

import numpy as np

from qloracle_conformance.calling import frameworks, steps
from qloracle_conformance.calling.steps import run_steps
from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import COUNTERS, DONE, RAISED, SIZES, UNKNOWN

SAID = 300  # characters of an error


def kind_of(target: Any, framework: str, device: str) -> types.SimpleNamespace:
    """How `Operations` hand arrays to an implementation and take them, and what steps them.

    The host writes NumPy's arrays, or tensors.  A step is the implementation's own where it offers
    one, else the kit's.
    """
    places = {"host": ("torch" if framework == "torch" else "numpy", "cpu")}

    def given(values: np.ndarray, side: str = "device") -> Any:
        return frameworks.convert(values, *places.get(side, (framework, device)))

    def step(function: str) -> Any:
        own = getattr(target, function, None)
        return own or through(getattr(steps, function), frameworks.take, given)

    def dtype(name: str) -> Any:
        own = framework in ("torch", "jax")
        return frameworks.dtype(name, framework) if own else np.dtype(name)

    return types.SimpleNamespace(dtype=dtype, given=given, take=frameworks.take, step=step)


def run(target: Any, case: Case, framework: str, device: str) -> tuple[np.ndarray, ...]:
    """Run a case's program on a pager of `target`.

    Returns the four results that `programs` describes.  NotImplementedError where the pager cannot
    do what the program needs.
    """
    kind, program = kind_of(target, framework, device), programs.program_of(case)
    operations = Operations(case.arrays, target, kind)
    try:
        operations.make(*programs.sizes_of(case))
        log, words, failed = _attempted(operations, program)
    finally:
        with contextlib.suppress(Exception):  # the pager has answered
            operations.open_ones.close()
    plain = Operations(case.arrays, *plainly(kind))
    with contextlib.suppress(*[Exception] * failed):  # what failed may fail here, too
        plain.make(None, None)
        for operation in program if programs.steps_in(case) else ():
            plain.perform(operation)
    came, expected = (b"".join(array.tobytes() for array in o.found) for o in (operations, plain))
    texts = (np.frombuffer(text, np.uint8) for text in (came, json.dumps(words).encode(), expected))
    read, said, stepped = texts
    return read, np.array(log, np.int64), said, stepped


def _attempted(
    operations: Any, program: programs.Program
) -> tuple[list[list[int]], list[str], bool]:
    """The log and the words of a program, and whether an operation failed that should not."""
    log, words, failed = [[DONE, *books_of(operations.pager).values()]], list[str](), False
    for operation in program:
        status, word = (programs.NOT_REACHED, "") if failed else _attempt(operations, operation)
        log.append([status, *books_of(operations.pager).values()])
        words.append(word)
        if operation[0] == "counters" and set(log[-1][-len(COUNTERS) :]) == {UNKNOWN}:
            raise NotImplementedError("the pager shows no counters")
        failed |= status == RAISED and operation[0] != "must_fail"
    return log, words, failed


def _attempt(operations: Any, operation: programs.Operation) -> tuple[int, str]:
    """The status of an operation, and its word: its error, what it read, or what it loaded."""
    try:
        found = operations.perform(operation)
    except NotImplementedError:
        raise
    except Exception as error:
        return RAISED, said_by(error)[:SAID]
    match operation[0]:
        case _ if found is NotImplemented:
            return programs.NOT_OFFERED, ""
        case "must_fail":
            return (RAISED if found else DONE), found[:SAID]
        case "read":
            return DONE, programs.form_of(found)
    return DONE, json.dumps(found) if operation[0] == "load" else ""


# ---- operations ----------------------------------------------------------------------------------


class Operations:
    """A pager, its arrays by name and what was read; `kind` hands arrays over and takes them."""

    def __init__(self, data, target, kind):
        self.target, self.data, self.kind = target, data, kind
        self.handles, self.freed, self.uses, self.files, self.found = {}, set(), {}, {}, []
        self.open_ones = contextlib.ExitStack()  # each `use`, and the folders of files

    def make(self, capacity, page):
        sizes = {"capacity_bytes": capacity, "page_bytes": page}
        given = {name: n for name, n in sizes.items() if n is not None}
        self.pager = self.target.make_pager(**given)

    def perform(self, operation):
        verb, *arguments = operation
        return getattr(self, verb)(*arguments) if hasattr(self, verb) else None

    @contextlib.contextmanager
    def seen(self, name, side):
        """An array as the host sees it, or a step in a `use` of its own, or in an open one."""
        if side == "host":
            yield self.handles[name]
        elif side == "device":
            with self.pager.use(self.handles[name]) as arrays:
                yield arrays[0]
        else:
            label, _, i = side.partition(".")
            yield self.uses[label][1][int(i)]

    # ---- verbs ---------------------------------------------------------------------------------

    def empty(self, name, shape, dtype):
        self.handles[name] = self.pager.empty(tuple(shape), self.kind.dtype(dtype))

    def write(self, name, part, data, side):
        values = self.kind.given(self.data[data], side)
        with self.seen(name, side) as array:
            array[slice(*part) if part else ...] = values

    def read(self, name, part, side):
        with self.seen(name, side) as array:
            self.found.append(self.kind.take(array[slice(*part) if part else ...]))
        return self.found[-1]

    def open(self, label, names):
        stack = contextlib.ExitStack()
        arrays = stack.enter_context(self.pager.use(*(self.handles[name] for name in names)))
        self.uses[label] = stack, arrays
        self.open_ones.push(stack)

    def close(self, label):
        self.uses.pop(label)[0].close()

    def step(self, function, names, grads, first, count, part):
        step_of = self.kind.step(function)
        handles, counts = [self.handles[name] for name in names], range(first, first + count)
        gradients = self.kind.given(self.data[grads])
        with np.errstate(all="ignore"):  # what a faulty pager reads may be anything
            run_steps(self.pager, step_of, handles, gradients, counts, part)

    def prefetch(self, name, to):
        if to == "device":
            return self.pager.prefetch(self.handles[name])
        return if_offered(self.pager, "prefetch", self.handles[name], to=to)

    def advise(self, name, preferred, mostly):
        advice = {"preferred": preferred, "read_mostly": mostly}
        return if_offered(self.pager, "advise", self.handles[name], **advice)

    def shrink(self, capacity):
        return if_offered(self.pager, "shrink", capacity)

    def free(self, name):
        self.pager.free(self.handles[name])
        self.freed.add(name)

    def save(self, file):
        alive = {name: array for name, array in self.handles.items() if name not in self.freed}
        if not hasattr(self.target, "save_paged") or not hasattr(self.target, "load_paged"):
            self.files[file] = {name: self.kind.take(a[...]) for name, a in alive.items()}
            return
        if file not in self.files:
            folder = self.open_ones.enter_context(tempfile.TemporaryDirectory())
            self.files[file] = pathlib.Path(folder) / file
        self.target.save_paged(self.files[file], alive, {"file": file})

    def load(self, file, capacity, page):
        self.handles, self.freed, saved, words = {}, set(), self.files[file], {"file": file}
        self.make(capacity, page)
        if not isinstance(saved, dict):
            self.handles, words = self.target.load_paged(saved, self.pager)
            saved = {}
        for name, values in saved.items():
            self.empty(name, values.shape, values.dtype.name)
            self.handles[name][...] = self.kind.given(values, "host")
        return [sorted(self.handles), dict(words)]

    def must_fail(self, operation):
        """Return what its error says."""
        before = len(self.found)
        try:
            return NotImplemented if self.perform(operation) is NotImplemented else ""
        except Exception as error:
            return said_by(error)
        finally:
            del self.found[before:]


def said_by(error):
    """What an error is called and says, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def plainly(kind):
    """What makes a pager that pages nothing, and the kind of its arrays: NumPy's, stepped alike."""

    def nothing(*arguments, **named):
        return pager

    pager = types.SimpleNamespace(
        make_pager=nothing, free=nothing, prefetch=nothing, advise=nothing, shrink=nothing,
        empty=np.zeros, use=lambda *arrays: contextlib.nullcontext(arrays),
    )  # fmt: skip
    return pager, types.SimpleNamespace(
        dtype=np.dtype, given=lambda values, side="device": values, take=np.array,
        step=lambda function: through(kind.step(function), kind.given, kind.take),
    )  # fmt: skip


def through(step_of, there, back):
    """A step on arrays of another kind than it is written for."""

    def step(*arrays, **numbers):
        return [back(values) for values in step_of(*map(there, arrays), **numbers)]

    return step


def if_offered(pager: object, name: str, *arguments: object, **options: object) -> object:
    """Call a method that a pager need not have, nor with these options: NotImplemented then."""
    method = getattr(pager, name, None)
    if not callable(method):
        return NotImplemented
    try:
        inspect.signature(method).bind(*arguments, **options)
    except TypeError:
        return NotImplemented
    try:
        return method(*arguments, **options)
    except NotImplementedError:
        return NotImplemented


def books_of(pager: object) -> dict[str, int]:
    """Each number by its name: -1 where nothing is shown, -2 where it is no whole number."""
    try:
        counters = getattr(pager, "counters", None)
    except Exception:
        counters = None
    found = {name: whole_number(pager, name) for name in SIZES}
    return found | {name: whole_number(counters, name) for name in COUNTERS}


def whole_number(owner: object, name: str) -> int:
    """A number of an object or a mapping."""
    try:
        value = owner.get(name) if hasattr(owner, "get") else getattr(owner, name, None)
        if value is None:
            return -1
        return int(value) if 0 <= value == int(value) < 2**63 else -2
    except NotImplementedError:
        return -1
    except Exception:
        return -2
