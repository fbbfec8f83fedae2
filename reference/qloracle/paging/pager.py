"""The pager of the protocol: arrays in managed memory, and the steps that run on them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle.arguments import Array
from qloracle.paging.pages import DEVICE, HOST, OTHER, Allocation, Counters, Pages

PAGE_BYTES = 2**16
ADDRESS_SPACE = 2**47  # bytes that a process on x86-64 can name

Where: TypeAlias = slice | EllipsisType


class Managed:
    """An array in managed memory, as the host or the device sees it.

    `a[...]` and `a[i:j]`, a slice of the first axis, read: they return a new array that cannot be
    written to, like registers that hold what a kernel has loaded. `a[...] = values` and
    `a[i:j] = values` write, by NumPy's rules for assignment. Any other index is a TypeError.
    ValueError if the memory was freed, or if the `use` that yielded the array has ended.
    """

    def __init__(
        self, pages: Pages, number: int, shape: tuple[int, ...], dtype: np.dtype[Any], side: str
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._pages, self._number, self._side = pages, number, side
        self._open = True

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without the unused end of the last page."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<managed {self.dtype}{list(self.shape)}, seen by the {self._side}>"

    def __getitem__(self, where: Where) -> Array:
        self._check_alive()
        start, stop, shape = self._range(where)
        values = self._pages.read(self._number, start, stop, self._side)
        values = values.view(self.dtype).reshape(shape)
        values.flags.writeable = False  # a write here would be lost
        return values

    def __setitem__(self, where: Where, values: object) -> None:
        self._check_alive()
        start, _, shape = self._range(where)
        buffer = np.empty(shape, self.dtype)
        buffer[...] = values  # every error comes before the first byte is written
        self._pages.write(self._number, start, buffer.reshape(-1).view(np.uint8), self._side)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy is False, but pages of managed memory can only be copied")
        values = self[...]
        return values.astype(self.dtype if dtype is None else dtype, copy=bool(copy))

    def _check_alive(self) -> None:
        if not self._open:
            raise ValueError(f"{self!r} is used after the end of the `use` that yielded it")
        _allocation(self, self._pages)

    def _range(self, where: object) -> tuple[int, int, tuple[int, ...]]:
        """Return the first byte, the one past the last, and the shape of what lies between."""
        if where is ...:
            return 0, self.nbytes, self.shape
        if not isinstance(where, slice) or where.step not in (None, 1) or not self.shape:
            raise TypeError(f"{self!r} takes [...] or, with an axis, [i:j] of it, got [{where!r}]")
        first, last, _ = where.indices(len(self))
        last = max(first, last)
        row = self.nbytes // max(len(self), 1)  # bytes
        return first * row, last * row, (last - first, *self.shape[1:])


class Pager:
    """Managed memory with a device that holds `capacity` bytes of it at a time: see `make_pager`.

    What `empty` returns is a handle and at the same time the host's view of the array.
    """

    def __init__(self, pages: Pages, host_bytes: int) -> None:
        self._pages, self._host_bytes = pages, host_bytes

    @property
    def capacity(self) -> int | None:
        """Bytes that the device holds; None: no limit."""
        return self._pages.capacity_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._pages.page_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in the device's memory, never more than the capacity."""
        return self._pages.resident() * self.page_bytes

    @property
    def counters(self) -> Counters:
        """What has happened so far; a value returned earlier does not change."""
        return self._pages.counters

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Managed:
        """Return an array whose bytes are 0xFF until they are written: NaN in the float types.

        It takes whole pages, and all arrays together must fit into the host's memory. TypeError
        unless shape is a tuple or list of ints, or if dtype is one of objects; else ValueError.
        """
        dims, n = check.dimensions("shape", shape)
        kind = np.dtype(dtype)
        if kind.hasobject or not kind.itemsize:
            raise TypeError(f"dtype must have elements of a fixed size in bytes, got {kind}")
        nbytes = n * kind.itemsize
        free = self._host_bytes - sum(
            self._in_pages(each.nbytes) for each in self._pages.allocations.values()
        )
        if self._in_pages(nbytes) > free:
            raise ValueError(
                f"shape {dims} of {kind} takes {self._in_pages(nbytes)} bytes in pages of "
                f"{self.page_bytes}; {free} of host_bytes, {self._host_bytes}, are free"
            )
        number = self._pages.allocate(nbytes)
        return Managed(self._pages, number, dims, kind, HOST)

    def free(self, handle: Managed) -> None:
        """Release the pages of an array on both sides; ValueError inside a `use` of it."""
        if _allocation(handle, self._pages).in_use:
            raise ValueError(f"{handle!r} cannot be freed inside a `use` of it")
        self._pages.free(handle._number)

    @contextmanager
    def use(self, *handles: Managed) -> Iterator[tuple[Managed, ...]]:
        """Yield a tuple of the same arrays, as the device sees them until the context ends.

        Nothing moves yet, and nothing is held: each read and each write touches its pages in order
        and brings in the missing ones. One array may be passed twice, and `use` may be nested.
        """
        held = [_allocation(handle, self._pages) for handle in handles]
        arrays = tuple(
            Managed(self._pages, handle._number, handle.shape, handle.dtype, DEVICE)
            for handle in handles
        )
        for allocation in held:
            allocation.in_use += 1
        try:
            yield arrays
        finally:
            for array, allocation in zip(arrays, held, strict=True):
                array._open = False
                allocation.in_use -= 1

    def prefetch(self, handle: Managed, to: str = DEVICE) -> None:
        """Bring the pages of an array to the device, or to the host, before they are touched.

        If they exceed the capacity, the first ones move and the others stay where they are.
        """
        _allocation(handle, self._pages)
        self._pages.bring(handle._number, check.choice("to", to, tuple(OTHER)))

    def advise(
        self, handle: Managed, *, preferred: str | None = None, read_mostly: bool = False
    ) -> None:
        """Say how an array will be used; new advice replaces the old.

        preferred: "host" or "device", where a page stays when the other side touches it; None: it
        moves. read_mostly: whether a page that moves to be read leaves a copy behind.
        """
        allocation = _allocation(handle, self._pages)
        if preferred is not None:
            check.choice("preferred", preferred, tuple(OTHER))
        allocation.read_mostly = check.boolean("read_mostly", read_mostly)
        allocation.preferred = preferred

    def shrink(self, capacity: int) -> None:
        """Change the capacity: lower while something else needs the memory, then higher again.

        Pages that no longer fit are evicted at once. ValueError below one page.
        """
        self._pages.shrink(check_capacity("capacity", capacity, self.page_bytes))

    def _in_pages(self, nbytes: int) -> int:
        return self._pages.count(nbytes) * self.page_bytes


