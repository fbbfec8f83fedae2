"""A program runs on a pager: what happens in the child process for L5.

Where a step is run, the same program runs once more on plain arrays, with the same function: a
paged step must equal that, and no reference can know the bits of somebody else's Adam.  That comes
last, when the pager has answered: while it works, what is due exists nowhere.  Whatever moves bytes
only is judged in the parent, by what plain arrays hold there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.calling import frameworks, steps
from qloracle_conformance.contract import books, programs
from qloracle_conformance.contract.books import COUNTERS
from qloracle_conformance.contract.cases import Case, decode, encode
from qloracle_conformance.contract.programs import (
    DONE,
    LOG,
    LR,
    NOT_OFFERED,
    NOT_REACHED,
    RAISED,
    UNKNOWN,
    Operation,
    Program,
)
from qloracle_conformance.contract.protocol import SAVING

FRESH = 0xFF  # of every byte of plain arrays that nothing has written
SAID = 300  # characters of an error


class Tools(NamedTuple):
    """What an implementation brings along beside its pager; the kit's own where it does not."""

    framework: str
    device: str
    steps: Mapping[str, Callable[..., Any]]
    save: Callable[..., None] | None = None
    load: Callable[..., tuple[dict[str, Any], dict[str, str]]] | None = None

    def dtype(self, name: str) -> Any:
        """A type by its name, the framework's own; NotImplementedError where it has another."""
        if self.framework == "jax":
            import jax

            found = getattr(jax.numpy, name)
            if jax.dtypes.canonicalize_dtype(found) != found:
                raise NotImplementedError(f"JAX has no {name} here (jax_enable_x64)")
            return found
        if self.framework == "torch":
            return frameworks.dtype(name, "torch")
        return programs.dtype_of(name)

    def given(self, values: np.ndarray, side: str) -> Any:
        """An array as the host or the device writes it."""
        if side != "host":
            return frameworks.convert(values, self.framework, self.device)
        return frameworks.convert(values, "torch" if self.framework == "torch" else "numpy", "cpu")


def run(target: Any, case: Case, tools: Tools) -> tuple[np.ndarray, ...]:
    """Run a case's program on a pager of `target`.

    Returns the four results that `programs` describes.  NotImplementedError where the pager cannot
    do what the program needs.
    """
    ran = _run(lambda *sizes: _made(target.make_pager, *sizes), case, tools)
    plain: list[bytes] = []
    if programs.steps_in(case):
        without = tools._replace(save=None, load=None)
        plain = _run(lambda *_: PlainPager(tools), _plainly(case), without).read
    read, due = (np.frombuffer(b"".join(found), np.uint8) for found in (ran.read, plain))
    return read, np.array(ran.log, np.int64), programs.encoded(ran.words), due


def _plainly(case: Case) -> Case:
    """The program for plain arrays: what is written, stepped, saved and read, on one side."""
    verbs = ("empty", "write", "read", "step", "save", "load")
    kept = [op for op in programs.program_of(case) if op[0] in verbs]
    one = [[*op[:-1], "device"] if op[0] in ("write", "read") else op for op in kept]
    return case.with_options(program=one)


def tools_of(target: Any, framework: str, device: str) -> Tools:
    """The steps and the saving that an implementation offers, or the kit's."""
    own = {
        name: getattr(target, name, None) or _on(framework, device, getattr(steps, name))
        for name in ("adam_step", "adam_step_8bit")
    }
    save, load = (getattr(target, name, None) for name in SAVING)
    both = callable(save) and callable(load)
    return Tools(framework, device, own, save if both else None, load if both else None)


def _on(framework: str, device: str, step_of: Callable[..., Any]) -> Callable[..., Any]:
    """A step that is written for NumPy, on a framework's arrays."""
    if framework == "numpy":
        return step_of

    def step(*arrays: Any, **numbers: Any) -> list[Any]:
        new = step_of(*map(frameworks.take, arrays), **numbers)
        return [frameworks.convert(values, framework, device) for values in new]

    return step


