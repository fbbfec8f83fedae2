"""Pagers that differ from the reference and are right: order, size and knowledge are theirs."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qloracle import paging
from qloracle.paging import Managed, Pager
from qloracle.paging.pages import DEVICE, FRESH, HOST, Page, Pages
from qloracle_conformance.mutants.paging.steps import Loaded, Paged, Remembering, Words, pager_of

# ---- who goes ------------------------------------------------------------------------------------


class FirstInFirstOut(Paged):
    """The page that has been on the device for longest goes, however often it is touched."""

    lawful = True

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            order = list(self._memory[DEVICE])
            frame = super()._touch(page, part, side, write=write)
            new = self._memory[DEVICE]
            self._memory[DEVICE] = {p: new[p] for p in dict.fromkeys([*order, *new]) if p in new}
            return frame

    make_pager = staticmethod(pager_of(_Pages))


class MostRecentGoes(Paged):
    """The page touched last goes first: best where an array is read from end to end in turn."""

    lawful = True

    class _Pages(Pages):
        ahead = False

        def _evict_oldest(self) -> None:
            if not self.ahead:  # or a prefetch would push out what it has just brought
                put_first(self._memory[DEVICE], next(reversed(self._memory[DEVICE])))
            super()._evict_oldest()

        def bring(self, number: int, side: str) -> None:
            self.ahead = True
            super().bring(number, side)
            self.ahead = False

    make_pager = staticmethod(pager_of(_Pages))


class RandomGoes(Paged):
    """A page is drawn by chance, outside of a prefetch."""

    lawful = True

    class _Pages(Pages):
        def __init__(self, capacity_bytes: int | None, page_bytes: int) -> None:
            super().__init__(capacity_bytes, page_bytes)
            self.rng = np.random.default_rng(12)

        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            held = list(self._memory[DEVICE])
            if held and page not in self._memory[side]:
                put_first(self._memory[DEVICE], held[self.rng.integers(len(held))])
            return super()._touch(page, part, side, write=write)

    make_pager = staticmethod(pager_of(_Pages))


def put_first(memory: dict[Page, Any], chosen: Page) -> None:
    """Make a page the one that goes next."""
    for page in [page for page in memory if page != chosen]:
        memory[page] = memory.pop(page)


class EvictsAhead(Paged):
    """Where one page must go, two go, so that the next fault need not wait."""

    lawful = True

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            if side == DEVICE and page not in self._memory[DEVICE]:
                for _ in range(2 if self.resident() == self.frames() else 0):
                    if self.resident():
                        self._evict_oldest()
            return super()._touch(page, part, side, write=write)

    make_pager = staticmethod(pager_of(_Pages))


# ---- what is copied ------------------------------------------------------------------------------


class CleanPagesDropped(Paged):
    """A page that nobody has written since it came is dropped, and not copied home."""

    lawful = True

    class _Pages(Remembering):
        def _evict_oldest(self) -> None:
            page = next(iter(self._memory[DEVICE]))
            if np.array_equal(self._memory[DEVICE][page], self.old[page]):
                self._memory[HOST].setdefault(page, self.old[page].copy())
            super()._evict_oldest()

    make_pager = staticmethod(pager_of(_Pages))


class UnusedBytesStay(Paged):
    """Of an array's last page the elements alone are copied, and counted."""

    lawful = True

    class _Pages(Pages):
        def _copy(self, page: Page, to: str) -> None:
            super()._copy(page, to)
            used = self.allocations[page.allocation].nbytes - page.i * self.page_bytes
            self._count_bytes(to, min(used - self.page_bytes, 0))

    make_pager = staticmethod(pager_of(_Pages))


class HostWaits(Paged):
    """What a step writes reaches the host when it ends: not all devices can do it before."""

    lawful = True

    class _Pages(Remembering):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            held = self.allocations[page.allocation].in_use and page in self._memory[DEVICE]
            if side == HOST and held and not write:
                return self.old[page].copy()
            return super()._touch(page, part, side, write=write)

    make_pager = staticmethod(pager_of(_Pages))


class PreferencesIgnored(Paged):
    """Whatever is advised, a page moves to the side that touches it, and lies on one."""

    lawful = True

    class _Pager(Pager):
        def advise(
            self, handle: Managed, *, preferred: str | None = None, read_mostly: bool = False
        ) -> None:
            super().advise(handle)

    make_pager = staticmethod(pager_of(pager=_Pager))


class BeginsWithZeros(Paged):
    """What nobody has written reads as zeros: nothing is promised about it."""

    lawful = True

    class _Pages(Pages):
        def _begin(self, page: Page) -> None:
            if not any(page in memory for memory in self._memory.values()):
                self._memory[HOST][page] = np.zeros(self.page_bytes, np.uint8)

    make_pager = staticmethod(pager_of(_Pages))


class BeginsOnTheDevice(Paged):
    """A page that the device touches first is made there: a fault, and nothing to copy."""

    lawful = True

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            if side == DEVICE and not any(page in memory for memory in self._memory.values()):
                while self.resident() == self.frames():
                    self._evict_oldest()
                self._memory[DEVICE][page] = np.full(self.page_bytes, FRESH, np.uint8)
                self._count(faults=1)
            return super()._touch(page, part, side, write=write)

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchAllOrNothing(Paged):
    """A prefetch of more than the device holds does nothing (rule S12: no byte depends on it)."""

    lawful = True

    class _Pages(Pages):
        def bring(self, number: int, side: str) -> None:
            frames = self.frames()
            if frames is None or self.count(self.allocations[number].nbytes) <= frames:
                super().bring(number, side)

    make_pager = staticmethod(pager_of(_Pages))


# ---- what is known of it -------------------------------------------------------------------------


def bare(pager: Pager) -> SimpleNamespace:
    """A pager that offers what the protocol demands, and tells nothing."""
    names = ("empty", "use", "prefetch", "free", "advise")
    return SimpleNamespace(**{name: getattr(pager, name) for name in names})


class WritesThrough(Paged):
    """Each write of the device goes home at once, and no counters tell of it."""

    lawful = True

    class _Pages(Pages):
        def _move(self, page: Page, to: str) -> None:
            super()._move(page, to)
            if to == DEVICE:
                self._copy(page, HOST)

        def write(self, number: int, start: int, values: Any, side: str) -> None:
            for page, of_page, of_range in self._pieces(number, start, start + values.size):
                self._touch(page, of_page, side, write=True)[of_page] = values[of_range]
                if page in self._memory[DEVICE]:
                    self._copy(page, HOST)

    @staticmethod
    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Any:
        return bare(pager_of(WritesThrough._Pages)(capacity_bytes, page_bytes))


class SmallerPages(Paged):
    """Its pages are half as large as asked for, or of one byte, and it says so."""

    lawful = True

    @staticmethod
    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Pager:
        asked = paging.make_pager(capacity_bytes, page_bytes)
        return paging.make_pager(asked.capacity, max(asked.page_bytes // 2, 1))


class WholePagesOfTheSystem(Paged):
    """Pages are multiples of 4,096 bytes; others, it says, it cannot have."""

    lawful = True

    @staticmethod
    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Pager:
        if (page_bytes or 0) % 4096:
            raise NotImplementedError(f"page_bytes must be a multiple of 4096, got {page_bytes}")
        return paging.make_pager(capacity_bytes, page_bytes)


class TellsNothing(Paged):
    """It shows no counters, as a GPU: how much lies where is not known."""

    lawful = True

    @staticmethod
    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Any:
        return bare(paging.make_pager(capacity_bytes, page_bytes))


class TellsFaultsOnly(Paged):
    """It counts faults and nothing else, in a mapping."""

    lawful = True

    class _Pager(Pager):
        @property
        def counters(self) -> Any:
            return {"faults": self._pages.counters.faults}

    make_pager = staticmethod(pager_of(pager=_Pager))


class CapacityIgnored(Paged):
    """Neither capacity nor page size can be chosen, as under CUDA, and no counters are shown."""

    lawful = True

    @staticmethod
    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Any:
        return bare(paging.make_pager())


class SavesRawBytes(Paged):
    """A file format of its own: the bytes of each array one after the other, in NumPy's archive."""

    lawful = True

    @staticmethod
    def save_paged(path: str | Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
        parts: dict[str, Any] = {
            f"b{name}": a[...].reshape(-1).view(np.uint8) for name, a in arrays.items()
        }
        parts |= {f"f{name}": np.array([str(a.dtype), *a.shape]) for name, a in arrays.items()}
        parts["words"] = np.array([*(metadata or {}).items()], dtype=str).reshape(-1, 2)
        with Path(path).open("wb") as file:
            np.savez(file, **parts)

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays = {}
        with np.load(path) as file:
            for key in file.files:
                if key.startswith("f"):
                    dtype, *shape = file[key].tolist()
                    array = arrays[key[1:]] = pager.empty(tuple(map(int, shape)), dtype)
                    array[...] = file[f"b{key[1:]}"].view(array.dtype).reshape(array.shape)
            return arrays, dict(file["words"].tolist())
