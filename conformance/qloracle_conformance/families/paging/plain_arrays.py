"""What a program reads from plain arrays: the whole of rule S12 about bytes.

No page, no side, no capacity is known here.  A program that makes no sense (it reads what nobody
has written, or frees what is in use) is refused: what a pager does with it is not judged.  Nor is
what the host sees of an array while a `use` of it is open: a step may be running then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import Operation

Array = NDArray[Any]


class Nonsense(ValueError):
    """A program that no pager can be judged by."""


class Read(NamedTuple):
    """The result of a `read`: the number of the operation, its text, and what is due.

    In a program with a step only its type and shape are.
    """

    operation: int
    text: str
    values: Array


@dataclass
class Plain:
    """An array of a program, and what is known of it: which rows were written, who uses it."""

    values: Array
    written: NDArray[np.bool_]
    in_use: int = 0
    freed: bool = False

    def copy(self) -> Plain:
        """The same content in another array."""
        return Plain(self.values.copy(), self.written.copy())


def reads(case: Case) -> list[Read]:
    """Run a case's program on plain arrays; Nonsense if it has no meaning."""
    running = _Running(case.arrays)
    running.size(case.options.get("capacity_bytes"), case.options.get("page_bytes"))
    return running.perform(programs.program_of(case))


def alive_at(case: Case, number: int) -> list[str]:
    """The names of the arrays that are alive before an operation of a program."""
    running = _Running(case.arrays)
    running.size(None, case.options.get("page_bytes"))
    running.perform(programs.program_of(case)[:number])
    return running.alive()


def sensible(case: Case) -> bool:
    """Whether a pager can be judged by a program."""
    try:
        reads(case)
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return True


class _Running:
    def __init__(self, data: Mapping[str, Array]) -> None:
        self._data = data
        self._arrays: dict[str, Plain] = {}
        self._uses: dict[str, list[str]] = {}
        self._files: dict[str, dict[str, Plain]] = {}
        self._reads: list[Read] = []
        self._page: int | None = None

    def size(self, capacity: int | None, page: int | None) -> None:
        """Take a device's sizes: a capacity means something beside the size of a page."""
        if capacity is not None and (page is None or not 0 < page <= capacity):
            raise Nonsense(f"a capacity of {capacity} in pages of {page}")
        self._page = page

    def perform(self, program: programs.Program) -> list[Read]:
        for number, operation in enumerate(program):
            verb, *arguments = operation
            if verb == "must_fail":
                self._refused(*arguments)
            elif verb == "read":
                self._reads.append(self._read(number, operation))
            elif verb not in ("prefetch", "advise", "counters"):
                getattr(self, f"_{verb}")(*arguments)
            elif verb in ("prefetch", "advise"):
                self._alive(arguments[0])
        return self._reads

    def alive(self) -> list[str]:
        """The names of what was not freed."""
        return [name for name, array in self._arrays.items() if not array.freed]

    def _alive(self, name: str) -> Plain:
        found = self._arrays.get(name)
        if found is None or found.freed:
            raise Nonsense(f"there is no array {name}")
        return found

    def _refused(self, operation: Operation) -> None:
        """What must fail is wrong: the array was freed, too much is asked for, or sizes differ."""
        verb, name, *rest = operation
        touched = rest[0] if verb == "open" else [name]
        known = [self._arrays[each] for each in touched if each in self._arrays]
        if verb == "empty" or any(each.freed for each in known):
            return
        if verb != "write" or self._part(*operation[1:4]).shape == self._data[rest[2]].shape:
            raise Nonsense(f"{programs.text_of(operation)} need not fail")

    def _part(self, name: str, start: int | None, stop: int | None) -> Array:
        values = self._alive(name).values
        return values[...] if start is None else values[start:stop]

    def _seen(self, name: str, side: str) -> None:
        if side == "host" and self._alive(name).in_use:
            raise Nonsense(f"the host touches {name} while it is in use")
        if side in ("host", "device"):
            return
        label, _, i = side.partition(".")
        if self._uses[label][int(i)] != name:
            raise Nonsense(f"{side} is not {name}")

    def _empty(self, name: str, shape: list[int], dtype: str) -> None:
        if name in self._arrays:
            raise Nonsense(f"{name} exists")
        rows = np.zeros(shape[:1], np.bool_)
        self._arrays[name] = Plain(np.zeros(shape, programs.dtype_of(dtype)), rows)

    def _write(self, name: str, start: int | None, stop: int | None, data: str, side: str) -> None:
        self._seen(name, side)
        part, values = self._part(name, start, stop), self._data[data]
        if part.shape != values.shape or part.dtype != values.dtype:
            raise Nonsense(f"{data} does not fit into {name}")
        part[...] = values
        self._arrays[name].written[_rows(start, stop)] = True

    def _read(self, number: int, operation: Operation) -> Read:
        _, name, start, stop, side = operation
        self._seen(name, side)
        part = self._part(name, start, stop)
        if not self._arrays[name].written[_rows(start, stop)].all():
            raise Nonsense(f"{name} is read before it is written")
        return Read(number, programs.text_of(operation), part.copy())

    def _open(self, label: str, names: list[str]) -> None:
        if label in self._uses:
            raise Nonsense(f"{label} is open")
        for name in names:
            self._alive(name).in_use += 1
        self._uses[label] = names

    def _close(self, label: str) -> None:
        for name in self._uses.pop(label):
            self._arrays[name].in_use -= 1

    def _step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> None:
        n, due = self._data[grads].shape[1], {"adam_step": 3, "adam_step_8bit": 5}[function]
        if len(set(names)) != due or count < 1 or first < 1 or n < 1:
            raise Nonsense("a step takes its state")
        if function == "adam_step_8bit" and part is not None and part % programs.BLOCK:
            raise Nonsense("a step takes whole blocks")
        for i, name in enumerate(names):
            array = self._alive(name)
            if array.values.shape != (programs.elements_of(function, i, 0, n).stop,):
                raise Nonsense(f"{name} has other sizes")
            if not array.written.all():
                raise Nonsense(f"{name} was not written")

    def _free(self, name: str) -> None:
        array = self._alive(name)
        if array.in_use:
            raise Nonsense(f"{name} is in use")
        array.freed = True

    def _shrink(self, capacity: int) -> None:
        if self._page is None:
            raise Nonsense("the size of a page is not known")
        self.size(capacity, self._page)

    def _save(self, file: str) -> None:
        for name in self.alive():
            self._seen(name, "host")
        self._files[file] = {name: self._arrays[name].copy() for name in self.alive()}

    def _load(self, file: str, capacity: int | None, page: int | None) -> None:
        if self._uses:
            raise Nonsense("a `use` is open")
        self.size(capacity, page)
        self._arrays = {name: array.copy() for name, array in self._files[file].items()}


def _rows(start: int | None, stop: int | None) -> Any:
    return ... if start is None else slice(start, stop)
