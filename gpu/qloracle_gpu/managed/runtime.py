"""The few functions of the CUDA runtime that managed memory needs, through ctypes.

CUDA 13 changed two of them under their old names. Where CUDA 12 took the number of a device, -1 for
the host, CUDA 13 takes a `cudaMemLocation`, a type and a number; -1 as the number of a device is an
error there. `Runtime` asks the library for its version and calls it as that version wants.

    cudaMemPrefetchAsync(pointer, bytes, device, stream)             12
    cudaMemPrefetchAsync(pointer, bytes, location, flags, stream)    13
    cudaMemAdvise(pointer, bytes, advice, device | location)

A failed call leaves its number behind in the library, where the next one to ask, such as torch
after its own launch, would take it for its own. So it is taken away before CudaError is raised.

>>> Location.of(HOST).type, Location.of(0).type
(2, 1)
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HOST = -1  # where a page may lie, beside the numbers of devices

# Attributes of a device: whether it has managed memory at all, and whether both sides may touch it
# at the same time, without which there are neither page faults nor prefetch.
MANAGED, CONCURRENT = 83, 89

READ_MOSTLY, NOT_READ_MOSTLY, PREFERRED, NO_PREFERRED = 1, 2, 3, 4  # advice
ATTACH_GLOBAL = 1  # visible to every stream from the beginning
INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100  # numbers of errors

WINDOWS = ("cudart64_13.dll", "cudart64_12.dll")
NAMES = WINDOWS if sys.platform == "win32" else ("libcudart.so.13", "libcudart.so.12")

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class CudaError(RuntimeError):
    """A call failed; `code` is CUDA's number of the reason, `name` its word."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function}: {name} ({code})")
        self.code, self.name = code, name


class Location(ctypes.Structure):
    """`cudaMemLocation` of CUDA 13."""

    _fields_ = (("type", _INT), ("id", _INT))

    @classmethod
    def of(cls, place: int) -> "Location":
        """Return a device by its number, or HOST."""
        return cls(2, 0) if place == HOST else cls(1, place)


class Room(NamedTuple):
    """Bytes of a device's memory."""

    free: int
    total: int


class Runtime:
    """A loaded CUDA runtime, or the stand-in: the same names in a `ctypes.CDLL`.

    Every method raises CudaError where CUDA says no.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.loaded = library
        library.cudaGetErrorName.restype = ctypes.c_char_p
        self.version = self._number("cudaRuntimeGetVersion")  # 13000 is 13.0, 12080 is 12.8

    # ---- memory ------------------------------------------------------------------------------

    def malloc(self, nbytes: int, device: int) -> int:
        """Return the address of so many bytes, at least 1, of managed memory for a device."""
        pointer = _POINTER()
        with self.on(device):
            self.call(
                "cudaMallocManaged", ctypes.byref(pointer), _SIZE(nbytes), _INT(ATTACH_GLOBAL)
            )
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        """Give an address of `malloc` back; CUDA waits for the kernels that run."""
        self.call("cudaFree", _POINTER(pointer))

    def prefetch(self, pointer: int, nbytes: int, place: int, stream: int = 0) -> None:
        """Bring pages to a device or to HOST, on a stream by its handle, in order with its work."""
        where = (Location.of(place), _INT(0)) if self._locations else (_INT(place),)
        arguments = _POINTER(pointer), _SIZE(nbytes), *where, _POINTER(stream)
        self.call("cudaMemPrefetchAsync", *arguments)

    def advise(self, pointer: int, nbytes: int, advice: int, place: int) -> None:
        """Say how pages will be used: READ_MOSTLY, PREFERRED (there), or that this ends."""
        where = Location.of(place) if self._locations else _INT(place)
        self.call("cudaMemAdvise", _POINTER(pointer), _SIZE(nbytes), _INT(advice), where)

    # ---- devices -----------------------------------------------------------------------------

    def devices(self) -> int:
        """Count the devices."""
        return self._number("cudaGetDeviceCount")

    def device(self) -> int:
        """Return the number of this thread's current device."""
        return self._number("cudaGetDevice")

    def attribute(self, attribute: int, device: int) -> int:
        """Return an attribute of a device: MANAGED, CONCURRENT, or another of CUDA's numbers."""
        return self._number("cudaDeviceGetAttribute", _INT(attribute), _INT(device))

    def room(self, device: int) -> Room:
        """Return how much of a device's memory is free, and how much there is."""
        free, total = _SIZE(), _SIZE()
        with self.on(device):
            self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return Room(free.value, total.value)

    def synchronize(self, device: int) -> None:
        """Wait for all work of a device."""
        with self.on(device):
            self.call("cudaDeviceSynchronize")

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a device the current one of this thread, and afterwards the one that was."""
        before = self.device()
        self.call("cudaSetDevice", _INT(device))
        try:
            yield
        finally:
            self.call("cudaSetDevice", _INT(before))

    # ---- calls -------------------------------------------------------------------------------

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns `cudaError_t`."""
        code = getattr(self.loaded, name)(*arguments)
        if code:
            self.loaded.cudaGetLastError()
            raise CudaError(name, code, self.loaded.cudaGetErrorName(_INT(code)).decode())

    @property
    def _locations(self) -> bool:
        return self.version >= 13000

    def _number(self, name: str, *arguments: object) -> int:
        """Call a function that writes an int to its first argument."""
        value = _INT()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value


def load() -> Runtime:
    """Return the CUDA runtime of this machine: OSError where none is found.

    One that this process has loaded, torch's or CuPy's, or that the system's loader finds; else one
    of pip's packages. The driver may be too old for the first, and good for another.
    """
    found = []
    for name in (*NAMES, *_packaged()):
        try:
            found.append(Runtime(ctypes.CDLL(name)))
        except (OSError, AttributeError):  # absent, or no runtime in spite of its name
            continue
        try:
            found[-1].devices()
        except CudaError as error:
            if error.code == INSUFFICIENT_DRIVER:
                continue
        return found[-1]
    if not found:
        raise OSError(f"no CUDA runtime was found ({', '.join(NAMES)})")
    return found[0]


def _packaged() -> Iterator[str]:
    """Yield where the packages nvidia-cuda-runtime and -cu12 have put the library."""
    spec = find_spec("nvidia")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for place in ("cu13/lib", "cuda_runtime/lib", "cu13/bin", "cuda_runtime/bin"):
            for name in NAMES:
                if Path(folder, place, name).is_file():
                    yield str(Path(folder, place, name))
