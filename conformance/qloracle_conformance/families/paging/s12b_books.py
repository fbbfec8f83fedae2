"""S12b. The books of a pager: what it shows of its capacity, its pages and its counters is true.

A pager may show `capacity`, `page_bytes`, `resident_bytes` and `counters`: an object or a mapping,
with whole numbers since the pager was made::

    faults            pages that the device touched while they were not there
    prefetched        pages brought to the device before they were touched
    evictions         pages pushed out of the device's memory to make room
    host_faults       pages that the host touched while they were not there
    host_prefetched   pages brought to the host before they were touched
    bytes_to_device, bytes_to_host

One without `counters` is not judged here (UNSUPPORTED, which is no failure: real CUDA shows none),
and of what one does not show nothing is asked.  An array begins on a page of its own.  After every
operation:

* The capacity is the one that was asked for, down to whole pages, and no more bytes are resident.
* No more pages are resident than the arrays that are alive have: freed ones have come back.
* What is shown is a whole number, and no counter shrinks.
* While nothing is advised, a page lies on one side.  So what is resident has come (faults,
  prefetched), has not gone (evictions, host_faults, host_prefetched), and was not freed; no page
  moves without a copy of it at most; and what the device has just touched is resident.
* The device does not fault where it touches nothing.
* What one side has written and the other one has read was copied, at least once, and so was what
  the device alone has written and cannot hold.  These are bytes, under any advice and any order of
  eviction.
* Nothing is evicted while all that is alive fits.
* What was prefetched and fits does not fault when the device touches it next: one array, or several
  if all that is alive fits.

A pager that state is loaded into begins new books, and they say the same: a resumed state is paged.

A pager that brings whole arrays when a `use` begins, and takes them back when it ends, has no pages
in this sense, and should show no counters: its bytes are judged all the same.

Which page goes first is nobody's business, nor whether a page that nobody has written is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.books import COUNTERS
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import (
    DONE,
    LOGGED,
    NOT_OFFERED,
    RAISED,
    UNKNOWN,
    Operation,
)
from qloracle_conformance.families.paging import counted as inputs
from qloracle_conformance.families.paging.s12_paging import judge_operations
from qloracle_conformance.judging.checks import Check, no_cases
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

CAME, WENT = ("faults", "prefetched"), ("evictions", "host_faults", "host_prefetched")
OPTIONAL = ("advise", "shrink", "prefetch")  # operations that a pager may not have
IDLE = ("shrink", "free")  # the device touches nothing
Mask = NDArray[np.bool_]


class Line(NamedTuple):
    """A row of the log: `programs.LOG` by name."""

    status: int
    capacity: int
    page_bytes: int
    resident_bytes: int
    faults: int
    prefetched: int
    evictions: int
    host_faults: int
    host_prefetched: int
    bytes_to_device: int
    bytes_to_host: int

    def sum_of(self, *columns: str) -> int | None:
        """The sum of counters; None if one of them is not shown."""
        values = [int(getattr(self, column)) for column in columns]
        return None if UNKNOWN in values else sum(values)

    @property
    def came(self) -> int | None:
        """Pages that came to the device."""
        return self.sum_of(*CAME)

    @property
    def went(self) -> int | None:
        """Pages that left it, but for those that were freed."""
        return self.sum_of(*WENT)


RELATIONS = {"<=": "at most ", ">=": "at least ", "==": ""}


class Law(NamedTuple):
    """What one column must be: at most, at least or exactly what a formula makes of the columns.

    The formula is Python on `now` and `before`, the lines after and before the operation, on `came`
    and `went` (`CAME`, `WENT`) and on `freed`, the pages that were resident when they were freed.
    `due` is its value.
    """

    column: str
    relation: str
    due: int
    formula: str
    why: str

    def holds(self, line: Line) -> bool:
        """Whether a line obeys it."""
        value = getattr(line, self.column)
        match self.relation:
            case "<=":
                return bool(value <= self.due)
            case ">=":
                return bool(value >= self.due)
        return bool(value == self.due)


class Entry(NamedTuple):
    """A law, the line that it speaks of, and the number of the operation before that."""

    number: int
    law: Law
    line: Line


@dataclass
class Bytes:
    """The bytes of an array: which ones each side has as they are now, as far as it must."""

    host: Mask
    device: Mask


def judge(case: Case, values: Values, view: View) -> Outcome:
    """Every law after every operation; the first that is broken is told."""
    outcome, program = judge_operations(case, values), programs.program_of(case)
    for number, law, line in entered(case, values):
        outcome += Outcome(1) if law.holds(line) else _broken(law, number, program[number], line)
    return outcome


def entered(case: Case, values: Values) -> Iterator[Entry]:
    """Every law of every operation that was performed, with the line that it speaks of."""
    books, lines = Books(case), [Line(*map(int, row)) for row in values[LOGGED]]
    for number, operation in enumerate(programs.program_of(case)):
        before, after = lines[number : number + 2]
        if after.status == RAISED and operation[0] != "must_fail":
            return
        for law in books.laws(operation, before, after):
            yield Entry(number, law, after)


def _broken(law: Law, number: int, operation: Operation, line: Line) -> Outcome:
    got, due = getattr(line, law.column), f"{RELATIONS[law.relation]}{law.due}"
    why = f"{law.why}; after operation {number}, {programs.text_of(operation)}"
    error = float(abs(got - law.due))
    return Outcome(1, 1, Mismatch(law.column, number, str(got), due, why, 0.0, error))


class Books:
    """What is known of a pager from the program alone: sizes, and where bytes must have been."""

    def __init__(self, case: Case) -> None:
        self._page = case.options.get("page_bytes")
        self._capacity = case.options.get("capacity_bytes")
        self._own: int | None = None  # a capacity that nobody asked for, if it is shown
        self._files: dict[str, dict[str, tuple[int, int]]] = {}
        self._begin()

    def _begin(self) -> None:
        """A new pager."""
        self._arrays: dict[str, Bytes] = {}
        self._rows: dict[str, int] = {}  # bytes of a row of the first axis
        self._freed = 0  # pages that left the device because they were freed
        self._leaving = 0  # pages of the array that was freed last
        self._to_device = self._to_host = 0  # bytes that were copied, at least
        self._advised = False
        self._fetched: set[str] = set()

    def laws(self, operation: Operation, before: Line, after: Line) -> Iterator[Law]:
        """Enter an operation, and say what must hold then."""
        verb, *arguments = operation
        if verb == "must_fail":
            return
        if after.status != NOT_OFFERED or verb not in OPTIONAL:
            yield Law("status", "==", DONE, str(DONE), "the operation was performed")
        if after.status != DONE:
            return
        yield from _of_numbers(after)
        self._page = after.page_bytes if after.page_bytes > 0 else self._page
        self._own = after.capacity if after.capacity >= 0 else None
        touched = self._touched(operation)
        fetched = bool(touched) and touched <= self._fetched
        getattr(self, f"_{verb}", self._nothing)(*arguments)
        if verb == "load":
            self._to_device = -max(after.resident_bytes, 0)  # it may have been loaded there
        if verb == "free":
            self._note_freed(before, after)
        yield from self._of_capacity(after)
        yield from self._of_copies(after)
        if verb != "load":
            idle = verb in IDLE or (verb in ("read", "write") and operation[-1] == "host")
            yield from self._of_changes(before, after, idle or (fetched and not self._advised))
        if self._page and not self._advised:
            yield from self._of_pages(after, bool(touched))

    # ---- laws ----------------------------------------------------------------------------------

    def _of_capacity(self, line: Line) -> Iterator[Law]:
        if self._capacity is not None and line.capacity != UNKNOWN:
            least, why = self._capacity - (self._page or 1) + 1, "the capacity that was asked for"
            yield Law("capacity", "<=", self._capacity, str(self._capacity), why)
            yield Law("capacity", ">=", least, str(least), f"{why}, down to a whole page")
        if line.resident_bytes == UNKNOWN:
            return
        if self._capacity is not None:
            room = self._capacity
            yield Law("resident_bytes", "<=", room, str(room), "the capacity")
        if self._page:
            most, why = self._pages() * self._page, "the pages of all arrays that are alive"
            yield Law("resident_bytes", "<=", most, str(most), why)

    def _of_copies(self, line: Line) -> Iterator[Law]:
        """What must have gone over the link, whatever the order in which pages go."""
        alone = sum(int((each.device & ~each.host).sum()) for each in self._arrays.values())
        why = "so much was written on the other side"
        if line.bytes_to_device != UNKNOWN:
            least = max(self._to_device, 0)
            yield Law("bytes_to_device", ">=", least, str(least), why)
        if line.bytes_to_host == UNKNOWN:
            return
        least, formula = self._to_host, str(self._to_host)
        if line.resident_bytes != UNKNOWN:
            least += max(alone - line.resident_bytes, 0)
            formula += f" + max({alone} - now.resident_bytes, 0)"
            why += ", or is not resident"
        yield Law("bytes_to_host", ">=", least, formula, why)

    def _of_changes(self, before: Line, after: Line, there: bool) -> Iterator[Law]:
        for column in COUNTERS:
            was = getattr(before, column)
            yield Law(column, ">=", was, f"before.{column}", "no counter shrinks")
        if after.faults != UNKNOWN and there:
            why = "as before: the device has touched nothing, or what was prefetched and fits"
            yield Law("faults", "==", before.faults, "before.faults", why)
        if after.evictions != UNKNOWN and self._fits():
            why = "as before: all that is alive fits"
            yield Law("evictions", "==", before.evictions, "before.evictions", why)

    def _of_pages(self, line: Line, touched: bool) -> Iterator[Law]:
        """A page lies on one side, and a page that moves is copied at most."""
        page, came, went = self._page or 0, line.came, line.went
        for column, columns, copied, how in (
            ("bytes_to_device", CAME, self._to_device, "came"),
            ("bytes_to_host", WENT, self._to_host, "went"),
        ):
            moved = line.sum_of(*columns)
            if moved is None:
                continue
            first, *others = columns
            pages = -(-max(copied, 0) // page)
            formula = " - ".join([str(pages), *(f"now.{other}" for other in others)])
            least = pages - sum(getattr(line, other) for other in others)
            why = f"{pages} pages {how} at least: so much was written on the other side"
            yield Law(first, ">=", least, formula, why)
            if getattr(line, column) != UNKNOWN:
                why = f"pages that {how}: {moved}"
                yield Law(column, "<=", moved * page, f"{page} * {how}", why)
        if line.resident_bytes == UNKNOWN:
            return
        if touched:
            yield Law("resident_bytes", ">=", page, str(page), "the page that was touched")
        if came is not None and went is not None:
            due, formula = (came - went - self._freed) * page, f"{page} * (came - went - freed)"
            why = f"pages: {came} came, {went} went, {self._freed} were freed"
            yield Law("resident_bytes", "==", due, formula, why)

    def _pages(self, names: set[str] | None = None) -> int:
        """Pages of arrays, all by default; one without elements may take one."""
        page = self._page or 1
        sizes = [a.host.size for name, a in self._arrays.items() if names is None or name in names]
        return sum(max(-(-size // page), 1) for size in sizes)

    def _fits(self, names: set[str] | None = None) -> bool:
        """Whether the device holds some arrays, or all that are alive."""
        room = self._own if self._capacity is None else self._capacity
        if room is None:
            return True
        return self._page is not None and self._pages(names) * self._page <= room

    def _note_freed(self, before: Line, after: Line) -> None:
        """Pages that were resident, and neither evicted nor called home meanwhile."""
        if not self._page or UNKNOWN in (before.resident_bytes, after.resident_bytes):
            return
        moved = [(line.came or 0) - (line.went or 0) for line in (before, after)]
        lost = (before.resident_bytes - after.resident_bytes) // self._page
        self._freed += min(max(lost + moved[1] - moved[0], 0), self._leaving)

    # ---- operations: where bytes must have been --------------------------------------------------

    def _touched(self, operation: Operation) -> set[str]:
        """The arrays of which the device touches an element."""
        match operation:
            case ["read" | "write", name, start, stop, *_, side] if side != "host":
                return (
                    {name}
                    if self._arrays[name].host[self._range(name, start, stop)].size
                    else set()
                )
            case ["step", _, names, *_]:
                return set(names)
        return set()

    def _nothing(self, *arguments: object) -> None:
        """An operation that moves nothing."""

    def _empty(self, name: str, shape: list[int], dtype: str) -> None:
        kind = programs.dtype_of(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self._arrays[name] = Bytes(np.zeros(size, np.bool_), np.zeros(size, np.bool_))
        self._rows[name] = size // max(shape[0], 1) if shape else size

    def _range(self, name: str, start: int | None, stop: int | None) -> slice:
        row = self._rows[name]
        return slice(None) if start is None else slice(start * row, (stop or 0) * row)

    def _write(self, name: str, start: int | None, stop: int | None, data: str, side: str) -> None:
        array, where = self._arrays[name], self._range(name, start, stop)
        array.host[where], array.device[where] = side == "host", side != "host"
        self._forget(name, side)

    def _read(self, name: str, start: int | None, stop: int | None, side: str) -> None:
        array, where = self._arrays[name], self._range(name, start, stop)
        host, device = array.host[where], array.device[where]
        if side == "host":
            self._to_host += int((device & ~host).sum())
            host |= device
        else:
            self._to_device += int((host & ~device).sum())
            device |= host
        self._forget(name, side)

    def _forget(self, name: str, side: str) -> None:
        """What was prefetched is no longer there for sure: its own pages, or those of others."""
        if side == "host":
            self._fetched.discard(name)
        elif name not in self._fetched:
            self._fetched.clear()

    def _step(self, function: str, names: list[str], *rest: object) -> None:
        for name in names:
            self._read(name, None, None, "device")
            self._write(name, None, None, "", "device")

    def _prefetch(self, name: str, to: str) -> None:
        if to == "host":
            self._fetched.discard(name)
        elif self._fits():
            self._fetched.add(name)
        else:
            self._fetched = {name} if self._fits({name}) else set()

    def _advise(self, *arguments: object) -> None:
        self._advised = True

    def _shrink(self, capacity: int) -> None:
        self._capacity = capacity
        self._fetched.clear()

    def _free(self, name: str) -> None:
        self._leaving = self._pages({name})
        del self._arrays[name], self._rows[name]
        self._fetched.discard(name)

    def _save(self, file: str) -> None:
        sizes = {name: array.host.size for name, array in self._arrays.items()}
        self._files[file] = {name: (self._rows[name], sizes[name]) for name in sizes}
        self._fetched.clear()

    def _load(self, file: str, capacity: int | None, page: int | None) -> None:
        self._begin()
        self._capacity = capacity
        for name, (row, size) in self._files[file].items():
            self._rows[name] = row
            self._arrays[name] = Bytes(np.ones(size, np.bool_), np.zeros(size, np.bool_))


def _of_numbers(line: Line) -> Iterator[Law]:
    for column, value in zip(Line._fields[1:], line[1:], strict=True):
        if value != UNKNOWN:
            yield Law(column, ">=", 0, "0", "what is shown is a whole number")


# ---- the checks ----------------------------------------------------------------------------------


def _checks() -> Iterator[Check]:
    for name, cases in inputs.DIRECTED.items():
        yield Check("S12b", name, "make_pager", cases, judge, (LOGGED,))
    yield Check(  # smoke draws programs once, for S12
        "S12b", "search", "make_pager", no_cases, judge, (LOGGED,), search=inputs.search,
        directed=False, profiles=("standard", "exhaustive"),
    )  # fmt: skip


CHECKS = tuple(_checks())
