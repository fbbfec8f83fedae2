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


# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: D102 (the verbs are told in `contract.programs`)

import math
import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import PlainArrays
from qloracle_conformance.contract.programs import COUNTERS, DONE, LOG, LOGGED, SIZES, Part, where
from qloracle_conformance.families.paging import counted
from qloracle_conformance.families.paging.drafts import programs_of
from qloracle_conformance.families.paging.s12_paging import judge_operations
from qloracle_conformance.judging.checks import Check, no_cases
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

# ---- the laws ------------------------------------------------------------------------------------


class Law(NamedTuple):
    """What one column must be: at most, at least or exactly what a formula makes of the log.

    The formula is Python: here it is evaluated for all lines of the log at once, and a script that
    reproduces a failure has it for one.  `now` is a line, `before` the one before, zeros where the
    pager is new; what stands in braces is a fact that `Books` know of the program, a number in the
    script.  A law that needs a column which is not shown, or a fact that is not known, says
    nothing; nor does one whose condition, another fact, does not hold.
    """

    column: str
    relation: str
    formula: str
    why: str
    condition: str = "done"


RELATIONS = {"<=": "at most ", ">=": "at least ", "==": ""}

ASKED = "the capacity that was asked for"
WRITTEN = "so much was written on the other side"
LAWS = (
    Law("status", "==", str(DONE), "the operation was performed"),
    *(Law(c, ">=", "0", "what is shown is a whole number") for c in (*SIZES, *COUNTERS)),
    Law("capacity", "<=", "{asked}", ASKED),
    Law("capacity", ">=", "{asked} - {page} + 1", f"{ASKED}, down to a whole page"),
    Law("resident_bytes", "<=", "{asked}", "the capacity"),
    Law("resident_bytes", "<=", "{pages} * {page}", "the pages of all arrays that are alive"),
    # bytes, whatever is advised and in whatever order pages go
    Law("bytes_to_device", ">=", "{to_device}", WRITTEN),
    Law("bytes_to_host", ">=", "{to_host} + np.maximum({alone} - now.resident_bytes, 0)",
        f"{WRITTEN}, or is not resident"),
    Law("bytes_to_host", ">=", "{to_host}", WRITTEN),
    *(Law(c, ">=", f"before.{c}", "no counter shrinks") for c in COUNTERS),
    Law("faults", "==", "before.faults",
        "as before: the device has touched nothing, or what was prefetched and fits", "there"),
    Law("evictions", "==", "before.evictions", "as before: all that is alive fits", "fits"),
    # a page lies on one side, and a page that moves is copied at most
    Law("faults", ">=", "{pages_in} - now.prefetched",
        f"{{pages_in}} pages came at least: {WRITTEN}", "one_side"),
    Law("bytes_to_device", "<=", "{page} * pages_came(now)", "a copy of each page that came",
        "one_side"),
    Law("evictions", ">=", "{pages_out} - now.host_faults - now.host_prefetched",
        f"{{pages_out}} pages went at least: {WRITTEN}", "one_side"),
    Law("bytes_to_host", "<=", "{page} * pages_went(now)", "a copy of each page that went",
        "one_side"),
    Law("resident_bytes", ">=", "{page}", "the page that was touched", "touched"),
    Law("resident_bytes", "==", "{page} * pages_left(before, now, {page}, {freed})",
        "the pages that were there or came, and did not go; {freed} may have been freed",
        "one_side"),
)  # fmt: skip


def pages_came(line):
    """Pages that came to the device."""
    return line.faults + line.prefetched


def pages_went(line):
    """Pages that left it, but for those that were freed."""
    return line.evictions + line.host_faults + line.host_prefetched


