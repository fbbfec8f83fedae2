"""A stand-in for the CUDA runtime's managed memory: a test double, and no CUDA.

Behind CUDA's names, real page faults of the CPU: what a step touches that lies in the other memory
raises SIGSEGV, is copied over, and is counted; a budget evicts the page touched longest ago. So the
code that pages on a GPU runs, and is watched, without one: see `managed_memory_standin.cpp`. What
it cannot show is all that is CUDA's own: its driver, its streams, its order of eviction, and time.

>>> import numpy as np
>>> pager = make_pager(capacity_bytes=2 * 4096, page_bytes=4096)
>>> m = pager.empty((4096,), np.float32)     # 16 KiB: four pages
>>> m[...] = 1
>>> with pager.use(m) as (on_device,):
...     total = on_device[...].sum()         # NumPy's own code faults
>>> counters = pager.counters
>>> print(total, counters.faults, counters.evictions, pager.resident_bytes)
4096.0 4 2 8192

* The CPU plays the device inside `use`, for the whole process: one at a time, please.
* A system call does not fault. Given a page of the device, `file.write(array)` fails with EFAULT
  ("Bad address"). Arrays that a pager's host reads are copies and safe; for one from `memory`,
  prefetch it to the host first, or copy it.
* The handler of SIGSEGV stands before the one that was there, and hands on what is not its own. So
  faulthandler still prints where a process crashed, and it still crashes.
* A child by fork has the arrays but not the memory, as with CUDA: a call fails, a touch crashes.
* No page lies on both sides. `read_mostly` is taken and changes nothing.
"""

import os
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from qloracle import arguments as check
from qloracle.arguments import Array
from qloracle.paging.pager import check_capacity
from qloracle_gpu.managed import memory as managed
from qloracle_gpu.managed.pager import Pager
from qloracle_gpu.managed.standin.runtimes import Counters, Device, runtime, unavailable

PAGE_BYTES = 2**16

__all__ = ["Counters", "StandinMemory", "StandinPager", "make_pager", "runtime", "unavailable"]


class StandinMemory(managed.ManagedMemory):
    """Memory of a device of the stand-in; all arrays together take at most `host_bytes`."""

    def __init__(self, standin: Device, host_bytes: int | None = None) -> None:
        super().__init__(standin.runtime, standin.number)
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        self.standin, self.host_bytes = standin, host_bytes or whole

    @property
    def on_cuda(self) -> bool:
        """False: code on the CPU plays the kernel."""
        return False

    def check_room(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> None:
        """ValueError where the host has not so many bytes; the device may have less."""
        taken = managed._live[self.runtime, self.device]
        if nbytes + taken > self.host_bytes:
            raise ValueError(
                f"shape {shape} of {dtype} takes {nbytes} bytes; "
                f"{self.host_bytes - taken} of host_bytes, {self.host_bytes}, are free"
            )

    def kernel(self) -> AbstractContextManager[None]:
        """What touches memory in this context is the device."""
        return self.standin.turn("standinKernel")

    def host(self) -> AbstractContextManager[None]:
        """What touches memory in this context is the host."""
        return self.standin.turn("standinHost")

    def discard(self, array: Array) -> None:
        """Give back what the pages take on both sides; what still leads there reads 0xFF."""
        block = managed.block_of(array)
        if block is not None:
            self.standin.discard(block.pointer)


class StandinPager(Pager):
    """A pager on a device of its own, which shows what happens there."""

    memory: StandinMemory

    def __init__(self, memory: StandinMemory, page_bytes: int) -> None:
        super().__init__(memory)
        self.page_bytes = page_bytes

    @property
    def capacity(self) -> int | None:
        """Bytes that the device holds; None: no limit."""
        return self.memory.standin.books().capacity or None

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in the device's memory."""
        return self.memory.standin.books().resident

    @property
    def counters(self) -> Counters:
        """What has happened so far."""
        return self.memory.standin.books().counters

    def shrink(self, capacity: int) -> None:
        """Give the device another capacity; pages that no longer fit are evicted at once."""
        self.memory.standin.set_capacity(check_capacity("capacity", capacity, self.page_bytes))


def make_pager(
    capacity_bytes: int | None = None,
    page_bytes: int | None = None,
    *,
    host_bytes: int | None = None,
    version: int = 13,
) -> StandinPager:
    """Return a pager on a new device of the stand-in, with the signatures of CUDA 12 or 13.

    capacity_bytes: at least a page, None: no limit; page_bytes: None: 65,536, else a multiple of
    the processor's pages, mostly 4,096, and NotImplementedError for anything else; host_bytes: what
    all arrays together may take, None: the machine's memory. RuntimeError where the stand-in cannot
    be built.
    """
    size = PAGE_BYTES if page_bytes is None else check.integer("page_bytes", page_bytes, least=1)
    if size % os.sysconf("SC_PAGESIZE"):
        least = os.sysconf("SC_PAGESIZE")
        raise NotImplementedError(f"page_bytes must be a multiple of {least} here, got {size}")
    capacity = 0
    if capacity_bytes is not None:
        capacity = check_capacity("capacity_bytes", capacity_bytes, size)
    limit = None if host_bytes is None else check.integer("host_bytes", host_bytes, least=1)
    device = Device(runtime(version), capacity, size)
    return StandinPager(StandinMemory(device, limit), size)
