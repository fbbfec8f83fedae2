"""The product with a packed weight, and LoRA beside it, compiled for the CPU.

Sums are judged by the bounds of S9 and S10, all else to the bit: the weights that one-hot rows
show, a row in any company, another place in memory, another order of threads.
"""

import math
import re
from functools import partial
from types import SimpleNamespace

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle as q
from qloracle_conformance import verify
from qloracle_gpu.devices.gcc import Host, unavailable
from qloracle_gpu.operations import lora, products
from qloracle_gpu.operations.arguments import BLOCKSIZES

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
TABLES = ("nf4", "fp4")
UNIT = {np.float32: 2.0**-24, np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8}
TINY = {np.float32: 2.0**-150, np.float16: 2.0**-25, ml_dtypes.bfloat16: 2.0**-134}
fixed = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Unaligned(Host):
    """Results begin one element into their memory, as views of a caller's may."""

    def empty(self, shape, dtype):
        return super().empty((math.prod(shape) + 1,), dtype)[1:].reshape(shape)


class Watched(Host):
    """It keeps the names of the kernels that were launched, and the most float32 at once."""

    def __init__(self):
        super().__init__()
        self.launched, self.most = [], 0

    def launch(self, kernel, grid, block, *arguments):
        self.launched.append(kernel)
        super().launch(kernel, grid, block, *arguments)

    def empty(self, shape, dtype):
        if dtype == "float32":
            self.most = max(self.most, math.prod(shape))
        return super().empty(shape, dtype)


@pytest.fixture(scope="module")
def host():
    return Host()


def shifted(array):
    """The same numbers one element into their memory."""
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.reshape(-1)
    return memory[1:].reshape(array.shape)


def bits(*arrays):
    """Type, shape and bytes of each array."""
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def numbers(rng, shape, dtype=np.float32):
    return np.asarray(rng.standard_normal(shape), dtype)


def weight(rng, shape, blocksize=64, quant_type="nf4"):
    """A packed weight, its scales, and the options that describe it."""
    packed, absmax = q.quantize_4bit(
        numbers(rng, shape), blocksize=blocksize, quant_type=quant_type
    )
    return packed, absmax, {"shape": shape, "blocksize": blocksize, "quant_type": quant_type}


def within(found, exact, sizes, terms):
    """Tell whether sums are within their bound: so many terms, whose sizes add up to `sizes`."""
    dtype = found.dtype.type
    e = terms * 2.0**-24 / (1 - terms * 2.0**-24) * sizes + terms * 2.0**-149
    bound = e + UNIT[dtype] * (np.abs(exact) + e) + TINY[dtype]
    return bool((np.abs(found.astype(np.float64) - exact) <= bound).all())


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
layers = given(
    rng=seeds,
    out=st.integers(1, 70),
    width=st.one_of(st.integers(1, 90), st.sampled_from([255, 256, 264, 513, 1032, 2100, 4104])),
    blocksize=st.sampled_from(BLOCKSIZES),
    quant_type=st.sampled_from(TABLES),
    dtype=st.sampled_from(FLOATS),
    m=st.integers(1, 20),
)


# ---- L2 ------------------------------------------------------------------------------------------


@fixed
@layers
def test_products_are_within_their_bounds(host, rng, out, width, blocksize, quant_type, dtype, m):
    packed, absmax, form = weight(rng, (out, width), blocksize, quant_type)
    w = q.dequantize_4bit(packed, absmax, **form).astype(np.float64)
    x, dy = numbers(rng, (m, width), dtype), numbers(rng, (m, out), dtype)
    bias = numbers(rng, (out,), rng.choice([np.float32, dtype]))
    found = products.matmul_4bit(host, x, packed, absmax, **form, bias=bias)
    x, wide, bias = x.astype(np.float64), dy.astype(np.float64), bias.astype(np.float64)
    assert within(found, x @ w.T + bias, np.abs(x) @ np.abs(w).T + np.abs(bias), width + 1)
    found = products.matmul_4bit_backward(host, dy, packed, absmax, **form)
    assert within(found, wide @ w, np.abs(wide) @ np.abs(w), out + 1)


