"""Faulty pagers: two sides, two names or two owners of the same bytes, and one of them is wrong."""
# ruff: noqa: D102 (the class tells the story of its methods)

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import DTypeLike

from qloracle.paging import Managed, Pager
from qloracle.paging.pages import DEVICE, HOST, Page, Pages
from qloracle_conformance.mutants.paging.steps import (
    Remembering,
    Step,
    changed,
    faulty,
    paged,
    pager_of,
)
from qloracle_conformance.mutants.parts import fault

# ---- two sides, and what is advised --------------------------------------------------------------


def keeps_copy(of: str) -> type[Pages]:
    """Pages whose read-mostly copy on one side survives a write of the other."""

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            copy = self._memory[of].get(page)
            frame = super()._touch(page, part, side, write=write)
            mostly = self.allocations[page.allocation].read_mostly
            if write and side != of and copy is not None and mostly:
                self._memory[of][page] = copy
            return frame

    return _Pages


@faulty("S12")
class PreferredLosesWrites(Pages):
    """What the device writes to a page that prefers the host goes over the link and is dropped."""

    def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
        frame = super()._touch(page, part, side, write=write)
        return frame.copy() if write and page not in self._memory[side] else frame


# ---- what `use` yields ---------------------------------------------------------------------------


def copying(which: Callable[[Pager, Any], Any]) -> dict[str, Step]:
    """Pagers whose `use` yields copies of some of its arrays, and writes them back at its end."""

    class _Pager(Pager):
        @contextmanager
        def use(self, *handles: Managed) -> Iterator[tuple[Any, ...]]:
            chosen = list(which(self, handles))
            with super().use(*handles) as arrays:
                copies = {i: arrays[i][...].copy() for i in chosen}
                yield tuple(copies.get(i, array) for i, array in enumerate(arrays))
                for i, copy in copies.items():
                    arrays[i][...] = copy

    return paged(make_pager=pager_of(pager=_Pager))


# ---- memory that is given back -------------------------------------------------------------------


@faulty("S12")
class ReadAfterFree(Pages):
    """A handle that was freed still reads and writes: nobody asks whether it is alive."""

    def free(self, number: int) -> None:
        allocation = self.allocations[number]
        super().free(number)
        self.allocations[number] = allocation


@faulty("S12")
class FreedNumberGivenAgain(Pages):
    """A new array gets the number of one that was freed, and the old handle reads the new array."""

    def free(self, number: int) -> None:
        super().free(number)
        self._made = number - 1  # the next one made

    def allocate(self, nbytes: int) -> int:
        while self._made + 1 in self.allocations:
            self._made += 1
        return super().allocate(nbytes)


@faulty("S12")
class RefusedYetTaken(Pager):
    """A request for too much fails after it took the room: nothing fits from then on."""

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Managed:
        try:
            return super().empty(shape, dtype)
        except ValueError:
            self._pages.allocate(self._host_bytes)
            raise


# ---- rows ----------------------------------------------------------------------------------------
# fmt: off

PrivateCopyOfAnAlias = fault("S12",
    "An array that is handed to `use` twice comes as two, each with values of its own (rule S12).",
    **copying(lambda _, handles: (i for i, h in enumerate(handles) if h in handles[:i])))
InnerUseWritesBack = fault("S12",
    "A `use` inside of another works on a copy, and at its end writes all of it back (rule S12).",
    **copying(lambda self, handles: range(len(handles)) if any(
        each.in_use for each in self._pages.allocations.values()) else ()))
FreeTakesTheNeighbour = fault("S12",
    "An array's page count is one too large when it is freed: the next array loses its first.",
    **changed(free=lambda self, right, number: right(number) or [
        memory.pop(Page(number + 1, 0), None) for memory in self._memory.values()]))
HostFaultIsStale = fault("S12",
    "A page that the host calls home comes as it left: only an eviction copies (rule S12).",
    **changed(Remembering, _move=lambda self, right, page, to: right(page, to) or (
        to == HOST and self._memory[HOST].update({page: self.old[page]}))))
AdviceDropsPages = fault("S12",
    "An advice is carried out at once: the device's pages are dropped, to come anew (rule S12).",
    **changed(Pager, Remembering, advise=lambda self, right, handle, **advice: (
        right(handle, **advice) or self._pages.restore(handle._number))))
DeviceMissesHostWrites = fault("S12",
    "The host writes into a copy of its own of a page that the device holds.",
    **changed(_touch=lambda self, right, page, part, side, write: (
        self._memory[DEVICE][page].copy() if side == HOST and write and page in self._memory[DEVICE]
        else right(page, part, side, write=write))))
PrefetchDropsWrites = fault("S12",
    "A prefetch fetches what is there already, from a host that has not seen the last writes.",
    **changed(Remembering, bring=lambda self, right, number, side: (
        self.restore(number) or right(number, side))))
PrefetchHomeIsStale = fault("S12",
    "What a prefetch brings home is what the page held when it left (rule S12).",
    **changed(Remembering, bring=lambda self, right, number, side: (
        side == HOST and self.restore(number)) or right(number, side)))
HostCopyNotInvalidated = fault("S12",
    "A write of the device leaves the host's copy of a read-mostly page as it was.",
    **paged(keeps_copy(HOST)))
DeviceCopyNotInvalidated = fault("S12",
    "A write of the host leaves the device's copy of a read-mostly page as it was.",
    **paged(keeps_copy(DEVICE)))
FreedTwice = fault("S12", "To free an array twice is taken in silence (rule S12).",
    **changed(Pager, free=lambda self, right, handle: (
        handle._number in self._pages.allocations and right(handle))))
