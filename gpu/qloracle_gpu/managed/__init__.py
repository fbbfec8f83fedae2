"""State that pages between GPU and host: CUDA's managed memory, QLoRA's last piece.

    capability   what the machine has of it, and why not
    memory       arrays in it, for NumPy, CuPy and torch without a copy; plain memory elsewhere
    pager        `make_pager` of the protocol (rule S12)
    torch_adamw  an AdamW for torch whose moments page; resumed ones, too
    cupy_adamw   one for CuPy
    runtime      the functions of CUDA 12 and 13 that it takes
    standin      a test double of these functions for machines without a GPU

Where nothing pages (no NVIDIA GPU, Windows, WSL2, Tegra, ROCm, macOS), all of this works in
ordinary memory, and one warning says why. To ask before:

    print(capability.query())    # the driver is missing, or too old for this CUDA runtime

`implementation` is what `qloracle verify managed` judges: `make_pager`, `adam_step` and
`adam_step_8bit` on the GPU, without one on the stand-in; `versions` say which. Its `save_paged` and
`load_paged` are those of `qloracle.paging`, which take any pager.

So far this has run on the stand-in only: no GPU was at hand.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from qloracle import paging
from qloracle_gpu.managed import capability
from qloracle_gpu.managed.memory import ManagedMemory, PlainMemory, best, in_cupy, in_torch
from qloracle_gpu.managed.pager import Pager, make_pager

__all__ = [
    "ManagedMemory",
    "PlainMemory",
    "best",
    "capability",
    "implementation",
    "in_cupy",
    "in_torch",
    "make_pager",
]


def __getattr__(name: str) -> Any:
    """Make `implementation`, which looks for a GPU."""
    if name != "implementation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _implementation()
    return globals()[name]


def _implementation() -> SimpleNamespace:
    from qloracle_gpu import cupy_backend, operations

    found = capability.query()
    reason = found.reason or cupy_backend.unavailable()
    if not reason:
        steps, arrays = cupy_backend.implementation, "cupy"
        pager: Callable[..., Pager] = make_pager
        what, missing = f"cuda:{found.device}, {found.runtime}", cupy_backend.unavailable
    else:
        from qloracle_gpu.devices.gcc import Host
        from qloracle_gpu.managed import standin

        steps, arrays = operations.implementation(Host()), "numpy"
        pager = standin.make_pager
        what, missing = f"a stand-in for CUDA 13, not a GPU: {reason}", partial(_neither, reason)
    return SimpleNamespace(
        make_pager=pager,
        save_paged=paging.save,
        load_paged=paging.load,
        adam_step=steps.adam_step,
        adam_step_8bit=steps.adam_step_8bit,
        arrays=arrays,
        limits=steps.limits,
        versions={"managed memory": what},
        unavailable=missing,
    )


def _neither(reason: str) -> str:
    """Say what the stand-in lacks, too, where there is no GPU for this reason; '' if nothing."""
    from qloracle_gpu.managed import standin

    lacking = standin.unavailable()
    return f"{lacking}; nor is there a GPU for it: {reason}" if lacking else ""
