"""Torch's tensors as a machine's arrays: on any device, and on a GPU with the kernels.

`Tensors` compute operation by operation.  `CudaTensors` also run the kernels that CuPy compiles: a
tensor is passed by its address, and only a view with strides is copied.  Kernels run on torch's
current stream of the tensors' device, in order with torch's own work there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qloracle_gpu.devices import Addresses, Argument, launching
from qloracle_gpu.devices.precision import full_float32


class Tensors:
    """The tensors of one device: see `qloracle_gpu.devices.Arrays`."""

    chunk = 1 << 18

    def __init__(self, place: torch.device) -> None:
        self.place = place

    def array(self, name: str, value: object) -> Tensor:
        """Return a dense tensor of this device, cut from the graph of gradients; strides stay.

        TypeError or ValueError by name for anything else, such as a tensor of another device.
        """
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
        if value.device != self.place:
            raise ValueError(
                f"{name} must lie on {self.place} like the call's other tensors, got {value.device}"
            )
        if value.is_meta:
            raise ValueError(f"{name} must hold values, got a tensor on meta")
        return value.detach().resolve_neg()

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        """Return a tensor that holds nothing yet."""
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self.place)

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        """Return a copy of another type, rounded to nearest even."""
        return array.to(getattr(torch, dtype))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b in float32, whatever the process has allowed."""
        with full_float32(self.place):
            return a @ b


class CudaTensors(Tensors):
    """Runs the kernels on tensors of one GPU: see `qloracle_gpu.devices.Device`."""

    chunk = 1 << 20

    def __init__(self, place: torch.device) -> None:
        super().__init__(place)
        self._tables: dict[tuple[str, bytes], Tensor] = {}

    def array(self, name: str, value: object) -> Tensor:
        """Return a contiguous tensor of this GPU, cut from the graph of gradients."""
        return super().array(name, value).contiguous()

    def table(self, values: np.ndarray) -> Tensor:
        """Return a small array as a tensor, sent the first time; that one call waits for it.

        It lies in CuPy's memory: under `torch.compile(mode="reduce-overhead")` the first call
        allocates from a graph's own pool, where nothing may stay.  RuntimeError while a graph is
        captured: what is sent then arrives when the graph runs.
        """
        import cupy

        key = str((values.dtype, values.shape)), values.tobytes()
        if key not in self._tables:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("call once before the capture: a codebook is not on the GPU yet")
            with cupy.cuda.Device(self.place.index):
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
        handle = torch.cuda.current_stream(self.place).cuda_stream
        place, stream = cupy.cuda.Device(self.place.index), cupy.cuda.Stream.from_external
        with place, stream(_Stream(handle)):
            launching.launch(kernel, grid, block, held, self.address)

    def _sent(self, addresses: Addresses) -> Tensor:
        """Write addresses on the GPU without waiting: from pinned memory, or one by one.

        A graph must not read memory of the host: it may run when that is long gone.
        """
        numbers = [0 if array is None else array.data_ptr() for array in addresses.arrays]
        if not torch.cuda.is_current_stream_capturing():
            pinned = torch.tensor(numbers, dtype=torch.int64, pin_memory=True)
            return pinned.to(self.place, non_blocking=True)
        table = torch.empty(len(numbers), dtype=torch.int64, device=self.place)
        for entry, number in zip(table.unbind(), numbers, strict=True):
            entry.fill_(number)
        return table


class _Stream(NamedTuple):
    """A stream in the `__cuda_stream__` interchange form: CuPy uses it and does not own it."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle
