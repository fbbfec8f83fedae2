"""CUDA tensors go to the kernels: the text that CuPy compiles, on torch's tensors and stream.

Where CuPy is installed, a call on CUDA tensors goes to `qloracle_gpu.operations`, on the device
`CudaTensors`.  Nothing waits for the GPU, and no value is looked at: a NaN in x, or a code that
names no level, is not refused.

As with all of torch, a CUDA graph needs one call before it is captured: that compiles the kernels
and sends the codebooks to the device.

Where CuPy is absent, or the kernels do not take the block size (a power of two from 32 to 4096),
tensors are computed with as on a CPU, operation by operation.

>>> takes(torch.zeros(3), 64), takes("a word", 64)
(False, False)
"""

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from qloracle_gpu import operations
from qloracle_gpu.devices import launching
from qloracle_gpu.devices.on_torch import CudaTensors
from qloracle_gpu.operations.arguments import BLOCKSIZES
from qloracle_gpu.torch_backend import values


def takes(x: object, blocksize: int) -> bool:
    """Tell whether a call on this tensor, with this block size, goes to the kernels."""
    return values.KERNELS and isinstance(x, Tensor) and x.is_cuda and blocksize in BLOCKSIZES


@cache
def on(place: torch.device) -> SimpleNamespace:
    """Return the protocol's functions on a device."""
    launching.ready()
    return operations.implementation(CudaTensors(place))
