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

# ruff: noqa: D102 (the verbs are told in `contract.programs`)

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import books, programs
from qloracle_conformance.contract.books import COUNTERS, SIZES
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import DONE, LOGGED, Operation, Part, where
from qloracle_conformance.families.paging import counted
from qloracle_conformance.families.paging.s12_paging import judge_operations
from qloracle_conformance.judging.checks import Check, no_cases
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

# ---- the laws ------------------------------------------------------------------------------------


class Law(NamedTuple):
    """What one column must be: at most, at least or exactly what a formula makes of the log.

    The formula is Python, and a script that reproduces a failure has it as it is.  It knows `log`,
    its last line `now` and the one before, `before`, and the functions of `contract.books`; what
    stands in braces is a fact that `Books` know of the program, a number in the script.  A law
    that needs a column which is not shown, or a fact that is not known, says nothing; nor does one
    whose condition, another fact, does not hold.
    """

    column: str
    relation: str
    formula: str
    why: str
    condition: str = "done"


RELATIONS = {
    "<=": (operator.le, "at most "), ">=": (operator.ge, "at least "), "==": (operator.eq, ""),
}  # fmt: skip

ASKED = "the capacity that was asked for"
WRITTEN = "so much was written on the other side"
LAWS = (
    Law("status", "==", str(DONE), "the operation was performed", "offered"),
    *(Law(c, ">=", "0", "what is shown is a whole number") for c in (*SIZES, *COUNTERS)),
    Law("capacity", "<=", "{asked}", ASKED),
    Law("capacity", ">=", "{asked} - {page} + 1", f"{ASKED}, down to a whole page"),
    Law("resident_bytes", "<=", "{asked}", "the capacity"),
    Law("resident_bytes", "<=", "{pages} * {page}", "the pages of all arrays that are alive"),
    # bytes, whatever is advised and in whatever order pages go
    Law("bytes_to_device", ">=", "{to_device}", WRITTEN),
    Law("bytes_to_host", ">=", "{to_host} + max({alone} - now.resident_bytes, 0)",
        f"{WRITTEN}, or is not resident"),
    Law("bytes_to_host", ">=", "{to_host}", WRITTEN),
    *(Law(c, ">=", f"before.{c}", "no counter shrinks", "same_pager") for c in COUNTERS),
    Law("faults", "==", "before.faults",
        "as before: the device has touched nothing, or what was prefetched and fits", "there"),
    Law("evictions", "==", "before.evictions", "as before: all that is alive fits", "fits"),
    # a page lies on one side, and a page that moves is copied at most
    Law("faults", ">=", "{pages_in} - now.prefetched",
        f"{{pages_in}} pages came at least: {WRITTEN}", "one_side"),
    Law("bytes_to_device", "<=", "{page} * pages_came(now)", "pages that came: {came}",
        "one_side"),
    Law("evictions", ">=", "{pages_out} - now.host_faults - now.host_prefetched",
        f"{{pages_out}} pages went at least: {WRITTEN}", "one_side"),
    Law("bytes_to_host", "<=", "{page} * pages_went(now)", "pages that went: {went}", "one_side"),
    Law("resident_bytes", ">=", "{page}", "the page that was touched", "touched"),
    Law("resident_bytes", "==",
        "{page} * (pages_came(now) - pages_went(now) - pages_freed(log, {frees}, {page}))",
        "pages: {came} came, {went} went, {freed} were freed", "one_side"),
)  # fmt: skip


@cache
def _code(formula: str) -> CodeType:
    return compile(formula.replace("{", "").replace("}", ""), "<law>", "eval")