def make_pager(
    capacity_bytes: int | None = None,
    page_bytes: int | None = None,
    *,
    host_bytes: int | None = None,
) -> Pager:
    """Return a pager whose device holds at most capacity_bytes, in pages of page_bytes.

    capacity_bytes: at least a page, None: no limit; page_bytes: at least 1, None: 65,536;
    host_bytes: the most that all arrays together may take, None: 2**47. ValueError otherwise.

    Source: rule S12; CUDA C++ Programming Guide, "Unified Memory".

    >>> make_pager(capacity_bytes=4095, page_bytes=4096)
    Traceback (most recent call last):
        ...
    ValueError: capacity_bytes must be at least page_bytes, 4096, got 4095
    """
    size = PAGE_BYTES if page_bytes is None else check.integer("page_bytes", page_bytes, least=1)
    capacity = None
    if capacity_bytes is not None:
        capacity = check_capacity("capacity_bytes", capacity_bytes, size)
    limit = ADDRESS_SPACE if host_bytes is None else check.integer("host_bytes", host_bytes)
    return Pager(Pages(capacity, size), limit)


def check_capacity(name: str, value: object, page_bytes: int) -> int:
    """Return a number of bytes that holds a page."""
    number = check.integer(name, value)
    if number < page_bytes:
        raise ValueError(f"{name} must be at least page_bytes, {page_bytes}, got {number}")
    return number


def _allocation(handle: object, pages: Pages) -> Allocation:
    """Return the allocation behind an array of this pager, unless it was freed."""
    if not isinstance(handle, Managed):
        raise TypeError(f"handle must come from `empty`, got {type(handle).__name__}")
    if handle._pages is not pages:
        raise ValueError(f"{handle!r} belongs to another pager")
    if handle._number not in pages.allocations:
        raise ValueError(f"{handle!r} was freed")
    return pages.allocations[handle._number]
