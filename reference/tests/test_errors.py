"""Bad input gets one sentence that names the argument, what came and what is allowed."""

import numpy as np
import pytest

import qloracle as q

X = np.ones(6, np.float32)
PACKED, ABSMAX = q.quantize_4bit(X, blocksize=4)
LEVELS, INT4 = q.dynamic_codebook(), q.int4_codebook()
CODES = np.zeros(6, np.uint8)
ONE = np.float32(1)


def decode(packed=PACKED, absmax=ABSMAX, shape=(6,), **kw):
    return q.dequantize_4bit(packed, absmax, **{"shape": shape, "blocksize": 4, **kw})


def decode8(codes=CODES, absmax=ABSMAX, levels=LEVELS, shape=(6,), **kw):
    return q.dequantize_blockwise(codes, absmax, levels, **{"shape": shape, "blocksize": 4, **kw})


def f32(*values):
    return np.array(values, np.float32)


# a layer of 3 outputs and 4 inputs with an adapter of rank 2, and what it is called with
W = np.ones((3, 4), np.float32)
W_PACKED, W_ABSMAX = q.quantize_4bit(W)
A, B = np.ones((2, 4), np.float32), np.ones((3, 2), np.float32)
X34, DY = np.ones((5, 4), np.float32), np.ones((5, 3), np.float32)
MASK = np.full((5, 4), 2, np.float32)
HALF = np.float16
RNG = np.random.default_rng(0)


def product(x=X34, packed=W_PACKED, absmax=W_ABSMAX, shape=(3, 4), **kw):
    return q.matmul_4bit(x, packed, absmax, shape=shape, **kw)


def product_back(dy=DY, shape=(3, 4), **kw):
    return q.matmul_4bit_backward(dy, W_PACKED, W_ABSMAX, shape=shape, **kw)


def lora(x=X34, w=W, a=A, b=B, scaling=0.5, dropout_mask=None):
    return q.lora_forward(x, w, a, b, scaling=scaling, dropout_mask=dropout_mask)


def lora_back(dy=DY, x=X34, w=W, a=A, b=B, **kw):
    return q.lora_backward(dy, x, w, a, b, **{"scaling": 0.5, **kw})


def qlora(x=X34, a=A, b=B, shape=(3, 4), **kw):
    return q.qlora_forward(x, W_PACKED, W_ABSMAX, a, b, shape=shape, **{"scaling": 0.5, **kw})


def qlora_back(dy=DY, x=X34, a=A, b=B, **kw):
    options = {"shape": (3, 4), "scaling": 0.5, **kw}
    return q.qlora_backward(dy, x, W_PACKED, W_ABSMAX, a, b, **options)


def adam(param=X, grad=X, m=X, v=X, **kw):
    return q.adam_step(param, grad, m, v, **{"step": 1, "lr": 0.1, **kw})