class Entry(NamedTuple):
    """A law after an operation: what the pager shows, what the law expects, by which facts."""

    number: int
    law: Law
    got: int
    expected: int
    facts: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether the pager obeys."""
        return bool(RELATIONS[self.law.relation][0](self.got, self.expected))

    @property
    def formula(self) -> str:
        """The law with numbers for facts."""
        return self.law.formula.format_map(self.facts)

    @property
    def why(self) -> str:
        """The reason, likewise."""
        return self.law.why.format_map(self.facts)


# ---- the judgement -------------------------------------------------------------------------------


def judge(case: Case, values: Values, view: View) -> Outcome:
    """Every law after every operation; the first that is broken is told."""
    outcome, obeyed = judge_operations(case, values), 0
    for entry in entered(case, values):
        if entry.holds:
            obeyed += 1
        else:
            outcome += _broken(case, entry)
    return outcome + Outcome(obeyed)


def _broken(case: Case, entry: Entry) -> Outcome:
    law, operation = entry.law, case.options["program"][entry.number]
    expected = f"{RELATIONS[law.relation][1]}{entry.expected}"
    told = f"{entry.why}; after operation {entry.number}, {programs.text_of(operation)}"
    error = float(abs(entry.got - entry.expected))
    mismatch = Mismatch(law.column, entry.number, str(entry.got), expected, told, 0.0, error)
    return Outcome(1, 1, mismatch)


def entered(case: Case, values: Values) -> Iterator[Entry]:
    """Every law that speaks, after every operation that was performed."""
    log, kept = [_line(row) for row in values[LOGGED]], Books(case)
    for number, operation in enumerate(programs.program_of(case)):
        now = log[number + 1]
        if operation[0] == "must_fail":
            continue
        if now.status == programs.RAISED:
            return
        facts = kept.enter(number, operation, log)
        known = {**facts, **PAGES, "log": log, "before": log[number], "now": now}
        for law in (law for law in LAWS if facts[law.condition]):
            got, expected = getattr(now, law.column), eval(_code(law.formula), known)
            if not math.isnan(got) and not math.isnan(expected):
                yield Entry(number, law, got, expected, facts)


PAGES: dict[str, Any] = {
    name: getattr(books, name) for name in ("pages_came", "pages_went", "pages_freed")
}


def _line(row: NDArray[np.int64]) -> SimpleNamespace:
    """A row of the log by name: NaN for what is not shown, so that what needs it is NaN too."""
    status, *numbers = row.tolist()
    shown = [math.nan if value == programs.UNKNOWN else value for value in numbers]
    return SimpleNamespace(**dict(zip(programs.LOG, [status, *shown], strict=True)))


# ---- what is known of a pager from the program alone ---------------------------------------------

OPTIONAL = ("advise", "shrink", "prefetch")  # operations that a pager may not have


@dataclass
class Sides:
    """The elements of an array that each side has as they are now, as far as it must."""

    host: NDArray[np.bool_]
    device: NDArray[np.bool_]
    itemsize: int

    def bytes(self, of: NDArray[np.bool_]) -> int:
        """Bytes of some elements."""
        return int(of.sum()) * self.itemsize


class Books:
    """Sizes, and where bytes must have been: a handler that enters one operation after another."""

    def __init__(self, case: Case) -> None:
        self._capacity, self._page = programs.sizes_of(case)
        self._own: int | None = None  # a capacity that nobody asked for, if it is shown
        self._number = 0  # of the operation
        self._files: dict[str, dict[str, Sides]] = {}
        self._begin({})

    def _begin(self, arrays: dict[str, Sides]) -> None:
        """A new pager."""
        self._arrays = arrays
        self._frees: list[tuple[int, int]] = []  # the line of each, and its pages
        self._to_device = self._to_host = 0  # bytes that were copied, at least
        self._advised = False
        self._fetched: set[str] = set()

    def enter(
        self, number: int, operation: Operation, log: list[SimpleNamespace]
    ) -> dict[str, Any]:
        """Enter an operation, the number of a line of the log; return what laws ask for."""
        now, verb = log[number + 1], operation[0]
        offered = verb not in OPTIONAL or now.status != programs.NOT_OFFERED
        if now.status != DONE:
            return {**dict.fromkeys(CONDITIONS, False), "offered": offered}
        self._page = now.page_bytes if now.page_bytes > 0 else self._page
        self._own = now.capacity if now.capacity >= 0 else None
        self._number = number
        touched: set[str] = programs.perform(operation, self) or set()  # by the device
        fetched = bool(touched) and touched <= self._fetched and not self._advised
        idle = verb in ("shrink", "free") or (verb in ("read", "write") and operation[-1] == "host")
        if verb == "load":  # it may have been loaded there
            self._to_device = -max(0, now.resident_bytes)  # 0 where that is NaN
        same, one_side = verb != "load", bool(self._page) and not self._advised
        conditions = {
            "done": True, "offered": True, "same_pager": same, "one_side": one_side,
            "there": same and (idle or fetched), "touched": one_side and bool(touched),
            "fits": same and self._fits(),
        }  # fmt: skip
        return {**conditions, **self._facts(log, now)}

    def _facts(self, log: list[SimpleNamespace], now: SimpleNamespace) -> dict[str, Any]:
        """Numbers; NaN for what is not known."""
        page = self._page or math.nan
        to_device = max(self._to_device, 0)
        return {
            "asked": math.nan if self._capacity is None else self._capacity,
            "page": page,
            "pages": self._pages(),
            "alone": sum(a.bytes(a.device & ~a.host) for a in self._arrays.values()),
            "to_device": to_device, "pages_in": -(-to_device // page),
            "to_host": self._to_host, "pages_out": -(-self._to_host // page),
            "frees": self._frees,
            "came": PAGES["pages_came"](now), "went": PAGES["pages_went"](now),
            "freed": PAGES["pages_freed"](log, self._frees, page),
        }  # fmt: skip

    def _pages(self, names: Iterable[str] | None = None) -> int:
        """Pages of arrays, all by default; one without elements may take one."""
        page = self._page or 1
        arrays = (self._arrays[name] for name in (self._arrays if names is None else names))
        return sum(max(-(-a.host.size * a.itemsize // page), 1) for a in arrays)

    def _fits(self, names: Iterable[str] | None = None) -> bool:
        """Whether the device holds some arrays, or all that are alive."""
        room = self._own if self._capacity is None else self._capacity
        if room is None:
            return True
        return self._page is not None and self._pages(names) * self._page <= room

    # ---- operations ----------------------------------------------------------------------------

    def empty(self, name: str, shape: list[int], dtype: str) -> None:
        nothing = np.zeros(shape, np.bool_)
        self._arrays[name] = Sides(nothing, nothing.copy(), programs.dtype_of(dtype).itemsize)

    def write(self, name: str, part: Part, data: str, side: str) -> set[str]:
        array = self._arrays[name]
        array.host[where(part)], array.device[where(part)] = side == "host", side != "host"
        return self._touch(name, side, array.host[where(part)].size)

    def read(self, name: str, part: Part, side: str) -> set[str]:
        array = self._arrays[name]
        host, device = array.host[where(part)], array.device[where(part)]
        if side == "host":
            self._to_host += array.bytes(device & ~host)
            host |= device
        else:
            self._to_device += array.bytes(host & ~device)
            device |= host
        return self._touch(name, side, host.size)

    def _touch(self, name: str, side: str, size: int) -> set[str]:
        """What was prefetched is no longer there for sure: its own pages, or those of others."""
        if side == "host":
            self._fetched.discard(name)
        elif name not in self._fetched:
            self._fetched.clear()
        return {name} if size and side != "host" else set()

    def step(self, function: str, names: list[str], *rest: object) -> set[str]:
        for name in names:
            self.read(name, None, "device")
            self.write(name, None, "", "device")
        return set(names)

    def prefetch(self, name: str, to: str) -> None:
        if to == "host":
            self._fetched.discard(name)
        elif self._fits():
            self._fetched.add(name)
        else:
            self._fetched = {name} if self._fits({name}) else set()

    def advise(self, *advice: object) -> None:
        self._advised = True

    def shrink(self, capacity: int) -> None:
        self._capacity = capacity
        self._fetched.clear()

    def free(self, name: str) -> None:
        self._frees.append((self._number, self._pages({name})))
        del self._arrays[name]
        self._fetched.discard(name)

    def save(self, file: str) -> None:
        self._files[file] = dict(self._arrays)
        self._fetched.clear()

    def load(self, file: str, capacity: int | None, page: int | None) -> None:
        self._begin({
            name: Sides(np.ones_like(a.host), np.zeros_like(a.host), a.itemsize)
            for name, a in self._files[file].items()
        })  # fmt: skip
        self._capacity = capacity


CONDITIONS = {law.condition for law in LAWS}

# ---- the checks ----------------------------------------------------------------------------------


CHECKS = (
    *(Check("S12b", n, "make_pager", c, judge, (LOGGED,)) for n, c in counted.DIRECTED.items()),
    Check(  # smoke draws programs once, for S12
        "S12b", "search", "make_pager", no_cases, judge, (LOGGED,), search=counted.search,
        directed=False, profiles=("standard", "exhaustive"),
    ),
)  # fmt: skip
