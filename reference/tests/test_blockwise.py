"""Rules S3 to S7, against a slow second reading of them and against their own laws."""

import hashlib
import itertools
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
QUANT_TYPES = ("nf4", "fp4")
NF4 = q.nf4_codebook()
CODEBOOKS = {
    "signed": q.dynamic_codebook(),
    "unsigned": q.dynamic_codebook(signed=False),
    "nf4": NF4,
    "int4": q.int4_codebook(),
    "notes": q.notes_codebook(),
}
HALF_WIDEST_GAP = float(np.diff(NF4.astype(np.float64)).max()) / 2
fixed = settings(derandomize=True, deadline=None, max_examples=150)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)
blocksizes = st.integers(1, 70)


def vectors(elements=finite, min_size=0, max_size=200):
    return hnp.arrays(np.float32, st.integers(min_size, max_size), elements=elements)


def slow_code(value, quant_type):
    """S5 for one q, by counting, with FP4's codes written out a second time."""
    if quant_type == "fp4":
        sizes = [0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1]
        t = q.thresholds(np.array(sizes, np.float32))
        code = [0b000, 0b001, 0b110, 0b111, 0b100, 0b101, 0b010, 0b011][int((abs(value) > t).sum())]
        return code + 8 * int(value < 0)
    return int((value > q.thresholds(q.codebook(quant_type))).sum())


def slow_quantize(x, blocksize, quant_type):
    """S3 to S6, one element at a time."""
    flat = [np.float32(v) for v in x.reshape(-1)]
    absmax, codes = [], []
    for start in range(0, len(flat), blocksize):
        block = flat[start : start + blocksize]
        scale = max(abs(v) for v in block)
        absmax.append(scale)
        codes += [slow_code(v / scale if scale else np.float32(0), quant_type) for v in block]
    if len(codes) % 2:
        codes.append(slow_code(np.float32(0), quant_type))
    packed = [16 * high + low for high, low in zip(codes[::2], codes[1::2], strict=True)]
    return packed, absmax