def adam8(param=X, grad=X, m_codes=CODES, m_absmax=None, v_codes=CODES, v_absmax=None, **kw):
    m_absmax = np.ones(1, np.float32) if m_absmax is None else m_absmax
    v_absmax = np.ones(1, np.float32) if v_absmax is None else v_absmax
    options = {"step": 1, "lr": 0.1, **kw}
    return q.adam_step_8bit(param, grad, m_codes, m_absmax, v_codes, v_absmax, **options)


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
        "quant_type must be one of nf4, fp4, got 'NF4'",
    ),
    (lambda: q.quantize_4bit(X, quant_type="int4"), ValueError, "one of nf4, fp4, got 'int4'"),
    (lambda: q.codebook("notes"), ValueError, "quant_type must be one of nf4, fp4, got 'notes'"),
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
        lambda: decode8(codes=np.array([14, 14, 14, 15, 14, 14], np.uint8), levels=INT4),
        ValueError,
        "codes must be below 15, got 15 as element 3 of 6",
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
    # products: shapes that do not chain
    (
        lambda: product(x=DY),
        ValueError,
        r"x must have shape \(..., 4\) beside shape \(3, 4\), got \(5, 3\)",
    ),
    (lambda: product(x=np.float32(1)), ValueError, r"x must have shape \(..., 4\) .* got \(\)"),
    (lambda: product(shape=(4, 3)), ValueError, r"x .* beside shape \(4, 3\), got \(5, 4\)"),
    (lambda: product(shape=(12,)), ValueError, r"shape must be \(out, in\), got \(12,\)"),
    (lambda: product(shape=12), TypeError, "shape must be a tuple of ints, got int 12"),
    (lambda: product(shape=(5, 4)), ValueError, r"packed must have shape \(10,\), got \(6,\)"),
    (lambda: product(absmax=f32(1, 1)), ValueError, r"absmax must have shape \(1,\), got \(2,\)"),
    (lambda: product(absmax=f32(np.nan)), ValueError, "absmax must be finite"),
    (lambda: product(x=X34.astype(float)), TypeError, "x must have dtype .* got float64"),
    (lambda: product(x=[1.0] * 4), TypeError, "x must be a NumPy array, got list"),
    (lambda: product(x=X34 * np.inf), ValueError, "x must be finite, got 20 non-finite"),
    (lambda: product(bias=X), ValueError, r"bias .* \(3,\) beside shape \(3, 4\), got \(6,\)"),
    (lambda: product(bias=f32(1, 2, np.nan)), ValueError, "bias must be finite"),
    (
        lambda: product(bias=np.ones(3, HALF)),
        TypeError,
        "bias must have dtype float32, got float16",
    ),
    (
        lambda: product(x=X34.astype(HALF), bias=np.ones(3)),
        TypeError,
        "bias must have dtype float32, float16 or bfloat16, got float64",
    ),
    (lambda: product(blocksize=0), ValueError, "blocksize must be at least 1, got 0"),
    (lambda: product(quant_type="af4"), ValueError, "quant_type must be one of nf4"),
    (lambda: product(quant_type="int4"), ValueError, "quant_type must be one of nf4, fp4, got 'i"),
    (lambda: product_back(quant_type="notes"), ValueError, "one of nf4, fp4, got 'notes'"),
    (
        lambda: product_back(dy=X34),
        ValueError,
        r"dy must have shape \(..., 3\) beside shape \(3, 4\), got \(5, 4\)",
    ),
    (lambda: product_back(dy=DY * np.nan), ValueError, "dy must be finite"),
    # adapters
    (lambda: lora(x=DY), ValueError, r"x .* \(..., 4\) beside w of shape \(3, 4\), got \(5, 3\)"),
    (lambda: lora(w=W[0]), ValueError, r"the shape of w must be \(out, in\), got \(4,\)"),
    (lambda: lora(w=W.astype(float)), TypeError, "w must have dtype .* got float64"),
    (lambda: lora(w=W * np.nan), ValueError, "w must be finite"),
    (
        lambda: lora(a=B),
        ValueError,
        r"a must have shape \(3, 4\) beside w of shape \(3, 4\), got \(3, 2\)",
    ),
    (
        lambda: lora(b=A),
        ValueError,
        r"b must have shape \(3, 2\) beside a of shape \(2, 4\) and w of shape \(3, 4\), got",
    ),
    (lambda: lora(a=X), ValueError, r"a must have shape \(6, 4\) .* got \(6,\)"),
    (lambda: lora(a=np.float32(1)), ValueError, r"a must have shape \(0, 4\) .* got \(\)"),
    (lambda: lora(a=A.astype(HALF)), TypeError, "a must have dtype float32, got float16"),
    (
        lambda: lora(x=X34.astype(HALF), a=A.astype("f8")),
        TypeError,
        "a must have dtype float16 or float32, got float64",
    ),
    (
        lambda: lora(x=X34.astype(HALF), b=B.astype(HALF)),
        TypeError,
        "b must have dtype float32, got float16",
    ),
    (lambda: lora(scaling=float("inf")), ValueError, "scaling must be finite, got inf"),
    (lambda: lora(scaling=True), TypeError, "scaling must be a number, got bool True"),
    (lambda: lora(scaling=A), TypeError, r"scaling .* a number, got ndarray of shape \(2, 4\)"),
    (
        lambda: lora(dropout_mask=MASK[0]),
        ValueError,
        r"dropout_mask must have shape \(5, 4\) beside x of shape \(5, 4\), got \(4,\)",
    ),
    (lambda: lora(dropout_mask=MASK > 0), TypeError, "dropout_mask must have dtype .* got bool"),
    (
        lambda: lora(dropout_mask=MASK.astype(HALF)),
        TypeError,
        "dropout_mask must have dtype float32, got float16",
    ),
    (
        lambda: lora(dropout_mask=MASK / 4),
        ValueError,
        r"dropout_mask must hold 0 and one value 1 / \(1 - p\), got 0.5 at flat index 0 beside 1.0",
    ),
    (
        lambda: lora(dropout_mask=np.arange(20, dtype="f4").reshape(5, 4)),
        ValueError,
        "got 1.0 at flat index 1 beside 19.0",
    ),
    (lambda: lora(dropout_mask=-MASK), ValueError, "got -2.0 at flat index 0"),
    (lambda: lora(dropout_mask=MASK * np.nan), ValueError, "dropout_mask must be finite"),
    (
        lambda: lora_back(dy=X34),
        ValueError,
        r"dy .* \(5, 3\) beside x of shape \(5, 4\) and w of shape \(3, 4\), got \(5, 4\)",
    ),
    (lambda: lora_back(dy=DY[:4]), ValueError, r"dy must have shape \(5, 3\) .* got \(4, 3\)"),
    (lambda: lora_back(dy=DY.astype(HALF)), TypeError, "dy must have dtype float32, got float16"),
    (lambda: lora_back(x=DY), ValueError, "x must have shape"),
    (lambda: lora_back(dropout_mask=MASK / 4), ValueError, "dropout_mask must hold"),
    (lambda: qlora(x=DY), ValueError, r"x must have shape \(..., 4\) .* got \(5, 3\)"),
    (lambda: qlora(shape=(3, 5)), ValueError, r"x must have shape \(..., 5\) .* got \(5, 4\)"),
    (lambda: qlora(b=A), ValueError, "b must have shape"),
    (lambda: qlora_back(dy=X34), ValueError, r"dy must have shape \(5, 3\) .* got \(5, 4\)"),
    (lambda: qlora_back(scaling=None), TypeError, "scaling must be a number, got NoneType"),
    (lambda: q.lora_scaling(16, 0), ValueError, "r must be at least 1, got 0"),
    (lambda: q.lora_scaling(float("nan"), 8), ValueError, "alpha must be finite, got nan"),
    (lambda: q.lora_scaling(1, 2.0), TypeError, "r must be an int, got float 2.0"),
    (lambda: q.lora_scaling(1, 2, rank_stabilized=1), TypeError, "rank_stabilized must be a bool"),
    (
        lambda: q.draw_dropout_mask(0, (2,), 0.5),
        TypeError,
        "rng must be a numpy Generator, got int",
    ),
    (lambda: q.draw_dropout_mask(RNG, (2,), 1.0), ValueError, r"p must lie in \[0, 1\), got 1.0"),
    (lambda: q.draw_dropout_mask(RNG, (2,), -0.1), ValueError, "p must lie in"),
    (lambda: q.draw_dropout_mask(RNG, 2, 0.1), TypeError, "shape must be a tuple of ints"),
    (
        lambda: q.draw_dropout_mask(RNG, (2,), 1 - 1e-6, dtype=HALF),
        ValueError,
        r"1 / \(1 - p\) must be finite in float16, got p = 0.99",
    ),
    # merging
    (lambda: q.merge(W, B, A, scaling=1.0), ValueError, r"a must have shape \(3, 4\) .* \(3, 2\)"),
    (lambda: q.merge(W.astype(float), A, B, scaling=1.0), TypeError, "w must have dtype"),
    (lambda: q.unmerge(W, A, B, scaling=np.inf), ValueError, "scaling must be finite"),
    (
        lambda: q.merge_dequantized(W_PACKED, W_ABSMAX, A, B, shape=(12,), scaling=1.0),
        ValueError,
        r"shape must be \(out, in\), got \(12,\)",
    ),
    (
        lambda: q.merge_requantized(W_PACKED, W_ABSMAX, A, A, shape=(3, 4), scaling=1.0),
        ValueError,
        "b must have shape",
    ),
    # Adam
    (lambda: adam(step=0), ValueError, "step must be at least 1, got 0"),
    (lambda: adam(step=2**24 + 1), ValueError, r"step must be at most 2\*\*24, got 16777217"),
    (lambda: adam(step=1.0), TypeError, "step must be an int, got float 1.0"),
    (lambda: adam(lr=-0.1), ValueError, "lr must be at least 0, got -0.1"),
    (lambda: adam(lr=float("nan")), ValueError, "lr must be finite"),
    (lambda: adam(eps=-1e-8), ValueError, "eps must be at least 0, got -1e-08"),
    (lambda: adam(weight_decay=-1), ValueError, "weight_decay must be at least 0, got -1.0"),
    (lambda: adam(beta1=1.0), ValueError, r"beta1 must lie in \[0, 1\), got 1.0"),
    (lambda: adam(beta2=-0.1), ValueError, r"beta2 must lie in \[0, 1\), got -0.1"),
    (lambda: adam(beta2="0.9"), TypeError, "beta2 must be a number, got str"),
    (lambda: adam(decoupled_weight_decay=1), TypeError, "decoupled_weight_decay must be a bool"),
    (
        lambda: adam(grad=X[:5]),
        ValueError,
        r"grad must have shape \(6,\) beside param of shape \(6,\), got \(5,\)",
    ),
    (lambda: adam(m=X[None]), ValueError, r"m must have shape \(6,\) .* got \(1, 6\)"),
    (lambda: adam(v=X[1:]), ValueError, r"v must have shape \(6,\) .* got \(5,\)"),
    (lambda: adam(m=X.astype(HALF)), TypeError, "m must have dtype float32, got float16"),
    (lambda: adam(v=X * np.inf), ValueError, "v must be finite"),
    (lambda: adam(v=-X), ValueError, "v must not be negative, got -1.0 at flat index 0"),
    (lambda: adam(grad=X.astype(HALF)), TypeError, "grad must have dtype float32, got float16"),
    (
        lambda: adam(param=X.astype(HALF), grad=X.astype(float)),
        TypeError,
        "grad must have dtype .* got float64",
    ),
    (lambda: adam(param=X * np.nan), ValueError, "param must be finite"),
    (lambda: adam(grad=X * np.nan), ValueError, "grad must be finite"),
    (
        lambda: adam(grad=X * 0, v=X * 0, eps=0.0),
        ValueError,
        "eps must be above 0 in float32 where v' is 0, as at flat index 0",
    ),
    (lambda: adam(grad=X * 0, v=X * 0, eps=1e-50), ValueError, "eps must be above 0 in float32"),
    (lambda: adam8(m_codes=CODES[1:]), ValueError, r"m_codes must have shape \(6,\), got \(5,\)"),
    (lambda: adam8(v_codes=CODES[None]), ValueError, r"v_codes must have shape \(6,\), got \(1, 6"),
    (lambda: adam8(v_codes=CODES.astype(int)), TypeError, "v_codes must have dtype uint8"),
    (lambda: adam8(m_absmax=f32(1, 2)), ValueError, r"m_absmax must have shape \(1,\), got \(2,\)"),
    (lambda: adam8(v_absmax=f32(np.inf)), ValueError, "v_absmax must be finite"),
    (lambda: adam8(v_absmax=f32(-1), v_codes=CODES + np.uint8(9)), ValueError, "v must not be neg"),
    (lambda: adam8(m_codebook=f32(1)), ValueError, "m_codebook must hold 2 to 256 levels, got 1"),
    (lambda: adam8(v_codebook=f32(1, 0)), ValueError, "v_codebook must not decrease"),
    (
        lambda: adam8(m_codes=CODES + np.uint8(2), m_codebook=f32(0, 1)),
        ValueError,
        "m_codes must be below 2, got 2 as element 0 of 6",
    ),
    (lambda: adam8(blocksize=0), ValueError, "blocksize must be at least 1, got 0"),
    (lambda: adam8(step=0), ValueError, "step must be at least 1"),
    (lambda: adam8(grad=X[1:]), ValueError, "grad must have shape"),
    (lambda: adam(lr=True), TypeError, "lr must be a number, got bool True"),
]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # this file's own ONE / 0
@pytest.mark.parametrize("case", range(len(CASES)))
def test_bad_input_is_named(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
