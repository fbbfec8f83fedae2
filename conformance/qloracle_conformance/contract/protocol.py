"""The protocol as one table: which functions exist, what they take, what they return.

An implementation offers any subset of these names.  The table is read by everything else: the
child process knows from it which arguments are positional, `explain` and the reports know the
level, and `due_results` states the shape and the type of every result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5")

FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Function:
    """One row of the protocol: positional arrays, keyword options with their defaults, results.

    An `optional` function is another road to its level: nobody is told that it is missing.  What is
    `lasting` can be read again later (rule P3).
    """

    level: str
    name: str
    arrays: tuple[str, ...]
    results: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    lasting: bool = True

    @property
    def signature(self) -> str:
        """The call as the protocol writes it."""
        options = [k if v is ... else f"{k}={v!r}" for k, v in self.options.items()]
        return f"{self.name}({', '.join([*self.arrays, '*', *options])})"


BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
GROUP_SIZES = (64, 63, 65, 255, 257, 100)  # of scales: no library groups by an odd number

FOUR_BIT = {"blocksize": 64, "quant_type": "nf4"}

TABLE = (
    Function("L0", "quantize_4bit", ("x",), ("packed", "absmax"), FOUR_BIT),
    Function(
        "L0", "dequantize_4bit", ("packed", "absmax"), ("values",),
        {"shape": ..., **FOUR_BIT, "dtype": "float32"},
    ),
    Function(
        "L0", "quantize_blockwise", ("x", "codebook"), ("codes", "absmax"), {"blocksize": 256},
    ),
    Function(
        "L0", "dequantize_blockwise", ("codes", "absmax", "codebook"), ("values",),
        {"shape": ..., "blocksize": 256, "dtype": "float32"},
    ),
    Function(
        "L1", "quantize_absmax", ("absmax",), ("codes", "nested_absmax", "offset"),
        {"codebook": None, "blocksize": 256},
    ),
    Function(
        "L1", "dequantize_absmax", ("codes", "nested_absmax", "offset"), ("absmax",),
        {"codebook": None, "blocksize": 256},
    ),
    Function(  # its state is opaque: `dequantize_nested(state, dtype)` makes the values of it
        "L1", "quantize_nested", ("x",), ("values",), {**FOUR_BIT, "dtype": "float32"},
        optional=True,
    ),
    Function(
        "L2", "matmul_4bit", ("x", "packed", "absmax"), ("y",),
        {"shape": ..., **FOUR_BIT, "bias": None},
    ),
    Function(
        "L2", "matmul_4bit_backward", ("dy", "packed", "absmax"), ("dx",),
        {"shape": ..., **FOUR_BIT},
    ),
    Function(
        "L3", "lora_forward", ("x", "w", "a", "b"), ("y",),
        {"scaling": ..., "dropout_mask": None},
    ),
    Function(
        "L3", "lora_backward", ("dy", "x", "w", "a", "b"), ("dx", "da", "db"),
        {"scaling": ..., "dropout_mask": None},
    ),
    Function(
        "L3", "qlora_forward", ("x", "packed", "absmax", "a", "b"), ("y",),
        {"shape": ..., "scaling": ..., **FOUR_BIT, "dropout_mask": None},
    ),
    Function(
        "L3", "qlora_backward", ("dy", "x", "packed", "absmax", "a", "b"), ("dx", "da", "db"),
        {"shape": ..., "scaling": ..., **FOUR_BIT, "dropout_mask": None},
    ),
    Function(
        "L4", "adam_step", ("param", "grad", "m", "v"), ("param", "m", "v"),
        {"step": ..., "lr": ..., "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0,
         "decoupled_weight_decay": True},
    ),
    Function(
        "L4", "adam_step_8bit", ("param", "grad", "m_codes", "m_absmax", "v_codes", "v_absmax"),
        ("param", "m_codes", "m_absmax", "v_codes", "v_absmax"),
        {"step": ..., "lr": ..., "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0,
         "blocksize": 256, "m_codebook": None, "v_codebook": None},
    ),
    Function(  # a tool: its results are what `programs` says of a program that runs on it
        "L5", "make_pager", (), ("read", "log", "words", "plain"),
        {"capacity_bytes": None, "page_bytes": None}, lasting=False,
    ),
)  # fmt: skip

SAVING = ("save_paged", "load_paged")  # of L5; where one is missing, the kit saves by the host

FUNCTIONS = {function.name: function for function in TABLE}

JUDGED_LEVELS = LEVELS  # those whose rules this version of the kit can judge: all


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape; () is one element.

    >>> element_count(()), element_count((3, 0)), element_count((4, 96))
    (1, 0, 384)
    """
    return math.prod(shape)


def block_count(n: int, blocksize: int) -> int:
    """Blocks that n elements fill, the last one perhaps short.

    >>> block_count(65, 64)
    2
    """
    return -(-n // blocksize)


@dataclass(frozen=True)
class Due:
    """The form that one result must have."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


def due_results(
    name: str, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[Due, ...]:
    """State type and shape of every result of a call (flat layout, as the protocol fixes it).

    >>> x = np.zeros((3, 5), np.float32)
    >>> [str(due) for due in due_results("quantize_4bit", {"x": x}, {"blocksize": 64})]
    ['packed uint8[8]', 'absmax float32[1]']
    """
    blocksize = options.get("blocksize", FUNCTIONS[name].options.get("blocksize"))
    if name in ("dequantize_4bit", "dequantize_blockwise"):
        return (due("values", options.get("dtype", "float32"), tuple(options["shape"])),)
    if name == "dequantize_absmax":
        return (due("absmax", np.float32, arrays["codes"].shape),)
    if name == "quantize_absmax":
        n = arrays["absmax"].size
        groups = block_count(n, blocksize)
        return (
            due("codes", np.uint8, (n,)),
            due("nested_absmax", np.float32, (groups,)),
            due("offset", np.float32, ()),
        )
    if name == "quantize_nested":
        return (due("values", options.get("dtype", "float32"), arrays["x"].shape),)
    if name.startswith("adam_step"):
        return tuple(Due(f, arrays[f].dtype, arrays[f].shape) for f in FUNCTIONS[name].results)
    if "matmul" in name or "lora" in name:
        return _due_products(name, arrays, options)
    n = arrays["x"].size
    absmax = due("absmax", np.float32, (block_count(n, blocksize),))
    if name == "quantize_4bit":
        return (due("packed", np.uint8, ((n + 1) // 2,)), absmax)
    return (due("codes", np.uint8, (n,)), absmax)


def _due_products(
    name: str, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[Due, ...]:
    """y has x's type and leading axes, dx those of dy; da and db are like a and b."""
    out, into = arrays["w"].shape if "w" in arrays else options["shape"]
    if not name.endswith("backward"):
        x = arrays["x"]
        return (Due("y", x.dtype, (*x.shape[:-1], out)),)
    dy = arrays["dy"]
    dx = Due("dx", dy.dtype, (*dy.shape[:-1], into))
    adapter = [side for side in "ab" if side in arrays]
    return (dx, *(Due(f"d{side}", arrays[side].dtype, arrays[side].shape) for side in adapter))


def due(name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> Due:
    """Make a Due, accepting the protocol's type names."""
    known = FLOAT_TYPES.get(dtype) if isinstance(dtype, str) else None
    return Due(name, known or np.dtype(dtype), shape)
