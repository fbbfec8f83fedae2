"""The stand-in as a library for each version of CUDA, and its functions beside those of CUDA.

A process may have both: each has pages of its own, and hands on the faults that are not its own.
"""

import ctypes
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from qloracle_gpu.devices.gcc import build
from qloracle_gpu.managed.runtime import Runtime

TEXT = "managed_memory_standin.cpp"
VERSIONS = {12: 12090, 13: 13000}
OPTIONS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-shared")


class Counters(NamedTuple):
    """What has happened on a device since it was added; the first six count pages."""

    faults: int  # touched by the device while they were not there
    prefetched: int  # brought to the device before they were touched
    evictions: int  # pushed out of the device's memory to make room
    host_faults: int  # touched by the host while they were not there
    host_prefetched: int  # brought to the host before they were touched
    remote: int  # touched by the device, and left on the host
    bytes_to_device: int
    bytes_to_host: int


class _Counters(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in Counters._fields)


def unavailable() -> str:
    """Return in one line why the stand-in cannot be used here, or ''."""
    if not sys.platform.startswith("linux"):
        return f"the stand-in for CUDA's managed memory needs Linux, this is {sys.platform}"
    if os.uname().machine not in ("x86_64", "aarch64"):
        return f"the stand-in knows no registers of {os.uname().machine}"
    return build.unavailable().replace("the host runner", "the stand-in")


@cache
def runtime(version: int = 13) -> Runtime:
    """Return the stand-in with the signatures of CUDA 12 or 13; RuntimeError where it cannot be."""
    return load(text(), version)


def text() -> str:
    """Return what is compiled."""
    return (files(__package__) / TEXT).read_text("utf-8")


def load(text: str, version: int) -> Runtime:
    """Compile a text, if it is new, and return the library with the signatures of a version."""
    if version not in VERSIONS:
        raise ValueError(f"version must be 12 or 13, got {version}")
    if reason := unavailable():
        raise RuntimeError(reason)
    options = *OPTIONS, f"-DCUDART_VERSION={VERSIONS[version]}"

    def compile_it(folder: Path) -> None:
        (folder / TEXT).write_text(text, "utf-8")
        build.run(folder, *options, TEXT, "-o", "cudart.so")

    made = build.kept(compile_it, text, "stand-in", *options)
    return Runtime(ctypes.CDLL(str(made / "cudart.so")))


class Books(NamedTuple):
    """What is known of a device."""

    counters: Counters
    resident: int  # bytes in the device's memory
    capacity: int  # bytes that it holds; 0: no limit


class Device:
    """One more device of the stand-in: `capacity` bytes (0: no limit) in pages of `page_bytes`.

    It is taken away when nothing refers to it any more; what is allocated on it must be gone then.
    CudaError for pages that are no multiple of the processor's, or a capacity below one of them.
    """

    def __init__(self, runtime: Runtime, capacity: int = 0, page_bytes: int = 65536) -> None:
        number, size = ctypes.c_int(), ctypes.c_size_t
        budget = size(capacity), size(page_bytes)
        runtime.call("standinAddDevice", *budget, ctypes.byref(number))
        self.runtime, self.number = runtime, number.value
        gone = weakref.finalize(self, runtime.call, "standinRemoveDevice", self.number)
        gone.atexit = False  # arrays may outlive it there

    def set_capacity(self, capacity: int) -> None:
        """Give the device another budget; what is too much is evicted."""
        self.runtime.call("standinSetCapacity", self.number, ctypes.c_size_t(capacity))

    def set_attribute(self, attribute: int, value: int) -> None:
        """Set MANAGED or CONCURRENT: 0 makes it one of the machines that lack it."""
        self.runtime.call("standinSetAttribute", self.number, attribute, value)

    def discard(self, pointer: int) -> None:
        """Forget the pages of an allocation; its bytes become 0xFF."""
        self.runtime.call("standinDiscard", ctypes.c_void_p(pointer))

    def books(self) -> Books:
        """Return what has happened so far, and what is where."""
        counters, resident, capacity = _Counters(), ctypes.c_size_t(), ctypes.c_size_t()
        results = ctypes.byref(counters), ctypes.byref(resident), ctypes.byref(capacity)
        self.runtime.call("standinCounters", self.number, *results)
        counted = Counters(*(getattr(counters, name) for name in Counters._fields))
        return Books(counted, resident.value, capacity.value)

    @contextmanager
    def turn(self, function: str) -> Iterator[None]:
        """Say within who touches memory: standinKernel the device, standinHost the host."""
        self.runtime.call(function, self.number, 1)
        try:
            yield
        finally:
            self.runtime.call(function, self.number, -1)
