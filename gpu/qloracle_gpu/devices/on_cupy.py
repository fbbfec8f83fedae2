"""A `Device` whose arrays are CuPy's, on the current device and the current stream.

An argument may be any array on the current device that offers DLPack or CUDA's array interface,
such as a torch tensor: it is read where it lies.  Only a view with strides is copied.  Results are
CuPy arrays, which offer both in turn.  bfloat16 is the type of ml_dtypes, as CuPy has it.
"""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from qloracle_gpu.devices import Addresses, Argument, Array
from qloracle_gpu.devices.launching import launch, ready

TYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "uint8": np.dtype(np.uint8),
}
ON_CUDA = (2, 13)  # DLPack's numbers for memory of a GPU, and for managed memory
IEEE = 1  # CuPy's number for float32 products in float32; TF32 has another


class CupyDevice:
    """Runs the kernels by CuPy: see `qloracle_gpu.devices.Device`."""

    chunk = 1 << 20

    def __init__(self) -> None:
        self._tables: dict[tuple[int, str, bytes], Array] = {}

    def array(self, name: str, value: object) -> Array:
        """Return an array of the current device, contiguous; see the module for what it takes."""
        ready()
        import cupy

        array = _taken(cupy, name, value)
        here = cupy.cuda.runtime.getDevice()
        if array.device.id != here:
            raise ValueError(
                f"{name} must lie on the current device, which is cuda:{here}, "
                f"got cuda:{array.device.id}"
            )
        return array if array.flags.c_contiguous else array.copy(order="C")

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Return an array that holds nothing yet."""
        import cupy

        return cupy.empty(tuple(shape), TYPES.get(dtype, dtype))

    def table(self, values: np.ndarray) -> Array:
        """Return a small array, sent at the first time; that one call waits until it is there.

        A later call may run on another stream, which must not read it before it has arrived.
        """
        import cupy

        key = cupy.cuda.runtime.getDevice(), str((values.dtype, values.shape)), values.tobytes()
        if key not in self._tables:
            self._tables[key] = cupy.asarray(values)
            cupy.cuda.get_current_stream().synchronize()
        return self._tables[key]

    def address(self, array: Array) -> int:
        """Return where an array begins."""
        return int(array.data.ptr)

    def launch(self, kernel: str, grid: int, block: int, *arguments: Argument) -> None:
        """Launch on the current stream."""
        held = [self._sent(a) if isinstance(a, Addresses) else a for a in arguments]
        launch(kernel, grid, block, held, self.address)

    def _sent(self, addresses: Addresses) -> Array:
        """Write addresses on the GPU; CuPy stages them, and waits for nothing."""
        import cupy

        numbers = [0 if array is None else self.address(array) for array in addresses.arrays]
        return cupy.asarray(np.array(numbers, np.uint64))

    def cast(self, array: Array, dtype: str) -> Array:
        """Return a copy of another type, rounded to nearest even."""
        return array.astype(TYPES[dtype], copy=False)

    def product(self, a: Array, b: Array) -> Array:
        """Return a @ b in float32, whatever the process has allowed."""
        import cupy

        core = cupy._core
        allowed = core.get_compute_type(np.float32)  # TF32, by CUPY_TF32=1 or `set_compute_type`
        core.set_compute_type(np.float32, IEEE)
        try:
            return cupy.matmul(a, b)
        finally:
            core.set_compute_type(np.float32, allowed)


def _taken(cupy: Any, name: str, value: object) -> Array:
    """Return a CuPy array over the same memory; TypeError by name unless it lies on a GPU."""
    if isinstance(value, cupy.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in ON_CUDA:
            return cupy.from_dlpack(value)
        if hasattr(value, "__cuda_array_interface__"):
            return cupy.asarray(value)
    except Exception as error:  # a type that one of the two sides does not know, a gradient ...
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind} that CuPy cannot read: {error}") from error
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise TypeError(f"{name} must be an array on a CUDA device, got a {kind}")
