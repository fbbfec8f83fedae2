"""`Host`: a `devices.Device` of NumPy arrays, whose kernels are compiled by g++."""

import ctypes
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from qloracle_gpu import kernels
from qloracle_gpu.devices import Addresses, Argument
from qloracle_gpu.devices.gcc import build, signature
from qloracle_gpu.devices.on_numpy import OnNumPy

MAX_BLOCK = 1024  # threads, as on every GPU
MAX_FIBERS = 8000  # of the thread sanitizer
POISON = 0xFF  # NaN as a float: an element that nobody wrote is seen
# Bytes before and behind a result, looked at after each launch. They are no poison: a NaN that a
# kernel made of poison and stored beside its place would look like it.
MARGIN, UNTOUCHED = 64, 0xA5

_one_launch = threading.Lock()  # the built-in variables of a library are plain ones


class KernelError(RuntimeError):
    """A kernel did what CUDA forbids: `file` and `line` of the text, and who did it."""

    def __init__(self, message: str, kernel: str, file: str, line: int, block: int, thread: int):
        where = f"{file}:{line}: " if file else ""
        super().__init__(f"{where}{message} ({kernel}, block {block}, thread {thread})")
        self.kernel, self.file, self.line = kernel, file, line
        self.block, self.thread = block, thread


class Host(OnNumPy):
    """A machine that runs kernels on the CPU, one thread after another.

    `source` is the kernel text, None for `kernels.text()`; nothing is compiled before the first
    launch. `flavour` is "plain", or "address" or "thread" in a process that `sanitized` started.
    `seed` shuffles the order of blocks, warps and lanes; 0 leaves them in order.
    """

    def __init__(self, source: str | None = None, flavour: build.Flavour = "plain", seed: int = 0):
        self._source = source
        self._flavour = flavour
        self._seed = seed

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """Return an array full of 0xFF: NaN, 255, -1."""
        element = np.dtype(dtype)
        bytes_of_it = int(np.prod(shape, dtype=np.int64)) * element.itemsize
        if self._flavour != "plain":  # the heap of a sanitizer has margins of its own
            return np.full(bytes_of_it, POISON, np.uint8).view(element).reshape(shape)
        memory = _WithMargins((bytes_of_it + 2 * MARGIN,), np.uint8)
        memory[:] = UNTOUCHED
        memory[MARGIN:-MARGIN] = POISON
        return np.ndarray(tuple(shape), element, memory, MARGIN)

    def launch(self, kernel: str, grid: int, block: int, *arguments: Argument) -> None:
        """Run a kernel on `grid` blocks of `block` threads, and wait for it.

        Raises TypeError by the parameter's name for an argument of another kind, and KernelError
        where threads wait for each other as CUDA forbids, use an address that is not aligned or
        null, or write beside a result of `empty`.
        """
        self._check_shape(grid, block)
        if kernel not in self._library.kernels:
            known = ", ".join(self._library.kernels)
            raise ValueError(f"kernel must be one of {known}, got {kernel!r}")
        parameters, body = self._library.kernels[kernel]
        given = [signature.table(a) if isinstance(a, Addresses) else a for a in arguments]
        packed = signature.pack(kernel, parameters, given)
        values = (ctypes.c_void_p * len(packed))(*map(ctypes.addressof, packed))
        fault = _Fault()
        with _one_launch:
            run = self._library.launch
            failed = run(body, values, grid, block, self._seed, ctypes.byref(fault))
        if failed:
            raise fault.error(kernel)
        for parameter, argument in zip(parameters, given, strict=True):
            listed = argument.arrays if isinstance(argument, Addresses) else (argument,)
            for array in listed:
                _check_margins(kernel, parameter.name, array)

    def _check_shape(self, grid: int, block: int) -> None:
        if not 1 <= block <= MAX_BLOCK:
            raise ValueError(f"block must be 1 to {MAX_BLOCK} threads, got {block}")
        if not 1 <= grid < 2**31:
            raise ValueError(f"grid must be 1 to 2^31 - 1 blocks, got {grid}")
        if self._flavour == "thread" and grid * block > MAX_FIBERS:
            raise ValueError(
                f"grid * block must be at most {MAX_FIBERS:,} threads under ThreadSanitizer, "
                f"got {grid * block:,}"
            )

    @cached_property
    def _library(self) -> "_Library":
        source = kernels.text() if self._source is None else self._source
        return _load(str(build.shared_object(source, self._flavour)))


# ---- the library as C sees it ------------------------------------------------------------------


class _Fault(ctypes.Structure):
    """`Fault` of scheduler.cpp."""

    _fields_ = (
        ("message", ctypes.c_char * 256),
        ("file", ctypes.c_char * 128),
        ("line", ctypes.c_int),
        ("block", ctypes.c_longlong),
        ("thread", ctypes.c_longlong),
    )

    def error(self, kernel: str) -> KernelError:
        place = self.file.decode(), self.line
        return KernelError(self.message.decode(), kernel, *place, self.block, self.thread)


class _Kernel(ctypes.Structure):
    """`ShimKernel` of cuda_on_cpu.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_char_p),
        ("types", ctypes.c_char_p),
        ("body", ctypes.c_void_p),
    )


class _Library(NamedTuple):
    launch: Any
    kernels: Mapping[str, tuple[tuple[signature.Parameter, ...], int]]  # and where its code is


def _load(path: str) -> _Library:
    """Load a library and read what kernels it has."""
    library = ctypes.CDLL(path)
    launch = library.shim_launch
    launch.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint),
        *(ctypes.c_uint64, ctypes.c_void_p),
    )
    found: dict[str, tuple[tuple[signature.Parameter, ...], int]] = {}
    kernel = ctypes.pointer(_Kernel.in_dll(library, "shim_kernels"))
    while (entry := kernel[len(found)]).name:
        names, types = entry.parameters.decode(), entry.types.decode()
        found[entry.name.decode()] = signature.parameters(names, types), entry.body
    return _Library(launch, found)


class _WithMargins(np.ndarray):
    """Bytes of which the first and the last MARGIN belong to nobody."""


def _check_margins(kernel: str, name: str, argument: Argument) -> None:
    """Raise KernelError where a launch wrote beside a result of `Host.empty`."""
    memory = argument
    while isinstance(memory, np.ndarray) and not isinstance(memory, _WithMargins):
        memory = memory.base
    if not isinstance(memory, _WithMargins):
        return
    for side, margin in (("before", memory[:MARGIN]), ("behind", memory[-MARGIN:])):
        if (margin != UNTOUCHED).any():
            margin[:] = UNTOUCHED
            message = f"{name} was written {side} its {memory.size - 2 * MARGIN} bytes"
            raise KernelError(message, kernel, file="", line=0, block=-1, thread=-1)
