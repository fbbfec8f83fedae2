"""The card's clock, its roofs, and what it is.

Before each call as much memory is read as flushes the cache.  While that runs, the call is queued
behind it between two events: the events then frame device time only, however slow the host is, as
long as all was queued before the reading ended.
"""

import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qloracle_gpu import kernels
from qloracle_gpu.bench.timing import Call, Reading, compare
from qloracle_gpu.devices import Array

THREADS = 256
WORD = 16  # bytes
FLUSH = 1 << 30  # bytes read before each call: about 0.3 ms, and far more than any cache
STREAMS = 1 << 30  # bytes that a roof moves
WAVES = (2, 4, 8, 16)  # blocks for each multiprocessor that a roof is tried with
MIXES = ("1_0", "1_1", "1_4", "2_7", "7_2", "4_3", "3_2")  # reads and writes: see roofs.cu
VERSIONS = ("qloracle", "cupy-cuda13x", "cupy-cuda12x", "torch", "bitsandbytes", "marlin", "numpy")


class EventClock:
    """Measures a call on the current stream by events."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._flush, self._waste = cupy.zeros(FLUSH, np.uint8), cupy.zeros(WORD, np.uint8)
        self._read = _module().get_function("roof_1_0")
        self._grid = 8 * cupy.cuda.Device().attributes["MultiProcessorCount"]

    def __call__(self, call: Call) -> Reading:
        """Flush, queue the call, and read the events."""
        start, stop = self._cuda.Event(), self._cuda.Event()
        self._read((self._grid,), (THREADS,), (self._flush, self._waste, np.int64(FLUSH // WORD)))
        start.record()
        begun = time.perf_counter()
        call()
        host = time.perf_counter() - begun
        queued = not start.done
        stop.record()
        stop.synchronize()
        return Reading(self._cuda.get_elapsed_time(start, stop) / 1e3, host, queued)


def roofs(clock: EventClock) -> dict[str, float]:
    """Return the bytes a second of this card, for a triad and for each mix of reads and writes."""
    import cupy

    n = STREAMS // 12
    b, c, a = (cupy.zeros(n, np.float32) for _ in range(3))
    triad = seconds_of(clock, "roof_triad", b, c, a, np.float32(2), np.int64(n))
    speeds = {"triad": 12 * n / triad}
    for mix in MIXES:
        reads, writes = (int(part) for part in mix.split("_"))
        words = STREAMS // WORD // (reads + writes)
        source = cupy.zeros(reads * words * WORD, np.uint8)
        target = cupy.empty(max(writes * words, 1) * WORD, np.uint8)
        seconds = seconds_of(clock, f"roof_{mix}", source, target, np.int64(words))
        speeds[mix] = (reads + writes) * words * WORD / seconds
    return speeds


def seconds_of(clock: EventClock, name: str, *arguments: Any) -> float:
    """Return the seconds of a kernel on its best grid, by the median of the rounds."""
    import cupy

    kernel, size = _module().get_function(name), cupy.cuda.Device().attributes
    grids = [waves * size["MultiProcessorCount"] for waves in WAVES]
    calls: dict[str, Call] = {
        str(grid): partial(kernel, (grid,), (THREADS,), arguments) for grid in grids
    }
    return min(timing.median for timing in compare(calls, clock, rounds=10).values())


def _module() -> Array:
    import cupy

    text = (files("qloracle_gpu.bench") / "roofs.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=text, options=kernels.OPTIONS)


# ---- what was measured, and by what -------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return card, driver, versions and commit."""
    import cupy

    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    return {
        "card": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "memory_bytes": int(device.mem_info[1]),
        "l2_bytes": int(properties["l2CacheSize"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "driver": _smi("driver_version"),
        "clocks": _smi("clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"),
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **facts(),
    }


def facts() -> dict[str, Any]:
    """Return what is known without a card: versions, the commit, and the kernels' digest."""
    return {
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
        "commit": commit(Path(__file__).parent),
        "kernels": kernels.digest(kernels.text()),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _smi(query: str) -> str:
    """Ask nvidia-smi; "unknown" where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    import cupy

    card = cupy.cuda.Device().pci_bus_id  # its numbers are not CUDA's
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={card}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def commit(folder: Path) -> str:
    """Return the commit of a checkout, with "+" where files were changed; or "unknown".

    >>> commit(Path("/"))
    'unknown'
    """
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout else "")


def let_go() -> None:
    """Give back the memory that CuPy and torch keep for later."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()
