"""Rule S9: products with a weight that is decoded a few rows at a time."""

import hashlib
import tracemalloc
import warnings
from fractions import Fraction

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle import linear4bit
from qloracle.linear4bit import Packed, row_chunks

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11, np.dtype(bfloat16): 2.0**-8}
TINY = {np.dtype(np.float32): 2.0**-150, np.dtype(np.float16): 2.0**-25, np.dtype(bfloat16): 0.0}
MIB = 2**20
fixed = settings(derandomize=True, deadline=None, max_examples=100)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def packed_weight(shape, blocksize=64, quant_type="nf4", seed=0):
    return q.quantize_4bit(normal(seed, *shape), blocksize=blocksize, quant_type=quant_type)


def fractions(values):
    return np.array([Fraction(float(v)) for v in values.flat], object).reshape(values.shape)


def assert_rounded_once(got, terms):
    """The sum over the last axis, rounded once; `terms` are Fractions.

    Each of fewer than 256 partial sums in float64 is off by 2^-53 of at most the sum of sizes.
    """
    exact, size = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
    bound = UNIT[got.dtype] * np.abs(exact) + TINY[got.dtype] + size * Fraction(2) ** -45
    assert (np.abs(fractions(got) - exact) <= bound).all()


@fixed
@given(sizes, sizes, st.integers(1, 90), st.sampled_from(["nf4", "fp4"]), st.integers(1, 300))
def test_chunks_are_the_decoded_weight(out, width, blocksize, quant_type, chunk):
    assert_chunks(out, width, blocksize, quant_type, chunk)


