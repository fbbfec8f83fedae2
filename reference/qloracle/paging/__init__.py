"""Paging: more state than memory, a page at a time.

A GPU with unified memory and its host share one address space. Each page lies on one of the two
sides. A side that touches a page it does not hold faults, and the page comes over the link; if the
device is full, the page it touched least recently is evicted to the host first. QLoRA keeps Adam's
moments in such memory: a spike of activations pushes them out, the next step brings them back
(arXiv:2305.14314, section 3, "Paged Optimizers").

This is a model of that, with real bytes on both sides. A device of two pages, an array of four:

>>> import numpy as np
>>> from qloracle import adam_step
>>> pager = make_pager(capacity_bytes=2 * 64, page_bytes=64)
>>> m = pager.empty((64,), np.float32)  # 256 bytes: four pages
>>> m[...] = np.arange(64)              # written by the host
>>> with pager.use(m) as (on_device,):  # and read by the device
...     total = on_device[...].sum()
>>> counters = pager.counters
>>> print(total, counters.faults, counters.evictions)
2016.0 4 2
>>> print(counters.bytes_to_device, counters.bytes_to_host)
256 128
>>> pager.resident_bytes, pager.capacity
(128, 128)

A step may need more than the device holds, as a kernel may: no array has to be resident as a whole,
nor two of them at once. `use` yields the same arrays as the device sees them. They are read and
written in slices of any size, and a page need be resident only during the access; what was read is
in registers. So one page is enough, if slow. Rule S12: not a bit of the result depends on it.

>>> rng = np.random.default_rng(0)
>>> param, grad = rng.standard_normal((2, 64)).astype(np.float32)
>>> zero = np.zeros(64, np.float32)
>>> plain = adam_step(param, grad, zero, zero, step=1, lr=0.1)
>>> def paged_step(pager):
...     state = [pager.empty((64,), np.float32) for _ in range(3)]
...     for array, values in zip(state, (param, zero, zero)):
...         array[...] = values
...     with pager.use(*state) as arrays:
...         for i in range(0, 64, 16):  # a page of 16 numbers of each
...             old = [array[i : i + 16] for array in arrays]
...             new = adam_step(old[0], grad[i : i + 16], *old[1:], step=1, lr=0.1)
...             for array, values in zip(arrays, new):
...                 array[i : i + 16] = values
...     same = all(np.array_equal(array[...], expected) for array, expected in zip(state, plain))
...     return same, pager.counters.faults
>>> [paged_step(make_pager(64 * pages, 64)) for pages in (1, 2, 3, 12)]
[(True, 24), (True, 24), (True, 12), (True, 12)]

Twelve pages, each touched once to be read and once to be written. With one or two pages of memory
every touch faults; with three, a page that was read is still there to be written. Pages that are
prefetched do not fault at all, if they fit:

>>> pager = make_pager(256, 64)
>>> m = pager.empty((64,), np.float32)
>>> pager.prefetch(m)
>>> with pager.use(m) as (on_device,):
...     on_device[...] = on_device[...] + 1
>>> pager.counters.prefetched, pager.counters.faults
(4, 0)

Where systems differ, this is what the specification chooses.

* A page lies on one side. When it leaves the device it is copied, written to or not: CUDA does not
  check. Only a page advised as read-mostly may lie on both. The first write to it removes the other
  copy and makes the page dirty; a clean page is dropped without being copied.
* A page with a preferred location stays there when the other side touches it; only the bytes go
  over the link. Not every pair of processors can do this; the others move the page.
* The least recently touched page is evicted. NVIDIA's driver evicts blocks of up to 2 MiB in an
  order that it does not document; the results are the same under any order.
* A page starts on the host, where bitsandbytes allocates it, filled with 0xFF, so that bytes nobody
  wrote show as NaN. CUDA promises nothing about them.
* The host may touch a page while a step runs. Where a device lacks concurrent access (Windows,
  WSL2, Jetson), there is neither oversubscription nor prefetch, and the host has to wait.
"""

from qloracle.paging.pager import Managed, Pager, make_pager
from qloracle.paging.pages import Counters
from qloracle.paging.saving import load, save

__all__ = ["Counters", "Managed", "Pager", "load", "make_pager", "save"]
