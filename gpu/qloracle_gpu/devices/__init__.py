"""What the host code asks of a machine: an array for a result, a table, a launch, a product.

    on_cupy   CuPy's arrays on a GPU
    on_torch  torch's tensors: on a GPU with the kernels, on any other device without
    gcc       the kernels compiled by g++, on NumPy's arrays
    ptx       the kernels' PTX, interpreted on NumPy's arrays

`operations` is written once, against the protocols below.

An array is what the machine computes on: NumPy's, CuPy's or torch's.  Host code uses only its
`shape`, `dtype`, `reshape`, slices, `@`, `*`, `+` and `.T`, which the three spell alike.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any


class Addresses(NamedTuple):
    """A kernel's argument `const Address *`: the machine writes down where these arrays lie.

    Each address is 64 bits wide, in the order given; None is address 0.
    """

    arrays: tuple[Array | None, ...]


Argument: TypeAlias = Array | Addresses | np.generic | None


class Arrays(Protocol):
    """What computes with arrays: all that L3 needs."""

    chunk: int  # elements of a weight in float32 at a time; a single row may be longer

    def array(self, name: str, value: object) -> Array:
        """Return an array of this machine's; TypeError or ValueError by name for anything else."""

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Return an array to be written, of a type of the protocol: "uint8", "bfloat16" ..."""

    def cast(self, array: Array, dtype: str) -> Array:
        """Return a copy of another float type, rounded to nearest even; itself where it has it."""

    def product(self, a: Array, b: Array) -> Array:
        """Return the matrix product of two float32 matrices, in float32 (no TF32)."""


class Device(Arrays, Protocol):
    """A machine that runs the kernels of `qloracle_gpu.kernels`; its `array` is contiguous."""

    def table(self, values: np.ndarray) -> Array:
        """Return a small NumPy array as an array of this machine's, kept for the next call."""

    def address(self, array: Array) -> int:
        """Return where an array begins, of which only the alignment matters to host code."""

    def launch(self, kernel: str, grid: int, block: int, *arguments: Argument) -> None:
        """Run a kernel by its name on `grid` blocks of `block` threads, in order after the last.

        An array is passed as its address, None as address 0, a NumPy scalar as that C type
        (np.int64 as long long, np.int32 as int, np.float32 as float).
        """


def type_name(array: Array) -> str:
    """Return the protocol's name of an array's type, whatever framework it comes from.

    >>> type_name(np.zeros(1, np.float16))
    'float16'
    """
    return str(array.dtype).removeprefix("torch.")
