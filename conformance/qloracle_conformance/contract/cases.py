"""Cases (what is called), answers (what came back) and their form on the wire.

On the wire everything but the memory of arrays is JSON.  It carries no code, so a child process can
never make its parent execute anything, and a program in any language can speak it.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import ml_dtypes
import numpy as np

from qloracle_conformance.contract.protocol import FUNCTIONS

Arrays = Mapping[str, np.ndarray]
Bits = tuple[tuple[str, tuple[int, ...], bytes], ...]


@dataclass(frozen=True, eq=False)
class Case:
    """One call: the function's name, its arrays and its options, and what the input tries.

    `form` says how the arrays lie in memory or where the call runs (rule P5); "" is the plain form.
    """

    function: str
    arrays: Arrays
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    form: str = ""

    @property
    def quant_type(self) -> str:
        """The quant_type of a 4-bit call; '' where there is none."""
        return str(self.options.get("quant_type", ""))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that is asked for, or that of the first array."""
        return tuple(self.options.get("shape", next(iter(self.arrays.values())).shape))

    @property
    def size(self) -> int:
        """Number of elements in all arrays: what the reducer makes small."""
        return sum(array.size for array in self.arrays.values())

    def option(self, name: str) -> Any:
        """An option of the call, or its default."""
        return self.options.get(name, FUNCTIONS[self.function].options[name])

    def with_arrays(self, **arrays: np.ndarray) -> Self:
        """Return this case with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **arrays})

    def with_options(self, **options: Any) -> Self:
        """Return this case with some options replaced."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back from a call.

    `status` is "OK", or the verdict that the call itself earns: ERROR (it raised), UNSUPPORTED
    (NotImplementedError or outside the limits), TIMEOUT or CRASH.
    """

    status: str
    values: tuple[np.ndarray, ...] = ()
    message: str = ""
    changed_inputs: tuple[str, ...] = ()
    seconds: float = 0.0
    call: int = 0


def bits(arrays: Iterable[np.ndarray]) -> Bits:
    """All that arrays hold, to be compared with what they hold later: types, shapes and bytes.

    >>> bits([np.zeros(2, np.float32)]) == bits([np.zeros((2, 1), np.float32)])
    False
    >>> bits([np.zeros(2, np.float32)]) == bits([np.zeros(2, np.int32)])
    False
    """
    return tuple((array.dtype.char, array.shape, array.tobytes()) for array in arrays)


WIRE_TYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


WIRE_NAMES = {np.dtype(kind): name for name, kind in WIRE_TYPES.items()}


def pieces(text: Mapping[str, Any], arrays: Arrays) -> list[bytes | memoryview]:
    """JSON-able text and arrays in pieces: a head, which has their forms, each array's memory.

    The widest types come first, so that every array lies at a multiple of its element's size.
    """
    forms = list[tuple[str, str, tuple[int, ...]]]()
    body: list[bytes | memoryview] = []
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].itemsize):
        forms.append((name, WIRE_NAMES[array.dtype], array.shape))
        if array.size:
            body.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    head = json.dumps([text, forms]).encode()
    head += b" " * (-len(head) % 8)
    return [struct.pack("<Q", len(head)) + head, *body]


def decode(blob: bytes | bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a blob back: (text, arrays).  The arrays are writable and nobody else's.

    >>> decode(b"".join(pieces({"id": 7}, {"x": np.ones(2, ml_dtypes.bfloat16)})))
    ({'id': 7}, {'x': array([1, 1], dtype=bfloat16)})
    """
    (length,) = struct.unpack_from("<Q", blob)
    at = 8 + length
    text, forms = json.loads(blob[8:at])
    arrays: dict[str, np.ndarray] = {}
    for name, kind, shape in forms:
        array = arrays[name] = np.empty(shape, WIRE_TYPES[kind])
        memory = np.frombuffer(blob, np.uint8, array.nbytes, at)
        array.reshape(-1).view(np.uint8)[:] = memory
        at += array.nbytes
    return text, arrays
