"""What `Host` and `Ptx` share as machines: their arrays are NumPy's."""

import ml_dtypes  # noqa: F401  np.dtype("bfloat16") is its doing
import numpy as np


class OnNumPy:
    """The part of a `devices.Device` that computes with NumPy."""

    chunk = 1 << 20

    def array(self, name: str, value: object) -> np.ndarray:
        """Return a contiguous, aligned array in native order, a copy only where it must be.

        >>> OnNumPy().array("x", [1.0])
        Traceback (most recent call last):
            ...
        TypeError: x must be a NumPy array, got list
        """
        if not isinstance(value, np.ndarray | np.generic):
            raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
        given = np.asarray(value)
        if given.flags.c_contiguous and given.flags.aligned and given.dtype.isnative:
            return given
        return given.astype(given.dtype.newbyteorder("="), order="C")

    def table(self, values: np.ndarray) -> np.ndarray:
        """Return the table itself."""
        return np.ascontiguousarray(values)

    def address(self, array: np.ndarray) -> int:
        """Return where an array begins."""
        return int(array.ctypes.data)

    def cast(self, array: np.ndarray, dtype: str) -> np.ndarray:
        """Return an array of another float type, rounded once, ties to even."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return array.astype(np.dtype(dtype), copy=False)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a @ b in float32."""
        for name, matrix in (("a", a), ("b", b)):
            if matrix.dtype != np.float32:
                raise TypeError(f"{name} must have dtype float32, got {matrix.dtype}")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(np.matmul(a, b))
