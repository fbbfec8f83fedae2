"""What is timed: each case is ours beside its peers, with the bytes that must be moved.

A case is prepared when its turn comes and let go afterwards, so that all of the card's memory is
its own.  Every figure of a case has the name by which `goals` asks for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from qloracle_gpu import operations
from qloracle_gpu.bench import peers
from qloracle_gpu.bench.peers import BITSANDBYTES
from qloracle_gpu.bench.timing import Call
from qloracle_gpu.devices import Array
from qloracle_gpu.devices.on_cupy import CupyDevice

BLOCK = 64
SIDE = 16384  # of the matrix that is coded: 2^28 elements
MATRICES = {8: (4096, 4096), 33: (8192, 8192), 67: (8192, 16384), 256: (8192, 65536)}  # by MB
ROWS = (1, 2, 4, 8, 16)
PARAMETERS = 1 << 27
SMALL: list[tuple[int, ...]] = [(16, 4096), (4096, 16)] * 112  # adapters: 32 layers, seven in each
STEP: Mapping[str, Any] = {"step": 10, "lr": 1e-3, "weight_decay": 0.01}
MACHINE = CupyDevice()
OURS = operations.implementation(MACHINE)


class Case(NamedTuple):
    """Calls to compare, ours first, and what they must move.

    `beside` names figures: how much longer ours takes than one of the other calls. `peers` prepare
    calls of others, who may not be here.
    """

    name: str
    mix: str  # of the roof
    moved: float  # bytes
    calls: Mapping[str, Call]
    beside: Mapping[str, str] = {}
    peers: Mapping[str, Callable[[], Call]] = {}


Prepared = Callable[[], Case]


def cases() -> dict[str, Prepared]:
    """Return all cases by name, none of them prepared."""
    found: dict[str, Prepared] = {
        "dequantize bfloat16": partial(dequantize, "bfloat16", 2),
        "dequantize float32": partial(dequantize, "float32", 4),
        "dequantize nested": nested,
        "quantize bfloat16": partial(quantize, "bfloat16", 2),
        "lora r = 16": lora,
        "adam float32": adam,
        "adam 8 bits": partial(adam_8bit, "adam 8 bits", [(PARAMETERS,)]),
        "adam, small tensors": partial(adam_8bit, "adam, small tensors", SMALL),
    }
    products = {
        f"product {size} MB, M = {m}": partial(product, size, m) for size in MATRICES for m in ROWS
    }
    return found | products


def normal(*shape: int, dtype: str = "float32") -> Array:
    """Return normal numbers on the card, the same at every run."""
    import cupy

    drawn = cupy.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    return MACHINE.cast(drawn, dtype)


def dequantize(dtype: str, size: int) -> Case:
    """Decode 2^28 elements."""
    packed, absmax = OURS.quantize_4bit(normal(SIDE, SIDE), blocksize=BLOCK)
    form = {"shape": (SIDE, SIDE), "blocksize": BLOCK, "dtype": dtype}
    calls = {"ours": partial(OURS.dequantize_4bit, packed, absmax, **form)}
    theirs = {BITSANDBYTES: partial(peers.bitsandbytes_dequantize, SIDE, dtype, BLOCK)}
    moved = SIDE * SIDE * (0.5 + 4 / BLOCK + size)
    return Case(f"dequantize {dtype}", "2_7", moved, calls, peers=theirs)


def nested() -> Case:
    """Decode 2^28 elements whose scales are nested, in one launch, beside plain ones."""
    packed, absmax = OURS.quantize_4bit(normal(SIDE, SIDE), blocksize=BLOCK)
    coded = *OURS.quantize_absmax(absmax), None
    form = {"shape": (SIDE, SIDE), "blocksize": BLOCK, "dtype": "bfloat16"}
    calls = {
        "ours": partial(OURS.dequantize_4bit, packed, nested=coded, **form),
        "plain": partial(OURS.dequantize_4bit, packed, absmax, **form),
    }
    prepare = partial(peers.bitsandbytes_dequantize, SIDE, "bfloat16", BLOCK, nested=True)
    moved = SIDE * SIDE * (0.5 + (1 + 4 / 256) / BLOCK + 2)
    beside = {"longer than plain": "plain"}
    return Case("dequantize nested", "1_4", moved, calls, beside, {BITSANDBYTES: prepare})


def quantize(dtype: str, size: int) -> Case:
    """Code 2^28 elements."""
    calls = {"ours": partial(OURS.quantize_4bit, normal(SIDE, SIDE, dtype=dtype), blocksize=BLOCK)}
    theirs = {BITSANDBYTES: partial(peers.bitsandbytes_quantize, SIDE, dtype, BLOCK)}
    moved = SIDE * SIDE * (0.5 + 4 / BLOCK + size)
    return Case(f"quantize {dtype}", "7_2", moved, calls, peers=theirs)


def product(megabytes: int, m: int) -> Case:
    """Multiply m rows by a packed weight; its bytes alone are counted, scales and rows are not."""
    out, width = MATRICES[megabytes]
    packed, absmax = OURS.quantize_4bit(normal(out, width), blocksize=BLOCK)
    call = partial(OURS.matmul_4bit, packed=packed, absmax=absmax, shape=(out, width))
    calls = {"ours": partial(call, normal(m, width, dtype="bfloat16"))}
    beside = {}
    if m > 1:
        calls["one row"] = partial(call, normal(1, width, dtype="bfloat16"))
        beside = {"longer than M = 1": "one row"}
    theirs = {
        BITSANDBYTES: partial(peers.bitsandbytes_product, out, width, m, BLOCK),
        peers.MARLIN: partial(peers.marlin_product, out, width, m),
    }
    name = f"product {megabytes} MB, M = {m}"
    return Case(name, "1_0", out * width / 2, calls, beside, theirs)


def lora() -> Case:
    """Multiply one row by a packed weight with an adapter of rank 16, and without."""
    (out, width), r = MATRICES[33], 16
    packed, absmax = OURS.quantize_4bit(normal(out, width), blocksize=BLOCK)
    x = normal(1, width, dtype="bfloat16")
    a, b = normal(r, width, dtype="bfloat16"), normal(out, r, dtype="bfloat16")
    form = {"shape": (out, width), "blocksize": BLOCK}
    calls = {
        "ours": partial(OURS.qlora_forward, x, packed, absmax, a, b, scaling=2.0, **form),
        "without": partial(OURS.matmul_4bit, x, packed, absmax, **form),
    }
    moved = out * width / 2 + 2 * r * (out + width)
    return Case("lora r = 16", "1_0", moved, calls, {"longer than without": "without"})


def adam() -> Case:
    """Take a step of 2^27 float32 parameters, in place."""
    state = [[normal(PARAMETERS)] for _ in range(3)] + [[abs(normal(PARAMETERS))]]
    out = state[0], state[2], state[3]
    calls = {"ours": partial(operations.adam.adam_steps, MACHINE, *state, out=out, **STEP)}
    theirs = {peers.FUSED: partial(peers.torch_adam, PARAMETERS)}
    return Case("adam float32", "4_3", 28 * PARAMETERS, calls, peers=theirs)


def adam_8bit(name: str, shapes: Sequence[tuple[int, ...]]) -> Case:
    """Take a step of bfloat16 parameters with moments in 8 bits, in place, in one launch."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    lists = [list(parts) for parts in zip(*map(_coded_state, sizes), strict=True)]
    out = lists[0], *lists[2:]
    calls = {"ours": partial(operations.adam.adam_steps_8bit, MACHINE, *lists, out=out, **STEP)}
    theirs = {BITSANDBYTES: partial(peers.bitsandbytes_adam, shapes)}
    moved = sum(sizes) * (2 + 2 + 2 + 4 * (1 + 4 / 256))
    return Case(name, "3_2", moved, calls, peers=theirs)


def _coded_state(n: int) -> Iterator[Array]:
    """Yield a parameter, its gradient, and codes and scales of both moments."""
    import cupy

    yield normal(n, dtype="bfloat16")
    yield normal(n, dtype="bfloat16")
    for _ in range(2):
        yield cupy.random.default_rng(7).integers(128, 256, n, dtype=np.uint8)
        yield cupy.ones(-(-n // 256), np.float32)
