"""What a program means: what it reads from plain arrays, the whole of rule S12 about bytes.

No page, no side, no capacity is known here.  A program that makes no sense (it reads what nobody
has written, or frees what is in use) is refused: what a pager does with it is not judged.  Nor is
what the host sees of an array while a `use` of it is open: a step may be running then.
"""
# ruff: noqa: D102 (the verbs are told in `programs`)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK, BLOCKS, Operation, Part, where

Array = NDArray[Any]


class Nonsense(ValueError):
    """A program that no pager can be judged by."""


class Read(NamedTuple):
    """The result of a `read`: the number of the operation, its text, and what is expected.

    In a program with a step only its type and shape are.
    """

    operation: int
    text: str
    values: Array


def reads(case: Case) -> list[Read]:
    """Run a case's program on plain arrays; Nonsense if it has no meaning."""
    program, plain = programs.program_of(case), PlainArrays(case.arrays, *programs.sizes_of(case))
    found = zip(program, programs.walk(program, plain), strict=True)
    return [
        Read(number, programs.text_of(operation), values)
        for number, (operation, values) in enumerate(found)
        if operation[0] == "read"
    ]


def alive_after(case: Case, number: int) -> list[str]:
    """The names of the arrays that are alive after an operation."""
    plain = PlainArrays(case.arrays, *programs.sizes_of(case))
    for _ in programs.walk(programs.program_of(case)[: number + 1], plain):
        pass
    return sorted(plain.alive)


def sensible(case: Case) -> bool:
    """Whether a pager can be judged by a program."""
    try:
        reads(case)
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return True


@dataclass
class Plain:
    """An array, and what is known of it: which rows were written, how many `use` hold it."""

    values: Array
    written: NDArray[np.bool_]
    in_use: int = 0


class PlainArrays:
    """The arrays of a program by name, while it runs."""

    def __init__(
        self, data: Mapping[str, Array], capacity: int | None = None, page: int | None = None
    ) -> None:
        self.alive: dict[str, Plain] = {}
        self.freed: set[str] = set()
        self.uses: dict[str, list[str]] = {}
        self.data = data
        self._files: dict[str, dict[str, Plain]] = {}
        self._sized(capacity, page)

    def empty(self, name: str, shape: list[int], dtype: str) -> None:
        _demand(name not in {*self.alive, *self.freed}, f"{name} exists")
        values, rows = np.zeros(shape, programs.dtype_of(dtype)), np.zeros(shape[:1], np.bool_)
        self.alive[name] = Plain(values, rows)

    def write(self, name: str, part: Part, data: str, side: str) -> None:
        array, values = self._seen(name, side), self.data[data]
        old = array.values[where(part)]
        same = programs.form_of(old) == programs.form_of(values)
        _demand(same, f"{data} does not fit into {name}")
        array.values[where(part)], array.written[where(part)] = values, True

    def read(self, name: str, part: Part, side: str) -> Array:
        array = self._seen(name, side)
        _demand(array.written[where(part)].all(), f"{name} is read before it is written")
        values: Array = array.values[where(part)].copy()
        return values

    def open(self, label: str, names: list[str]) -> None:
        _demand(label not in self.uses, f"{label} is open")
        for name in names:
            self._alive(name).in_use += 1
        self.uses[label] = names

    def close(self, label: str) -> None:
        for name in self.uses.pop(label):
            self.alive[name].in_use -= 1

    def step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> None:
        """Only look at what it needs: another one may compute."""
        n, blocks = self.data[grads].shape[1], BLOCKS[function]
        distinct = len(set(names)) == len(blocks)
        _demand(distinct and min(count, first, n) > 0, "a step takes its state")
        whole = function == "adam_step" or part is None or not part % BLOCK
        _demand(whole, "a step takes whole blocks")
        for name, block in zip(names, blocks, strict=True):
            array = self._alive(name)
            _demand(array.values.shape == (-(-n // block),), f"{name} has other sizes")
            _demand(array.written.all(), f"{name} was not written")

    def prefetch(self, name: str, to: str) -> None:
        self._alive(name)

    def advise(self, name: str, preferred: str | None, mostly: bool) -> None:
        self._alive(name)

    def shrink(self, capacity: int) -> None:
        self._sized(capacity, self._page)

    def free(self, name: str) -> None:
        _demand(not self._alive(name).in_use, f"{name} is in use")
        del self.alive[name]
        self.freed.add(name)

    def save(self, file: str) -> None:
        self._files[file] = {name: _copy(self._seen(name, "host")) for name in self.alive}

    def load(self, file: str, capacity: int | None, page: int | None) -> None:
        _demand(not self.uses, "a `use` is open")
        self._sized(capacity, page)
        self.alive = {name: _copy(array) for name, array in self._files[file].items()}
        self.freed = set()

    def must_fail(self, operation: Operation) -> None:
        """What must fail is wrong: too much is asked for, the array was freed, or sizes differ."""
        verb, name, *rest = operation
        touched = rest[0] if verb == "open" else [name]
        if verb == "empty" or self.freed.intersection(touched):
            return
        fits = verb != "write" or self._fits(name, rest[0], rest[1])
        _demand(not fits, f"{programs.text_of(operation)} need not fail")

    def _fits(self, name: str, part: Part, data: str) -> bool:
        return bool(self._alive(name).values[where(part)].shape == self.data[data].shape)

    def _alive(self, name: str) -> Plain:
        _demand(name in self.alive, f"there is no array {name}")
        return self.alive[name]

    def _seen(self, name: str, side: str) -> Plain:
        """An array that one side may touch now."""
        array, (label, _, i) = self._alive(name), side.partition(".")
        idle = side != "host" or not array.in_use
        _demand(idle, f"the host touches {name} while it is in use")
        named = not i or self.uses[label][int(i)] == name
        _demand(named, f"{side} is not {name}")
        return array

    def _sized(self, capacity: int | None, page: int | None) -> None:
        """Take a device's sizes: a capacity means something beside the size of a page."""
        known = capacity is None or (page is not None and 0 < page <= capacity)
        _demand(known, f"a capacity of {capacity} in pages of {page}")
        self._page = page


def _copy(array: Plain) -> Plain:
    return Plain(array.values.copy(), array.written.copy())


def _demand(true: Any, text: str) -> None:
    if not true:
        raise Nonsense(text)
