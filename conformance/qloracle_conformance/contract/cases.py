"""Cases (what is called), answers (what came back) and their form on the wire.

The wire format is safetensors: the arrays are tensors, everything else is JSON text in the
metadata.  It carries no code, so a child process can never make its parent execute anything, and a
program in any language can speak it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

Arrays = Mapping[str, np.ndarray]


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
    def size(self) -> int:
        """Number of elements in all arrays: what the reducer makes small."""
        return sum(array.size for array in self.arrays.values())

    def with_arrays(self, **arrays: np.ndarray) -> Case:
        """Return this case with some arrays replaced."""
        return replace(self, arrays={**self.arrays, **arrays})

    def with_options(self, **options: Any) -> Case:
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

    @property
    def digest(self) -> str:
        """A hash over all results, to compare two runs or a later read."""
        return digest(self.values)


def digest(arrays: tuple[np.ndarray, ...] | list[np.ndarray]) -> str:
    """Hash arrays with their types and shapes.

    >>> digest((np.zeros(2, np.float32),)) == digest((np.zeros((2, 1), np.float32),))
    False
    """
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return state.hexdigest()


WIRE_TYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def encode(text: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Write JSON-able text and arrays as one safetensors blob."""
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():  # ascontiguousarray makes 0-d arrays 1-d
        tensors[name] = tensors[name].reshape(array.shape)
    return save(tensors, {"json": json.dumps(text)})


def decode(blob: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a blob back: (text, arrays).  The arrays are writable and nobody else's.

    >>> decode(encode({"id": 7}, {"x": np.ones(2, ml_dtypes.bfloat16)}))
    ({'id': 7}, {'x': array([1, 1], dtype=bfloat16)})
    """
    (length,) = struct.unpack("<Q", blob[:8])
    text = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["json"])
    arrays = {
        name: np.frombuffer(entry["data"], WIRE_TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(blob)
    }
    return text, arrays