@fixed
@layers
def test_a_row_is_the_same_in_any_company(host, rng, out, width, blocksize, quant_type, dtype, m):
    packed, absmax, form = weight(rng, (out, width), blocksize, quant_type)
    x, bias = numbers(rng, (16, width), dtype), numbers(rng, (out,), dtype)
    all_rows = products.matmul_4bit(host, x, packed, absmax, **form, bias=bias)
    rows = slice(m % 16, m % 16 + int(rng.integers(1, 17)))
    some = products.matmul_4bit(host, x[rows], packed, absmax, **form, bias=bias)
    assert bits(some) == bits(all_rows[rows])


@fixed
@layers
def test_a_product_does_not_depend_on_where_arrays_begin(
    host, rng, out, width, blocksize, quant_type, dtype, m
):
    packed, absmax, form = weight(rng, (out, width), blocksize, quant_type)
    x = numbers(rng, (m, width), dtype)
    here = products.matmul_4bit(host, x, packed, absmax, **form)
    for views in ((shifted(x), packed, absmax), (x, shifted(packed), shifted(absmax))):
        assert bits(products.matmul_4bit(Unaligned(), *views, **form)) == bits(here)


def test_threads_in_another_order_give_the_same_bits():
    rng = np.random.default_rng(0)
    packed, absmax, form = weight(rng, (37, 1032))
    x = numbers(rng, (5, 1032))
    found = [products.matmul_4bit(Host(seed=s), x, packed, absmax, **form) for s in (0, 0, 1, 2)]
    assert all(bits(again) == bits(found[0]) for again in found)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(9, 64), (7, 45), (4, 513), (5, 1032)])
@pytest.mark.parametrize("quant_type", TABLES)
def test_one_hot_rows_show_the_decoded_weights(host, quant_type, shape, dtype):
    """Float32 weights, whatever the type of x, in the launch for few rows and beyond."""
    packed, absmax, form = weight(np.random.default_rng(1), shape, 32, quant_type)
    w = q.dequantize_4bit(packed, absmax, **form)
    x = np.eye(shape[1], dtype=dtype)[-40:]
    for rows in (x[-1:], x[-16:], x[-17:], x):
        y = products.matmul_4bit(host, rows, packed, absmax, **form)
        assert np.array_equal(y, w.T[-len(rows) :].astype(dtype))
    dy = np.eye(shape[0], dtype=dtype)
    dx = products.matmul_4bit_backward(host, dy, packed, absmax, **form)
    assert np.array_equal(dx, w.astype(dtype))


