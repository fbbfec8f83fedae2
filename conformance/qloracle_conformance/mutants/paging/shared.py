"""Faulty pagers: two sides, two names or two owners of the same bytes, and one of them is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import DTypeLike

from qloracle.paging import Managed, Pager
from qloracle.paging.pages import DEVICE, HOST, Page, Pages
from qloracle_conformance.mutants.paging.steps import Paged, Remembering, Staged, pager_of

# ---- two sides, and what is advised --------------------------------------------------------------


class HostFaultIsStale(Paged):
    """A page that the host calls home comes as it left: only an eviction copies (rule S12)."""

    kills = "S12"

    class _Pages(Remembering):
        def _move(self, page: Page, to: str) -> None:
            super()._move(page, to)
            if to == HOST:
                self._memory[HOST][page][:] = self.old[page]

    make_pager = staticmethod(pager_of(_Pages))


class DeviceMissesHostWrites(Paged):
    """The host writes into a copy of its own of a page that the device holds."""

    kills = "S12"

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            if side == HOST and write and page in self._memory[DEVICE]:
                return self._memory[DEVICE][page].copy()
            return super()._touch(page, part, side, write=write)

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchDropsWrites(Paged):
    """A prefetch fetches what is there already, from a host that has not seen the last writes."""

    kills = "S12"

    class _Pages(Remembering):
        def bring(self, number: int, side: str) -> None:
            for page, frame in self._memory[DEVICE].items():
                if page.allocation == number:
                    frame[:] = self.old[page]
            super().bring(number, side)

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchHomeIsStale(Paged):
    """What a prefetch brings home is what the page held when it left (rule S12)."""

    kills = "S12"

    class _Pages(Remembering):
        def bring(self, number: int, side: str) -> None:
            for page, frame in self._memory[DEVICE].items():
                if page.allocation == number and side == HOST:
                    frame[:] = self.old[page]
            super().bring(number, side)

    make_pager = staticmethod(pager_of(_Pages))


class AdviceDropsPages(Paged):
    """An advice is carried out at once: the device's pages are dropped, to come anew."""

    kills = "S12"

    class _Pager(Pager):
        def advise(
            self, handle: Managed, *, preferred: str | None = None, read_mostly: bool = False
        ) -> None:
            super().advise(handle, preferred=preferred, read_mostly=read_mostly)
            pages = self._pages
            assert isinstance(pages, Remembering)
            for page, frame in pages._memory[DEVICE].items():
                if page.allocation == handle._number:
                    frame[:] = pages.old[page]

    make_pager = staticmethod(pager_of(Remembering, _Pager))


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


class HostCopyNotInvalidated(Paged):
    """A write of the device leaves the host's copy of a read-mostly page as it was."""

    kills = "S12"
    make_pager = staticmethod(pager_of(keeps_copy(HOST)))


class DeviceCopyNotInvalidated(Paged):
    """A write of the host leaves the device's copy of a read-mostly page as it was."""

    kills = "S12"
    make_pager = staticmethod(pager_of(keeps_copy(DEVICE)))


class PreferredLosesWrites(Paged):
    """What the device writes to a page that prefers the host goes over the link and is dropped."""

    kills = "S12"

    class _Pages(Pages):
        def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> Any:
            frame = super()._touch(page, part, side, write=write)
            return frame.copy() if write and page not in self._memory[side] else frame

    make_pager = staticmethod(pager_of(_Pages))


# ---- what `use` yields ---------------------------------------------------------------------------


class PrivateCopyOfAnAlias(Paged):
    """An array that is handed to `use` twice comes as two, each with values of its own."""

    kills = "S12"

    class _Pager(Pager):
        @contextmanager
        def use(self, *handles: Managed) -> Iterator[tuple[Any, ...]]:
            with super().use(*handles) as arrays:
                copies = {
                    i: Staged(array)
                    for i, array in enumerate(arrays)
                    if any(handle is handles[i] for handle in handles[:i])
                }
                yield tuple(copies.get(i, array) for i, array in enumerate(arrays))
                for copy in copies.values():
                    copy.flush()

    make_pager = staticmethod(pager_of(pager=_Pager))


class InnerUseWritesBack(Paged):
    """A `use` inside of another works on a copy, and at its end writes all of it back."""

    kills = "S12"

    class _Pager(Pager):
        @contextmanager
        def use(self, *handles: Managed) -> Iterator[tuple[Any, ...]]:
            inner = any(each.in_use for each in self._pages.allocations.values())
            with super().use(*handles) as arrays:
                copies = {id(handle): Staged(handle) for handle in handles if inner}
                chosen = zip(handles, arrays, strict=True)
                yield tuple(copies.get(id(handle), array) for handle, array in chosen)
                for copy in copies.values():
                    copy.flush()

    make_pager = staticmethod(pager_of(pager=_Pager))


# ---- memory that is given back -------------------------------------------------------------------


class ReadAfterFree(Paged):
    """A handle that was freed still reads and writes: nobody asks whether it is alive."""

    kills = "S12"

    class _Pages(Pages):
        def free(self, number: int) -> None:
            allocation = self.allocations[number]
            super().free(number)
            self.allocations[number] = allocation

    make_pager = staticmethod(pager_of(_Pages))


class FreedNumberGivenAgain(Paged):
    """A new array gets the number of one that was freed, and the old handle reads the new array."""

    kills = "S12"

    class _Pages(Pages):
        def free(self, number: int) -> None:
            super().free(number)
            self._made = number - 1  # the next one made

        def allocate(self, nbytes: int) -> int:
            while self._made + 1 in self.allocations:
                self._made += 1
            return super().allocate(nbytes)

    make_pager = staticmethod(pager_of(_Pages))


class FreedTwice(Paged):
    """To free an array twice is taken in silence (rule S12)."""

    kills = "S12"

    class _Pager(Pager):
        def free(self, handle: Managed) -> None:
            if handle._number in self._pages.allocations:
                super().free(handle)

    make_pager = staticmethod(pager_of(pager=_Pager))


class FreeTakesTheNeighbour(Paged):
    """An array's page count is one too large when it is freed: the next array loses its first."""

    kills = "S12"

    class _Pages(Pages):
        def free(self, number: int) -> None:
            super().free(number)
            for memory in self._memory.values():
                memory.pop(Page(number + 1, 0), None)

    make_pager = staticmethod(pager_of(_Pages))


class RefusedYetTaken(Paged):
    """A request for too much fails after it took the room: nothing fits from then on."""

    kills = "S12"

    class _Pager(Pager):
        def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Managed:
            try:
                return super().empty(shape, dtype)
            except ValueError:
                self._pages.allocate(self._host_bytes)
                raise

    make_pager = staticmethod(pager_of(pager=_Pager))