@fixed
@given(vectors(max_size=60), blocksizes, st.sampled_from(QUANT_TYPES), st.sampled_from(FLOATS))
def test_quantize_4bit_is_the_rules(x, blocksize, quant_type, dtype):
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    x = x[np.isfinite(x)]
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    assert (packed.dtype, absmax.dtype) == (np.uint8, np.float32)
    assert packed.shape == ((x.size + 1) // 2,)
    assert absmax.shape == (-(-x.size // blocksize),)
    assert (packed.tolist(), absmax.tolist()) == slow_quantize(x, blocksize, quant_type)


@fixed
@given(vectors(), blocksizes, st.sampled_from(sorted(CODEBOOKS)))
def test_quantize_blockwise_is_the_rules(x, blocksize, name):
    levels = CODEBOOKS[name]
    codes, absmax = q.quantize_blockwise(x, levels, blocksize=blocksize)
    scale = absmax[np.arange(x.size) // blocksize]
    with np.errstate(invalid="ignore"):
        ratio = np.where(scale == 0, np.float32(0), x / scale)
    assert codes.dtype == np.uint8
    expected = (ratio[:, None] > q.thresholds(levels)).sum(axis=1)
    assert codes.tolist() == expected.tolist()


@fixed
@given(st.lists(st.integers(0, 15), max_size=50), st.integers(0, 15))
def test_packing_round_trip(codes, spare):
    codes = np.array(codes, np.uint8)
    packed = q.pack_4bit(codes, spare=spare)
    assert q.unpack_4bit(packed, codes.size).tolist() == codes.tolist()
    if codes.size % 2:
        assert packed[-1] & 15 == spare


@fixed
@given(vectors(min_size=1), vectors(), st.integers(1, 33), st.sampled_from(QUANT_TYPES))
def test_concatenation_at_a_block_boundary(x, y, blocksize, quant_type):
    blocksize *= 2  # so that a boundary is also one between bytes
    x = np.resize(x, -(-x.size // blocksize) * blocksize)
    parts = [q.quantize_4bit(part, blocksize=blocksize, quant_type=quant_type) for part in (x, y)]
    whole = q.quantize_4bit(np.concatenate([x, y]), blocksize=blocksize, quant_type=quant_type)
    for got, *pieces in zip(whole, *parts, strict=True):
        assert got.tolist() == np.concatenate(pieces).tolist()


@fixed
@given(vectors(finite.filter(lambda v: v == 0 or abs(v) > 1e-30)), blocksizes)
def test_no_element_moves_by_more_than_half_the_widest_gap(x, blocksize):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize)
    decoded = q.dequantize_4bit(packed, absmax, shape=x.shape, blocksize=blocksize)
    scale = absmax.astype(np.float64)[np.arange(x.size) // blocksize]
    # two roundings of half an ulp, of q and of the product, and the threshold's own
    assert (np.abs(x.astype(np.float64) - decoded) <= (HALF_WIDEST_GAP + 2**-23) * scale).all()


def test_the_bound_is_reached():
    assert pytest.approx(0.1519036, abs=5e-8) == HALF_WIDEST_GAP
    x = np.array([1, q.thresholds(NF4)[0]], np.float32)
    packed, absmax = q.quantize_4bit(x)
    error = np.abs(x - q.dequantize_4bit(packed, absmax, shape=(2,))).max()
    assert error == pytest.approx(HALF_WIDEST_GAP, rel=1e-6)


@fixed
@given(vectors(ordinary), st.integers(-60, 60), blocksizes, st.sampled_from(QUANT_TYPES))
def test_scaling_by_a_power_of_two_leaves_the_codes(x, k, blocksize, quant_type):
    factor = np.float32(2.0**k)
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    scaled, scale = q.quantize_4bit(x * factor, blocksize=blocksize, quant_type=quant_type)
    assert scaled.tolist() == packed.tolist()
    assert scale.tolist() == (absmax * factor).tolist()


@fixed
@given(
    st.lists(st.integers(0, 15), min_size=1, max_size=64),
    st.floats(2.0**-100, 2.0**100, width=32),
    st.sampled_from((0, 15)),
)
def test_decoded_values_keep_their_codes(codes, scale, end):
    packed = q.pack_4bit(np.array([end, *codes], np.uint8), spare=7)
    absmax = np.array([scale], np.float32)  # present in the block as the end level
    decoded = q.dequantize_4bit(packed, absmax, shape=(len(codes) + 1,), blocksize=65)
    again, scale_again = q.quantize_4bit(decoded, blocksize=65)
    assert again.tolist() == packed.tolist()
    assert scale_again.tolist() == absmax.tolist()


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_16_bit_input_is_widened_first(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)  # every number of the type
    x = x[np.isfinite(x.astype(np.float32))]
    for blocksize, quant_type in itertools.product((1, 2, 64, 1000), QUANT_TYPES):
        narrow = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
        wide = q.quantize_4bit(x.astype(np.float32), blocksize=blocksize, quant_type=quant_type)
        for a, b in zip(narrow, wide, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_every_nan_is_refused_without_a_warning(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    wrong = 2 * (2**10 if dtype == np.float16 else 2**7)  # all mantissas, both signs
    with np.errstate(all="raise"), pytest.raises(ValueError, match=f"got {wrong} non-finite"):
        q.quantize_4bit(x)


def test_the_fifteen_thresholds_and_their_neighbours():
    t = q.thresholds(NF4)
    one = np.ones_like(t)
    for value, shift in ((t, 0), (np.nextafter(t, -2 * one), 0), (np.nextafter(t, 2 * one), 1)):
        x = np.stack([value, one], axis=1)  # absmax 1 makes q = x
        codes = q.unpack_4bit(q.quantize_4bit(x, blocksize=2)[0], 30)[::2]
        assert codes.tolist() == (np.arange(15) + shift).tolist()


def test_fp4_ties_go_toward_zero_on_both_sides():
    for size, code in ((11 / 128, 1), (5 / 24, 6), (5 / 12, 4), (5 / 6, 2)):
        x = np.array([size, -size, 1, -1], np.float32)
        assert q.quantize_4bit(x, quant_type="fp4")[0].tolist() == [code << 4 | code | 8, 0x3B]


def test_fp4_zero_has_a_sign_in_the_code_only():
    x = np.array([1e-4, -1e-4, 0.0, -0.0, 1.0, 1.0], np.float32)
    packed, absmax = q.quantize_4bit(x, quant_type="fp4")
    assert packed.tolist() == [0x08, 0x00, 0x33]
    assert q.dequantize_4bit(packed, absmax, shape=(4 + 2,), quant_type="fp4")[:4].any() == 0


def test_a_float16_ratio_rounds_onto_a_threshold():
    x = np.array([-1206, 1975], np.float16)
    ratio = np.float32(-1206) / np.float32(1975)
    assert ratio == q.thresholds(NF4)[1]
    assert float(ratio) != -1206 / 1975
    assert q.quantize_4bit(x)[0].tolist() == [0x1F]
    assert np.abs(ratio - NF4).argmin() == 2  # whom a search by distance would choose


def test_reciprocal_never_matters_for_nf4_in_bfloat16():
    one_binade = np.arange(0x3F80, 0x4000, dtype=np.uint16).view(bfloat16)  # [1, 2)
    below = np.arange(0x3A00, 0x4000, dtype=np.uint16).view(bfloat16)  # [2**-11, 2)
    absmax, x = np.meshgrid(one_binade.astype(np.float32), below.astype(np.float32))
    pairs = np.stack([absmax, x], axis=-1)[x <= absmax]
    for sign in (1, -1):
        signed = pairs * np.array([1, sign], np.float32)
        codes = q.unpack_4bit(q.quantize_4bit(signed, blocksize=2)[0], signed.size)[1::2]
        product = signed[:, 1] * (np.float32(1) / signed[:, 0])
        assert (codes == np.searchsorted(q.thresholds(NF4), product)).all()


@pytest.mark.parametrize(("quant_type", "code"), [("nf4", 7), ("fp4", 0)])
def test_a_zero_block_has_the_code_of_zero_throughout(quant_type, code):
    x = np.array([0.0, -0.0, 0.0, 5.0, -5.0], np.float32)
    packed, absmax = q.quantize_4bit(x, blocksize=3, quant_type=quant_type)
    codes = q.unpack_4bit(packed, 6)
    assert codes[:3].tolist() == [code] * 3
    assert codes[5] == code  # the spare nibble
    assert absmax.tolist() == [0, 5]
    assert not np.signbit(absmax).any()
    decoded = q.dequantize_4bit(packed, absmax, shape=(5,), blocksize=3, quant_type=quant_type)
    assert decoded.tolist() == [0, 0, 0, 5, -5]


@pytest.mark.parametrize("name", CODEBOOKS)
def test_a_zero_block_keeps_the_code_of_zero_under_any_codebook(name):
    levels = CODEBOOKS[name]
    x = np.array([0.0, -0.0, 5.0], np.float32)
    codes, absmax = q.quantize_blockwise(x, levels, blocksize=2)
    zero = int((q.thresholds(levels) < 0).sum())  # notes has no zero: the level below it
    assert codes.tolist() == [zero, zero, levels.size - 1]
    decoded = q.dequantize_blockwise(codes, absmax, levels, shape=(3,), blocksize=2)
    assert decoded.tolist() == [0, 0, 5]


def test_blocks_cross_rows():
    w = np.ones((2, 20), np.float32)
    w[0, 19] = 8
    assert q.quantize_4bit(w, blocksize=16)[1].tolist() == [1, 8, 1]


def test_all_bytes_decode_to_the_table():
    packed = np.arange(256, dtype=np.uint8)
    decoded = q.dequantize_4bit(packed, np.ones(8, np.float32), shape=(16, 16, 2))
    np.testing.assert_array_equal(decoded[:, :, 0], np.repeat(NF4, 16).reshape(16, 16))
    np.testing.assert_array_equal(decoded[:, :, 1], np.tile(NF4, 16).reshape(16, 16))


@pytest.mark.parametrize("dtype", FLOATS)
def test_decode_rounds_to_float32_and_then_to_the_type(dtype):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, 5000, dtype=np.uint8)
    absmax = rng.standard_normal(20).astype(np.float32)  # of both signs
    levels = q.dynamic_codebook()
    out = q.dequantize_blockwise(codes, absmax, levels, shape=(50, 100), dtype=dtype)
    product = levels[codes].astype(np.float64) * np.repeat(absmax, 256)[:5000]  # exact
    expected = product.astype(np.float32).astype(dtype).reshape(50, 100)
    assert out.dtype == dtype
    assert out.tobytes() == expected.tobytes()


def test_float16_overflows_where_nearest_even_does():
    packed = q.pack_4bit(np.full(2, 15, np.uint8))
    scale = np.array([65519.996, 65520], np.float32)
    out = q.dequantize_4bit(packed, scale, shape=(2,), blocksize=1, dtype=np.float16)
    assert out.tolist() == [65504, np.inf]


def test_absmax_may_be_negative_or_minus_zero():
    packed = q.pack_4bit(np.array([15, 7, 15, 0], np.uint8))
    out = q.dequantize_4bit(packed, np.array([-2, -0.0], np.float32), shape=(2, 2), blocksize=2)
    assert out.tolist() == [[-2, 0], [0, 0]]
    assert np.signbit(out).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("tiny", [1e-39, 2.0**-149, 2.0**-126])
def test_subnormal_blocks_are_coded(tiny):
    x = np.array([tiny, 0, -tiny], np.float32)
    packed, absmax = q.quantize_4bit(x)
    assert packed.tolist() == [0xF7, 0x07]
    assert q.dequantize_4bit(packed, absmax, shape=(3,)).tolist() == x.tolist()


def test_no_elements_and_one():
    for shape, n in (((), 1), ((0,), 0), ((3, 0, 2), 0), ((1, 1), 1)):
        x = np.full(shape, -3, np.float32)
        packed, absmax = q.quantize_4bit(x)
        assert packed.tolist() == [0x07] * n
        assert absmax.tolist() == [3.0] * n
        out = q.dequantize_4bit(packed, absmax, shape=shape, dtype=bfloat16)
        assert (out.shape, out.dtype) == (shape, bfloat16)
        assert (out == -3).all()
        codes, absmax = q.quantize_blockwise(x, NF4)
        assert q.dequantize_blockwise(codes, absmax, NF4, shape=shape).shape == shape
    assert q.quantize_4bit(np.float16(2))[0].tolist() == [0xF7]
    assert q.quantize_4bit(bfloat16(2))[0].tolist() == [0xF7]


def test_a_blocksize_beyond_the_end_is_one_short_block():
    x = np.arange(5, dtype=np.float32)
    for blocksize in (5, 6, 4096, 10**30, np.int64(7)):
        packed, absmax = q.quantize_4bit(x, blocksize=blocksize)
        assert absmax.tolist() == [4]
        assert q.dequantize_4bit(packed, absmax, shape=[5], blocksize=blocksize)[4] == 4


def test_layout_does_not_matter_and_input_stays():
    rng = np.random.default_rng(5)
    base = rng.standard_normal((12, 14)).astype(np.float32)
    raw = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32)  # unaligned
    views = [base[::2], base[:, ::-3], base.T, np.asfortranarray(base), raw, base[2:, 1:]]
    for view in views:
        before = hashlib.sha256(base.tobytes()).digest()
        plain = np.array(view, order="C")
        for got, want in zip(
            q.quantize_4bit(view, blocksize=16), q.quantize_4bit(plain, blocksize=16), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        assert hashlib.sha256(base.tobytes()).digest() == before


def test_results_share_no_memory_with_arguments():
    x, ones = np.ones(8, np.float32), np.ones(8, np.float32)
    packed, absmax = q.quantize_4bit(x, blocksize=1)
    codes = q.unpack_4bit(packed, 8)
    decoded = q.dequantize_4bit(packed, ones, shape=(8,), blocksize=1)
    assert not np.shares_memory(absmax, x)
    assert not np.shares_memory(decoded, ones)
    assert not np.shares_memory(codes, packed)
    assert not np.shares_memory(q.pack_4bit(codes), codes)


def test_numpys_warnings_stay_inside():
    x = np.array([3e38, 1e-45, 0, 0, 1e-45, 0], np.float32)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        packed, absmax = q.quantize_4bit(x, blocksize=2)
        out = q.dequantize_4bit(packed, absmax, shape=(6,), blocksize=2, dtype=np.float16)
        q.dequantize_4bit(packed, absmax, shape=(6,), blocksize=2, dtype=bfloat16)
    assert out.tolist() == [np.inf, 0, 0, 0, 0, 0]


def test_wide_levels_overflow_to_infinity_in_float32():
    levels = np.array([0, 4], np.float32)
    out = q.dequantize_blockwise(
        np.array([1], np.uint8), np.array([3e38], np.float32), levels, shape=(1,)
    )
    assert out.tolist() == [np.inf]


def test_equal_levels_take_the_lowest_code():
    levels = np.array([-1, 0, 0, 0, 1], np.float32)
    codes, _ = q.quantize_blockwise(np.array([0, 1e-6, 1], np.float32), levels)
    assert codes.tolist() == [1, 3, 4]


def test_unsigned_map_sends_negative_values_to_zero():
    levels = q.dynamic_codebook(signed=False)
    codes, absmax = q.quantize_blockwise(np.array([-1, -0.1, 0, 1], np.float32), levels)
    assert codes.tolist() == [0, 0, 0, 255]
    assert absmax.tolist() == [1]


def test_mean_square_error_on_normal_weights():
    x = np.random.default_rng(0).standard_normal(1_280_000).astype(np.float32)
    measured = {}
    for quant_type in QUANT_TYPES:
        packed, absmax = q.quantize_4bit(x, quant_type=quant_type)
        form = {"shape": x.shape, "quant_type": quant_type}
        measured[quant_type] = q.dequantize_4bit(packed, absmax, **form)
    for name in ("int4", "notes"):
        codes, absmax = q.quantize_blockwise(x, CODEBOOKS[name], blocksize=64)
        form = {"shape": x.shape, "blocksize": 64}
        measured[name] = q.dequantize_blockwise(codes, absmax, CODEBOOKS[name], **form)
    errors = {name: np.mean((x - back) ** 2, dtype=np.float64) for name, back in measured.items()}
    known = {"nf4": 0.008460, "fp4": 0.014868, "int4": 0.011577, "notes": 0.008745}
    assert errors == pytest.approx(known, rel=0.01)
