"""Small directed inputs, a set for each family of kernels, and what the reference makes of them.

A case yields triples: what was called, the result, and the result expected to the last bit.
Most have 301 elements: a short block, an odd tail, lanes with nothing to do.  Products are of
small integers, of which every sum is exact, so that any order gives the reference's bits.

Everything is called through `operations`, as users call it, but for the far end of a tensor of more
than 2^31 elements: its memory is reserved and never touched, and of the launch that the operation
would make, only the last blocks run.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

import qloracle as q
from qloracle_gpu.devices import Device
from qloracle_gpu.operations import adam, blockwise, nested, products

Array: TypeAlias = np.ndarray[Any, Any]
Calls: TypeAlias = Iterator[tuple[str, Any, Any]]

RUNNERS = ("host", "address", "thread", "ptx", "gate")
N = 301
LONG = 3 * blockwise.THREADS * 8 + N  # elements of which some lanes have four octets
FLOAT32 = "(float, float32)"


class Case(NamedTuple):
    """The kernels that a case launches, its calls, and the runners that can carry it.

    `kernels` are names, or uses of the macros that make a kernel of a type; `prefix` stands before
    the text.
    """

    kernels: tuple[str, ...]
    calls: Callable[[Device], Calls]
    runners: tuple[str, ...] = RUNNERS
    prefix: str = ""


def wrong(device: Device, case: Case) -> str | None:
    """Return the first call of a case whose result differs from the reference's in any bit."""
    for what, got, wanted in case.calls(device):
        parts = zip(_parts(got), _parts(wanted), strict=True)
        for i, (result, expected) in enumerate(parts):
            if _bits(result) != _bits(expected):
                return f"{what}, result {i}{_first_difference(result, expected)}"
    return None


def alike(
    device: Device, function: Callable[..., Any], what: str, *given: Any, **options: Any
) -> tuple[str, Any, Any]:
    """Return what is called, its result, and the reference's."""
    name = function.__name__
    expected = getattr(q, name)(*given, **options)
    return f"{name}, {what}", function(device, *given, **options), expected


