"""What a program means: what it reads from plain arrays, the whole of rule S12 about bytes.

Beside the values it is known which side has them: so much must have been copied, whatever pages
are.  A program that makes no sense (it reads what nobody has written, or frees what is in use) is
refused: what a pager does with it is not judged.  Nor is what the host sees of an array while a
`use` of it is open: a step may be running then.
"""
# ruff: noqa: D102 (the verbs are told in `programs`)

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK, BLOCKS, TYPES, Operation, Part, where

Array = NDArray[Any]


class Nonsense(ValueError):
    """A program that no pager can be judged by."""


@lru_cache(maxsize=8)  # by the identity of a case: several rules ask for the last ones
def reads(case: Case) -> dict[int, Array]:
    """What a program reads, by the number of the operation; Nonsense if it has no meaning.

    In a program with a step only type and shape of it are expected.
    """
    plain = PlainArrays(case.arrays, *programs.sizes_of(case))
    found = {i: plain.perform(row) for i, row in enumerate(programs.program_of(case))}
    return {i: values for i, values in found.items() if values is not None}


def sensible(case: Case) -> bool:
    """Whether a pager can be judged by a program."""
    try:
        reads(case)
    except (ValueError, KeyError, IndexError, TypeError):
        return False
    return True


HOST, DEVICE = 1, 2  # bits of the sides that have an element as it is now; 0: nobody has written it


class Plain:
    """An array, which sides have each of its elements, and how many `use` hold it."""

    def __init__(self, values: Array) -> None:
        self.values, self.in_use = values, 0
        self.alone = 0  # bytes that only the device has
        self.sides = np.zeros(values.shape, np.uint8)

    def touch(self, part: Part, side: str, write: bool) -> int:
        """Let one side read or write a part; return how many bytes are copied for it, at least."""
        sides, own = self.sides[where(part)], HOST if side == "host" else DEVICE
        missing = sides == (HOST | DEVICE) - own
        sides[... if write else missing] = own if write else HOST | DEVICE
        self.alone = int(np.count_nonzero(self.sides == DEVICE)) * self.values.itemsize
        return 0 if write else int(np.count_nonzero(missing)) * self.values.itemsize

    def copy(self) -> "Plain":
        """The array out of a file: what was written is with the host."""
        found = Plain(self.values.copy())
        found.sides[self.sides > 0] = HOST
        return found


class PlainArrays:
    """The arrays of a program by name, while it runs."""

    def __init__(
        self, data: Mapping[str, Array], capacity: int | None = None, page: int | None = None
    ) -> None:
        self.data, self.alive = data, dict[str, Plain]()
        self.freed: set[str] = set()
        self.uses: dict[str, list[str]] = {}
        self.copied = {"host": 0, "device": 0}  # bytes to each side, at least
        self.files: dict[str, dict[str, Plain]] = {}
        self._sized(capacity, page)

    def perform(self, operation: Operation) -> Array | None:
        """Perform an operation by the method of its name; return what it reads."""
        verb, *arguments = operation
        values: Array | None = getattr(self, verb)(*arguments)
        return values

    def empty(self, name: str, shape: list[int], dtype: str) -> None:
        _demand(name not in {*self.alive, *self.freed}, f"{name} exists")
        self.alive[name] = Plain(np.zeros(shape, dtype))

    def write(self, name: str, part: Part, data: str, side: str) -> None:
        old, values = self._alive(name).values[where(part)], self.data[data]
        same = (old.shape, old.dtype) == (values.shape, values.dtype)
        _demand(same, f"{data} does not fit into {name}")
        self.touch(name, part, side, write=True)
        old[...] = values

    def read(self, name: str, part: Part, side: str) -> Array:
        array = self._alive(name)
        _demand(array.sides[where(part)].all(), f"{name} is read before it is written")
        self.touch(name, part, side)
        values: Array = array.values[where(part)].copy()
        return values

    def touch(self, name: str, part: Part, side: str, *, write: bool = False) -> None:
        """One side reads or writes a part of an array that it may touch now."""
        array, (label, _, i) = self._alive(name), side.partition(".")
        idle = side != "host" or not array.in_use
        _demand(idle, f"the host touches {name} while it is in use")
        named = not i or self.uses[label][int(i)] == name
        _demand(named, f"{side} is not {name}")
        self.copied["host" if side == "host" else "device"] += array.touch(part, side, write)

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
        """Only look at what it needs: its numbers are those of an implementation."""
        n, blocks = self.data[grads].shape[1], BLOCKS[function]
        distinct = len(set(names)) == len(blocks)
        _demand(distinct and min(count, first, n) > 0, "a step takes its state")
        whole = function == "adam_step" or part is None or not part % BLOCK
        _demand(whole, "a step takes whole blocks")
        for name, block, dtype in zip(names, blocks, TYPES[function], strict=True):
            array = self._alive(name)
            values, shape = array.values, (-(-n // block),)
            _demand(values.dtype == dtype and values.shape == shape, f"{name} is another state")
            _demand(array.sides.all(), f"{name} was not written")
            self.touch(name, None, "device")
            self.touch(name, None, "device", write=True)

    def advise(self, name: str, *advice: Any) -> None:
        self._alive(name)

    prefetch = advise

    def shrink(self, capacity: int) -> None:
        self._sized(capacity, self.page)

    def free(self, name: str) -> None:
        _demand(not self._alive(name).in_use, f"{name} is in use")
        del self.alive[name]
        self.freed.add(name)

    def save(self, file: str, names: list[str]) -> None:
        _demand(not any(array.in_use for array in self.alive.values()), "a `use` is open")
        self.files[file] = {name: self._alive(name).copy() for name in names}

    def load(self, file: str, names: list[str], capacity: int | None, page: int | None) -> None:
        _demand(not self.uses, "a `use` is open")
        _demand([*self.files[file]] == names, f"{file} holds other arrays")
        self._sized(capacity, page)
        self.alive = {name: array.copy() for name, array in self.files[file].items()}
        self.freed, self.copied = set(), {"host": 0, "device": 0}

    def must_fail(self, operation: Operation) -> None:
        """What must fail is wrong: too much is asked for, the array was freed, or sizes differ."""
        verb, name, *rest = operation
        touched = rest[0] if verb == "open" else [name]
        if verb == "empty" or self.freed.intersection(touched):
            return
        into = self._alive(name).values[where(rest[0])] if verb == "write" else None
        misfit = into is not None and into.shape != self.data[rest[1]].shape
        _demand(misfit, f"{programs.text_of(operation)} need not fail")

    def _alive(self, name: str) -> Plain:
        _demand(name in self.alive, f"there is no array {name}")
        return self.alive[name]

    def _sized(self, capacity: int | None, page: int | None) -> None:
        """Take a device's sizes: a capacity means something beside the size of a page."""
        known = capacity is None or (page is not None and 0 < page <= capacity)
        _demand(known, f"a capacity of {capacity} in pages of {page}")
        self.capacity, self.page = capacity, page


def _demand(true: Any, text: str) -> None:
    if not true:
        raise Nonsense(text)
