"""A program runs on a pager: what happens in the child process for L5.

Where a step is run, the same program runs once more on plain arrays, with the same function: a
paged step must equal that, and no reference can know the bits of somebody else's Adam.  That comes
last, when the pager has answered: while it works, what is expected exists nowhere.  Whatever moves
bytes only is judged in the parent, by what plain arrays hold there.
"""
# ruff: noqa: D102 (the verbs are described in `programs`)

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.calling import frameworks, steps
from qloracle_conformance.contract import books, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import PlainArrays
from qloracle_conformance.contract.programs import BLOCKS, DONE, RAISED, UNKNOWN, Part, where
from qloracle_conformance.contract.protocol import SAVING

SAID = 300  # characters of an error

run_steps: Callable[..., None] = steps.run_steps


class Framework(NamedTuple):
    """Whose arrays an implementation takes, and where."""

    name: str
    device: str

    def dtype(self, name: str) -> Any:
        """A type by its name, the framework's own; NotImplementedError where it has another."""
        if self.name == "jax":
            import jax

            found = getattr(jax.numpy, name)
            if jax.dtypes.canonicalize_dtype(found) != found:
                raise NotImplementedError(f"JAX has no {name} here (jax_enable_x64)")
            return found
        return frameworks.dtype(name, "torch") if self.name == "torch" else programs.dtype_of(name)

    def given(self, values: np.ndarray, side: str = "device") -> Any:
        """An array as the host or the device writes it."""
        if side != "host":
            return frameworks.convert(values, self.name, self.device)
        return frameworks.convert(values, "torch" if self.name == "torch" else "numpy", "cpu")

    def step(self, target: Any, function: str) -> Callable[..., Any]:
        """The implementation's own step where it offers one, else the kit's."""
        own = getattr(target, function, None)
        return own or _through(getattr(steps, function), frameworks.take, self.given)


def _through(step_of: Callable[..., Any], there: Any, back: Any) -> Callable[..., Any]:
    """A step on arrays of another kind than it is written for."""

    def step(*arrays: Any, **numbers: Any) -> list[Any]:
        return [back(values) for values in step_of(*map(there, arrays), **numbers)]

    return step


def run(target: Any, case: Case, framework: str, device: str) -> tuple[np.ndarray, ...]:
    """Run a case's program on a pager of `target`.

    Returns the four results that `programs` describes.  NotImplementedError where the pager cannot
    do what the program needs.
    """
    program, known = programs.program_of(case), (target, Framework(framework, device))
    with ExitStack() as open_ones:
        running = Running(*known, case, open_ones)
        running.start(*programs.sizes_of(case))
        performed = running.run(program)
    plain: list[bytes] = []
    with nullcontext() if performed else suppress(Exception):  # what failed may fail here, too
        stepped = program if programs.steps_in(case) else []
        for values in programs.walk(stepped, Stepped(*known, case)):
            plain += [values.tobytes()] if isinstance(values, np.ndarray) else []
    texts = b"".join(running.bytes), json.dumps(running.words).encode(), b"".join(plain)
    read, words, expected = (np.frombuffer(text, np.uint8) for text in texts)
    return read, np.array(running.log, np.int64), words, expected


