"""Rule S8: the scales of the scales."""

import hashlib
import math
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q

fixed = settings(derandomize=True, deadline=None, max_examples=150)
scales = hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(0, 2.0**100, width=32))


def normal_scales(blocks, seed=0):
    x = np.random.default_rng(seed).standard_normal((blocks, 64)).astype(np.float32)
    return np.abs(x).max(axis=1)


@fixed
@given(scales, st.integers(1, 300))
def test_quantize_absmax_is_the_rule(absmax, blocksize):
    codes, nested, offset = q.quantize_absmax(absmax, blocksize=blocksize)
    mean = math.fsum(float(a) for a in absmax) / absmax.size if absmax.size else 0.0
    assert offset == np.float32(mean)
    assert isinstance(offset, np.float32)
    expected = q.quantize_blockwise(absmax - offset, q.dynamic_codebook(), blocksize=blocksize)
    assert codes.tolist() == expected[0].tolist()
    assert nested.tolist() == expected[1].tolist()
    assert (codes.dtype, nested.dtype) == (np.uint8, np.float32)


@fixed
@given(scales, st.integers(1, 300))
def test_decode_rounds_after_the_product_and_after_the_sum(absmax, blocksize):
    codes, nested, offset = q.quantize_absmax(absmax, blocksize=blocksize)
    decoded = q.dequantize_absmax(codes, nested, offset, blocksize=blocksize)
    levels = q.dynamic_codebook()
    by_hand = [
        np.float32(np.float32(levels[code] * nested[i // blocksize]) + offset)
        for i, code in enumerate(codes)
    ]
    assert decoded.dtype == np.float32
    assert decoded.tolist() == [float(value) for value in by_hand]


@fixed
@given(st.permutations(list(range(40))))
def test_the_offset_does_not_depend_on_the_order(order):
    absmax = normal_scales(40)
    assert q.quantize_absmax(absmax[order])[2] == q.quantize_absmax(absmax)[2]


def test_offset_of_integers_is_exact():
    absmax = np.arange(1, 1025, dtype=np.float32) * np.float32(2.0**-20)
    assert q.quantize_absmax(absmax)[2] == np.float32(512.5 * 2.0**-20)


def test_no_scale_and_one_scale():
    codes, nested, offset = q.quantize_absmax(np.zeros(0, np.float32))
    assert (codes.size, nested.size, offset) == (0, 0, 0)
    assert q.dequantize_absmax(codes, nested, offset).shape == (0,)
    codes, nested, offset = q.quantize_absmax(np.array([0.7], np.float32))
    assert (codes.tolist(), nested.tolist(), offset) == ([127], [0], np.float32(0.7))


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_equal_scales_come_back_exactly(n):
    absmax = np.full(n, 0.1, np.float32)
    assert q.dequantize_absmax(*q.quantize_absmax(absmax)).tolist() == absmax.tolist()


def test_a_scale_may_come_back_negative():
    absmax = np.array([0, 0.25, 1, 1], np.float32)  # mean 0.5625; 0.25 is 5/9 of the way down
    levels = np.array([-1, 0, 1], np.float32)
    decoded = q.dequantize_absmax(*q.quantize_absmax(absmax, codebook=levels), codebook=levels)
    assert decoded.tolist() == [0, 0, 1.125, 1.125]
    codes, nested = np.array([0], np.uint8), np.array([1], np.float32)
    negative = q.dequantize_absmax(codes, nested, np.float32(0.5))
    assert negative.tolist() == [float(q.dynamic_codebook()[0] + np.float32(0.5))]
    assert negative[0] < 0


def test_zero_blocks_stay_zero_although_their_scale_does_not():
    w = np.zeros((4, 64), np.float32)
    w[1:] = np.array([[1], [2], [5]])
    packed, absmax = q.quantize_4bit(w)
    decoded_absmax = q.dequantize_absmax(*q.quantize_absmax(absmax))
    assert decoded_absmax[0] != 0
    decoded = q.dequantize_4bit(packed, decoded_absmax, shape=w.shape)
    assert not decoded[0].any()


def test_each_group_has_its_own_scale():
    absmax = np.concatenate([normal_scales(256), 100 * normal_scales(3)])
    _, nested, offset = q.quantize_absmax(absmax)
    assert nested.shape == (2,)
    assert nested[1] == np.abs(absmax[256:] - offset).max()


def test_another_map_can_be_passed():
    levels = np.linspace(-1, 1, 255).astype(np.float32)
    absmax = normal_scales(300)
    codes, nested, offset = q.quantize_absmax(absmax, codebook=levels, blocksize=64)
    decoded = q.dequantize_absmax(codes, nested, offset, codebook=levels, blocksize=64)
    assert np.abs(decoded - absmax).max() <= nested.max() / 254 * 1.001
    assert codes.tolist() != q.quantize_absmax(absmax, blocksize=64)[0].tolist()


def test_offset_may_be_a_0d_array():
    codes, nested, offset = q.quantize_absmax(normal_scales(10))
    same = q.dequantize_absmax(codes, nested, np.array(offset))
    assert same.tolist() == q.dequantize_absmax(codes, nested, offset).tolist()


def test_subtracting_the_mean_pays():
    absmax = normal_scales(25_600)
    codes, nested, offset = q.quantize_absmax(absmax)
    with_mean = np.abs(q.dequantize_absmax(codes, nested, offset) / absmax - 1).mean()
    codes, nested = q.quantize_blockwise(absmax, q.dynamic_codebook())
    kept = q.dequantize_blockwise(codes, nested, q.dynamic_codebook(), shape=absmax.shape)
    assert np.abs(kept / absmax - 1).mean() / with_mean == pytest.approx(3.5, abs=0.1)


def test_bits_per_weight():
    assert q.bits_per_weight() == 4.126953125
    assert q.bits_per_weight(64, None) == 4.5
    assert q.bits_per_weight(16) == 4.5078125


def test_arguments_stay_and_warnings_stay_inside():
    absmax = np.array([3.4e38, 0, 1e-45, 3.4e38], np.float32)
    before = hashlib.sha256(absmax.tobytes()).digest()
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        decoded = q.dequantize_absmax(*q.quantize_absmax(absmax))
        infinite = q.dequantize_absmax(
            np.array([255], np.uint8), np.array([3e38], np.float32), np.float32(3e38)
        )
    assert hashlib.sha256(absmax.tobytes()).digest() == before
    assert np.isfinite(decoded).all()
    assert infinite.tolist() == [np.inf]