def _made(maker: Callable[..., Any], capacity: int | None, page: int | None) -> Any:
    sizes = {"capacity_bytes": capacity, "page_bytes": page}
    return maker(**{name: value for name, value in sizes.items() if value is not None})


def _run(make: Callable[..., Any], case: Case, tools: Tools) -> Running:
    with ExitStack() as open_ones:
        running = Running(make, case.arrays, tools, open_ones)
        running.start(case.options.get("capacity_bytes"), case.options.get("page_bytes"))
        running.perform(programs.program_of(case))
    return running


class Running:
    """A program while it runs: the pager, its handles by name, and what has come of it so far."""

    def __init__(
        self,
        make: Callable[..., Any],
        arrays: Mapping[str, np.ndarray],
        tools: Tools,
        open_ones: ExitStack,
    ) -> None:
        self._make, self._arrays, self._tools = make, arrays, tools
        self._open_ones = open_ones  # each `use` that is open, and the folder of files
        self._handles: dict[str, Any] = {}
        self._freed: set[str] = set()
        self._uses: dict[str, tuple[ExitStack, Any]] = {}
        self.read: list[bytes] = []
        self.log: list[list[int]] = []
        self.words: list[str] = []

    def start(self, capacity: int | None, page: int | None) -> None:
        """Make the pager."""
        self._pager = self._make(capacity, page)
        self.log.append(self._row(DONE))

    def perform(self, program: Program) -> None:
        """Perform the operations, up to one that fails and should not."""
        for operation in program:
            status = self._attempt(operation)
            self.log.append(self._row(status))
            if status == RAISED and operation[0] != "must_fail":
                break
        missing = len(program) - len(self.words)
        self.words += [""] * missing
        self.log += [[NOT_REACHED] + [UNKNOWN] * (len(LOG) - 1)] * missing
        with suppress(Exception):  # the pager has answered
            self._open_ones.close()

    def _attempt(self, operation: Operation) -> int:
        verb, *arguments = operation[1] if operation[0] == "must_fail" else operation
        try:
            word = getattr(self, f"_{verb}")(*arguments)
        except NotImplementedError as error:
            if operation[0] != "must_fail":
                raise
            word, status = error, RAISED
        except Exception as error:
            word, status = error, RAISED
        else:
            status = NOT_OFFERED if word is NotImplemented else DONE
        if status == DONE and operation[0] == "must_fail" and verb == "read":
            self.read.pop()
        self.words.append(_said(word))
        return status

    def _row(self, status: int) -> list[int]:
        return [status, *books.books_of(self._pager).values()]

    @cached_property
    def _folder(self) -> Path:
        return Path(self._open_ones.enter_context(tempfile.TemporaryDirectory()))

    # ---- operations ----------------------------------------------------------------------------

    def _empty(self, name: str, shape: list[int], dtype: str) -> None:
        self._handles[name] = self._pager.empty(tuple(shape), self._tools.dtype(dtype))

    def _write(self, name: str, start: int | None, stop: int | None, data: str, side: str) -> None:
        values = self._tools.given(self._arrays[data], side)
        with self._seen(name, side) as array:
            array[_where(start, stop)] = values

    def _read(self, name: str, start: int | None, stop: int | None, side: str) -> str:
        with self._seen(name, side) as array:
            values = frameworks.take(array[_where(start, stop)])
        self.read.append(values.tobytes())
        return programs.form_of(values)

    @contextmanager
    def _seen(self, name: str, side: str) -> Iterator[Any]:
        """An array as the host sees it, or a step in a `use` of its own, or in one that is open."""
        if side == "host":
            yield self._handles[name]
        elif side == "device":
            with self._pager.use(self._handles[name]) as arrays:
                yield arrays[0]
        else:
            label, _, i = side.partition(".")
            yield self._uses[label][1][int(i)]

    def _open(self, label: str, names: list[str]) -> None:
        stack = ExitStack()
        arrays = stack.enter_context(self._pager.use(*(self._handles[name] for name in names)))
        self._uses[label] = stack, arrays
        self._open_ones.push(stack)

    def _close(self, label: str) -> None:
        self._uses.pop(label)[0].close()

    def _step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> None:
        step_of, rows = self._tools.steps[function], self._arrays[grads]
        n = rows.shape[1]
        for step in range(first, first + count):
            grad = self._tools.given(rows[step % len(rows)], "device")
            with self._pager.use(*(self._handles[name] for name in names)) as arrays:
                for low in range(0, n, part or max(n, 1)):
                    high = min(low + (part or n), n)
                    parts = [
                        programs.elements_of(function, i, low, high) for i in range(len(names))
                    ]
                    param, *state = (a[p] for a, p in zip(arrays, parts, strict=True))
                    with np.errstate(all="ignore"):  # what a faulty pager reads may be anything
                        new = step_of(param, grad[low:high], *state, step=step, lr=LR)
                    for array, where, values in zip(arrays, parts, new, strict=True):
                        array[where] = values

    def _prefetch(self, name: str, to: str) -> Any:
        if to == "device":
            return self._pager.prefetch(self._handles[name])
        return books.if_offered(self._pager, "prefetch", self._handles[name], to=to)

    def _advise(self, name: str, preferred: str | None, mostly: bool) -> Any:
        advice = {"preferred": preferred, "read_mostly": mostly}
        return books.if_offered(self._pager, "advise", self._handles[name], **advice)

    def _shrink(self, capacity: int) -> Any:
        return books.if_offered(self._pager, "shrink", capacity)

    def _free(self, name: str) -> None:
        self._pager.free(self._handles[name])
        self._freed.add(name)

    def _save(self, file: str) -> None:
        alive = {name: a for name, a in self._handles.items() if name not in self._freed}
        save = self._tools.save or save_through_host
        save(self._folder / file, alive, {"file": file})

    def _load(self, file: str, capacity: int | None, page: int | None) -> str:
        self._handles, self._freed, self._pager = {}, set(), self._make(capacity, page)
        load = self._tools.load or partial(load_through_host, tools=self._tools)
        self._handles, words = load(self._folder / file, self._pager)
        return json.dumps([sorted(self._handles), dict(words)])

    def _counters(self) -> None:
        if set(self._row(DONE)[-len(COUNTERS) :]) == {UNKNOWN}:
            raise NotImplementedError("the pager shows no counters")


