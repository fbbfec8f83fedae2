"""The exact oracle against values worked out by hand, and against the reference, bit for bit."""

import subprocess
import sys
from bisect import bisect_right

import ml_dtypes
import numpy as np
import pytest

import qloracle
from qloracle_conformance.judging.exact import rational, softfloat

QUANT_TYPES = ["nf4", "fp4"]
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
every_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
every_quant_type = pytest.mark.parametrize("quant_type", QUANT_TYPES)


def floats(*bits):
    return np.array(bits, np.uint32).view(np.float32)


def codes(x, **options):
    packed, absmax = rational.quantize_4bit(np.float32(x), **options)
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[: np.size(x)].tolist(), absmax


def test_it_shares_no_code_with_the_reference():
    code = (
        "import sys, qloracle_conformance.judging.exact.rational; print('qloracle' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# S1, S2


def test_nf4_is_the_published_table():
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert floats(*rational.NF4).tolist() == published


def test_the_levels_of_fp4_are_correctly_rounded_fractions():
    twelfths = np.float32([0, 1 / 16, 8, 12, 4, 6, 2, 3]) / np.float32(12)
    assert floats(*rational.LEVELS["fp4"]).tolist() == [*twelfths, *-twelfths]


@pytest.mark.parametrize(
    ("signed", "zero", "ends"),
    [(True, 127, [0xBF7E3333, 0x3F7E3333, 0x3F800000]), (False, 0, [0, 0x3F7F199A, 0x3F800000])],
)
def test_a_dynamic_map_has_256_levels_in_order(signed, zero, ends):
    bits = rational.dynamic_levels(signed)
    assert len(bits) == 256
    assert (np.diff(floats(*bits)) > 0).all()
    assert bits[zero] == 0
    assert [bits[0], *bits[254:]] == ends


@pytest.mark.parametrize("signed", [True, False])
def test_the_recipes_products_and_sums_are_exact_in_float64(signed):
    low = float(np.float32(0.1))
    for cells in (2 ** (i + (not signed)) for i in range(7)):
        step = softfloat.exact(softfloat.nearest((1 - softfloat.exact(0x3DCCCCCD)) / cells))
        assert all(
            low + float(step) * k == softfloat.exact(0x3DCCCCCD) + step * k for k in range(cells)
        )


def test_dynamic_maps_are_the_references():
    for signed in (True, False):
        theirs = qloracle.dynamic_codebook(signed=signed).view(np.uint32)
        assert theirs.tolist() == list(rational.dynamic_levels(signed))


@every_quant_type
def test_tables_are_the_references(quant_type):
    theirs = qloracle.codebook(quant_type).view(np.uint32)
    assert theirs.tolist() == rational.LEVELS[quant_type]


# S3 to S6


def test_a_tie_takes_the_lower_code():
    limits = qloracle.thresholds(qloracle.nf4_codebook())
    x = [1, *limits]
    assert codes(x)[0] == [15, *range(15)]
    above = np.nextafter(limits, np.float32(2))
    assert codes([1, *above])[0] == [15, *range(1, 16)]


def test_fp4_codes_magnitudes_and_then_the_sign():
    tie = 11 / 128  # of codes 1 and 6; exact in float32
    x = [1, -1, 0.001, -0.001, 0.0, -0.0, tie, -tie, 0.1, -0.1, 0.3, -0.4, 0.6]
    expected = [3, 11, 0, 8, 0, 0, 1, 9, 6, 14, 4, 12, 2]
    assert codes(x, quant_type="fp4")[0][: len(x)] == expected


def test_a_negative_quotient_that_underflows_has_no_sign():
    assert codes([2.0**100, -(2.0**-60)], quant_type="fp4")[0] == [3, 0]


@pytest.mark.parametrize(("quant_type", "zero"), [("nf4", 7), ("fp4", 0)])
def test_a_zero_block_and_the_spare_nibble_hold_the_code_of_zero(quant_type, zero):
    packed, absmax = rational.quantize_4bit(np.float32([0, -0.0, 0]), quant_type=quant_type)
    assert packed.tolist() == [17 * zero] * 2
    assert absmax.view(np.uint32).tolist() == [0]


def test_blocks_cross_rows_and_the_last_is_short():
    x = np.float32([[1, 2, -3], [4, -5, 6], [0.5, 0, 0]])
    packed, absmax = rational.quantize_4bit(x, blocksize=4)
    assert absmax.tolist() == [4, 6, 0]
    assert packed.size == 5
    assert codes(x.T.copy().T, blocksize=4)[0] == codes(x, blocksize=4)[0]  # row-major, strided


def test_a_scalar_is_one_element_and_nothing_gives_nothing():
    assert codes(-3.0) == ([0], [3.0])
    packed, absmax = rational.quantize_4bit(np.zeros((3, 0), np.float32))
    assert packed.size == absmax.size == 0
    assert rational.dequantize_4bit(packed, absmax, shape=(3, 0)).shape == (3, 0)


def test_subnormal_numbers_count():
    smallest = floats(1, 0x80000001, 0)
    assert codes(smallest)[0] == [15, 0, 7]
    assert codes(floats(3, 1))[0] == [15, 11]  # 1 / 3


# S7, S8


def test_a_decoded_value_is_rounded_twice():
    once_f16, once_bf16 = 0x3127, 0x3E25  # the product's exact value, rounded directly
    packed = np.uint8([0x99])
    half = rational.dequantize_4bit(packed, floats(0x3F8003F9), shape=(1,), dtype=np.float16)
    brain = rational.dequantize_4bit(
        packed, floats(0x3F808CAD), shape=(1,), dtype=TYPES["bfloat16"]
    )
    assert half.view(np.uint16)[0] == 0x3126 != once_f16
    assert brain.view(np.uint16)[0] == 0x3E26 != once_bf16


def test_float16_overflows_from_65520():
    absmax = np.float32([65519.996, 65520, -65520])
    decoded = rational.dequantize_4bit(
        np.uint8([0xFF, 0xFF]), absmax, shape=(3,), blocksize=1, dtype=np.float16
    )
    assert decoded.tolist() == [65504, np.inf, -np.inf]


def test_a_product_that_overflows_stays_infinite():
    levels, largest = np.float32([0, 2]), floats(0x7F7FFFFF)
    decoded = rational.dequantize_blockwise(np.uint8([1]), largest, levels, shape=(1,))
    assert decoded.tolist() == [np.inf]
    nested = rational.dequantize_absmax(np.uint8([1]), largest, -largest[0], codebook=levels)
    assert nested.tolist() == [np.inf]


def test_the_offset_is_the_exact_mean():
    tie = np.float32([3, 3 * 2.0**-24, 2.0**-60])  # 1 + 2**-24 and a little: not a tie after all
    assert rational.quantize_absmax(tie)[2].view(np.uint32) == 0x3F800001
    assert rational.quantize_absmax(tie * np.float32([1, 1, 0]))[2] == 1
    assert rational.quantize_absmax(tie[:0])[2] == 0


def test_nested_scales_are_rounded_twice_and_never_clamped():
    fused = 0x3F9DE66F
    two = rational.dequantize_absmax(np.uint8([200]), floats(0x3F800023), np.float32(1))
    assert two.view(np.uint32)[0] == 0x3F9DE66E != fused
    below = rational.dequantize_absmax(np.uint8([0]), np.float32([2]), np.float32(1))
    assert below[0] < 0


# Refusals


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: rational.quantize_4bit(np.zeros(2)), TypeError),
        (lambda: rational.quantize_4bit(np.zeros(2, np.int32)), TypeError),
        (lambda: rational.quantize_4bit(np.float16([1, np.inf])), ValueError),
        (lambda: rational.quantize_4bit(np.float32([np.nan])), ValueError),
        (lambda: rational.quantize_4bit(np.float32([1]), quant_type="nf3"), ValueError),
        (lambda: rational.quantize_4bit(np.float32([1]), blocksize=0), ValueError),
        (lambda: rational.quantize_blockwise(np.float32([1]), np.float32([1, 0])), ValueError),
        (
            lambda: rational.quantize_blockwise(np.float32([1]), np.zeros(257, np.float32)),
            ValueError,
        ),
        (lambda: decode_4bit([0xF0], [1], quant_type="int4"), ValueError),
        (lambda: decode_8bit([15], qloracle.int4_codebook()), ValueError),
        (lambda: decode_4bit([0xF0], [1, 2]), ValueError),
        (lambda: decode_4bit([0xF0, 0], [1]), ValueError),
        (lambda: decode_4bit([0xF0], [np.inf]), ValueError),
        (lambda: decode_4bit([0xF0], [1], dtype=np.float64), TypeError),
    ],
)
def test_what_lies_outside_the_rules_is_refused(call, error):
    with pytest.raises(error):
        call()