def test_wide_integers_are_exact_in_every_order(host):
    rng = np.random.default_rng(2)
    shape = 33, 4096
    packed = rng.choice([0x00, 0x07, 0x70, 0xFF, 0x0F, 0x77], shape[0] * shape[1] // 2)
    absmax = np.ldexp(np.ones(shape[0] * 64, np.float32), rng.integers(-2, 3, shape[0] * 64))
    arrays, form = (packed.astype(np.uint8), absmax), {"shape": shape}
    for m in (1, 3, 16, 17):
        x = rng.integers(-255, 256, (m, 4096)).astype(np.float32)
        expected = q.matmul_4bit(x, *arrays, **form)
        assert np.array_equal(products.matmul_4bit(host, x, *arrays, **form), expected)


@pytest.mark.parametrize("m", [2, 20])
@pytest.mark.parametrize("own_map", [False, True])
def test_nested_scales_are_the_decoded_ones(host, m, own_map):
    rng = np.random.default_rng(3)
    packed, absmax, form = weight(rng, (300, 72), 32)  # 675 scales in three groups
    codebook = np.linspace(-1, 1, 50, dtype=np.float32) if own_map else None
    codes, nested_absmax, offset = q.quantize_absmax(absmax, codebook=codebook)
    state = codes, nested_absmax, np.asarray(offset), codebook
    absmax = q.dequantize_absmax(codes, nested_absmax, offset, codebook=codebook)
    x, dy = numbers(rng, (m, 72)), numbers(rng, (m, 300))
    a, b = numbers(rng, (2, 72)), numbers(rng, (300, 2))
    for name, arrays, more in (
        ("matmul_4bit", (x,), ()),
        ("matmul_4bit_backward", (dy,), ()),
        ("qlora_forward", (x,), (a, b)),
        ("qlora_backward", (dy, x), (a, b)),
    ):
        function = partial(getattr(lora if "lora" in name else products, name), host)
        options = {**form, "scaling": 0.7} if more else form
        expected = function(*arrays, packed, absmax, *more, **options)
        found = function(*arrays, packed, None, *more, **options, nested=state)
        assert bits(*as_tuple(found)) == bits(*as_tuple(expected))


@pytest.mark.parametrize(("shape", "blocksize"), [((50, 45), 64), ((9, 301), 4096), ((3, 700), 32)])
def test_many_rows_decode_a_few_rows_of_the_weight_at_a_time(monkeypatch, shape, blocksize):
    """Slices begin within a block, and within a byte."""
    monkeypatch.setattr(Watched, "chunk", 1000)
    machine, rng = Watched(), np.random.default_rng(4)
    packed, absmax, form = weight(rng, shape, blocksize)
    w = q.dequantize_4bit(packed, absmax, **form)
    chunks = list(
        products.decoded(machine, products.weight_of(machine, packed, absmax, *form.values()))
    )
    assert len(chunks) > 2
    assert machine.most < 1000 + blocksize
    assert bits(np.concatenate([part for _, part in chunks])) == bits(w)
    x = np.eye(shape[1], dtype=np.float32)
    assert np.array_equal(products.matmul_4bit(machine, x, packed, absmax, **form), w.T)
    dy = np.eye(shape[0], dtype=np.float32)
    assert np.array_equal(products.matmul_4bit_backward(machine, dy, packed, absmax, **form), w)


def test_the_kernel_is_chosen_by_rows_and_form():
    rng = np.random.default_rng(5)
    for width, begin, m, kernel in (
        (64, 0, 1, "1_float32"),
        (64, 0, 3, "4_float32"),
        (64, 0, 16, "16_float32"),
        (64, 1, 3, "any_float32"),
        (63, 0, 3, "any_float32"),
    ):
        machine, (packed, absmax, form) = Watched(), weight(rng, (5, width))
        x = numbers(rng, (m, width))
        products.matmul_4bit(machine, shifted(x) if begin else x, packed, absmax, **form)
        assert machine.launched == [f"product_4bit_{kernel}"]


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 9), (0,), (2, 0)])
@pytest.mark.parametrize("shape", [(5, 64), (0, 64), (5, 0), (0, 0)])
def test_leading_dimensions_and_empty_ones(host, leading, shape):
    rng = np.random.default_rng(6)
    packed, absmax, form = weight(rng, shape)
    x, dy = numbers(rng, (*leading, shape[1])), numbers(rng, (*leading, shape[0]))
    bias = numbers(rng, shape[:1])
    y = products.matmul_4bit(host, x, packed, absmax, **form, bias=bias)
    expected = q.matmul_4bit(x, packed, absmax, **form, bias=bias)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    assert np.allclose(y, expected, atol=1e-4)
    dx = products.matmul_4bit_backward(host, dy, packed, absmax, **form)
    expected = q.matmul_4bit_backward(dy, packed, absmax, **form)
    assert (dx.dtype, dx.shape) == (expected.dtype, expected.shape)
    assert np.allclose(dx, expected, atol=1e-4)


def test_float16_overflows_to_infinity(host):
    packed, absmax = np.full(32, 0xFF, np.uint8), np.full(1, 2048, np.float32)
    x, form = np.ones((1, 64), np.float16), {"shape": (1, 64)}
    assert products.matmul_4bit(host, x, packed, absmax, **form).tolist() == [[np.inf]]
    x = np.repeat(x, 20, axis=0)
    assert (products.matmul_4bit(host, x, packed, absmax, **form) == np.inf).all()


# ---- L3 ------------------------------------------------------------------------------------------


def layer(rng, dtype, wide, masked, integers=False):
    """A layer with an adapter: dense and packed, x, dy, A, B, and the options."""
    out, width, m = (int(n) for n in rng.integers(1, 70, 3))
    r = int(rng.integers(1, min(out, width) + 5))
    draw = (lambda *s: rng.integers(-2, 3, s)) if integers else (lambda *s: rng.standard_normal(s))
    own = np.float32 if wide else dtype
    arrays = draw(m, width), draw(m, out), draw(out, width), draw(r, width), draw(out, r)
    types = dtype, dtype, dtype, own, own
    x, dy, w, a, b = (np.asarray(n, t) for n, t in zip(arrays, types, strict=True))
    mask = (rng.random(x.shape) < 0.5).astype(dtype) * dtype(2) if masked else None
    scaling = 0.5 if integers else float(rng.choice([0.7, 1 / 3, 16 / math.sqrt(8)]))
    return x, dy, w, a, b, {"scaling": scaling, "dropout_mask": mask}


flags = given(rng=seeds, dtype=st.sampled_from(FLOATS), wide=st.booleans(), masked=st.booleans())


@fixed
@flags
def test_whole_numbers_are_exact(host, rng, dtype, wide, masked):
    x, dy, w, a, b, options = layer(rng, dtype, wide, masked, integers=True)
    y = lora.lora_forward(host, x, w, a, b, **options)
    assert bits(y + dtype(0)) == bits(q.lora_forward(x, w, a, b, **options) + dtype(0))
    found = lora.lora_backward(host, dy, x, w, a, b, **options)
    expected = q.lora_backward(dy, x, w, a, b, **options)
    zeros = [np.zeros_like(part) for part in expected]  # + 0: the sign of a zero is free
    assert bits(*map(np.add, found, zeros)) == bits(*map(np.add, expected, zeros))


@fixed
@flags
def test_adapters_are_within_their_bounds(host, rng, dtype, wide, masked):
    x, dy, w, a, b, options = layer(rng, dtype, wide, masked)
    packed, absmax = q.quantize_4bit(w)
    codes = {"shape": w.shape, **options}
    decoded = q.dequantize_4bit(packed, absmax, shape=w.shape)
    y = lora.lora_forward(host, x, w, a, b, **options)
    assert judged_forward(y, x, w, a, b, **options)
    y = lora.qlora_forward(host, x, packed, absmax, a, b, **codes)
    assert judged_forward(y, x, decoded, a, b, **options)
    gradients = lora.lora_backward(host, dy, x, w, a, b, **options)
    assert judged_backward(gradients, dy, x, w, a, b, **options) == [True] * 3
    gradients = lora.qlora_backward(host, dy, x, packed, absmax, a, b, **codes)
    assert judged_backward(gradients, dy, x, decoded, a, b, **options) == [True] * 3


