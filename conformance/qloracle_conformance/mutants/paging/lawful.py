"""Pagers that differ from the reference and are right: order, size and knowledge are theirs."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qloracle import paging
from qloracle.paging import Pager
from qloracle.paging.pages import DEVICE, FRESH, HOST, Page, Pages
from qloracle_conformance.mutants.paging.steps import (
    Loaded,
    Remembering,
    Step,
    changed,
    lawful,
    oldest,
    paged,
    pager_of,
)
from qloracle_conformance.mutants.parts import refusing, variant

# ---- who goes ------------------------------------------------------------------------------------


def going(choose: Callable[[Any, list[Page]], Page]) -> dict[str, Step]:
    """Pagers that choose who goes among the pages in the order in which they came to the device."""

    class _Pages(Pages):
        bringing = False

        def _evict_oldest(self) -> None:
            memory, came = self._memory[DEVICE], self.__dict__.setdefault("came", {})
            if not self.bringing:  # or a prefetch would push out what it has just brought
                chosen = choose(self, sorted(memory, key=lambda page: came.get(page, 0)))
                self._memory[DEVICE] = {chosen: memory[chosen]} | memory
            super()._evict_oldest()

        def _copy(self, page: Page, to: str) -> None:
            super()._copy(page, to)
            self.__dict__.setdefault("came", {})[page] = sum(self.counters)

        def bring(self, number: int, side: str) -> None:
            self.bringing = True
            super().bring(number, side)
            self.bringing = False

    return paged(_Pages)


@lawful
class EvictsAhead(Pages):
    """Where one page must go, two go, so that the next fault need not wait."""

    def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
        if side == DEVICE and page not in self._memory[DEVICE]:
            for _ in range(2 if self.resident() == self.frames() else 0):
                if self.resident():
                    self._evict_oldest()
        return super()._touch(page, part, side, write=write)


# ---- what is copied ------------------------------------------------------------------------------


@lawful
class CleanPagesDropped(Remembering):
    """A page that nobody has written since it came is dropped, and not copied home."""

    def _evict_oldest(self) -> None:
        page = oldest(self)
        if np.array_equal(self._memory[DEVICE][page], self.old[page]):
            self._memory[HOST].setdefault(page, self.old[page].copy())
        super()._evict_oldest()


@lawful
class BeginsOnTheDevice(Pages):
    """A page that the device touches first is made there: a fault, and nothing to copy."""

    def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
        if side == DEVICE and not any(page in memory for memory in self._memory.values()):
            while self.resident() == self.frames():
                self._evict_oldest()
            self._memory[DEVICE][page] = np.full(self.page_bytes, FRESH, np.uint8)
            self._count(faults=1)
        return super()._touch(page, part, side, write=write)


# ---- what is known of it -------------------------------------------------------------------------


def made(make: Callable[..., Any], *, bare: bool = False) -> dict[str, Callable[..., Any]]:
    """Pagers that are made so; a bare one offers what the protocol demands, and tells nothing."""
    names = ("empty", "use", "prefetch", "free", "advise")

    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Any:
        pager = make(capacity_bytes, page_bytes)
        if not bare:
            return pager
        return SimpleNamespace(**{name: getattr(pager, name) for name in names})

    return paged(make_pager=make_pager)


class _Through(Pages):
    """Pages that the device writes on both sides."""

    def _move(self, page: Page, to: str) -> None:
        super()._move(page, to)
        if to == DEVICE:
            self._copy(page, HOST)

    def write(self, number: int, start: int, values: Any, side: str) -> None:
        for page, of_page, of_range in self._pieces(number, start, start + values.size):
            self._touch(page, of_page, side, write=True)[of_page] = values[of_range]
            if page in self._memory[DEVICE]:
                self._copy(page, HOST)


def _half(capacity: int | None, page: int | None) -> Pager:
    asked = paging.make_pager(capacity, page)
    return paging.make_pager(asked.capacity, max(asked.page_bytes // 2, 1))


def _load_pickled(path: Path, pager: Pager) -> Loaded:
    plain, words = pickle.loads(path.read_bytes())
    arrays = {name: pager.empty(values.shape, values.dtype) for name, values in plain.items()}
    for name, array in arrays.items():
        array[...] = plain[name]
    return arrays, words


# ---- rows ----------------------------------------------------------------------------------------
# fmt: off

FirstInFirstOut = variant("",
    "The page that has been on the device for longest goes, however often it is touched.",
    **going(lambda _, pages: pages[0]))
MostRecentGoes = variant("",
    "The page touched last goes first: best where an array is read from end to end in turn.",
    **going(lambda self, _: next(reversed(self._memory[DEVICE]))))
RandomGoes = variant("", "A page is drawn by chance, outside of a prefetch.",
    **going(lambda self, pages: pages[hash((12, sum(self.counters))) % len(pages)]))
UnusedBytesStay = variant("",
    "Of an array's last page the elements alone are copied, and counted.",
    **changed(_copy=lambda self, right, page, to: right(page, to) or self._count_bytes(
        to, min(self.allocations[page.allocation].nbytes - (page.i + 1) * self.page_bytes, 0))))
HostWaits = variant("",
    "What a step writes reaches the host when it ends: not all devices can do it before.",
    **changed(Remembering, _touch=lambda self, right, page, part, side, write: (
        self.old[page].copy()
        if side == HOST and not write and page in self._memory[DEVICE]
        and self.allocations[page.allocation].in_use else right(page, part, side, write=write))))
BeginsWithZeros = variant("",
    "What nobody has written reads as zeros: nothing is promised about it.",
    **changed(_begin=lambda self, _, page: (
        any(page in memory for memory in self._memory.values())
        or self._memory[HOST].setdefault(page, np.zeros(self.page_bytes, np.uint8)))))
TellsFaultsOnly = variant("", "It counts faults and nothing else, in a mapping.",
    **changed(Pager, counters=lambda self, _: {"faults": self._pages.counters.faults}))
PreferencesIgnored = variant("",
    "Whatever is advised, a page moves to the side that touches it, and lies on one.",
    **changed(Pager, advise=lambda _, right, handle, **advice: right(handle)))
PrefetchAllOrNothing = variant("",
    "A prefetch of more than the device holds does nothing (rule S12: no byte depends on it).",
    **changed(bring=lambda self, right, number, side: (
        right(number, side)
        if self.count(self.allocations[number].nbytes) <= (self.frames() or math.inf) else None)))
WritesThrough = variant("",
    "Each write of the device goes home at once, and no counters tell of it.",
    **made(pager_of(_Through), bare=True))
SmallerPages = variant("",
    "Its pages are half as large as asked for, or of one byte, and it says so.",
    **made(_half))
WholePagesOfTheSystem = variant("",
    "Pages are multiples of 4,096 bytes; others, it says, it cannot have.",
    **made(refusing(paging.make_pager,
        NotImplementedError("page_bytes must be a multiple of 4096"),
        lambda _, page: (page or 0) % 4096)))
TellsNothing = variant("", "It shows no counters, as a GPU: how much lies where is not known.",
    **made(paging.make_pager, bare=True))
CapacityIgnored = variant("",
    "Neither capacity nor page size can be chosen, as under CUDA, and no counters are shown.",
    **made(lambda capacity, page: paging.make_pager(), bare=True))
SavesPickles = variant("", "A file format of its own: Python's pickle of all arrays at once.",
    **paged(save_paged=lambda path, arrays, words: path.write_bytes(pickle.dumps(
        ({name: array[...] for name, array in arrays.items()}, dict(words)))),
        load_paged=_load_pickled))
