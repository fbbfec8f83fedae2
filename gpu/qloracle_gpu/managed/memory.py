"""Where state lies: managed memory of a device, or ordinary memory where nothing pages.

Both hand out NumPy arrays, which the host reads and writes like any other. An array in managed
memory has one address for host and device, so CuPy and torch get it without a copy:

    memory = best()                            # managed memory, or plain with one warning
    m = memory.empty((4096,), "float32")       # numpy.ndarray
    memory.prefetch(m, stream=handle)          # ordered with the work of that stream
    in_cupy(m), in_torch(m)                    # the same bytes
    cupy.cuda.set_allocator(memory.cupy_malloc)    # all of CuPy, if one likes

It is freed with the last array that leads to it, whichever library that array belongs to.

The bytes are undefined until they are written. There is never more of it than the device has free:
what is wanted is that state makes room when something else needs the memory later, and a request
for more than all of it can hang a card that others use, too.
"""

import math
import os
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle.arguments import Array
from qloracle_gpu.managed import capability
from qloracle_gpu.managed import runtime as cuda
from qloracle_gpu.managed.runtime import HOST, Runtime

SIDES = ("device", "host")
_live: Counter[tuple[Runtime, int]] = Counter()  # bytes, of each device
_free_at_first: dict[tuple[Runtime, int], int] = {}  # bytes, when no managed memory was in use


class Block:
    """Bytes in managed memory, freed when nothing leads to them any more."""

    def __init__(self, owner: "ManagedMemory", nbytes: int) -> None:
        runtime, key = owner.runtime, (owner.runtime, owner.device)
        self.pointer = runtime.malloc(nbytes, owner.device)
        self.nbytes, self.owner = nbytes, owner
        _live[key] += nbytes
        gone = weakref.finalize(self, _free, os.getpid(), self.pointer, nbytes, key)
        gone.atexit = False  # arrays may be read later still, and the end of a process frees all

    @property
    def __array_interface__(self) -> dict[str, Any]:
        address = {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.pointer, False)}
        return {**address, "version": 3}


def _free(process: int, pointer: int, nbytes: int, key: tuple[Runtime, int]) -> None:
    if process == os.getpid():  # a child by fork has the arrays, but not the memory
        _live[key] -= nbytes
        key[0].free(pointer)


class ManagedMemory:
    """Managed memory of a device. RuntimeError where it has none that pages; see `capability`."""

    reason = ""  # why nothing pages here

    def __init__(self, runtime: Runtime, device: int) -> None:
        found = capability.query(device, runtime)
        if found.reason:
            raise RuntimeError(found.reason)
        self.runtime, self.device = runtime, device

    @property
    def on_cuda(self) -> bool:
        """True where kernels of a GPU read the memory, and not code on the CPU."""
        return True

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """Return an array of undefined bytes.

        TypeError for a shape that is no tuple or list of ints, ValueError for more bytes than free.
        """
        dims, kind, nbytes = _form(shape, dtype)
        self.check_room(dims, kind, nbytes)
        block: Any = Block(self, max(nbytes, 1))
        return np.asarray(block)[:nbytes].view(kind).reshape(dims)

    def check_room(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> None:
        """ValueError where all managed memory would be more than is free without any of it."""
        key = self.runtime, self.device
        room, taken = self.runtime.room(self.device), _live[key]
        # How much of what was handed out lies on the device, and is missing in `free`, is unknown.
        free = max(room.free, _free_at_first[key] if taken else 0)
        if nbytes + taken > free:
            raise ValueError(
                f"shape {shape} of {dtype} takes {nbytes} bytes beside {taken} in managed memory; "
                f"cuda:{self.device} has {free} of {room.total} free"
            )
        _free_at_first[key] = free

    def prefetch(self, array: Array, to: str = "device", stream: int = 0) -> None:
        """Bring an array's pages to a side before they are touched, on a stream by its handle."""
        pointer, nbytes = self._range(array)
        place = self.device if check.choice("to", to, SIDES) == "device" else HOST
        if nbytes:
            with self.runtime.on(self.device):  # stream 0 is that of the current device
                self.runtime.prefetch(pointer, nbytes, place, stream)

    def advise(
        self, array: Array, *, preferred: str | None = None, read_mostly: bool = False
    ) -> None:
        """Say how an array will be used, in place of what was said before; a hint for the driver.

        preferred: "host" or "device", where its pages stay if they can; read_mostly: whether a page
        that is read may lie on both sides.
        """
        pointer, nbytes = self._range(array)
        if preferred is not None:
            check.choice("preferred", preferred, SIDES)
        mostly = check.boolean("read_mostly", read_mostly)
        place = HOST if preferred == "host" else self.device
        if nbytes:
            advice = cuda.READ_MOSTLY if mostly else cuda.NOT_READ_MOSTLY
            self.runtime.advise(pointer, nbytes, advice, self.device)
            advice = cuda.NO_PREFERRED if preferred is None else cuda.PREFERRED
            self.runtime.advise(pointer, nbytes, advice, place)

    def kernel(self) -> AbstractContextManager[None]:
        """Say that kernels run in this context; a GPU does not need to know."""
        return nullcontext()

    def host(self) -> AbstractContextManager[None]:
        """Say that the host touches memory in this context while a kernel may run."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until the host may read what kernels have written."""
        self.runtime.synchronize(self.device)

    def discard(self, array: Array) -> None:
        """Say that an array is not needed any more, though something may still lead to it."""

    def cupy_malloc(self, nbytes: int) -> Any:
        """Return `cupy.cuda.MemoryPointer`: the protocol of `cupy.cuda.set_allocator`."""
        import cupy

        if not nbytes:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(0), 0)
        return _cupy_memory(cupy, self.empty((nbytes,), np.uint8))

    def _range(self, array: Array) -> tuple[int, int]:
        """Return where an array begins, and its bytes; ValueError if it is not in this memory."""
        block = block_of(array)
        if block is None or block.owner is not self or not array.flags.c_contiguous:
            raise ValueError("array must be a contiguous one in this managed memory")
        return array.ctypes.data, array.nbytes


