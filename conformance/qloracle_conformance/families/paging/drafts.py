"""A program while it is written, and what it writes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import dtype_of

Array = NDArray[Any]

TYPES = (
    "uint8", "float32", "bfloat16", "float16", "float64", "int8", "int32", "int64", "bool",
)  # fmt: skip
WHOLE = (None, None)  # the part of an array that is all of it


class Draft:
    """A program, operation by operation: arrays to be written are named as they come."""

    def __init__(self, capacity: int | None = None, page: int | None = None) -> None:
        self.options = {"capacity_bytes": capacity, "page_bytes": page}
        self.program: programs.Program = []
        self.arrays: dict[str, Array] = {}

    def do(self, *operation: Any) -> Draft:
        """Add an operation."""
        self.program.append(list(operation))
        return self

    def write(
        self, name: str, values: Array, part: tuple[Any, Any] = WHOLE, side: str = "host"
    ) -> Draft:
        """Write an array, or a part of it."""
        data = f"x{len(self.arrays)}"
        self.arrays[data] = values
        return self.do("write", name, *part, data, side)

    def read(self, name: str, part: tuple[Any, Any] = WHOLE, side: str = "host") -> Draft:
        """Read an array, or a part of it."""
        return self.do("read", name, *part, side)

    def new(self, name: str, values: Array, side: str = "host") -> Draft:
        """Allocate an array and write it."""
        self.do("empty", name, list(values.shape), values.dtype.name)
        return self.write(name, values, side=side)

    def shrink(self, frames: int) -> Draft:
        """Another capacity in pages, where the size of a page is known."""
        page = self.options["page_bytes"]
        return self if page is None else self.do("shrink", frames * page)

    def case(self, note: str) -> Case:
        """The program as a case."""
        sizes = {name: value for name, value in self.options.items() if value is not None}
        return Case("make_pager", self.arrays, {**sizes, "program": self.program}, note)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Bytes of all values: NaNs, subnormals, infinities."""
    kind = dtype_of(dtype)
    size = math.prod(shape) * kind.itemsize
    top = 2 if dtype == "bool" else 256
    return rng.integers(0, top, size, np.uint8).view(kind).reshape(shape)
