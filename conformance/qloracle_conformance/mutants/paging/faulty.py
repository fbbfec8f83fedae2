"""Faulty pagers: how a page that moves loses what was written to it, or turns up for another."""
# ruff: noqa: D102 (the class tells the story of its methods)

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from qloracle.paging import Pager
from qloracle.paging.pages import DEVICE, FRESH, HOST, Page, Pages, Piece
from qloracle_conformance.mutants.paging.steps import (
    Remembering,
    Step,
    changed,
    evicting,
    faulty,
    paged,
)
from qloracle_conformance.mutants.parts import BFLOAT16, Array, fault

# ---- the way home --------------------------------------------------------------------------------


def _second_time(pages: Remembering, page: Page, home: Array) -> None:
    evicted = pages.__dict__.setdefault("evicted", set())
    if page in evicted:
        home[:] = pages.old[page]
    evicted.add(page)


def _noted(pages: Any, right: Step, page: Page, part: slice, side: str, write: bool) -> Any:
    if write:
        pages.__dict__.setdefault("last", {})[page] = part
    return right(page, part, side, write=write)


def _last_only(pages: Remembering, page: Page, home: Array) -> None:
    part = pages.__dict__.get("last", {}).get(page, slice(0, 0))
    new = home[part].copy()
    home[:] = pages.old[page]
    home[part] = new


@faulty("S12")
class EvictedWhileInUse(Pages):
    """A write gets all its pages before it begins: the last ones push the first out under it."""

    def write(self, number: int, start: int, values: Any, side: str) -> None:
        pieces = list(self._pieces(number, start, start + values.size))
        frames = [self._touch(page, part, side, write=True) for page, part, _ in pieces]
        for frame, (_, of_page, of_range) in zip(frames, pieces, strict=True):
            frame[of_page] = values[of_range]


@faulty("S12")
class ShrinkDropsDirtyPages(Remembering):
    """What a smaller capacity pushes out is dropped: only the other way out copies."""

    def shrink(self, capacity_bytes: int) -> None:
        before = dict(self._memory[DEVICE])
        super().shrink(capacity_bytes)
        for page in before.keys() - self._memory[DEVICE].keys():
            self._memory[HOST][page][:] = self.old[page]


def _merged(pages: Remembering, page: Page, home: Array) -> None:
    *others, own = pages._memory[HOST].values()
    equal = (other for other in reversed(others) if np.array_equal(other, own))
    pages._memory[HOST][page] = next(equal, own)


def _widened(pages: Any, page: Page, home: Array) -> None:
    if pages.allocations[page.allocation].dtype == BFLOAT16 and home.size % 2 == 0:
        home[:] = home.view(BFLOAT16).astype(np.float32).astype(BFLOAT16).view(np.uint8)


def _typed(pager: Any, right: Step, shape: Any, dtype: DTypeLike) -> Any:
    handle = right(shape, dtype)
    pager._pages.allocations[handle._number].dtype = handle.dtype
    return handle


@faulty("S12")
class CopiedAsFloats(Pages):
    """Pages are copied by a kernel on float32 that flushes subnormals, whatever they hold."""

    def _copy(self, page: Page, to: str) -> None:
        super()._copy(page, to)
        if self.page_bytes % 4 == 0:
            words = self._memory[to][page].view(np.uint32)
            words[(words & 0x7F800000) == 0] &= 0x80000000


# ---- which page, and where in it -----------------------------------------------------------------


@faulty("S12")
class LastPartialPageMissing(Pages):
    """The number of pages is rounded down: nothing is kept of a last page that is not full."""

    def _pieces(self, number: int, start: int, stop: int) -> Iterator[Piece]:
        whole = self.allocations[number].nbytes // self.page_bytes
        pieces = super()._pieces(number, start, stop)
        return (piece for piece in pieces if piece.page.i < whole)

    def read(self, number: int, start: int, stop: int, side: str) -> Any:
        values = np.zeros(stop - start, np.uint8)
        whole = self.allocations[number].nbytes // self.page_bytes * self.page_bytes
        end = max(min(stop, whole), start)
        values[: end - start] = super().read(number, start, end, side)
        return values


