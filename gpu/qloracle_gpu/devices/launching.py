"""The one CUDA text as CuPy compiles it: a module for each device, kernels by name, launches.

NVRTC gets `kernels.text()` as it stands, once for each device, when a kernel is first asked for
there; CuPy keeps the result in its cache on disk.  A launch goes to the current device and stream,
in order after what was launched there before, and waits for nothing.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from qloracle_gpu import kernels
from qloracle_gpu.devices import Argument, Array

OLDEST = 14  # release of CuPy: earlier ones have no `Stream.from_external` and no bfloat16
INSTALL = "pip install 'qloracle[cuda13]' (or cuda12)"


@cache
def module() -> Any:
    """Return CuPy's module of the kernels; nothing is compiled yet, and no driver is needed.

    ImportError where CuPy is not installed.
    """
    import cupy

    return cupy.RawModule(code=kernels.text(), options=kernels.OPTIONS)


@cache
def kernel(name: str) -> Any:
    """Return a kernel by its name, which compiles the text for the current device.

    What is returned may be launched on any device: CuPy compiles it there at the first launch.
    """
    return module().get_function(name)


def launch(
    name: str, grid: int, block: int, arguments: Iterable[Argument], address: Callable[[Array], int]
) -> None:
    """Run a kernel on the current device and stream; `address` returns where an array begins.

    An empty grid has nothing to run, and CuPy would run one block of it.
    """
    if grid:
        passed = tuple(by_value(argument, address) for argument in arguments)
        kernel(name)((grid,), (block,), passed)


def by_value(argument: Argument, address: Callable[[Array], int]) -> np.generic:
    """Return an argument as CuPy passes it: a pointer is a number of 64 bits.

    >>> by_value(None, id), by_value(np.int32(3), id), by_value("array", lambda _: 4096)
    (np.uint64(0), np.int32(3), np.uint64(4096))
    """
    if argument is None:
        return np.uint64(0)
    return argument if isinstance(argument, np.generic) else np.uint64(address(argument))


def unavailable() -> str:
    """Return in one line what this machine lacks to run the kernels, or ''.

    CuPy is imported to find out, if it is installed.
    """
    if find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL}"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import: {_first_line(error)}"
    if int(cupy.__version__.partition(".")[0]) < OLDEST:
        return f"CuPy {cupy.__version__} is too old, {OLDEST} is needed: {INSTALL}"
    try:
        if not cupy.cuda.runtime.driverGetVersion():
            return "needs an NVIDIA GPU: this machine has no CUDA driver (libcuda.so.1)"
        if not cupy.cuda.runtime.getDeviceCount():
            return "needs an NVIDIA GPU: the driver finds none"
    except RuntimeError as error:  # CuPy's CUDARuntimeError
        return f"needs an NVIDIA GPU: {_first_line(error)}"
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # a library that is not found shows in several ways
        return f"CuPy finds no NVRTC ({_first_line(error)}): {INSTALL}"
    return ""


def _first_line(error: BaseException) -> str:
    r"""Return the first line that says something.

    >>> _first_line(ImportError("\n=====\nno libcudart\nmore"))
    'no libcudart'
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line.strip("= ")), type(error).__name__)


@cache
def ready() -> None:
    """Raise RuntimeError, in one line, where the kernels cannot run."""
    reason = unavailable()
    if reason:
        raise RuntimeError(reason)
