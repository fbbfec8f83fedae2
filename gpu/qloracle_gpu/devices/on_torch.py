"""A `Device` whose arrays are the tensors of one GPU: the kernels that CuPy compiles run on them.

A tensor is passed by its address, and only a view with strides is copied.  Kernels run on torch's
current stream of the tensors' device, in order with torch's own work there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qloracle_gpu.devices import Addresses, Argument, launching
from qloracle_gpu.torch_backend import _arguments as check
from qloracle_gpu.torch_backend.precision import full_float32


class CudaTensors:
    """Runs the kernels on tensors of one GPU: see `qloracle_gpu.devices.Device`."""

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._tables: dict[tuple[str, bytes], Tensor] = {}

    def array(self, name: str, value: object) -> Tensor:
        """Return a contiguous tensor of this GPU, cut from the graph of gradients."""
        return check.tensor(name, value, self._place).contiguous()

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        """Return a tensor that holds nothing yet."""
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self._place)

    def table(self, values: np.ndarray) -> Tensor:
        """Return a small array as a tensor, sent at the first time; that one call waits for it.

        It lies in CuPy's memory: under `torch.compile(mode="reduce-overhead")` the first call
        allocates from a graph's own pool, where nothing may stay.  RuntimeError while a graph is
        captured: what is sent then arrives when the graph runs.
        """
        import cupy

        key = str((values.dtype, values.shape)), values.tobytes()
        if key not in self._tables:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("call once before the capture: a codebook is not on the GPU yet")
            with cupy.cuda.Device(self._place.index):
                sent = cupy.asarray(values)
                cupy.cuda.get_current_stream().synchronize()
            self._tables[key] = torch.utils.dlpack.from_dlpack(sent)
        return self._tables[key]

    def address(self, array: Tensor) -> int:
        """Return where a tensor begins."""
        return array.data_ptr()

    def launch(self, kernel: str, grid: int, block: int, *arguments: Argument) -> None:
        """Launch on torch's current stream of this GPU."""
        import cupy

        held = [self._sent(a) if isinstance(a, Addresses) else a for a in arguments]
        handle = torch.cuda.current_stream(self._place).cuda_stream
        place, stream = cupy.cuda.Device(self._place.index), cupy.cuda.Stream.from_external
        with place, stream(_Stream(handle)):
            launching.launch(kernel, grid, block, held, self.address)

    def _sent(self, addresses: Addresses) -> Tensor:
        """Write addresses on the GPU, and wait for nothing: from pinned memory, or one by one.

        Memory of the host must not be read by a graph, which may run when it is long gone.
        """
        numbers = [0 if array is None else array.data_ptr() for array in addresses.arrays]
        if not torch.cuda.is_current_stream_capturing():
            pinned = torch.tensor(numbers, dtype=torch.int64, pin_memory=True)
            return pinned.to(self._place, non_blocking=True)
        table = torch.empty(len(numbers), dtype=torch.int64, device=self._place)
        for entry, number in zip(table.unbind(), numbers, strict=True):
            entry.fill_(number)
        return table

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        """Return a copy of another type, rounded to nearest even."""
        return array.to(getattr(torch, dtype))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b in float32, whatever the process has allowed."""
        with full_float32(self._place):
            return a @ b


class _Stream(NamedTuple):
    """A stream in the `__cuda_stream__` interchange form: CuPy uses it and does not own it."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle
