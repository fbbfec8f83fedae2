"""Three ways to merge, each within the error that its docstring states."""

from fractions import Fraction

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle import merging

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
UNIT = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}
G = float(np.diff(q.nf4_codebook().astype(np.float64)).max()) / 2 + 2**-23  # half the widest gap
SLACK = 1 + 2.0**-40  # the bounds themselves are formed in float64
fixed = settings(derandomize=True, deadline=None, max_examples=60)
shapes = st.tuples(st.integers(2, 20), st.integers(2, 20))


def adapted(seed, shape, dtype=np.float32, size=0.3, r=2):
    """A weight that is far from subnormal, and an adapter with its change in float64."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal(shape) + 0.01).astype(dtype)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in [(r, shape[1]), (shape[0], r)])
    change = size * (b.astype(np.float64) @ a.astype(np.float64))
    return w, {"a": a, "b": b, "scaling": size}, change


def scales(w, blocksize):
    """The absmax over the block of each element."""
    flat = np.abs(w.astype(np.float64).reshape(-1))
    blocks = np.arange(flat.size) // blocksize
    return np.array([flat[blocks == k].max() for k in blocks]).reshape(w.shape)


def within(got, expected, bound):
    assert (np.abs(got.astype(np.float64) - expected) <= bound * SLACK + 2.0**-25).all()


@fixed
@given(st.integers(0, 999), shapes, st.sampled_from(FLOATS))
def test_merging_into_a_dense_weight_is_one_rounding(seed, shape, dtype):
    w, adapter, change = adapted(seed, shape, dtype)
    merged = q.merge(w, **adapter)
    assert (merged.dtype, merged.shape) == (w.dtype, shape)
    expected = w.astype(np.float64) + change
    within(merged, expected, UNIT[w.dtype] * np.abs(expected))
    back = q.unmerge(merged, **adapter)
    assert back.dtype == w.dtype
    lost = UNIT[w.dtype] * (np.abs(expected) + np.abs(merged.astype(np.float64) - change))
    within(back, w.astype(np.float64), lost * (1 + UNIT[w.dtype]))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5)])
def test_no_rank_is_too_large(shape):
    w, adapter, change = adapted(0, shape, r=8)
    packed, absmax = q.quantize_4bit(w)
    trained = q.dequantize_4bit(packed, absmax, shape=shape) + change
    within(q.merge(w, **adapter), w + change, UNIT[w.dtype] * np.abs(w + change))
    merged = q.merge_dequantized(packed, absmax, shape=shape, **adapter)
    within(merged, trained, UNIT[w.dtype] * np.abs(trained))
    again = q.merge_requantized(packed, absmax, shape=shape, **adapter)
    assert [each.tolist() for each in again] == [each.tolist() for each in q.quantize_4bit(merged)]


def test_the_bound_of_a_merge_is_reached():
    """1 + 2^-8 is a tie in bfloat16: u |W + D| but for the last bit."""
    one = np.ones((1, 1), ml_dtypes.bfloat16)
    change = np.full((1, 1), 2**-4, ml_dtypes.bfloat16)
    merged = q.merge(one, change, change, scaling=1.0)
    assert merged.tolist() == [[1.0]]
    assert (1 + 2**-8 - 1) / (2**-8 * (1 + 2**-8)) > 0.99


@fixed
@given(st.integers(0, 999), shapes, st.integers(1, 70), st.sampled_from([0.003, 0.05, 1.0]))
def test_the_original_differs_by_the_whole_quantization(seed, shape, blocksize, size):
    w, adapter, change = adapted(seed, shape, ml_dtypes.bfloat16, size)
    packed, absmax = q.quantize_4bit(w, blocksize=blocksize)
    decoded = q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)
    merged = q.merge(w, **adapter)
    trained, wide = decoded + change, w.astype(np.float64)
    bound = UNIT[w.dtype] * np.abs(wide + change)
    within(merged, trained, np.abs(wide - decoded) + bound)
    within(merged, trained, G * scales(w, blocksize) + bound)


@fixed
@given(st.integers(0, 999), shapes, st.integers(1, 70), st.sampled_from(FLOATS))
def test_the_decoded_weight_loses_a_rounding(seed, shape, blocksize, dtype):
    assert_dequantized(seed, shape, blocksize, dtype)


def assert_dequantized(seed, shape, blocksize, dtype):
    w, adapter, change = adapted(seed, shape)
    packed, absmax = q.quantize_4bit(w, blocksize=blocksize)
    packing = {"shape": shape, "blocksize": blocksize}
    trained = q.dequantize_4bit(packed, absmax, **packing) + change
    merged = q.merge_dequantized(packed, absmax, dtype=dtype, **packing, **adapter)
    assert (merged.dtype, merged.shape) == (np.dtype(dtype), shape)
    within(merged, trained, UNIT[merged.dtype] * np.abs(trained))


def test_a_decoded_weight_that_was_rounded_first_is_found(monkeypatch):
    right = merging.dequantize_4bit

    def in_bfloat16(*args, **kw):
        return right(*args, **kw).astype(ml_dtypes.bfloat16)

    monkeypatch.setattr(merging, "dequantize_4bit", in_bfloat16)
    with pytest.raises(AssertionError):
        assert_dequantized(0, (20, 20), 64, ml_dtypes.bfloat16)


@fixed
@given(st.integers(0, 999), shapes, st.integers(1, 70), st.sampled_from([0.003, 0.05, 1.0]))
def test_4_bits_lose_a_step(seed, shape, blocksize, size):
    assert_requantized(seed, shape, blocksize, size)


def assert_requantized(seed, shape, blocksize, size):
    w, adapter, change = adapted(seed, shape, size=size)
    packed, absmax = q.quantize_4bit(w, blocksize=blocksize)
    packing = {"shape": shape, "blocksize": blocksize}
    decoded = q.dequantize_4bit(packed, absmax, **packing)
    again = q.merge_requantized(packed, absmax, **packing, **adapter)
    merged = q.dequantize_4bit(*again, **packing).astype(np.float64)
    trained = decoded + change
    bound = G * scales(trained, blocksize) + 2.0**-24 * np.abs(trained)
    within(merged, trained, bound)
    opposite = adapter | {"scaling": -adapter["scaling"]}
    back = q.dequantize_4bit(*q.merge_requantized(*again, **packing, **opposite), **packing)
    taken_out = merged - change
    bound += G * scales(taken_out, blocksize) + 2.0**-24 * np.abs(taken_out)
    within(back, decoded, bound)


def test_another_sign_or_no_scaling_is_found(monkeypatch):
    right = merging._change
    for fault in (lambda *args: -right(*args), lambda *args: right(*args[:3], 1.0)):
        monkeypatch.setattr(merging, "_change", fault)
        with pytest.raises(AssertionError):
            assert_requantized(0, (20, 20), 64, 0.05)
        with pytest.raises(AssertionError):
            assert_dequantized(0, (20, 20), 64, np.float32)


def test_the_bound_of_4_bits_is_nearly_reached():
    """One element ends beside the midpoint of the widest gap, -1 to -0.6962."""
    packed, absmax = q.quantize_4bit(np.array([[1, -1]], np.float32))
    a, one = np.array([[0, 0.153]], np.float32), np.ones((1, 1), np.float32)
    packing = {"shape": (1, 2), "scaling": 1.0}
    again = q.merge_requantized(packed, absmax, a, one, **packing)
    error = q.dequantize_4bit(*again, shape=(1, 2))[0, 1] + 0.847
    assert 0.99 * G < error <= G


def test_a_small_change_is_lost_in_4_bits():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 64)).astype(np.float32)
    packed, absmax = q.quantize_4bit(w)
    a, b = np.full((1, 64), 0.02, np.float32), np.ones((64, 1), np.float32)
    again, scale = q.merge_requantized(packed, absmax, a, b, shape=w.shape, scaling=1.0)
    assert (again == packed).mean() > 0.9
    assert np.abs(scale - absmax).max() <= 0.0200001


def test_unmerged_from_a_dense_weight_the_codes_come_back():
    w, adapter, _ = adapted(0, (40, 50))
    packed, absmax = q.quantize_4bit(w)
    merged = q.merge_dequantized(packed, absmax, shape=w.shape, **adapter)
    again, scale = q.quantize_4bit(q.unmerge(merged, **adapter))
    assert again.tolist() == packed.tolist()
    np.testing.assert_allclose(scale, absmax, rtol=2**-20)
    coarse = q.merge_requantized(packed, absmax, shape=w.shape, **adapter)
    opposite = adapter | {"scaling": -adapter["scaling"]}
    back, _ = q.merge_requantized(*coarse, shape=w.shape, **opposite)
    assert (back != packed).mean() > 0.2


def test_the_merged_layer_is_the_adapted_layer():
    w, adapter, _ = adapted(0, (12, 9))
    packed, absmax = q.quantize_4bit(w)
    x = np.eye(9, dtype=np.float32)
    y = q.qlora_forward(x, packed, absmax, shape=w.shape, **adapter)
    merged = q.merge_dequantized(packed, absmax, shape=w.shape, **adapter)
    assert y.T.tolist() == merged.tolist()


def test_arguments_stay():
    w, adapter, _ = adapted(0, (12, 9))
    packed, absmax = q.quantize_4bit(w)
    for each in (w, packed, absmax, adapter["a"], adapter["b"]):
        each.flags.writeable = False
    merged = q.merge(w, **adapter)
    assert not np.shares_memory(merged, w)
    q.merge_requantized(packed, absmax, shape=w.shape, **adapter)
    assert Fraction(float(merged[0, 0])) != Fraction(float(w[0, 0]))
