"""Two memories, one set of pages: where each page lies, and what moves it.

Only bytes are known here; `pager.py` makes arrays of them. A page lies in the memory whose dict
holds it. Both dicts hold bytes of their own, so a missing copy shows as wrong numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qloracle.arguments import UInt8

HOST, DEVICE = "host", "device"
OTHER = {HOST: DEVICE, DEVICE: HOST}
FRESH = 0xFF  # bytes that nobody wrote read as NaN


class Page(NamedTuple):
    """The i-th page of an allocation."""

    allocation: int
    i: int


class Piece(NamedTuple):
    """The part of a page that a range of bytes covers, and its place in the range."""

    page: Page
    of_page: slice
    of_range: slice


class Counters(NamedTuple):
    """What has happened since the pager was made; the first five count pages."""

    faults: int = 0  # touched by the device while not resident
    prefetched: int = 0  # brought to the device before being touched
    evictions: int = 0  # pushed out of the device's memory to make space
    host_faults: int = 0  # touched by the host while not there
    host_prefetched: int = 0  # brought to the host before being touched
    bytes_to_device: int = 0
    bytes_to_host: int = 0


@dataclass
class Allocation:
    """A run of pages, the advice given for it, and how many open `use` hold it."""

    nbytes: int
    preferred: str | None = None
    read_mostly: bool = False
    in_use: int = 0


class Pages:
    """Pages, the two memories that they move between, and the rules by which they do."""

    def __init__(self, capacity_bytes: int | None, page_bytes: int) -> None:
        self.capacity_bytes, self.page_bytes = capacity_bytes, page_bytes
        self.allocations: dict[int, Allocation] = {}
        self._counts = dict.fromkeys(Counters._fields, 0)
        self._made = 0
        # in each memory the most recently touched page comes last
        self._memory: dict[str, dict[Page, UInt8]] = {HOST: {}, DEVICE: {}}

    @property
    def counters(self) -> Counters:
        """What has happened since the pager was made."""
        return Counters(**self._counts)

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self._counts = counters._asdict()

    def read(self, number: int, start: int, stop: int, side: str) -> UInt8:
        """Return the bytes from start to stop as the host or the device reads them."""
        values = np.empty(stop - start, np.uint8)
        for page, of_page, of_range in self._pieces(number, start, stop):
            values[of_range] = self._touch(page, of_page, side, write=False)[of_page]
        return values

    def write(self, number: int, start: int, values: UInt8, side: str) -> None:
        """Write bytes from start on, by the host or by the device."""
        for page, of_page, of_range in self._pieces(number, start, start + values.size):
            self._touch(page, of_page, side, write=True)[of_page] = values[of_range]

    def _touch(self, page: Page, part: slice, side: str, *, write: bool) -> UInt8:
        """Return the page's bytes for one access, moved first if they must be."""
        self._begin(page)
        place = self._place(page, side)
        if page not in self._memory[place]:
            self._count(**{"faults" if side == DEVICE else "host_faults": 1})
            self._move(page, place)
        elif place != side:  # the page stays, only the bytes go over the link
            self._count_bytes(place if write else side, part.stop - part.start)
        if write:
            self._memory[OTHER[place]].pop(page, None)  # a copy there is stale now
        here = self._memory[place]
        here[page] = here.pop(page)
        return here[page]

    def _place(self, page: Page, side: str) -> str:
        """Return whose memory serves an access: the side's own, or the one the page prefers."""
        away = OTHER[side]
        stays = self.allocations[page.allocation].preferred == away
        return away if stays and page not in self._memory[side] else side

    def _move(self, page: Page, to: str) -> None:
        """Copy a page over the link; only a read-mostly page leaves its old copy behind."""
        if to == DEVICE:
            while self.resident() == self.frames():
                self._evict_oldest()
        self._copy(page, to)
        if not self.allocations[page.allocation].read_mostly:
            del self._memory[OTHER[to]][page]

    def _evict_oldest(self) -> None:
        """Evict the least recently touched page; a dirty one is copied to the host first."""
        page = next(iter(self._memory[DEVICE]))
        if page not in self._memory[HOST]:
            self._copy(page, HOST)
        del self._memory[DEVICE][page]
        self._count(evictions=1)

    def _copy(self, page: Page, to: str) -> None:
        self._memory[to][page] = self._memory[OTHER[to]][page].copy()
        self._count_bytes(to, self.page_bytes)

    def _begin(self, page: Page) -> None:
        """Put a page that nobody has touched yet on the host."""
        if page not in self._memory[HOST] and page not in self._memory[DEVICE]:
            self._memory[HOST][page] = np.full(self.page_bytes, FRESH, np.uint8)

    def _pieces(self, number: int, start: int, stop: int) -> Iterator[Piece]:
        size = self.page_bytes
        for i in range(start // size, -(-stop // size)):
            low, high = max(start, i * size), min(stop, (i + 1) * size)
            of_page = slice(low - i * size, high - i * size)
            yield Piece(Page(number, i), of_page, slice(low - start, high - start))

    def bring(self, number: int, side: str) -> None:
        """Move an allocation's pages to one side; if not all fit, the first ones."""
        count, frames = self.count(self.allocations[number].nbytes), self.frames()
        if side == DEVICE and frames is not None:
            count = min(count, frames)
        here = self._memory[side]
        pages = [Page(number, i) for i in range(count)]
        for page in sorted(pages, key=lambda page: page not in here):  # else one evicts another
            self._begin(page)
            if page in here:
                here[page] = here.pop(page)
            else:
                self._count(**{"prefetched" if side == DEVICE else "host_prefetched": 1})
                self._move(page, side)

    def shrink(self, capacity_bytes: int) -> None:
        """Change the capacity, and evict what no longer fits."""
        self.capacity_bytes = capacity_bytes
        while self.resident() > capacity_bytes // self.page_bytes:
            self._evict_oldest()

    def allocate(self, nbytes: int) -> int:
        """Return the number of a new run of pages. No memory is taken until a page is touched."""
        self._made += 1
        self.allocations[self._made] = Allocation(nbytes)
        return self._made

    def free(self, number: int) -> None:
        """Forget the pages on both sides."""
        for memory in self._memory.values():
            for page in [page for page in memory if page.allocation == number]:
                del memory[page]
        del self.allocations[number]

    def count(self, nbytes: int) -> int:
        """Count the pages that so many bytes take; the last one may be partly unused."""
        return -(-nbytes // self.page_bytes)

    def resident(self) -> int:
        """Count the pages in the device's memory."""
        return len(self._memory[DEVICE])

    def frames(self) -> int | None:
        """Return the most pages that the device's memory holds; None: no limit."""
        return None if self.capacity_bytes is None else self.capacity_bytes // self.page_bytes

    def _count_bytes(self, to: str, nbytes: int) -> None:
        self._count(**{f"bytes_to_{to}": nbytes})

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number
