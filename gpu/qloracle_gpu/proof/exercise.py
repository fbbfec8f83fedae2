"""Small calls of every operation, for a machine that is watched and slow.

300 elements leave a short block, an odd tail and lanes with nothing to do; an array that begins one
element late takes the paths for unaligned addresses; 4,200 elements are several blocks of threads.
The results are not looked at: other tests judge them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

import qloracle
from qloracle_gpu import operations
from qloracle_gpu.devices.gcc.build import Flavour
from qloracle_gpu.devices.gcc.machine import Host

# An operation, and what is printed and given in each of its calls.
Calls: TypeAlias = Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
SMALL, LARGE = 300, 4200
# Of a weight: rows that end inside of a block and of a byte; rows that several warps share.
SHAPES = ((7, 45), (9, 1032))
ROWS = (1, 2, 3, 8, 16, 40)  # of x: a kernel for each of the first, no kernel for the last


def exercise(flavour: Flavour, path: str | None = None) -> None:
    """Run every operation on Host(source, flavour), each call a printed line.

    The source is `kernels.text()`, or what the file at `path` holds.
    """
    source = None if path is None else Path(path).read_text()
    offered = operations.implementation(Host(source, flavour))
    for name, what, call in small_calls(offered):
        print(name, what, flush=True)
        call()


def small_calls(offered: SimpleNamespace) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield calls of what an implementation offers; ValueError for a name unknown here."""
    names = {name for name, member in vars(offered).items() if callable(member)}
    if names - set(CALLS):
        raise ValueError(f"no small call is known of {', '.join(sorted(names - set(CALLS)))}")
    for name, calls in CALLS.items():
        if name in names:
            for what, given, options in calls():
                yield name, what, partial(getattr(offered, name), *given, **options)


# ---- arrays ------------------------------------------------------------------------------------


def normal(*shape: int, dtype: np.dtype[Any] = FLOATS[0]) -> np.ndarray[Any, Any]:
    """Return normal numbers, always the same."""
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def begin_late(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy that begins one element late, and ends where its memory does."""
    return np.concatenate([array[:1], array])[1:]


def vectors() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield a vector of each type, one that begins late, and a long one."""
    for dtype in FLOATS:
        yield f"{dtype}", normal(SMALL, dtype=dtype)
        yield f"{dtype} late", begin_late(normal(SMALL, dtype=dtype))
    yield "float32 long", normal(LARGE)


# ---- L0 and L1 ---------------------------------------------------------------------------------


def _quantize_4bit() -> Calls:
    for what, x in vectors():
        yield what, (x,), {}
    for blocksize in (32, 256, 4096):
        yield f"blocks of {blocksize}", (normal(LARGE),), {"blocksize": blocksize}
    yield "fp4", (normal(SMALL),), {"quant_type": "fp4"}


def _dequantize_4bit() -> Calls:
    for what, x in vectors():
        packed, absmax = qloracle.quantize_4bit(x)
        options = {"shape": x.shape, "dtype": x.dtype}
        yield what, (packed, absmax), options
        yield f"{what} codes late", (begin_late(packed), absmax), options
        yield f"{what} nested", (packed,), {**options, **_nested(absmax)}


def _nested(absmax: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"nested": (*qloracle.quantize_absmax(absmax), None)}


def _quantize_blockwise() -> Calls:
    for what, x in vectors():
        yield what, (x, qloracle.dynamic_codebook()), {}
    yield "two levels", (normal(SMALL), np.array([-1, 1], np.float32)), {"blocksize": 32}


def _dequantize_blockwise() -> Calls:
    book = qloracle.dynamic_codebook()
    for what, x in vectors():
        codes, absmax = qloracle.quantize_blockwise(x, book)
        options = {"shape": x.shape, "dtype": x.dtype}
        yield what, (codes, absmax, book), options
        yield f"{what} codes late", (begin_late(codes), absmax, book), options


def _quantize_absmax() -> Calls:
    yield "short", (np.abs(normal(SMALL)),), {}
    yield "long", (np.abs(normal(LARGE)),), {"blocksize": 32}


def _dequantize_absmax() -> Calls:
    for n in (SMALL, LARGE):
        yield f"{n} scales", qloracle.quantize_absmax(np.abs(normal(n))), {}


# ---- L2 and L3 ---------------------------------------------------------------------------------


def products() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all that a product of a small layer may take, by the names of its arguments."""
    for shape in SHAPES:
        packed, absmax = qloracle.quantize_4bit(normal(*shape))
        for dtype in FLOATS:
            drawn = partial(normal, dtype=dtype)
            w, a, b = drawn(*shape), drawn(4, shape[1]), drawn(shape[0], 4)
            layer = {"w": w, "packed": packed, "absmax": absmax, "a": a, "b": b, "shape": shape}
            for m in ROWS:
                rows = {"x": drawn(m, shape[1]), "dy": drawn(m, shape[0]), "scaling": 2.0}
                yield f"{shape}, {m} rows of {dtype}", layer | rows


def _product(name: str) -> Calls:
    wanted = signature(getattr(qloracle, name)).parameters
    for what, known in products():
        yield what, (), {argument: known[argument] for argument in wanted if argument in known}


def _matmul_4bit() -> Calls:
    yield from _product("matmul_4bit")
    for what, known in products():
        given, shape = (known["x"], known["packed"]), known["shape"]
        bias = normal(shape[0], dtype=known["x"].dtype)
        yield f"{what} nested", given, {"shape": shape, "bias": bias, **_nested(known["absmax"])}


# ---- L4 ----------------------------------------------------------------------------------------


def _adam_step() -> Calls:
    for what, x in vectors():
        m, v = normal(x.size), np.abs(normal(x.size))
        yield what, (x, x.copy(), m, v), {"step": 2, "lr": 0.01}
        yield f"{what}, grad float32", (x, m.copy(), m, v), {"step": 2, "lr": 0.01}


def _adam_step_8bit() -> Calls:
    signed, unsigned = qloracle.dynamic_codebook(), qloracle.dynamic_codebook(signed=False)
    for what, x in vectors():
        m = qloracle.quantize_blockwise(normal(x.size), signed)
        v = qloracle.quantize_blockwise(np.abs(normal(x.size)), unsigned)
        yield what, (x, x.copy(), *m, *v), {"step": 2, "lr": 0.01}


ALIKE = ("matmul_4bit_backward", "lora_forward", "lora_backward", "qlora_forward", "qlora_backward")
CALLS: dict[str, Callable[[], Calls]] = {
    "quantize_4bit": _quantize_4bit,
    "dequantize_4bit": _dequantize_4bit,
    "quantize_blockwise": _quantize_blockwise,
    "dequantize_blockwise": _dequantize_blockwise,
    "quantize_absmax": _quantize_absmax,
    "dequantize_absmax": _dequantize_absmax,
    "matmul_4bit": _matmul_4bit,
    **{name: partial(_product, name) for name in ALIKE},
    "adam_step": _adam_step,
    "adam_step_8bit": _adam_step_8bit,
}
