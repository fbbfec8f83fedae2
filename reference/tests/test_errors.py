"""Bad input gets one sentence that names the argument, what came and what is allowed."""

import numpy as np
import pytest

import qloracle as q
from qloracle import _arguments

X = np.ones(6, np.float32)
PACKED, ABSMAX = q.quantize_4bit(X, blocksize=4)
LEVELS = q.dynamic_codebook()
CODES = np.zeros(6, np.uint8)
ONE = np.float32(1)


def decode(packed=PACKED, absmax=ABSMAX, shape=(6,), **kw):
    return q.dequantize_4bit(packed, absmax, **{"shape": shape, "blocksize": 4, **kw})


def decode8(codes=CODES, absmax=ABSMAX, levels=LEVELS, shape=(6,), **kw):
    return q.dequantize_blockwise(codes, absmax, levels, **{"shape": shape, "blocksize": 4, **kw})


def f32(*values):
    return np.array(values, np.float32)


CASES = [
    # the arrays that are quantized
    (lambda: q.quantize_4bit([1.0, 2.0]), TypeError, "x must be a NumPy array, got list"),
    (lambda: q.quantize_4bit(1.0), TypeError, "x must be a NumPy array, got float"),
    (lambda: q.quantize_4bit(np.ones(3)), TypeError, "x must have dtype float32, float16 or"),
    (lambda: q.quantize_4bit(np.arange(3)), TypeError, "x must have dtype .* got int64"),
    (lambda: q.quantize_4bit(X.astype(">f4")), TypeError, "x must have dtype .* got >f4"),
    (lambda: q.quantize_4bit(X == 1), TypeError, "x must have dtype .* got bool"),
    (lambda: q.quantize_4bit(np.array(["a"])), TypeError, "x must have dtype .* got <U1"),
    (
        lambda: q.quantize_4bit(f32(1, np.inf, np.nan, -np.inf)),
        ValueError,
        "x must be finite, got 3 non-finite values of 4, the first inf at flat index 1",
    ),
    (
        lambda: q.quantize_4bit(np.array([[1, 2], [3, np.nan]], np.float16)),
        ValueError,
        "got 1 non-finite values of 4, the first nan at flat index 3",
    ),
    (lambda: q.quantize_blockwise([1.0], LEVELS), TypeError, "x must be a NumPy array"),
    (lambda: q.quantize_blockwise(f32(np.nan), LEVELS), ValueError, "x must be finite"),
    # blocksize
    (lambda: q.quantize_4bit(X, blocksize=0), ValueError, "blocksize must be at least 1, got 0"),
    (lambda: q.quantize_4bit(X, blocksize=-64), ValueError, "blocksize .* at least 1, got -64"),
    (lambda: q.quantize_4bit(X, blocksize=True), TypeError, "blocksize .* an int, got bool True"),
    (lambda: q.quantize_4bit(X, blocksize=64.0), TypeError, "blocksize .* int, got float 64.0"),
    (lambda: q.quantize_4bit(X, blocksize=None), TypeError, "blocksize must be an int"),
    (lambda: q.quantize_4bit(X, blocksize="64"), TypeError, "blocksize must be an int"),
    (lambda: q.quantize_blockwise(X, LEVELS, blocksize=0), ValueError, "blocksize"),
    (lambda: decode(blocksize=0), ValueError, "blocksize must be at least 1"),
    (lambda: decode8(blocksize=2.5), TypeError, "blocksize must be an int"),
    # quant_type
    (
        lambda: q.quantize_4bit(X, quant_type="NF4"),
        ValueError,
        "quant_type must be one of nf4, fp4, int4, notes, got 'NF4'",
    ),
    (lambda: decode(quant_type="af4"), ValueError, "quant_type must be one of nf4"),
    (lambda: q.quantize_4bit(X, quant_type=4), TypeError, "quant_type must be a str, got int 4"),
    (lambda: q.codebook("fp8"), ValueError, "quant_type must be one of"),
    # packed, codes and absmax
    (lambda: decode(packed=PACKED[:2]), ValueError, r"packed must have shape \(3,\), got \(2,\)"),
    (lambda: decode(packed=PACKED[:, None]), ValueError, r"packed .* \(3,\), got \(3, 1\)"),
    (lambda: decode(packed=PACKED.astype(np.int8)), TypeError, "packed must have dtype uint8"),
    (lambda: decode(packed=[1, 2, 3]), TypeError, "packed must be a NumPy array, got list"),
    (lambda: decode(absmax=ABSMAX[:1]), ValueError, r"absmax must have shape \(2,\), got \(1,\)"),
    (lambda: decode(absmax=ABSMAX.astype(np.float64)), TypeError, "absmax must have dtype float32"),
    (lambda: decode(absmax=ABSMAX.astype(np.float16)), TypeError, "absmax must have dtype float32"),
    (lambda: decode(absmax=f32(1, np.inf)), ValueError, "absmax must be finite"),
    (lambda: decode(absmax=f32(np.nan, 1)), ValueError, "absmax must be finite"),
    (
        lambda: decode(packed=np.array([0xEE, 0xEF, 0xEE], np.uint8), quant_type="int4"),
        ValueError,
        "packed codes must be below 15, got 15 as element 3 of 6",
    ),
    (lambda: decode8(codes=CODES[:5]), ValueError, r"codes must have shape \(6,\), got \(5,\)"),
    (lambda: decode8(codes=CODES.astype(np.int64)), TypeError, "codes must have dtype uint8"),
    (lambda: decode8(absmax=f32(1)), ValueError, "absmax must have shape"),
    (
        lambda: decode8(codes=CODES + np.uint8(3), levels=f32(-1, 0, 1)),
        ValueError,
        "codes must be below 3, got 3 as element 0 of 6",
    ),
    # shape and dtype
    (lambda: decode(shape=(-6,)), ValueError, "shape must be at least 0, got -6"),
    (lambda: decode(shape=(-2, -3)), ValueError, "shape must be at least 0, got -2"),
    (lambda: decode(shape=(6.0,)), TypeError, "shape must be an int, got float"),
    (lambda: decode(shape=(True, 6)), TypeError, "shape must be an int, got bool"),
    (lambda: decode(shape=6), TypeError, "shape must be a tuple of ints, got int 6"),
    (lambda: decode(shape=None), TypeError, "shape must be a tuple of ints"),
    (lambda: decode(shape=(2**70, 2**70)), ValueError, "packed must have shape"),
    (lambda: decode(dtype=np.float64), TypeError, "dtype must be float32, float16 or bfloat16"),
    (lambda: decode(dtype=None), TypeError, "dtype must be float32, float16 or bfloat16"),
    (lambda: decode(dtype="single bits"), TypeError, "dtype must be float32, float16 or"),
    (lambda: decode8(dtype=np.int8), TypeError, "dtype must be float32, float16 or bfloat16"),
    # codebooks
    (lambda: q.thresholds([0, 1]), TypeError, "codebook must be a NumPy array, got list"),
    (lambda: q.thresholds(np.arange(2)), TypeError, "codebook must have dtype float32, got int64"),
    (lambda: q.thresholds(f32(1)), ValueError, "codebook must hold 2 to 256 levels, got 1"),
    (lambda: q.thresholds(np.zeros(257, np.float32)), ValueError, "2 to 256 levels, got 257"),
    (lambda: q.thresholds(f32(0, np.nan)), ValueError, "codebook must be finite"),
    (lambda: q.thresholds(f32([0, 1])), ValueError, r"codebook must have shape \(n,\)"),
    (
        lambda: q.thresholds(q.fp4_codebook()),
        ValueError,
        r"codebook must not decrease, but level 4 \(0.3333\d+\) is below level 3 \(1.0\)",
    ),
    (lambda: q.quantize_blockwise(X, f32(1, 0)), ValueError, "codebook must not decrease"),
    (lambda: decode8(levels=f32(1, 0)), ValueError, "codebook must not decrease"),
    (lambda: q.dynamic_codebook(signed=1), TypeError, "signed must be a bool, got int 1"),
    (lambda: q.normal_float_codebook(1), ValueError, r"bits must lie in 2..8, got 1"),
    (lambda: q.normal_float_codebook(9), ValueError, r"bits must lie in 2..8, got 9"),
    (lambda: q.normal_float_codebook(4.0), TypeError, "bits must be an int, got float"),
    (lambda: q.normal_float_codebook(4, 0.5), ValueError, "offset must lie between 0.5 and 1"),
    (lambda: q.normal_float_codebook(4, 1 - 1e-12), ValueError, "offset must lie between"),
    (lambda: q.normal_float_codebook(4, float("nan")), ValueError, "offset must be finite"),
    (lambda: q.normal_float_codebook(4, "0.9"), TypeError, "offset must be a number, got str"),
    (lambda: q.normal_quantile(1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
    (lambda: q.normal_quantile(np.array([0.5, np.nan])), ValueError, "p must lie in .* got nan"),
    # packing
    (lambda: q.pack_4bit(CODES + np.uint8(16)), ValueError, "codes must be below 16, got 16"),
    (lambda: q.pack_4bit(CODES, spare=16), ValueError, "spare must be below 16, got 16"),
    (lambda: q.pack_4bit(CODES, spare=-1), ValueError, "spare must be at least 0, got -1"),
    (lambda: q.pack_4bit(CODES.astype(int)), TypeError, "codes must have dtype uint8, got int64"),
    (lambda: q.unpack_4bit(PACKED, 7), ValueError, r"packed must have shape \(4,\), got \(3,\)"),
    (lambda: q.unpack_4bit(PACKED, 4), ValueError, r"packed must have shape \(2,\), got \(3,\)"),
    (lambda: q.unpack_4bit(PACKED, -1), ValueError, "n must be at least 0, got -1"),
    # nested
    (lambda: q.quantize_absmax([1.0]), TypeError, "absmax must be a NumPy array, got list"),
    (lambda: q.quantize_absmax(np.ones(3)), TypeError, "absmax must have dtype float32"),
    (lambda: q.quantize_absmax(f32([1, 2])), ValueError, r"absmax must have shape \(n,\)"),
    (lambda: q.quantize_absmax(f32(1, np.inf)), ValueError, "absmax must be finite"),
    (lambda: q.quantize_absmax(f32(3e38, -3e38, -3e38)), ValueError, "absmax - offset must be fin"),
    (lambda: q.quantize_absmax(X, blocksize=0), ValueError, "blocksize must be at least 1"),
    (lambda: q.quantize_absmax(X, codebook=f32(1)), ValueError, "codebook must hold 2 to 256"),
    (lambda: q.dequantize_absmax(CODES, f32(1), 0.5), TypeError, "offset must be a NumPy array"),
    (lambda: q.dequantize_absmax(CODES, f32(1), np.float64(1)), TypeError, "offset must have dty"),
    (lambda: q.dequantize_absmax(CODES, f32(1), f32(1)), ValueError, r"offset .* shape \(\), got"),
    (lambda: q.dequantize_absmax(CODES, f32(1), ONE / 0), ValueError, "offset must be finite"),
    (
        lambda: q.dequantize_absmax(CODES, f32(1, 2), ONE),
        ValueError,
        r"^nested_absmax .* shape \(1",
    ),
    (
        lambda: q.dequantize_absmax(CODES, f32(np.inf), ONE),
        ValueError,
        "^nested_absmax must be fin",
    ),
    (lambda: q.dequantize_absmax(CODES[None], f32(1), ONE), ValueError, "codes must have shape"),
    (lambda: q.bits_per_weight(0), ValueError, "blocksize must be at least 1"),
    (lambda: q.bits_per_weight(64, 0), ValueError, "nested_blocksize must be at least 1"),
    # ranks
    (lambda: q.rank_codes(f32()), ValueError, "x must hold at least one element"),
    (lambda: q.normal_codes(f32()), ValueError, "x must hold at least one element"),
    (lambda: q.rank_codes(X, 9), ValueError, "bits must lie in 1..8, got 9"),
    (lambda: q.normal_codes(X, 0), ValueError, "bits must lie in 1..8, got 0"),
    (lambda: q.bin_means(X, CODES[1:]), ValueError, "codes must have shape"),
    (lambda: q.bin_means(X, CODES + np.uint8(16)), ValueError, "codes must be below 16"),
    # checks that later modules use
    (lambda: _arguments.real("lr", True), TypeError, "lr must be a number, got bool True"),
]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # this file's own ONE / 0
@pytest.mark.parametrize("case", range(len(CASES)))
def test_bad_input_is_named(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