def decode_4bit(packed, absmax, **options):
    return rational.dequantize_4bit(np.uint8(packed), np.float32(absmax), shape=(1,), **options)


def decode_8bit(codes, codebook):
    return rational.dequantize_blockwise(np.uint8(codes), np.float32([1]), codebook, shape=(1,))


# Against the reference


def values(dtype, n=6000, seed=0):
    """Weights, values at thresholds of a full-mantissa absmax and beside, both ends of the type."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(n)
    scale = rng.uniform(1, 2, n) * 2.0 ** rng.integers(-20, 4, n)
    levels = [
        qloracle.nf4_codebook(), qloracle.notes_codebook(), qloracle.int4_codebook(),
        qloracle.fp4_codebook()[:4],
    ]  # fmt: skip
    limits = np.concatenate([qloracle.thresholds(np.sort(table)) for table in levels])
    near = rng.choice(limits, n) * np.repeat(scale[: n // 8], 8)[:n]
    near[::8] = scale[: n // 8]
    unsigned = {2: np.uint16, 4: np.uint32}[np.dtype(dtype).itemsize]
    near = near.astype(dtype).view(unsigned) + rng.integers(-1, 2, n).astype(unsigned)
    wild = rng.integers(0, np.iinfo(unsigned).max, n, unsigned)
    tiny = rng.integers(0, 2000, n).astype(unsigned)
    raw = np.concatenate([weights.astype(dtype).view(unsigned), near, wild, tiny])
    infinity = np.array(np.inf, dtype).view(unsigned)
    return np.where(raw & infinity == infinity, 0, raw).astype(unsigned).view(dtype)


def scales(n, seed=0):
    """float32 of every size and sign, the largest among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, n, np.uint32)
    return (
        np.where(bits & 0x7F800000 == 0x7F800000, 0x7F7FFFFF, bits)
        .astype(np.uint32)
        .view(np.float32)
    )


