"""Faulty pagers: the bits are right, and what is held, moved or counted is not."""

from __future__ import annotations

from qloracle.paging import Counters, Pager
from qloracle.paging.pages import DEVICE, Page, Pages
from qloracle_conformance.mutants.paging.steps import Paged, pager_of

# ---- what is held --------------------------------------------------------------------------------


class CapacityPlusAPage(Paged):
    """The device is full one page late: it asks for more than its capacity, not for as much."""

    kills = "S12b"

    class _Pages(Pages):
        def frames(self) -> int | None:
            frames = super().frames()
            return None if frames is None else frames + 1

    make_pager = staticmethod(pager_of(_Pages))


class CapacityRoundedUp(Paged):
    """A capacity that is no whole number of pages is rounded up to one."""

    kills = "S12b"

    class _Pages(Pages):
        def frames(self) -> int | None:
            return None if self.capacity_bytes is None else self.count(self.capacity_bytes)

    make_pager = staticmethod(pager_of(_Pages))


class NoLimitIsOnePage(Paged):
    """Where no capacity is given, the device holds a single page (rule S12)."""

    kills = "S12b"

    class _Pages(Pages):
        def frames(self) -> int | None:
            return super().frames() or 1

    make_pager = staticmethod(pager_of(_Pages))


class FreeKeepsResidency(Paged):
    """A freed array's pages stay on the device, and no one will ever ask for them."""

    kills = "S12b"

    class _Pages(Pages):
        def free(self, number: int) -> None:
            kept = {p: x for p, x in self._memory[DEVICE].items() if p.allocation == number}
            super().free(number)
            self._memory[DEVICE] |= kept

        def _evict_oldest(self) -> None:
            page = next((p for p in self._memory[DEVICE] if p.allocation in self.allocations), None)
            if page is None:
                self._memory[DEVICE].popitem()
            else:
                self._memory[DEVICE] = {page: self._memory[DEVICE].pop(page)} | self._memory[DEVICE]
                super()._evict_oldest()

    make_pager = staticmethod(pager_of(_Pages))


class ShrinkEvictsNothing(Paged):
    """A smaller capacity is noted, and what exceeds it stays until something else comes."""

    kills = "S12b"

    class _Pages(Pages):
        def shrink(self, capacity_bytes: int) -> None:
            self.capacity_bytes = capacity_bytes

        def _move(self, page: Page, to: str) -> None:
            while to == DEVICE and self.resident() > (self.frames() or self.resident()):
                self._evict_oldest()
            super()._move(page, to)

    make_pager = staticmethod(pager_of(_Pages))


class ShrinkNotTold(Paged):
    """`capacity` goes on to tell what the pager was made with (rule S12)."""

    kills = "S12b"

    class _Pager(Pager):
        def __init__(self, pages: Pages, host_bytes: int) -> None:
            super().__init__(pages, host_bytes)
            self.made_with = pages.capacity_bytes

        @property
        def capacity(self) -> int | None:
            return self.made_with

    make_pager = staticmethod(pager_of(pager=_Pager))


class ShrinkDoesNothing(Paged):
    """A smaller capacity is taken and forgotten (rule S12)."""

    kills = "S12b"

    class _Pages(Pages):
        def shrink(self, capacity_bytes: int) -> None:
            if self.capacity_bytes is None or capacity_bytes > self.capacity_bytes:
                super().shrink(capacity_bytes)

    make_pager = staticmethod(pager_of(_Pages))


class ShrinkIsForGood(Paged):
    """A device that was made smaller never gets its room back."""

    kills = "S12b"

    class _Pages(Pages):
        least: int | None = None

        def shrink(self, capacity_bytes: int) -> None:
            super().shrink(capacity_bytes)
            self.least = min(capacity_bytes, self.least or capacity_bytes)

        def frames(self) -> int | None:
            return super().frames() if self.least is None else self.least // self.page_bytes

    make_pager = staticmethod(pager_of(_Pages))


class AllPagesResident(Paged):
    """`resident_bytes` counts the pages on both sides (rule S12)."""

    kills = "S12b"

    class _Pager(Pager):
        @property
        def resident_bytes(self) -> int:
            return sum(self._in_pages(each.nbytes) for each in self._pages.allocations.values())

    make_pager = staticmethod(pager_of(pager=_Pager))


class HighWaterMark(Paged):
    """`resident_bytes` is the most that there ever was: it does not fall (rule S12)."""

    kills = "S12b"

    class _Pager(Pager):
        most = 0

        @property
        def resident_bytes(self) -> int:
            self.most = max(self.most, super().resident_bytes)
            return self.most

    make_pager = staticmethod(pager_of(pager=_Pager))


# ---- a prefetch that does not keep its word ------------------------------------------------------