def pages_left(before, now, page, freed):
    """Pages that were there or came, and did not go, but for those of the freed ones that left."""
    came, went = (pages(now) - pages(before) for pages in (pages_came, pages_went))
    stay = before.resident_bytes / page + came - went
    return np.clip(now.resident_bytes // page, stay - freed, stay)


CODES = [compile(re.sub("[{}]", "", law.formula), law.column, "eval") for law in LAWS]


class Entry(NamedTuple):
    """A law that an operation broke: what the pager shows, what is expected, by which facts."""

    number: int
    law: Law
    got: int
    expected: int
    facts: dict[str, Any]


# ---- the judgement -------------------------------------------------------------------------------


def judge(case: Case, values: Values, view: View) -> Outcome:
    """Every law after every operation; the first that is broken is told."""
    obeyed, entries = entered(case, values)
    outcome = judge_operations(case, values) + Outcome(obeyed)
    for number, law, got, expected, facts in entries[:1]:
        operation = programs.text_of(case.options["program"][number])
        why = f"{law.why.format_map(facts)}; after operation {number}, {operation}"
        due = f"{RELATIONS[law.relation]}{expected}"
        first = Mismatch(law.column, number, str(got), due, why, 0.0, float(abs(got - expected)))
        outcome += Outcome(len(entries), len(entries), first)
    return outcome


def entered(case: Case, values: Values) -> tuple[int, list[Entry]]:
    """How often laws were obeyed, and what broke them, one operation after the other."""
    log = np.where(values[LOGGED] == programs.UNKNOWN, math.nan, values[LOGGED])
    log[:, 0] = values[LOGGED][:, 0]  # a status is always known
    facts = _facts(case, [_line(row) for row in log.tolist()])
    if not facts:
        return 0, []
    numbers, rows = np.array(list(facts)), list(facts.values())
    known: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    now = known["now"] = _line(log[numbers + 1].T)
    known["before"] = _line(np.where(known["new"], 0, log[numbers].T))
    obeyed, broken = 0, list[Entry]()
    for law, code in zip(LAWS, CODES, strict=True):
        got, expected = getattr(now, law.column), eval(code, globals(), known)
        more = np.where(known[law.condition], got - expected, math.nan)
        wrong = {"<=": more > 0, ">=": more < 0, "==": abs(more) > 0}[law.relation]
        obeyed += int(np.count_nonzero(~np.isnan(more) & ~wrong))
        due = np.broadcast_to(expected, got.shape)
        broken += [
            Entry(int(numbers[k]), law, int(got[k]), int(due[k]), rows[k])
            for k in np.flatnonzero(wrong)
        ]
    return obeyed, sorted(broken, key=lambda entry: entry.number)


def _line(row: Iterable[Any]) -> SimpleNamespace:
    """A line of the log, or all lines, by the names of the columns."""
    return SimpleNamespace(**dict(zip(LOG, row, strict=True)))


def _facts(case: Case, log: list[SimpleNamespace]) -> dict[int, dict[str, Any]]:
    """What is known after each operation, up to one that was not performed."""
    kept, facts = Books(case), dict[int, dict[str, Any]]()
    for number, operation in enumerate(programs.program_of(case)):
        status = log[number + 1].status
        left_out = operation[0] in programs.OPTIONAL and status == programs.NOT_OFFERED
        if operation[0] == "must_fail" or left_out:
            continue
        if status != programs.RAISED:
            facts[number] = kept.enter(operation, log[number + 1])
            facts[number]["new"] = number == 0 or operation[0] == "load"
        if status != DONE:
            break
    return facts


# ---- what is known of a pager from the program alone ---------------------------------------------


class Books(PlainArrays):
    """Plain arrays, and what must be true of the pages that they lie in."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.arrays, *programs.sizes_of(case))
        self._size: float = self.page or math.nan  # of a page
        self._own: float = math.inf  # a capacity that nobody asked for, if it is shown
        self._begin()

    def _begin(self) -> None:
        """A new pager."""
        self._advised = False
        self._fetched: set[str] = set()  # arrays that are on the device for sure

    def enter(self, operation: programs.Operation, now: SimpleNamespace) -> dict[str, Any]:
        """Enter an operation and what the pager shows; return what laws ask for, NaN if unknown."""
        verb, side = operation[0], operation[-1]
        self._size = int(now.page_bytes) if now.page_bytes > 0 else self._size
        self._own = now.capacity if now.capacity >= 0 else math.inf
        self._touched: set[str] = set()  # by the device
        freed = self._pages(operation[1:]) if verb == "free" else 0
        self.perform(operation)
        if verb == "load":
            self._begin()  # it may have been loaded to the device; 0 where that is NaN
            self.copied["device"] = -int(max(0, now.resident_bytes))
        if verb in ("shrink", "save"):
            self._fetched.clear()
        self._fetched &= self.alive.keys()
        self._advised |= verb == "advise"
        one_side = self._size > 0 and not self._advised
        idle = verb in ("shrink", "free") or (verb in ("read", "write") and side == "host")
        there = self._touched and self._touched <= self._fetched and not self._advised
        to_device, to_host = max(self.copied["device"], 0), self.copied["host"]
        return {
            "done": True, "one_side": one_side, "there": bool(idle or there),
            "touched": one_side and bool(self._touched),
            "fits": verb != "load" and self._room_for(self.alive),
            "asked": math.nan if self.capacity is None else self.capacity,
            "page": self._size, "pages": self._pages(self.alive),
            "alone": sum(array.alone for array in self.alive.values()),
            "to_device": to_device, "pages_in": -(-to_device // self._size),
            "to_host": to_host, "pages_out": -(-to_host // self._size),
            "freed": freed,
        }  # fmt: skip

    def _pages(self, names: Iterable[str]) -> Any:
        """Pages of arrays; one without elements may take one."""
        sizes = (self.alive[name].values.nbytes for name in names)
        return sum(max(-(-nbytes // self._size), 1) for nbytes in sizes)

    def _room_for(self, names: Iterable[str]) -> bool:
        """Whether the device holds some arrays."""
        room = self._own if self.capacity is None else self.capacity
        return room == math.inf or bool(self._pages(names) * self._size <= room)

    def touch(self, name: str, part: Part, side: str, *, write: bool = False) -> None:
        """What was prefetched is no longer there for sure: its own pages, or those of others."""
        super().touch(name, part, side, write=write)
        if side == "host":
            self._fetched.discard(name)
            return
        if name not in self._fetched:
            self._fetched.clear()
        if self.alive[name].values[where(part)].size:
            self._touched.add(name)

    def prefetch(self, name: str, to: str) -> None:
        if to == "host":
            self._fetched.discard(name)
        elif self._room_for(self.alive):
            self._fetched.add(name)
        else:
            self._fetched = {name} if self._room_for([name]) else set()


# ---- the checks ----------------------------------------------------------------------------------


CHECKS = (
    *(Check("S12b", n, "make_pager", c, judge, (LOGGED,)) for n, c in counted.DIRECTED.items()),
    Check(  # smoke draws programs once, for S12
        "S12b", "search", "make_pager", no_cases, judge, (LOGGED,),
        search=lambda _: programs_of(counted=True), directed=False,
        profiles=("standard", "exhaustive"),
    ),
)  # fmt: skip