def differences(function, *arguments, **options):
    """Count the elements on which the two oracles differ; zeros compare by value."""
    mine = getattr(rational, function)(*arguments, **options)
    theirs = getattr(qloracle, function)(*arguments, **options)
    pairs = zip(mine, theirs, strict=True) if isinstance(mine, tuple) else [(mine, theirs)]
    return sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in pairs)


@every_type
@every_quant_type
@pytest.mark.parametrize("blocksize", [1, 8, 64, 10**12])
def test_4bit_codes_are_the_references(dtype, quant_type, blocksize):
    x = values(dtype)[:-1]
    assert differences("quantize_4bit", x, blocksize=blocksize, quant_type=quant_type) == 0


@every_type
@every_quant_type
def test_4bit_decoding_is_the_references(dtype, quant_type):
    packed = np.random.default_rng(5).integers(0, 256, 4000, np.uint8)
    options = {"shape": (79, 101), "blocksize": 7, "quant_type": quant_type, "dtype": dtype}
    packed = packed[: 79 * 101 // 2 + 1]
    assert differences("dequantize_4bit", packed, scales(1140), **options) == 0


def codebooks():
    rng = np.random.default_rng(6)
    top = floats(0x7F7FFFFF)[0]
    yield qloracle.dynamic_codebook()
    yield qloracle.dynamic_codebook(signed=False)
    yield qloracle.int4_codebook()
    yield qloracle.notes_codebook()
    yield np.sort(rng.standard_normal(37).astype(np.float32))
    yield np.sort(scales(256, seed=7))
    yield floats(1, 1, 1, 2, 3, 3, 0x3F800000)  # repeated levels, midpoints that are subnormal ties
    yield np.float32([-top, 0.0, top, top])


@every_type
def test_blockwise_codes_are_the_references(dtype):
    for codebook in codebooks():
        assert differences("quantize_blockwise", values(dtype, 2000), codebook, blocksize=8) == 0


@every_type
def test_blockwise_decoding_is_the_references(dtype):
    rng = np.random.default_rng(8)
    for codebook in codebooks():
        chosen = rng.integers(0, codebook.size, 3001).astype(np.uint8)
        options = {"shape": (3001,), "blocksize": 5, "dtype": dtype}
        assert differences("dequantize_blockwise", chosen, scales(601), codebook, **options) == 0


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 5000])
@pytest.mark.parametrize("codebook", [None, qloracle.dynamic_codebook(signed=False)])
def test_nested_scales_are_the_references(n, codebook):
    absmax = np.abs(values(np.float32)[:n] * np.float32(0.02))
    assert differences("quantize_absmax", absmax, codebook=codebook) == 0
    state = qloracle.quantize_absmax(absmax, codebook=codebook)
    assert differences("dequantize_absmax", *state, codebook=codebook) == 0


def test_nested_decoding_of_any_scale_is_the_references():
    chosen = np.random.default_rng(9).integers(0, 256, 5000).astype(np.uint8)
    for offset in scales(20, seed=10):
        assert differences("dequantize_absmax", chosen, scales(500), offset, blocksize=10) == 0


@pytest.mark.slow
@every_type
def test_a_million_codes_are_the_references(dtype):
    x = values(dtype, 250_000, seed=11)
    assert differences("quantize_4bit", x) == 0
    packed, absmax = qloracle.quantize_4bit(x)
    assert differences("dequantize_4bit", packed, absmax, shape=x.shape, dtype=dtype) == 0


# The comparison sees a difference where there is one


def by_reciprocal(x, y):
    return softfloat.multiply(x, softfloat.divide(0x3F800000, y))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("divide", by_reciprocal),
        ("bisect_left", bisect_right),
        ("NF4", [*rational.NF4[:8], rational.NF4[8] + 1, *rational.NF4[9:]]),
    ],
    ids=["reciprocal", "upper on a tie", "a level one ulp up"],
)
def test_a_planted_fault_in_the_codes_is_found(monkeypatch, name, fault):
    monkeypatch.setattr(rational, name, fault)
    monkeypatch.setitem(rational.LEVELS, "nf4", rational.NF4)
    assert differences("quantize_4bit", values(np.float32), blocksize=8) > 0


def test_one_rounding_in_place_of_two_is_found(monkeypatch):
    monkeypatch.setattr(rational, "multiply", lambda x, y: softfloat.multiply(x, y) & ~1)
    chosen = np.arange(256).astype(np.uint8)
    assert differences("dequantize_absmax", chosen, scales(26), np.float32(1), blocksize=10) > 0