class PrefetchOnePageShort(Paged):
    """A prefetch rounds the number of pages down: the last one, not full, is left behind."""

    kills = "S12b"

    class _Pages(Pages):
        def bring(self, number: int, side: str) -> None:
            allocation = self.allocations[number]
            nbytes = allocation.nbytes
            allocation.nbytes -= nbytes % self.page_bytes
            super().bring(number, side)
            allocation.nbytes = nbytes

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchDoesNothing(Paged):
    """A prefetch is taken for a hint, though all would fit (rule S12)."""

    kills = "S12b"

    class _Pages(Pages):
        def bring(self, number: int, side: str) -> None:
            pass

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchPushesItselfOut(Paged):
    """A prefetch brings what is missing, and evicts for it what of the same array was there."""

    kills = "S12b"

    class _Pages(Pages):
        def bring(self, number: int, side: str) -> None:
            for i in range(self.count(self.allocations[number].nbytes)):
                page = Page(number, i)
                self._begin(page)
                if page not in self._memory[side]:
                    self._count(**{"prefetched" if side == DEVICE else "host_prefetched": 1})
                    self._move(page, side)

    make_pager = staticmethod(pager_of(_Pages))


# ---- what is counted -----------------------------------------------------------------------------


def uncounted(*names: str) -> type[Pages]:
    """Pages that do not count some of what happens."""

    class _Pages(Pages):
        def _count(self, **more: int) -> None:
            super()._count(**{name: 0 if name in names else n for name, n in more.items()})

    return _Pages


class EvictionsNotCounted(Paged):
    """Evictions happen and are not counted (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("evictions")))


class FaultsNotCounted(Paged):
    """Faults bring their pages and are not counted (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("faults")))


class PrefetchesNotCounted(Paged):
    """What a prefetch brings is not counted, the bytes are (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("prefetched")))


class HostFaultsNotCounted(Paged):
    """What the host calls home is not counted, the bytes are (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("host_faults")))


class HostPrefetchesNotCounted(Paged):
    """What a prefetch brings home is not counted, the bytes are (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("host_prefetched")))


class BytesHomeNotCounted(Paged):
    """Bytes are counted on their way to the device and not back (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("bytes_to_host")))


class BytesToDeviceNotCounted(Paged):
    """Bytes are counted on their way home and not to the device (rule S12)."""

    kills = "S12b"
    make_pager = staticmethod(pager_of(uncounted("bytes_to_device")))


class BytesCountedTwice(Paged):
    """Sender and receiver both count the bytes of a copy (rule S12)."""

    kills = "S12b"

    class _Pages(Pages):
        def _count_bytes(self, to: str, nbytes: int) -> None:
            super()._count_bytes(to, 2 * nbytes)

    make_pager = staticmethod(pager_of(_Pages))


class HitsAreFaults(Paged):
    """Each touch of the device counts as a fault, whether the page was there or not."""

    kills = "S12b"

    class _Pages(Pages):
        def _place(self, page: Page, side: str) -> str:
            place = super()._place(page, side)
            self._count(faults=int(side == DEVICE == place and page in self._memory[DEVICE]))
            return place

    make_pager = staticmethod(pager_of(_Pages))


class PrefetchedIsAFault(Paged):
    """A page that a prefetch has brought counts as a fault when it is first touched."""

    kills = "S12b"

    class _Pages(Pages):
        def bring(self, number: int, side: str) -> None:
            before = self.counters.prefetched
            super().bring(number, side)
            self._count(faults=self.counters.prefetched - before)

    make_pager = staticmethod(pager_of(_Pages))


class FreedIsEvicted(Paged):
    """Pages that leave the device because their array was freed count as evicted."""

    kills = "S12b"

    class _Pages(Pages):
        def free(self, number: int) -> None:
            before = self.resident()
            super().free(number)
            self._count(evictions=before - self.resident())

    make_pager = staticmethod(pager_of(_Pages))


class CountersIn8Bits(Paged):
    """A counter of pages begins again after 255 (rule S12)."""

    kills = "S12b"

    class _Pager(Pager):
        @property
        def counters(self) -> Counters:
            counters = super().counters
            pages = {name: n % 256 for name, n in counters._asdict().items() if "bytes" not in name}
            return counters._replace(**pages)

    make_pager = staticmethod(pager_of(pager=_Pager))


class ShrinkResetsCounters(Paged):
    """Another capacity begins the books anew, with pages on the device that nothing brought."""

    kills = "S12b"

    class _Pages(Pages):
        def shrink(self, capacity_bytes: int) -> None:
            super().shrink(capacity_bytes)
            self.counters = Counters()

    make_pager = staticmethod(pager_of(_Pages))
