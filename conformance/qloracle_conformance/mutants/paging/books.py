"""Faulty pagers: the bits are right, and what is held, moved or counted is not."""
# ruff: noqa: D102 (the class tells the story of its methods)

from typing import Any

from qloracle.paging import Counters, Pager
from qloracle.paging.pages import DEVICE, Page, Pages
from qloracle_conformance.mutants.paging.steps import changed, faulty
from qloracle_conformance.mutants.parts import fault

# ---- what is held --------------------------------------------------------------------------------


@faulty("S12b")
class FreeKeepsResidency(Pages):
    """A freed array's pages stay on the device, and no one will ever ask for them."""

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


@faulty("S12b")
class ShrinkEvictsNothing(Pages):
    """A smaller capacity is noted, and what exceeds it stays until something else comes."""

    def shrink(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes

    def _move(self, page: Page, to: str) -> None:
        while to == DEVICE and self.resident() > (self.frames() or self.resident()):
            self._evict_oldest()
        super()._move(page, to)


# ---- a prefetch that does not keep its word ------------------------------------------------------


@faulty("S12b")
class PrefetchOnePageShort(Pages):
    """A prefetch rounds the number of pages down: the last one, not full, is left behind."""

    def bring(self, number: int, side: str) -> None:
        allocation = self.allocations[number]
        nbytes = allocation.nbytes
        allocation.nbytes -= nbytes % self.page_bytes
        super().bring(number, side)
        allocation.nbytes = nbytes


@faulty("S12b")
class PrefetchPushesItselfOut(Pages):
    """A prefetch brings what is missing, and evicts for it what of the same array was there."""

    def bring(self, number: int, side: str) -> None:
        for i in range(self.count(self.allocations[number].nbytes)):
            page = Page(number, i)
            self._begin(page)
            if page not in self._memory[side]:
                self._count(**{"prefetched" if side == DEVICE else "host_prefetched": 1})
                self._move(page, side)


# ---- what is counted -----------------------------------------------------------------------------


def uncounted(name: str) -> dict[str, Any]:
    """A pager that does not count some of what happens."""
    return changed(_count=lambda _, right, **more: right(**{**more, name: 0}))


# ---- rows ----------------------------------------------------------------------------------------
# fmt: off

ShrinkIsForGood = fault("S12b",
    "A device that was made smaller never gets its room back (rule S12).",
    **changed(
        shrink=lambda self, right, n: right(n) or self.__dict__.update(
            least=min(n, self.__dict__.get("least", n))),
        frames=lambda self, right: (
            self.least // self.page_bytes if "least" in self.__dict__ else right())))
HighWaterMark = fault("S12b",
    "`resident_bytes` is the most that there ever was: it does not fall (rule S12).",
    **changed(Pager, resident_bytes=lambda self, right: (
        self.__dict__.update(most=max(right(), self.__dict__.get("most", 0))) or self.most)))
ShrinkNotTold = fault("S12b", "`capacity` goes on to tell what the pager was made with (rule S12).",
    **changed(Pager, capacity=lambda self, right: self.__dict__.setdefault("made_with", right())))
ShrinkDoesNothing = fault("S12b", "A smaller capacity is taken and forgotten (rule S12).",
    **changed(shrink=lambda self, right, n: n > (self.capacity_bytes or 0) and right(n)))
AllPagesResident = fault("S12b", "`resident_bytes` counts the pages on both sides (rule S12).",
    **changed(Pager, resident_bytes=lambda self, _: sum(
        self._in_pages(each.nbytes) for each in self._pages.allocations.values())))
HitsAreFaults = fault("S12b",
    "Each touch of the device counts as a fault, whether the page was there or not (rule S12).",
    **changed(_place=lambda self, right, page, side: (
        side == DEVICE and page in self._memory[DEVICE] and self._count(faults=1)
    ) or right(page, side)))
PrefetchedIsAFault = fault("S12b",
    "A page that a prefetch has brought counts as a fault when it is first touched (rule S12).",
    **changed(_count=lambda _, right, **more: right(
        **{"faults": more.get("prefetched", 0), **more})))
FreedIsEvicted = fault("S12b",
    "Pages that leave the device because their array was freed count as evicted (rule S12).",
    **changed(free=lambda self, right, number: self._count(evictions=sum(
        page.allocation == number for page in self._memory[DEVICE])) or right(number)))
CountersIn8Bits = fault("S12b", "A counter of pages begins again after 255 (rule S12).",
    **changed(Pager, counters=lambda _, right: Counters(
        **{name: n if "bytes" in name else n % 256 for name, n in right()._asdict().items()})))
ShrinkResetsCounters = fault("S12b",
    "Another capacity begins the books anew, with pages on the device that nothing brought.",
    **changed(shrink=lambda self, right, n: right(n) or self.__setattr__("counters", Counters())))
CapacityPlusAPage = fault("S12b",
    "The device is full one page late: it asks for more than its capacity, not for as much.",
    **changed(frames=lambda self, right: None if right() is None else right() + 1))
CapacityRoundedUp = fault("S12b",
    "A capacity that is no whole number of pages is rounded up to one.",
    **changed(frames=lambda self, _: self.capacity_bytes and self.count(self.capacity_bytes)))
NoLimitIsOnePage = fault("S12b",
    "Where no capacity is given, the device holds a single page (rule S12).",
    **changed(frames=lambda _, right: right() or 1))
PrefetchDoesNothing = fault("S12b",
    "A prefetch is taken for a hint, though all would fit (rule S12).",
    **changed(bring=lambda *_: None))
EvictionsNotCounted = fault("S12b", "Evictions happen and are not counted (rule S12).",
    **uncounted("evictions"))
FaultsNotCounted = fault("S12b", "Faults bring their pages and are not counted (rule S12).",
    **uncounted("faults"))
PrefetchesNotCounted = fault("S12b",
    "What a prefetch brings is not counted, the bytes are (rule S12).",
    **uncounted("prefetched"))
HostFaultsNotCounted = fault("S12b",
    "What the host calls home is not counted, the bytes are (rule S12).",
    **uncounted("host_faults"))
HostPrefetchesNotCounted = fault("S12b",
    "What a prefetch brings home is not counted, the bytes are (rule S12).",
    **uncounted("host_prefetched"))
BytesHomeNotCounted = fault("S12b",
    "Bytes are counted on their way to the device and not back (rule S12).",
    **uncounted("bytes_to_host"))
BytesToDeviceNotCounted = fault("S12b",
    "Bytes are counted on their way home and not to the device (rule S12).",
    **uncounted("bytes_to_device"))
BytesCountedTwice = fault("S12b", "Sender and receiver both count the bytes of a copy (rule S12).",
    **changed(_count_bytes=lambda _, right, to, nbytes: right(to, 2 * nbytes)))