def assert_chunks(out, width, blocksize, quant_type, chunk):
    options = {"shape": (out, width), "blocksize": blocksize, "quant_type": quant_type}
    packed, absmax = packed_weight((out, width), blocksize, quant_type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear4bit, "CHUNK", chunk)
        chunks = list(row_chunks(Packed(packed, absmax, **options)))
    whole = q.dequantize_4bit(packed, absmax, **options)
    tops = [rows.start for rows, _ in chunks]
    assert tops == list(range(0, out, max(chunk // width, 1)))
    assert all(w.dtype == np.float32 and w.size <= max(chunk, width) for _, w in chunks)
    joined = np.concatenate([w for _, w in chunks])
    assert joined.view(np.uint32).tolist() == whole.view(np.uint32).tolist()


@fixed
@given(st.integers(1, 4), sizes, sizes, st.integers(1, 90), st.sampled_from(FLOATS), seeds)
def test_matmul_is_the_exact_sum_rounded_once(rows, out, width, blocksize, dtype, seed):
    assert_matmul(rows, out, width, blocksize, dtype, seed)


def assert_matmul(rows, out, width, blocksize, dtype, seed=0):
    packed, absmax = packed_weight((out, width), blocksize, seed=seed)
    options = {"shape": (out, width), "blocksize": blocksize}
    w = fractions(q.dequantize_4bit(packed, absmax, **options))
    x, bias = normal(seed, rows, width, dtype=dtype), normal(seed + 1, out)
    y = q.matmul_4bit(x, packed, absmax, bias=bias, **options)
    assert (y.dtype, y.shape) == (x.dtype, (rows, out))
    products = fractions(x)[:, None, :] * w  # M, out, in
    added = np.broadcast_to(fractions(bias)[:, None], (rows, out, 1))
    assert_rounded_once(y, np.concatenate([products, added], axis=-1))
    assert_rounded_once(q.matmul_4bit(x, packed, absmax, **options), products)


@fixed
@given(st.integers(1, 4), sizes, sizes, st.integers(1, 90), st.sampled_from(FLOATS), seeds)
def test_backward_is_the_exact_sum_rounded_once(rows, out, width, blocksize, dtype, seed):
    assert_backward(rows, out, width, blocksize, dtype, seed)


def assert_backward(rows, out, width, blocksize, dtype, seed=0):
    packed, absmax = packed_weight((out, width), blocksize, seed=seed)
    options = {"shape": (out, width), "blocksize": blocksize}
    w = fractions(q.dequantize_4bit(packed, absmax, **options))
    dy = normal(seed, rows, out, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear4bit, "CHUNK", 64)
        dx = q.matmul_4bit_backward(dy, packed, absmax, **options)
    assert (dx.dtype, dx.shape) == (dy.dtype, (rows, width))
    assert_rounded_once(dx, fractions(dy)[:, None, :] * w.T)


def planted_decode(fault):
    """`_decode` with a fault of chunked kernels."""
    right = linear4bit._decode

    def decode(packed, absmax, levels, start, stop, step):
        if fault == "nibbles start with the chunk":
            start, stop = start - start % 2, stop - start % 2
        if fault == "blocks start with the chunk":
            w = right(packed, np.ones_like(absmax), levels, start, stop, step)
            block = start // step + np.arange(w.size) // step
            return w * absmax[np.minimum(block, absmax.size - 1)]
        w = right(packed, absmax, levels, start, stop, step)
        if fault == "the last column is dropped":
            w[-1] = 0
        if fault == "the weight is bfloat16":
            w = w.astype(bfloat16).astype(np.float32)
        if fault == "the weight is off by an ulp":
            w = np.nextafter(w, np.float32(np.inf))
        return w

    return decode


FAULTS = [
    "the last column is dropped",
    "nibbles start with the chunk",
    "blocks start with the chunk",
    "the weight is bfloat16",
    "the weight is off by an ulp",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_chunked_decoding_is_found(monkeypatch, fault):
    monkeypatch.setattr(linear4bit, "_decode", planted_decode(fault))
    with pytest.raises(AssertionError):
        assert_chunks(5, 33, 16, "nf4", 64)
    with pytest.raises(AssertionError):
        assert_backward(2, 5, 33, 16, np.float32)
    monkeypatch.setattr(linear4bit, "CHUNK", 64)
    with pytest.raises(AssertionError):
        assert_matmul(2, 5, 33, 16, np.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7, 65), (33, 31), (5, 130)])
def test_one_hot_rows_show_the_weight_itself(shape, dtype):
    packed, absmax = packed_weight(shape)
    w = q.dequantize_4bit(packed, absmax, shape=shape, dtype=dtype)
    y = q.matmul_4bit(np.eye(shape[1], dtype=dtype), packed, absmax, shape=shape)
    dx = q.matmul_4bit_backward(np.eye(shape[0], dtype=dtype), packed, absmax, shape=shape)
    assert y.T.astype(np.float32).tolist() == w.astype(np.float32).tolist()
    assert dx.astype(np.float32).tolist() == w.astype(np.float32).tolist()


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_the_weight_is_float32_whatever_the_type_of_x(dtype):
    """Two equal codes whose scales differ by 2^-10: in 16 bits the difference is another."""
    codes = np.zeros(128, np.uint8)
    codes[[0, 64]] = 14
    absmax = np.array([1, 1 + 2**-10], np.float32)
    x = np.zeros(128, dtype)
    x[0], x[64] = -1, 1
    y = q.matmul_4bit(x, q.pack_4bit(codes), absmax, shape=(1, 128))
    assert y.astype(np.float64)[0] == pytest.approx(0.000706, rel=2**-8)


def test_wide_integers_are_exact():
    rng = np.random.default_rng(0)
    w = rng.integers(-1, 2, (64, 4096)).astype(np.float32) * 4
    x = rng.integers(-4095, 4096, (3, 4096)).astype(np.float32)
    packed, absmax = q.quantize_4bit(w)
    y = q.matmul_4bit(x, packed, absmax, shape=w.shape)
    assert y.tolist() == (x.astype(np.int64) @ w.astype(np.int64).T).tolist()
    dy = rng.integers(-4095, 4096, (3, 64)).astype(np.float32)
    dx = q.matmul_4bit_backward(dy, packed, absmax, shape=w.shape)
    assert dx.tolist() == (dy.astype(np.int64) @ w.astype(np.int64)).tolist()


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_a_float32_bias_is_not_rounded_to_the_type_of_x(dtype):
    """The product -1 cancels the bias, and its last bits are left."""
    packed, absmax = q.quantize_4bit(np.array([[-1]], np.float32))
    bias = np.array([1 + 2**-20], np.float32)
    y = q.matmul_4bit(np.array([1], dtype), packed, absmax, shape=(1, 1), bias=bias)
    assert y.astype(np.float64).tolist() == [2.0**-20]
    same = q.matmul_4bit(
        np.array([1], dtype), packed, absmax, shape=(1, 1), bias=bias.astype(dtype)
    )
    assert not same.any()


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_leading_dimensions_are_rows(lead):
    packed, absmax = packed_weight((9, 21))
    x, dy = normal(1, *lead, 21), normal(2, *lead, 9)
    y = q.matmul_4bit(x, packed, absmax, shape=(9, 21))
    dx = q.matmul_4bit_backward(dy, packed, absmax, shape=(9, 21))
    assert (y.shape, dx.shape) == ((*lead, 9), (*lead, 21))
    w = q.dequantize_4bit(packed, absmax, shape=(9, 21))
    np.testing.assert_allclose(y, x @ w.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ w, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("out", "width"), [(0, 5), (5, 0), (0, 0)])
def test_empty_weights(out, width):
    packed, absmax = np.zeros(0, np.uint8), np.zeros(0, np.float32)
    y = q.matmul_4bit(np.ones((2, width), np.float32), packed, absmax, shape=(out, width))
    dx = q.matmul_4bit_backward(np.ones((2, out), np.float32), packed, absmax, shape=(out, width))
    assert (y.shape, dx.shape) == ((2, out), (2, width))
    assert not y.any()
    assert not dx.any()
    a, b = np.zeros((0, width), np.float32), np.zeros((out, 0), np.float32)
    x = np.ones((2, width), np.float32)
    same = q.qlora_forward(x, packed, absmax, a, b, shape=(out, width), scaling=1.0)
    assert same.shape == (2, out)


def test_one_row_and_many_rows_use_the_same_weights():
    packed, absmax = packed_weight((70, 1031))
    x = normal(3, 64, 1031)
    whole = q.matmul_4bit(x, packed, absmax, shape=(70, 1031)).astype(np.float64)
    rows = [q.matmul_4bit(row, packed, absmax, shape=(70, 1031)) for row in x]
    w = q.dequantize_4bit(packed, absmax, shape=(70, 1031)).astype(np.float64)
    # both are the exact sum within float64's error, then rounded once: never more than one ulp
    slack = 2**-23 * np.abs(whole) + 1031 * 2.0**-52 * (np.abs(x) @ np.abs(w).T)
    assert (np.abs(whole - np.array(rows)) <= slack).all()


def peak(call):
    """Most bytes held at a time beyond those held before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def large_layer():
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, 4096 * 2048, dtype=np.uint8)
    absmax = rng.random(4096 * 64, dtype=np.float32)
    x, a, b = normal(0, 16, 4096), normal(1, 16, 4096), normal(2, 4096, 16)
    mask = q.draw_dropout_mask(rng, x.shape, 0.1)
    options = {"shape": (4096, 4096), "scaling": 0.7, "dropout_mask": mask}
    return x, (packed, absmax, a, b), options


@pytest.mark.parametrize("backward", [False, True])
def test_memory_stays_below_8_mib(backward):
    x, layer, options = large_layer()
    call = q.qlora_backward if backward else q.qlora_forward
    operands = (x, x, *layer) if backward else (x, *layer)
    assert peak(lambda: call(*operands, **options)) < 8 * MIB


def test_a_weight_decoded_as_a_whole_is_found(monkeypatch):
    monkeypatch.setattr(linear4bit, "CHUNK", 2**22)
    with pytest.raises(AssertionError):
        test_memory_stays_below_8_mib(backward=False)


def test_arguments_stay_and_warnings_stay_inside():
    packed, absmax = packed_weight((6, 10))
    absmax[0] = 1e-45  # products underflow
    x = np.full((3, 10), 6e4, np.float16)  # and overflow
    dy, bias = x[:, :6], np.full(6, 6e4, np.float16)
    for held in (packed, absmax, x, bias):
        held.flags.writeable = False
    before = [hashlib.sha256(held.tobytes()).digest() for held in (packed, absmax, x, bias)]
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        y = q.matmul_4bit(x, packed, absmax, shape=(6, 10), bias=bias)
        q.matmul_4bit_backward(dy, packed, absmax, shape=(6, 10))
    assert y.dtype == np.float16
    after = [hashlib.sha256(held.tobytes()).digest() for held in (packed, absmax, x, bias)]
    assert before == after


def test_strides_do_not_matter():
    packed, absmax = packed_weight((6, 10))
    x = normal(1, 10, 8).T[::2]  # 4, 10
    dy = normal(2, 4, 12)[:, ::-2]  # 4, 6
    for call, operand in ((q.matmul_4bit, x), (q.matmul_4bit_backward, dy)):
        got = call(operand, packed, absmax, shape=(6, 10))
        dense = call(np.ascontiguousarray(operand), packed, absmax, shape=(6, 10))
        assert got.tolist() == dense.tolist()