def _parts(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _bits(result: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(result)
    return array.dtype.name, array.shape, array.tobytes()


def _first_difference(result: Any, wanted: Any) -> str:
    """Say where two results part, and how."""
    got, expected = np.atleast_1d(result), np.atleast_1d(wanted)
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return f": {got.dtype}{got.shape} for {expected.dtype}{expected.shape}"
    unlike = got.view(f"V{got.itemsize}") != expected.view(f"V{got.itemsize}")
    at = tuple(int(i) for i in np.argwhere(unlike)[0])
    return f"{list(at)}: {got[at]} for {expected[at]}"


# ---- numbers -----------------------------------------------------------------------------------


def normal(*shape: int, late: bool = False, seed: int = 0) -> Array:
    """Return normal float32 numbers that end where memory ends; `late`, begin 4 bytes late."""
    size = int(np.prod(shape))
    memory = np.empty(size + late, np.float32)
    memory[int(late) :] = np.random.default_rng(size + seed).standard_normal(size)
    return memory[int(late) :].reshape(shape)


def ties() -> Array:
    """Return blocks of 64 with absmax 1 that hold the thresholds of NF4, each a tie."""
    thresholds = q.thresholds(q.codebook("nf4"))
    block = np.concatenate([[1], thresholds, -thresholds, np.linspace(-1, 1, 33)]).astype(
        np.float32
    )
    return np.concatenate([block, np.zeros(64, np.float32), -block])


def near_quotients() -> Array:
    """Return blocks of 32 whose second element has a wrong code by x (1 / absmax)."""
    absmax = np.random.default_rng(7).uniform(1, 2, (20_000, 1)).astype(np.float32)
    threshold = q.thresholds(q.codebook("nf4"))[[0, 1, 5, 8, 13]]
    x = threshold * absmax
    by_division, by_reciprocal = x / absmax > threshold, x * (1 / absmax) > threshold
    row, column = np.nonzero(by_division != by_reciprocal)
    some = slice(None, None, len(row) // 24)
    blocks = np.repeat(absmax[row[some]] / 2, 32, axis=1)
    blocks[:, 0], blocks[:, 1] = absmax[row[some], 0], x[row, column][some]
    return blocks.reshape(-1)


# ---- L0 and L1 ---------------------------------------------------------------------------------


def last_of_bins() -> Array:
    """Return the last quotients of some bins of the 8-bit kernels, by the formula of codes.cuh."""
    starts = np.ldexp((np.arange(110, 510, 7) - 1 / 16) / 408, -96)
    roots = starts.astype(np.float32)
    roots = np.where(roots < starts, np.nextafter(roots, np.float32(1)), roots)
    return ((roots.view(np.uint32) << 2) - 1).view(np.float32) * 4


def multiples(quotients: Array, count: int) -> Array:
    """Return `count` blocks of 32: absmax, and 31 of the quotients or the next ones, times it."""
    rng = np.random.default_rng(11)
    absmax = rng.uniform(1, 2, (count, 1)).astype(np.float32)
    near = np.concatenate([quotients, np.nextafter(quotients, np.float32(2))])
    return np.concatenate([absmax, rng.choice(near, (count, 31)) * absmax], axis=1).reshape(-1)


def quantize(device: Device) -> Calls:
    """Short and odd, beginning late, long blocks, ties, quotients close to a threshold."""
    small = np.float32(2.0**-90)  # beyond the limits of the comparison
    inputs = {
        "odd": (normal(N), 64),
        "late": (normal(N, late=True), 32),
        "two passes": (np.sort(np.abs(normal(1000))), 512),
        "ties": (ties(), 64),
        "quotients": (near_quotients(), 32),
        "small ties": (ties() * small, 64),
        "small quotients": (near_quotients() * small, 32),
    }
    for what, (x, size) in inputs.items():
        yield alike(device, blockwise.quantize_4bit, what, x, blocksize=size)


def quantize_8_bits(device: Device) -> Calls:
    """Thresholds of a map, at the edges of bins, two in a bin, one below its limit; a NaN."""
    dynamic, last = q.dynamic_codebook(), last_of_bins()
    crowded = np.array([-1, 0.5, 0.5, 0.5, 1], np.float32)
    inputs = {
        "a map": (multiples(q.thresholds(dynamic), 10), dynamic),
        "edges": (multiples(last, 20), np.repeat(last, 2)),
        "crowded": (multiples(q.thresholds(crowded), 10), crowded),
        "small": beside_a_small_threshold(),
    }
    for what, (x, levels) in inputs.items():
        yield alike(device, blockwise.quantize_blockwise, what, x, levels, blocksize=32)
    x = multiples(dynamic, 10)
    x[5], low = np.nan, np.where(np.arange(x.size) == 5, -x[0], x)  # both have code 0
    got = blockwise.quantize_blockwise(device, x, dynamic, blocksize=32)
    yield "quantize_blockwise, a NaN", got, q.quantize_blockwise(low, dynamic, blocksize=32)


def beside_a_small_threshold() -> tuple[Array, Array]:
    """Return a block of subnormal numbers, and levels whose threshold is just below a quotient."""
    x = np.ldexp(np.arange(12_300, 12_332, dtype=np.float32), -149)
    x[0] = 1.3 * 2.0**-70
    below = np.nextafter(x[16] / x[0], np.float32(0))
    return x, np.array([below, below])


def dequantize(device: Device) -> Calls:
    """Octets by four and one by one, an odd and an even end, a table of 15 levels."""
    coded = q.quantize_4bit(normal(LONG), blocksize=32)
    yield alike(device, blockwise.dequantize_4bit, "long", *coded, shape=(LONG,), blocksize=32)
    table, n = q.int4_codebook(), N - 1
    codes, absmax = q.quantize_blockwise(normal(n), table, blocksize=32)
    values, sizes = device.empty((n,), "float32"), (np.int64(n), blockwise.log2(32))
    given = q.pack_4bit(codes), absmax, *blockwise.levels(table)
    device.launch("dequantize_4bit_float32", 1, blockwise.THREADS, *given, values, *sizes)
    expected = q.dequantize_blockwise(codes, absmax, table, shape=(n,), blocksize=32)
    yield "dequantize_4bit, 15 levels", values, expected


def dequantize_16_bits(device: Device) -> Calls:
    """Rounded to each of the 16-bit types."""
    coded = q.quantize_4bit(normal(N))
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        options = {"shape": (N,), "dtype": dtype}
        yield alike(device, blockwise.dequantize_4bit, f"{dtype}", *coded, **options)


def dequantize_nested(device: Device) -> Calls:
    """More than 256 blocks: two groups of scales, and two blocks of threads."""
    n = 32 * 257 + 5
    packed, absmax = q.quantize_4bit(normal(n), blocksize=32)
    coded = q.quantize_absmax(absmax * np.linspace(1, 9, absmax.size, dtype=np.float32))
    expected = q.dequantize_4bit(packed, q.dequantize_absmax(*coded), shape=(n,), blocksize=32)
    nested_scales = (*coded, None)
    got = blockwise.dequantize_4bit(device, packed, shape=(n,), blocksize=32, nested=nested_scales)
    yield "dequantize_4bit, nested", got, expected


def scales(device: Device) -> Calls:
    """Integers, whose sum is exact in any order; two blocks of threads add them."""
    absmax = np.random.default_rng(5).integers(1, 1000, 1100).astype(np.float32)
    yield alike(device, nested.quantize_absmax, "integers", absmax)
    yield alike(device, nested.dequantize_absmax, "integers", *q.quantize_absmax(absmax))


# ---- L2 ----------------------------------------------------------------------------------------


def product(device: Device) -> Calls:
    """Integers; then normal numbers, of which a row must have the same bits in any company."""
    for out, width in ((7, 40), (3, 1096), (5, 45)):
        shape = (out, width)
        x, packed, absmax = whole_numbers(out, width)
        options: dict[str, Any] = {"shape": shape, "blocksize": 32}
        yield alike(device, products.matmul_4bit, f"{shape}", x, packed, absmax, **options)
        x = normal(3, width)
        packed, absmax = q.quantize_4bit(normal(out, width), blocksize=32)
        alone = products.matmul_4bit(device, x[:1], packed, absmax, **options)
        got = products.matmul_4bit(device, x, packed, absmax, **options)
        yield f"matmul_4bit, {shape}, a row alone and in company", got[:1], alone


def whole_numbers(out: int, width: int) -> tuple[Array, Array, Array]:
    """Return x [3, width], packed and absmax of [out, width]: every product is a small integer."""
    rng = np.random.default_rng(width)
    codes = rng.choice(np.array([0, 7, 15], np.uint8), out * width)  # levels -1, 0 and 1
    absmax = 2.0 ** rng.integers(0, 4, -(-out * width // 32))
    x = rng.integers(-15, 16, (3, width))
    return x.astype(np.float32), q.pack_4bit(codes), absmax.astype(np.float32)


# ---- L4 ----------------------------------------------------------------------------------------

STEP: dict[str, Any] = {"step": 3, "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}


def adam_32_bits(device: Device) -> Calls:
    """Two tensors in one launch, from moments that are not zero: zero hides a fused operation."""
    tensors = [
        (normal(n), normal(n, seed=1), normal(n, seed=2), normal(n, seed=3) ** 2) for n in (N, 50)
    ]
    options = {**STEP, "decoupled_weight_decay": False}
    got = adam.adam_steps(device, *map(list, zip(*tensors, strict=True)), **options)
    expected = [q.adam_step(*tensor, **options) for tensor in tensors]
    for name, results, wanted in zip("pmv", got, zip(*expected, strict=True), strict=True):
        yield f"adam_steps, {name}", results, wanted


def adam_8_bits(device: Device) -> Calls:
    """In place: new codes and scales go where the old ones are read."""
    for size in (32, 512):
        n = 2 * size + 237
        m = q.quantize_blockwise(normal(n), q.dynamic_codebook(), blocksize=size)
        v = q.quantize_blockwise(normal(n) ** 2, q.dynamic_codebook(signed=False), blocksize=size)
        param, grad = normal(n, seed=1), normal(n, seed=2)
        expected = q.adam_step_8bit(param, grad, *m, *v, **STEP, blocksize=size)
        state = [[array.copy()] for array in (param, *m, *v)]
        lists = [state[0], [grad], *state[1:]]
        adam.adam_steps_8bit(device, *lists, **STEP, blocksize=size, out=tuple(state))
        yield f"adam_steps_8bit in place, blocks of {size}", [array for [array] in state], expected


# ---- beyond 2^31 elements ----------------------------------------------------------------------

FAR = 2**31 + N
GRID = blockwise.blocks(FAR, blockwise.SPAN)
LAST = 6  # blocks of threads that run

# A block takes itself for one of the last: what its index is made of is as large as on a GPU.
FAR_BLOCKS = f"""struct Far {{ unsigned x; }};
#define blockIdx (Far{{blockIdx.x + {GRID - LAST}u}})
#define gridDim (Far{{{GRID}u}})
"""


def far(device: Device) -> Calls:
    """The last 301 elements of 2^31 + 301, coded and decoded."""
    x = normal(N).astype(np.float16)
    packed, absmax = np.zeros((FAR + 1) // 2, np.uint8), np.zeros(-(-FAR // 64), np.float32)
    values = np.zeros(FAR, np.float16)  # 4 GiB, of which a few pages are ever there
    values[-N:] = x
    table = q.codebook("nf4")
    sizes = np.int64(FAR), blockwise.log2(64)
    levels = *blockwise.levels(table), np.int32(0)
    device.launch("quantize_4bit_float16", LAST, 256, values, *levels, packed, absmax, *sizes)
    expected = q.quantize_4bit(x)
    yield (
        "quantize_4bit beyond 2^31",
        (packed[-len(expected[0]) :], absmax[-len(expected[1]) :]),
        expected,
    )
    given = packed, absmax, *levels[:2]
    device.launch("dequantize_4bit_float16", LAST, 256, *given, values, *sizes)
    back = q.dequantize_4bit(*expected, shape=(N,), dtype=np.float16)
    yield "dequantize_4bit beyond 2^31", values[-N:].copy(), back


NESTED_KERNELS = ("sum_absmax", "mean_absmax", "quantize_absmax", "dequantize_absmax")
PRODUCTS = ("1, 1, true", "4, 4, true", "any, 1, false")

CASES = {
    "quantize": Case((f"QUANTIZE_4BIT{FLOAT32}",), quantize),
    "8 bits": Case((f"QUANTIZE_BLOCKWISE{FLOAT32}",), quantize_8_bits),
    "dequantize": Case((f"DEQUANTIZE_4BIT{FLOAT32}",), dequantize),
    "dequantize, 16 bits": Case(
        ("DEQUANTIZE_4BIT(Float16, float16)", "DEQUANTIZE_4BIT(BFloat16, bfloat16)"),
        dequantize_16_bits,
    ),
    "dequantize, nested": Case((f"DEQUANTIZE_4BIT_NESTED{FLOAT32}",), dequantize_nested),
    "scales": Case(NESTED_KERNELS, scales),
    "product": Case(tuple(f"PRODUCT_4BIT(float, float32, {p})" for p in PRODUCTS), product),
    "adam": Case(("ADAM_STEP(float, float32, float, float32)",), adam_32_bits),
    "adam, 8 bits": Case(("ADAM_STEP_8BIT(float, float32, float, float32)",), adam_8_bits),
    "far": Case(
        ("QUANTIZE_4BIT(Float16, float16)", "DEQUANTIZE_4BIT(Float16, float16)"),
        far,
        runners=("host",),
        prefix=FAR_BLOCKS,
    ),
}
