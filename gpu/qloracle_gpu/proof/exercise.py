"""Small calls of every operation, for a machine that is watched and slow.

    python -m qloracle_gpu.proof.exercise FLAVOUR [FILE]

makes them on Host(source, FLAVOUR), the source `kernels.text()` or what the file holds, and prints
a line for each.  300 elements leave a short block, an odd tail and lanes with nothing to do; an
array that begins one element late takes the paths for unaligned addresses; 4,200 elements are
several blocks of threads.  The results are not looked at: other tests judge them.
"""

import sys
from collections.abc import Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

import qloracle as q
from qloracle_gpu import operations
from qloracle_gpu.devices.gcc.build import Flavour
from qloracle_gpu.devices.gcc.machine import Host

# The operation, what is printed of the call, and what it is given.
Calls: TypeAlias = Iterator[tuple[str, str, tuple[Any, ...], dict[str, Any]]]

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
SMALL, LARGE = 300, 4200
# Of a weight: rows that end inside of a block and of a byte; rows that several warps share.
SHAPES = ((7, 45), (9, 1032))
ROWS = (1, 2, 3, 8, 16, 40)  # of x: a kernel for each of the first, no kernel for the last
LAYERS = (
    *("matmul_4bit", "matmul_4bit_backward", "lora_forward", "lora_backward"),
    *("qlora_forward", "qlora_backward"),
)


def exercise(flavour: Flavour, path: str | None = None) -> None:
    """Run every operation; AssertionError for one that no call below is of."""
    source = None if path is None else Path(path).read_text()
    offered = operations.implementation(Host(source, flavour))
    calls = [*codes(), *scales(), *layers(), *steps()]
    forgotten = {each.__name__ for each in operations.FUNCTIONS} - {name for name, *_ in calls}
    assert not forgotten, f"no small call is known of {', '.join(sorted(forgotten))}"
    for name, what, given, options in calls:
        print(name, what, flush=True)
        getattr(offered, name)(*given, **options)


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


def codes() -> Calls:
    """L0: each kind of vector, coded and decoded in 4 bits and in 8."""
    book = q.dynamic_codebook()
    for what, x in vectors():
        (packed, absmax), (eight, groups) = q.quantize_4bit(x), q.quantize_blockwise(x, book)
        form = {"shape": x.shape, "dtype": x.dtype}
        nested = {"nested": (*q.quantize_absmax(absmax), None)}
        yield "quantize_4bit", what, (x,), {}
        yield "dequantize_4bit", what, (packed, absmax), form
        yield "dequantize_4bit", f"{what} codes late", (begin_late(packed), absmax), form
        yield "dequantize_4bit", f"{what} nested", (packed,), form | nested
        yield "quantize_blockwise", what, (x, book), {}
        yield "dequantize_blockwise", what, (eight, groups, book), form
        late = begin_late(eight), groups, book
        yield "dequantize_blockwise", f"{what} codes late", late, form
    for blocksize in (32, 256, 4096):
        form = {"blocksize": blocksize}
        yield "quantize_4bit", f"blocks of {blocksize}", (normal(LARGE),), form
    yield "quantize_4bit", "fp4", (normal(SMALL),), {"quant_type": "fp4"}
    levels = np.array([-1, 1], np.float32)
    yield "quantize_blockwise", "two levels", (normal(SMALL), levels), {"blocksize": 32}


def scales() -> Calls:
    """L1: fewer scales than a block of threads has, and more."""
    for n, blocksize in ((SMALL, 256), (LARGE, 32)):
        absmax = np.abs(normal(n))
        yield "quantize_absmax", f"{n} scales", (absmax,), {"blocksize": blocksize}
        yield "dequantize_absmax", f"{n} scales", q.quantize_absmax(absmax), {}


def layers() -> Calls:
    """L2 and L3: small layers, by the names of what each operation takes."""
    for shape in SHAPES:
        packed, absmax = q.quantize_4bit(normal(*shape))
        nested = (*q.quantize_absmax(absmax), None)
        for dtype in FLOATS:
            drawn = partial(normal, dtype=dtype)
            w, a, b = drawn(*shape), drawn(4, shape[1]), drawn(shape[0], 4)
            layer = {"w": w, "packed": packed, "absmax": absmax, "a": a, "b": b, "shape": shape}
            for m in ROWS:
                what = f"{shape}, {m} rows of {dtype}"
                x, dy = drawn(m, shape[1]), drawn(m, shape[0])
                known = layer | {"x": x, "dy": dy, "scaling": 2.0}
                for name in LAYERS:
                    wanted = signature(getattr(q, name)).parameters
                    yield name, what, (), {key: known[key] for key in wanted if key in known}
                form = {"shape": shape, "bias": drawn(shape[0]), "nested": nested}
                yield "matmul_4bit", f"{what} nested", (x, packed), form


def steps() -> Calls:
    """L4: each kind of vector, its gradient in the same type and in float32."""
    signed, unsigned = q.dynamic_codebook(), q.dynamic_codebook(signed=False)
    form = {"step": 2, "lr": 0.01}
    for what, x in vectors():
        m, v = normal(x.size), np.abs(normal(x.size))
        coded = *q.quantize_blockwise(m, signed), *q.quantize_blockwise(v, unsigned)
        yield "adam_step", what, (x, x.copy(), m, v), form
        yield "adam_step", f"{what}, grad float32", (x, m.copy(), m, v), form
        yield "adam_step_8bit", what, (x, x.copy(), *coded), form


if __name__ == "__main__":
    exercise(*sys.argv[1:])  # type: ignore[arg-type]  # Host says what a flavour is