def widened(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def judged_forward(y, x, w, a, b, *, scaling, dropout_mask):
    x, w, a, b = widened(x, w, a, b)
    masked = x if dropout_mask is None else x * dropout_mask.astype(np.float64)
    exact = x @ w.T + scaling * masked @ a.T @ b.T
    x, w, a, b, masked = map(np.abs, (x, w, a, b, masked))
    return within(y, exact, x @ w.T + scaling * masked @ a.T @ b.T, x.shape[1] + len(a) + 4)


def judged_backward(gradients, dy, x, w, a, b, *, scaling, dropout_mask):
    dy, x, w, a, b = widened(dy, x, w, a, b)
    mask = np.ones(x.shape) if dropout_mask is None else dropout_mask.astype(np.float64)
    (m, out), width, r = dy.shape, x.shape[1], len(a)

    def formed(dy, x, w, a, b):
        g, h = dy @ b, (x * mask) @ a.T
        return dy @ w + scaling * (g @ a) * mask, scaling * g.T @ (x * mask), scaling * dy.T @ h

    exact, sizes = formed(dy, x, w, a, b), formed(*map(np.abs, (dy, x, w, a, b)))
    terms = out + r + 4, out + m + 3, width + m + 3
    return [within(*each) for each in zip(gradients, exact, sizes, terms, strict=True)]


def test_a_layer_of_few_rows_takes_one_launch():
    rng, machine = np.random.default_rng(7), Watched()
    packed, absmax, form = weight(rng, (20, 64))
    x, a, b = numbers(rng, (3, 64), np.float16), numbers(rng, (4, 64)), numbers(rng, (20, 4))
    lora.qlora_forward(machine, x, packed, absmax, a, b, **form, scaling=1.0)
    assert machine.launched == ["product_4bit_4_float32"]


# ---- arguments -----------------------------------------------------------------------------------

X, W, A, B = (np.ones(shape, np.float32) for shape in ((2, 64), (8, 64), (2, 64), (8, 2)))
PACKED, ABSMAX = q.quantize_4bit(W)
L = {"shape": (8, 64)}
S = {"scaling": 1.0}
SAME_AS_THE_REFERENCE = [
    ("matmul_4bit", (X[:, :63], PACKED, ABSMAX), L),
    ("matmul_4bit", (X.astype(np.float64), PACKED, ABSMAX), L),
    ("matmul_4bit", ([1.0], PACKED, ABSMAX), L),
    ("matmul_4bit", (X, PACKED[1:], ABSMAX), L),
    ("matmul_4bit", (X, PACKED, ABSMAX[1:]), L),
    ("matmul_4bit", (X, PACKED, ABSMAX), {"shape": (8, 64, 1)}),
    ("matmul_4bit", (X, PACKED, ABSMAX), {"shape": 8}),
    ("matmul_4bit", (X, PACKED, ABSMAX), {**L, "quant_type": "nf5"}),
    ("matmul_4bit", (X, PACKED, ABSMAX), {**L, "blocksize": 64.0}),
    ("matmul_4bit", (X, PACKED, ABSMAX), {**L, "bias": X[0, :7]}),
    ("matmul_4bit", (X, PACKED, ABSMAX), {**L, "bias": X[0, :8].astype(np.float16)}),
    ("matmul_4bit_backward", (X, PACKED, ABSMAX), L),
    ("lora_forward", (X, W[0], A, B), S),
    ("lora_forward", (X, W, A[:, :63], B), S),
    ("lora_forward", (X, W, A[0, 0], B), S),
    ("lora_forward", (X, W, A, B[:7]), S),
    ("lora_forward", (X, W, A.astype(np.float16), B), S),
    ("lora_forward", (X, W, A, B.astype(np.float16)), S),
    ("lora_forward", (X, W, A, B), {"scaling": "1"}),
    ("lora_forward", (X, W, A, B), {"scaling": math.nan}),
    ("lora_forward", (X, W, A, B), {**S, "dropout_mask": X[:1]}),
    ("lora_forward", (X, W, A, B), {**S, "dropout_mask": X.astype(np.float16)}),
    ("lora_backward", (X, X, W, A, B), S),
    ("lora_backward", (X[:, :8].astype(np.float16), X, W, A, B), S),
    ("qlora_forward", (X, PACKED[1:], ABSMAX, A, B), {**L, **S}),
    ("qlora_backward", (X, X, PACKED, ABSMAX, A, B), {**L, **S}),
]


@pytest.mark.parametrize(("name", "arrays", "options"), SAME_AS_THE_REFERENCE)
def test_bad_arguments_raise_what_the_reference_raises(host, name, arrays, options):
    function = getattr(lora if "lora" in name else products, name)
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(q, name)(*arrays, **options)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        function(host, *arrays, **options)


def test_scales_are_given_once(host):
    state = *q.quantize_absmax(ABSMAX), None
    for scales in ({}, {"absmax": ABSMAX, "nested": state}):
        with pytest.raises(TypeError, match="absmax or nested must be given, and not both"):
            products.matmul_4bit(host, X, PACKED, **scales, **L)


def test_a_row_that_is_too_long_to_be_counted_in_32_bits(host, monkeypatch):
    monkeypatch.setattr(products, "WIDEST", 63)
    with pytest.raises(ValueError, match=r"rows of at most 2\*\*30 elements, got \(8, 64\)"):
        products.matmul_4bit(host, X, PACKED, ABSMAX, **L)


# ---- the kit -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kit_passes_products_and_layers(host):
    functions = [
        products.matmul_4bit,
        products.matmul_4bit_backward,
        lora.lora_forward,
        lora.lora_backward,
        lora.qlora_forward,
        lora.qlora_backward,
    ]
    offered = {function.__name__: partial(function, host) for function in functions}
    limits = {"blocksize": list(BLOCKSIZES)}
    assert verify(SimpleNamespace(**offered, limits=limits), profile="smoke").ok