@faulty("S12")
class NumbersCutByAPage(Pages):
    """Of a float32 that lies across two pages, only the part in the first one is written."""

    def write(self, number: int, start: int, values: Any, side: str) -> None:
        for page, of_page, of_range in self._pieces(number, start, start + values.size):
            torn = -page.i * self.page_bytes % 4 if of_range.start else 0
            part = self._touch(page, of_page, side, write=True)[of_page]
            part[torn:] = values[of_range][torn:]


@faulty("S12")
class WriteWithoutFetch(Pages):
    """A page is not fetched before it is written to: beside the range is what lay in memory."""

    def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
        absent = side == DEVICE and page not in self._memory[DEVICE]
        frame = super()._touch(page, part, side, write=write)
        if write and absent and page in self._memory[DEVICE]:
            frame[:] = FRESH
        return frame


# ---- rows ----------------------------------------------------------------------------------------
# fmt: off

OnlyTheLastWriteGoesHome = fault("S12",
    "Of an evicted page the range written last is copied, as if it were all that was written.",
    **changed(evicting(_last_only), _touch=_noted))
CleanAfterFirstEviction = fault("S12",
    "The dirty bit is cleared at the first eviction and never set again: the second one loses.",
    **paged(evicting(_second_time)))
WritesThatDoNotFit = fault("S12",
    "Where the device is full, a page is served from a buffer, and a write to it stays there.",
    **changed(_touch=lambda self, right, page, part, side, write: (
        self._memory[HOST][page].copy()
        if side == DEVICE and self.resident() == self.frames() and page in self._memory[HOST]
        else right(page, part, side, write=write))))
DirtyPageLost = fault("S12",
    "The host's pages go over the link, and those that are evicted do not come back (rule S12).",
    **paged(evicting(lambda pages, page, home: home.fill(FRESH))))
StaleAfterEviction = fault("S12",
    "An evicted page is taken for clean: what it held when it came stands there again.",
    **paged(evicting(lambda pages, page, home: np.copyto(home, pages.old[page]))))
PartialPageStays = fault("S12",
    "Whole pages are copied home; the last one of an array, in part unused, is not.",
    **paged(evicting(lambda pages, page, home: np.copyto(home, pages.old[page], where=
        page.i == pages.allocations[page.allocation].nbytes // pages.page_bytes))))
WidenedOnTheWay = fault("S12",
    "bfloat16 travels home as float32 and is rounded again: the payload of a NaN is lost.",
    **changed(Pager, evicting(_widened), empty=_typed))
ZeroPagesNotCopied = fault("S12",
    "A page that is all zeros is cleared at home instead of copied, and -0 compares as zero.",
    **paged(evicting(lambda pages, _, home: np.copyto(home, 0, where=
        pages.page_bytes % 4 == 0 and not home.view(np.float32).any()))))
EqualPagesMerged = fault("S12",
    "An evicted page that equals one at home shares its memory, and from then on its writes.",
    **paged(evicting(_merged)))
WrongOffsetInSecondPage = fault("S12",
    "A range that begins inside of the second page is looked for at that page's beginning.",
    **changed(_pieces=lambda _, right, *range_: (
        piece._replace(of_page=slice(0, piece.of_page.stop - piece.of_page.start))
        if piece.page.i == 1 else piece for piece in right(*range_)
    )))
PageNumberIn8Bits = fault("S12",
    "The number of a page is kept in 8 bits: page 256 of an array is page 0.",
    **changed(_pieces=lambda _, right, number, *ends: (
        piece._replace(page=Page(number, piece.page.i % 256)) for piece in right(number, *ends)
    )))
NeighboursShareAPage = fault("S12",
    "Where an array ends inside of a page, the next one begins at the beginning of that page.",
    **changed(_pieces=lambda self, right, number, *ends: (
        piece._replace(page=Page(number + 1, 0))
        if piece.page.i == self.allocations[number].nbytes // self.page_bytes
        and number + 1 in self.allocations else piece for piece in right(number, *ends))))
