"""The protocol on CuPy arrays: the CUDA kernels of this package, on the current device and stream.

    import cupy
    from qloracle_gpu import cupy_backend

    packed, absmax = cupy_backend.quantize_4bit(cupy.random.normal(size=4096, dtype="float32"))
    y = cupy_backend.dequantize_4bit(packed, absmax, shape=(4096,), dtype="bfloat16")

The functions are those of `qloracle`, with `nested=` besides; `qloracle_gpu.operations` says what
each takes and refuses.  Nothing waits for the GPU and nothing looks at a value, so a NaN is not
refused.  Arguments may be torch tensors, too, and are not copied (see `devices.on_cupy`).

Importing this needs neither CuPy nor a driver; a call without them says in one line what is
missing.

>>> from qloracle_gpu import cupy_backend
>>> cupy_backend.arrays, cupy_backend.limits["blocksize"][:2]
('cupy', [32, 64])
"""

from typing import Any

from qloracle_gpu import operations
from qloracle_gpu.devices import launching
from qloracle_gpu.devices.on_cupy import CupyDevice

implementation = operations.implementation(CupyDevice())
implementation.arrays = arrays = "cupy"  # what the conformance kit shall hand over
limits = implementation.limits


def __getattr__(name: str) -> Any:
    """Return a function of the protocol."""
    return getattr(implementation, name)


def synchronize() -> None:
    """Wait for the current stream."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


implementation.synchronize = synchronize
implementation.unavailable = unavailable = launching.unavailable
