"""Float32 products that are float32, whatever the process has allowed.

A float32 matrix product is not always one. Three settings change what `x @ w` computes, and all
three stand outside the call:

* `torch.set_float32_matmul_precision("high")` lets CUDA round the factors to TF32 (10 bits), and
  "medium" lets a CPU round them to bfloat16;
* since torch 2.9 each backend has an `fp32_precision` of its own;
* under `torch.autocast` the factors are cast to 16 bits.

The first two belong to the process, so they are changed only where something is allowed, and put
back as they were. Meanwhile products on other threads are exact, too. What allows 16-bit sums
(`allow_bf16_reduced_precision_reduction` and its like) concerns 16-bit factors, and there are none.

>>> torch.set_float32_matmul_precision("medium")
>>> with full_float32(torch.device("cpu")):
...     print(torch.get_float32_matmul_precision())
highest
>>> print(torch.get_float32_matmul_precision())
medium
>>> torch.set_float32_matmul_precision("highest")

What cannot be guarded: the environment (NVIDIA_TF32_OVERRIDE=1 makes cuBLAS use TF32 whatever torch
asks for), a setting that another thread changes meanwhile, and devices whose products have a
precision of their own (oneDNN's `allow_tf32` on xpu, the kernels of mps). No such device was at
hand to see.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

EXACT = ("none", "ieee")  # what `fp32_precision` says where nothing is allowed


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute products of float32 matrices in float32 within."""
    casts = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if casts else nullcontext(), _ieee():
        yield


@contextmanager
def _ieee() -> Iterator[None]:
    """Allow nothing, and afterwards what was allowed before."""
    backends: list[Any] = []  # what has an `fp32_precision` for products: since torch 2.9
    if hasattr(torch.backends.mkldnn, "matmul"):
        backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    allowed = [backend.fp32_precision for backend in backends]
    mixed = any(precision not in EXACT for precision in allowed)
    if not mixed and torch.get_float32_matmul_precision() == "highest":
        yield
        return
    for backend in backends:  # before the older setting is read: torch refuses to read a mixture
        backend.fp32_precision = "ieee"
    older = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = "none"  # what was inherited is not made the backend's own
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision
