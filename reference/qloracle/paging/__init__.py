"""Paging: more state than memory, a page at a time.

A GPU with unified memory and its host share one set of addresses. Each page lies on one of the two
sides. The side that touches a page that is not there faults, and the page comes over the link; if
the device is full, the page that it has not touched for longest goes home first. QLoRA keeps Adam's
moments in such memory: a spike of activations pushes them out, the next step calls them back
(arXiv:2305.14314, section 3, "Paged Optimizers").

This is a model of that, with real bytes on both sides. A device of two pages, and an array of four:

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

A step may need more than the device holds, as a kernel may: nothing has to be there whole, or at
the same time. What `use` yields are the same arrays as the device sees them. They are read and
written in parts, as large as one likes, and only in that moment a page has to be there. What was
read is in registers. So one page is enough, and it is slow. Rule S12: not a bit depends on it.

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
...     same = all(np.array_equal(array[...], due) for array, due in zip(state, plain))
...     return same, pager.counters.faults
>>> [paged_step(make_pager(64 * pages, 64)) for pages in (1, 2, 3, 12)]
[(True, 24), (True, 24), (True, 12), (True, 12)]

Twelve pages, touched to be read and again to be written: with one or two pages each time is a
fault, with three a page waits until it is written. Those that are fetched ahead do not fault at
all, if they fit:

>>> pager = make_pager(256, 64)
>>> m = pager.empty((64,), np.float32)
>>> pager.prefetch(m)
>>> with pager.use(m) as (on_device,):
...     on_device[...] = on_device[...] + 1
>>> pager.counters.prefetched, pager.counters.faults
(4, 0)

Where systems differ, this is the choice made here.

* A page lies on one side. When it leaves the device it is copied, written to or not: CUDA does not
  look. Only what is advised as read-mostly may lie on both. The first write takes the other copy
  away and makes the page dirty; one that is not is dropped without a copy.
* A page with a preferred location stays there when the other side touches it; the bytes alone go
  over the link. Not every pair of processors can do this; the others move the page.
* The least recently touched page goes. NVIDIA's driver evicts blocks of up to 2 MiB by an order of
  its own, which is not documented; the bits are the same under each.
* A page begins on the host, as bitsandbytes allocates it, and its first bytes are 0xFF, so that
  what nobody has written shows. CUDA promises nothing about them.
* The host may touch a page while a step runs. Where a device lacks concurrent access (Windows,
  WSL2, Jetson), there is neither oversubscription nor prefetch, and the host has to wait.
"""

from qloracle.paging.pager import Managed, Pager, make_pager
from qloracle.paging.pages import Counters
from qloracle.paging.saving import load, save

__all__ = ["Counters", "Managed", "Pager", "load", "make_pager", "save"]