class PlainMemory:
    """Ordinary memory of the host behind the same methods, for the given reason. Nothing moves."""

    device = 0
    on_cuda = False

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """Return an array of undefined bytes."""
        dims, kind, nbytes = _form(shape, dtype)
        try:
            return np.empty(dims, kind)
        except MemoryError:
            message = f"shape {dims} of {kind} takes {nbytes} bytes, more than there are"
            raise ValueError(message) from None

    def prefetch(self, array: Array, to: str = "device", stream: int = 0) -> None:
        """Do nothing: all is there."""
        check.choice("to", to, SIDES)

    def advise(
        self, array: Array, *, preferred: str | None = None, read_mostly: bool = False
    ) -> None:
        """Do nothing."""
        if preferred is not None:
            check.choice("preferred", preferred, SIDES)
        check.boolean("read_mostly", read_mostly)

    def kernel(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    host = kernel

    def synchronize(self) -> None:
        """Do nothing."""

    def discard(self, array: Array) -> None:
        """Do nothing."""

    def cupy_malloc(self, nbytes: int) -> Any:
        """Return `cupy.cuda.MemoryPointer` to CuPy's own memory of the current device."""
        import cupy

        return cupy.get_default_memory_pool().malloc(nbytes)


Memory: TypeAlias = ManagedMemory | PlainMemory


def best(device: int | None = None) -> Memory:
    """Return managed memory of a device, None for the current one; plain memory where none pages.

    The latter comes with one warning in the life of a process, which says why.
    """
    runtime, found = capability.of_machine(), capability.query(device)
    if found.reason or isinstance(runtime, str):
        capability.warn_once(found.reason)
        return PlainMemory(found.reason)
    return _of(runtime, found.device)


@cache
def _of(runtime: Runtime, device: int) -> ManagedMemory:
    return ManagedMemory(runtime, device)


def block_of(array: Array) -> Block | None:
    """Return the managed memory that an array lies in; None for another one."""
    below: Any = array
    while isinstance(below, np.ndarray):
        below = below.base
    return below if isinstance(below, Block) else None


# ---- other libraries' arrays ---------------------------------------------------------------------


def in_torch(array: Array) -> Any:
    """Return a tensor of the same bytes, on the device of its managed memory, else on the CPU.

    The array must be contiguous and may be written to.
    """
    import torch

    name = array.dtype.name
    whole = array.reshape(-1).view(np.uint8)
    block = block_of(array)
    if block is None or not block.owner.on_cuda:
        flat = torch.from_numpy(whole)
    else:
        interface = {"shape": whole.shape, "typestr": "|u1", "version": 2}
        interface["data"] = (array.ctypes.data, False)
        held = SimpleNamespace(__cuda_array_interface__=interface, array=array)
        flat = torch.as_tensor(held, device=f"cuda:{block.owner.device}")
    return flat.view(getattr(torch, name)).view(array.shape)


def in_cupy(array: Array) -> Any:
    """Return a CuPy array of the same bytes; ValueError for one that is not in managed memory."""
    import cupy

    if block_of(array) is None:
        raise ValueError("array must lie in managed memory for CuPy to read it")
    return cupy.ndarray(array.shape, array.dtype, _cupy_memory(cupy, array))


def _cupy_memory(cupy: Any, array: Array) -> Any:
    """Return CuPy's pointer to an array's bytes, which keeps them alive."""
    block = block_of(array)
    device = 0 if block is None else block.owner.device
    unowned = cupy.cuda.UnownedMemory(array.ctypes.data, array.nbytes, array, device)
    return cupy.cuda.MemoryPointer(unowned, 0)


def _form(shape: Sequence[int], dtype: DTypeLike) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and bytes, once they are those of an array."""
    dims, count = check.dimensions("shape", shape)
    kind = np.dtype(dtype)
    if kind.hasobject or not kind.itemsize:
        raise TypeError(f"dtype must have elements of a fixed size in bytes, got {kind}")
    return dims, kind, math.prod((count, kind.itemsize))
