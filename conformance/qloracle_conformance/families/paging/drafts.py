"""A program while it is written."""

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import PlainArrays
from qloracle_conformance.contract.programs import Part, perform, where

Array = NDArray[Any]

SIDES = ("host", "device")
TYPES = (
    "uint8", "float32", "bfloat16", "float16", "float64", "int8", "int32", "int64", "bool",
)  # fmt: skip


class Draft:
    """A program, operation by operation, beside the plain arrays that it has made so far.

    What it writes are random bytes, unless values are given; the arrays of the case are named as
    they come.
    """

    def __init__(
        self, rng: np.random.Generator, capacity: int | None = None, page: int | None = None
    ) -> None:
        self.rng, self.capacity, self.page = rng, capacity, page
        self.size = page or 4096  # of a page, if it is not asked for
        self.program: programs.Program = []
        self.arrays: dict[str, Array] = {}
        self.plain = PlainArrays(self.arrays, capacity, page)

    def do(self, *operation: Any) -> Self:
        """Add an operation."""
        perform(operation, self.plain)
        self.program.append(list(operation))
        return self

    def write(
        self, name: str, part: Part = None, side: str = "host", values: Array | None = None
    ) -> Self:
        """Write an array, or a part of it."""
        if values is None:
            old = self.plain.alive[name].values[where(part)]
            values = self.bytes(old.shape, old.dtype.name)
        data = f"x{len(self.arrays)}"
        self.arrays[data] = values
        return self.do("write", name, part and list(part), data, side)

    def read(self, name: str, part: Part = None, side: str = "host") -> Self:
        """Read an array, or a part of it."""
        return self.do("read", name, part and list(part), side)

    def read_all(self, names: Iterable[str], *sides: str) -> Self:
        """Read several arrays, each by all of the sides."""
        for name in names:
            for side in sides or ("host",):
                self.read(name, side=side)
        return self

    def new(
        self, name: str, shape: int | tuple[int, ...], dtype: str = "uint8", side: str = "host"
    ) -> Self:
        """Allocate an array and write it."""
        dims = (shape,) if isinstance(shape, int) else shape
        return self.do("empty", name, list(dims), dtype).write(name, side=side)

    def given(self, name: str, values: Array, side: str = "host") -> Self:
        """Allocate an array and write these values."""
        self.do("empty", name, list(values.shape), values.dtype.name)
        return self.write(name, None, side, values)

    def shrink(self, frames: int) -> Self:
        """Another capacity in pages, where the size of a page is known."""
        return self if self.page is None else self.do("shrink", frames * self.page)

    def case(self, note: str) -> Case:
        """The program as a case."""
        sizes = {"capacity_bytes": self.capacity, "page_bytes": self.page}
        given = {name: value for name, value in sizes.items() if value is not None}
        return Case("make_pager", self.arrays, {**given, "program": self.program}, note)

    def bytes(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Bytes of all values: NaNs, subnormals, infinities."""
        kind = np.dtype(dtype)
        size, top = math.prod(shape) * kind.itemsize, 2 if dtype == "bool" else 256
        return self.rng.integers(0, top, size, np.uint8).view(kind).reshape(shape)
