"""The pager of the protocol on managed memory: one address, two processors, pages that follow.

`make_pager` takes managed memory where the machine has it and ordinary memory elsewhere, with one
warning that says why. A GPU lets nobody set its capacity or its page size, and it
reports no page moves, so both arguments of `make_pager` are validated and ignored, and this
pager has no counters: rule S12 demands equal bits of it (L5a). The stand-in has them all.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle import paging
from qloracle.arguments import Array
from qloracle.paging.pager import Where, check_capacity
from qloracle_gpu.managed.memory import Memory, best, in_cupy


class Held:
    """An array of a pager in its memory, until it is freed."""

    def __init__(self, memory: Memory, array: Array) -> None:
        self.memory, self.array = memory, array
        self.in_use, self.freed = 0, False


class Managed(paging.Managed):
    """An array of a pager, as the host sees it, or as a step sees it inside of `use`.

    `a[...]` and `a[i:j]`, a slice of the first axis, read. The host gets a copy of its own, which
    it may give to a system call: on the stand-in one that is given a page of the device fails. A
    step gets the memory itself, good until its `use` ends: a NumPy array that cannot be written to,
    on a GPU a CuPy array. `a[...] = values` and `a[i:j] = values` write. No other index is taken:
    TypeError. ValueError where the memory was freed, or the `use` has ended.
    """

    def __init__(self, held: Held, *, on_device: bool) -> None:
        self.shape, self.dtype = held.array.shape, held.array.dtype
        self._held, self._on_device, self._open = held, on_device, True
        self._side = "device" if on_device else "host"
        self._pages = None  # type: ignore[assignment]  # the reference's pager takes no such array

    def __getitem__(self, where: Where) -> Any:
        part = self._part(where)
        if self._on_device and self._held.memory.on_cuda:
            return in_cupy(part)
        if self._on_device:
            values = part[...]
        else:
            with self._held.memory.host():
                values = part.copy()
        values.flags.writeable = False
        return values

    def __setitem__(self, where: Where, values: Any) -> None:
        part = self._part(where)
        if self._on_device and self._held.memory.on_cuda:
            in_cupy(part)[...] = values
            return
        buffer = np.empty(part.shape, self.dtype)
        buffer[...] = values  # all errors come before the first byte is written
        if self._on_device:
            part[...] = buffer
        else:
            with self._held.memory.host():
                part[...] = buffer

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy is False, but the host reads managed memory by copies")
        with self._held.memory.host():
            values = self._part(...).copy()
        return values.astype(self.dtype if dtype is None else dtype, copy=False)

    def _part(self, where: Where) -> Array:
        if self._held.freed:
            raise ValueError(f"{self!r} was freed")
        if not self._open:
            raise ValueError(f"{self!r} is used after the end of the `use` that yielded it")
        self._range(where)  # which takes no index but these two
        return self._held.array[where]


class Pager:
    """Arrays in one memory, and steps that run on them: see `make_pager`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Managed:
        """Return an array of undefined bytes.

        TypeError for a shape that is no tuple or list of ints or a dtype of objects, ValueError
        where the memory has not so many bytes.
        """
        return Managed(Held(self.memory, self.memory.empty(shape, dtype)), on_device=False)

    def free(self, handle: Managed) -> None:
        """Give an array back; ValueError inside a `use` of it, or if it was freed.

        Its memory follows when nothing leads to it any more that a step has read.
        """
        held = self._held(handle)
        if held.in_use:
            raise ValueError(f"{handle!r} cannot be freed inside a `use` of it")
        self.memory.discard(held.array)
        held.freed = True
        held.array = np.empty(0, np.uint8)

    @contextmanager
    def use(self, *handles: Managed) -> Iterator[tuple[Managed, ...]]:
        """Yield a tuple of the same arrays, as a step sees them until the context ends.

        Several of them may be one, and `use` may be nested. At the end it waits for the device.
        """
        held = [self._held(handle) for handle in handles]
        arrays = tuple(Managed(each, on_device=True) for each in held)
        for each in held:
            each.in_use += 1
        try:
            with self.memory.kernel():
                yield arrays
        finally:
            for array, each in zip(arrays, held, strict=True):
                array._open = False
                each.in_use -= 1
            self.memory.synchronize()

    def prefetch(self, handle: Managed, to: str = "device", stream: int = 0) -> None:
        """Bring an array's pages to "device" or "host" before they are touched.

        stream: the handle of a CUDA stream, in order with whose work that happens.
        """
        self.memory.prefetch(self._held(handle).array, to, stream)

    def advise(
        self, handle: Managed, *, preferred: str | None = None, read_mostly: bool = False
    ) -> None:
        """Say how an array will be used, in place of what was said before: `Memory.advise`."""
        array = self._held(handle).array
        self.memory.advise(array, preferred=preferred, read_mostly=read_mostly)

    def _held(self, handle: object) -> Held:
        if not isinstance(handle, Managed):
            raise TypeError(f"handle must come from `empty`, got {type(handle).__name__}")
        if handle._held.memory is not self.memory:
            raise ValueError(f"{handle!r} belongs to another pager")
        if handle._held.freed:
            raise ValueError(f"{handle!r} was freed")
        return handle._held


def make_pager(
    capacity_bytes: int | None = None,
    page_bytes: int | None = None,
    *,
    memory: Memory | None = None,
) -> Pager:
    """Return a pager on the current device's managed memory, or plain memory with one warning.

    capacity_bytes: None, or at least page_bytes; page_bytes: None, or at least 1. Neither can be
    had of a GPU, nor of plain memory: bits do not depend on them. memory: that of `memory.best`.

    Source: rule S12.

    >>> from qloracle_gpu.managed.memory import PlainMemory
    >>> pager = make_pager(memory=PlainMemory("no GPU"))
    >>> m = pager.empty((4,), np.float32)
    >>> m[...] = 1
    >>> with pager.use(m) as (on_device,):
    ...     on_device[1:3] = on_device[1:3] + 1
    >>> m[...]
    array([1., 2., 2., 1.], dtype=float32)
    """
    size = 1 if page_bytes is None else check.integer("page_bytes", page_bytes, least=1)
    if capacity_bytes is not None:
        check_capacity("capacity_bytes", capacity_bytes, size)
    return Pager(best() if memory is None else memory)