def _where(start: int | None, stop: int | None) -> Any:
    return ... if start is None else slice(start, stop)


def _said(word: object) -> str:
    """What an operation's text is: an error in one line, or what it has returned as a text."""
    if isinstance(word, Exception):
        return f"{type(word).__name__}: {' '.join(str(word).split())}"[:SAID]
    return word if isinstance(word, str) else ""


# ---- saving, where an implementation does not offer it -------------------------------------------


def save_through_host(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Read all arrays by the host, and write them into a file."""
    plain = {name: frameworks.take(array[...]) for name, array in arrays.items()}
    path.write_bytes(encode(dict(metadata), plain))


def load_through_host(
    path: Path, pager: Any, tools: Tools
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write all arrays of a file into a pager, by the host."""
    words, plain = decode(path.read_bytes())
    side = "device" if isinstance(pager, PlainPager) else "host"
    handles = {}
    for name, values in plain.items():
        handles[name] = pager.empty(values.shape, tools.dtype(str(values.dtype)))
        handles[name][...] = tools.given(values, side)
    return handles, words


# ---- plain arrays --------------------------------------------------------------------------------


class PlainPager:
    """No pager: arrays of a framework as they are."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array, whose bytes are 0xFF."""
        name = str(dtype).rpartition(".")[2]
        kind = programs.dtype_of(name)
        size = int(np.prod(shape)) * kind.itemsize
        values = np.full(size, FRESH, np.uint8).view(kind).reshape(shape)
        return self._tools.given(values, "device")

    @contextmanager
    def use(self, *handles: Any) -> Iterator[tuple[Any, ...]]:
        """The arrays themselves."""
        yield handles
