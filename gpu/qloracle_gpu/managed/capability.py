"""What this machine has of managed memory, and if it is not enough, why.

State can page where two attributes of a device are not zero: `managedMemory` (83), and
`concurrentManagedAccess` (89), by which host and device may touch the same pages at any time. It is
zero on Windows, under WSL2 and on Tegra (Jetson). There a device holds all managed memory or none
of it, a prefetch is an error, and the host must not touch any while a kernel runs: nothing pages.

Elsewhere there is nothing to ask: no NVIDIA driver, ROCm (where pages follow only with page retry,
which consumer cards lack), macOS. Each of these is a reason, a line to be read.
"""

import platform
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qloracle_gpu.managed import runtime as cuda
from qloracle_gpu.managed.runtime import CudaError, Runtime

NO_DRIVER = {
    cuda.INSUFFICIENT_DRIVER: "the driver is missing, or too old for this CUDA runtime",
    cuda.NO_DEVICE: "the driver finds no NVIDIA GPU",
}


class Capability(NamedTuple):
    """What a device can do. `reason` says why nothing pages there; '' where it does."""

    device: int
    managed: bool
    concurrent: bool
    reason: str
    version: int = 0  # of the runtime, 13000 for 13.0; 0 where there is none

    @property
    def runtime(self) -> str:
        """The runtime and its version, in words."""
        return f"CUDA runtime {self.version // 1000}.{self.version % 1000 // 10}"

    def __str__(self) -> str:
        return self.reason or f"managed memory pages on cuda:{self.device} ({self.runtime})"


def query(device: int | None = None, runtime: Runtime | None = None) -> Capability:
    """Return what a device can do; None for the current one. Nothing is allocated to find out.

    runtime: None for that of this machine.
    """
    found = of_machine() if runtime is None else runtime
    if isinstance(found, str):
        return Capability(device or 0, False, False, found)
    try:
        place = found.device() if device is None else device
        managed = bool(found.attribute(cuda.MANAGED, place))
        concurrent = bool(found.attribute(cuda.CONCURRENT, place))
    except CudaError as error:
        why = NO_DRIVER.get(error.code, str(error))
        return Capability(device or 0, False, False, f"{why}{_other_makers()}", found.version)
    reason = ""
    if not managed:
        reason = f"cuda:{place} has no managed memory (attribute 83 is 0)"
    elif not concurrent:
        reason = (
            f"cuda:{place} cannot share pages with a host that touches them meanwhile "
            f"(concurrentManagedAccess is 0{_where()})"
        )
    return Capability(place, managed, concurrent, reason, found.version)


@cache
def of_machine() -> Runtime | str:
    """Return this machine's runtime, the same at each call, or why there is none."""
    if sys.platform == "darwin":
        return "macOS has no CUDA; memory that its GPUs (MPS) share does not page"
    try:
        return cuda.load()
    except (OSError, CudaError) as error:
        return f"{error}{_other_makers()}"


def _where() -> str:
    """Name the system, where it is known to be the cause."""
    if sys.platform == "win32":
        return ", as on all of Windows"
    if "microsoft" in platform.release().lower():
        return ", as in all of WSL2"
    return ", as on all of Tegra" if Path("/etc/nv_tegra_release").exists() else ""


def _other_makers() -> str:
    """Say so where the GPU is AMD's."""
    if not Path("/dev/kfd").exists():
        return ""
    return "; pages of ROCm follow only with page retry (XNACK), and are not used here"


# ---- the warning --------------------------------------------------------------------------------

_warned: set[str] = set()


def warn_once(reason: str) -> None:
    """Warn that state does not page here, once a process for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"state lies in ordinary memory and does not page: {reason}", UserWarning, stacklevel=3
        )