class Running:
    """A program on a pager: handles by name, what is open, and what has come of it so far."""

    def __init__(self, target: Any, framework: Framework, case: Case, open_ones: ExitStack) -> None:
        self._target, self._framework, self._arrays = target, framework, case.arrays
        self._open_ones = open_ones  # each `use` that is open, and the folder of files
        self._handles: dict[str, Any] = {}
        self._freed: set[str] = set()
        self._uses: dict[str, tuple[ExitStack, Any]] = {}
        save, load = (getattr(target, name, None) for name in SAVING)
        self._saves = callable(save) and callable(load)
        self._saved: dict[str, dict[str, np.ndarray]] = {}  # where it does not: by the kit
        self.bytes: list[bytes] = []
        self.log: list[list[int]] = []
        self.words: list[str] = []

    def start(self, capacity: int | None, page: int | None) -> None:
        """Make the pager, of the sizes that are asked for."""
        sizes = {"capacity_bytes": capacity, "page_bytes": page}
        given = {name: n for name, n in sizes.items() if n is not None}
        self._pager = self._target.make_pager(**given)

    def run(self, program: programs.Program) -> bool:
        """Perform the operations, up to one that fails and should not: whether none does."""
        performed = True
        self.log.append(self._row(DONE))
        for operation in program:
            status = self._attempt(operation)
            self.log.append(self._row(status))
            performed = status != RAISED or operation[0] == "must_fail"
            if not performed:
                break
        missing = len(program) - len(self.words)
        self.words += [""] * missing
        self.log += [[programs.NOT_REACHED] + [UNKNOWN] * (len(programs.LOG) - 1)] * missing
        with suppress(Exception):  # the pager has answered
            self._open_ones.close()
        return performed

    def _attempt(self, operation: programs.Operation) -> int:
        must_fail, before = operation[0] == "must_fail", len(self.bytes)
        status = DONE
        try:
            word = programs.perform(operation[1] if must_fail else operation, self)
        except Exception as error:
            if isinstance(error, NotImplementedError) and not must_fail:
                raise
            word, status = f"{type(error).__name__}: {' '.join(str(error).split())}"[:SAID], RAISED
        if must_fail:
            del self.bytes[before:]
        self.words.append(word if isinstance(word, str) else "")
        return programs.NOT_OFFERED if word is NotImplemented else status

    def _row(self, status: int) -> list[int]:
        return [status, *books.books_of(self._pager).values()]

    # ---- operations ----------------------------------------------------------------------------

    def empty(self, name: str, shape: list[int], dtype: str) -> None:
        self._handles[name] = self._pager.empty(tuple(shape), self._framework.dtype(dtype))

    def write(self, name: str, part: Part, data: str, side: str) -> None:
        values = self._framework.given(self._arrays[data], side)
        with self._seen(name, side) as array:
            array[where(part)] = values

    def read(self, name: str, part: Part, side: str) -> str:
        with self._seen(name, side) as array:
            values = frameworks.take(array[where(part)])
        self.bytes.append(values.tobytes())
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

    def open(self, label: str, names: list[str]) -> None:
        stack = ExitStack()
        arrays = stack.enter_context(self._pager.use(*(self._handles[name] for name in names)))
        self._uses[label] = stack, arrays
        self._open_ones.push(stack)

    def close(self, label: str) -> None:
        self._uses.pop(label)[0].close()

    def step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> None:
        step_of = self._framework.step(self._target, function)
        handles, given = [self._handles[name] for name in names], self._arrays[grads]
        counts, blocks = range(first, first + count), BLOCKS[function]
        with np.errstate(all="ignore"):  # what a faulty pager reads may be anything
            grad = self._framework.given(given)
            run_steps(self._pager, step_of, handles, blocks, grad, counts, part)

    def prefetch(self, name: str, to: str) -> Any:
        if to == "device":
            return self._pager.prefetch(self._handles[name])
        return books.if_offered(self._pager, "prefetch", self._handles[name], to=to)

    def advise(self, name: str, preferred: str | None, mostly: bool) -> Any:
        advice = {"preferred": preferred, "read_mostly": mostly}
        return books.if_offered(self._pager, "advise", self._handles[name], **advice)

    def shrink(self, capacity: int) -> Any:
        return books.if_offered(self._pager, "shrink", capacity)

    def free(self, name: str) -> None:
        self._pager.free(self._handles[name])
        self._freed.add(name)

    def save(self, file: str) -> None:
        alive = {name: a for name, a in self._handles.items() if name not in self._freed}
        if self._saves:
            self._target.save_paged(self._folder / file, alive, {"file": file})
        else:
            self._saved[file] = {name: frameworks.take(a[...]) for name, a in alive.items()}

    def load(self, file: str, capacity: int | None, page: int | None) -> str:
        self._handles, self._freed, words = {}, set(), {"file": file}
        self.start(capacity, page)
        if self._saves:
            self._handles, words = self._target.load_paged(self._folder / file, self._pager)
        for name, values in self._saved.get(file, {}).items():
            self.empty(name, list(values.shape), str(values.dtype))
            self._handles[name][...] = self._framework.given(values, "host")
        return json.dumps([sorted(self._handles), dict(words)])

    @cached_property
    def _folder(self) -> Path:
        return Path(self._open_ones.enter_context(tempfile.TemporaryDirectory()))

    def counters(self) -> None:
        if set(self._row(DONE)[-len(books.COUNTERS) :]) == {UNKNOWN}:
            raise NotImplementedError("the pager shows no counters")


class Stepped(PlainArrays):
    """Plain arrays on which the steps of an implementation are run."""

    def __init__(self, target: Any, framework: Framework, case: Case) -> None:
        super().__init__(case.arrays, *programs.sizes_of(case))
        self._target, self._framework = target, framework

    def step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> None:
        plain = SimpleNamespace(use=lambda *arrays: nullcontext(arrays))
        own, framework = self._framework.step(self._target, function), self._framework
        step_of = _through(own, framework.given, frameworks.take)
        arrays, counts = [self.alive[name].values for name in names], range(first, first + count)
        with np.errstate(all="ignore"):
            run_steps(plain, step_of, arrays, BLOCKS[function], self.data[grads], counts, part)
