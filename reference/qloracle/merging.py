"""What survives a merge? Three ways to write an adapter into a weight.

What was trained is W^ + D: the decoded 4-bit weight, and D = s B A beside it. To serve it without
the adapter, D has to be added to a weight, and there are three candidates.

    the 16-bit original   T(W + D)                   `merge`: not the base that was trained on
    the decoded weight    T(W^ + D)                  `merge_dequantized`: costs one rounding
    4 bits again          quantize(float32(W^ + D))  `merge_requantized`: the steps are coarse

The error of each in one element, against W^ + D, where u is the unit roundoff of T (2**-8 in
bfloat16) and g = 0.152, half the widest gap of NF4 and the roundings of a quantization:

    original        |W - W^| + u |W + D|  <=  g absmax + u |W + D|
    decoded         u |W^ + D|
    re-quantized    g absmax' + 2**-24 |W^ + D|          absmax' = max |W^ + D| over the block

Two levels lie at least 0.0796 absmax apart. A change much smaller than half of that leaves the code
as it was, and is lost. Take normal weights and a change of rank 8 whose norm is first 1 % and then
30 % of the weight's; these are the errors of the three ways, relative to the norm of the change:

>>> import ml_dtypes
>>> rng = np.random.default_rng(0)
>>> w = rng.standard_normal((256, 256)).astype(np.float32)
>>> a, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(8, 256), (256, 8)])
>>> packed, absmax = quantize_4bit(w)
>>> decoded = dequantize_4bit(packed, absmax, shape=w.shape)
>>> for size in (0.01, 0.3):
...     s = size * float(np.linalg.norm(w) / np.linalg.norm(b @ a))
...     adapter, trained = {"a": a, "b": b, "scaling": s}, decoded + s * (b @ a)
...     bf16 = merge(w.astype(ml_dtypes.bfloat16), **adapter).astype(np.float32)
...     back = {"shape": w.shape, "dtype": ml_dtypes.bfloat16}
...     wide = merge_dequantized(packed, absmax, **back, **adapter).astype(np.float32)
...     codes = merge_requantized(packed, absmax, shape=w.shape, **adapter)
...     coarse = dequantize_4bit(*codes, shape=w.shape)
...     lost = [np.linalg.norm(each - trained) for each in (bf16, wide, coarse)]
...     print([round(float(each / (s * np.linalg.norm(b @ a))), 2) for each in lost])
[9.21, 0.17, 1.07]
[0.31, 0.01, 0.32]

Taking the change out again restores the weight up to two roundings. From 4 bits it does not come
back: each direction costs another g absmax.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle._rounding import rounded
from qloracle.arguments import Array, Float32, Float64, UInt8
from qloracle.blockwise import dequantize_4bit, quantize_4bit
from qloracle.lora import adapter as adapter_of


def _change(a: Array, b: Array, shape: Sequence[int], scaling: float) -> Float64:
    """Return D = s B A, float64[out, in]."""
    dims = check.matrix_shape("the shape of w", tuple(shape))
    s = check.real("scaling", scaling)
    a64, b64 = adapter_of(a, b, dims)
    return s * (b64 @ a64)


def merge(w: Array, a: Array, b: Array, *, scaling: float) -> Array:
    """Return w + scaling B A, rounded once to w's type.

    w: (out, in) in any of the three float types; a: (r, in), b: (out, r), any of
    the three types; scaling: a finite number. TypeError or ValueError otherwise.

    Error: u |W + D| per element against w + D; where w is the original of a base trained in 4 bits,
    |W - W^| more, at most g absmax with g = 0.152 for NF4.

    >>> w, a, b = np.eye(2, dtype=np.float32), np.array([[1, 2]], np.float32), np.ones((2, 1))
    >>> merge(w, a, b.astype(np.float32), scaling=0.5).tolist()
    [[1.5, 1.0], [0.5, 2.0]]
    """
    return rounded(check.as_float64("w", w) + _change(a, b, w.shape, scaling), w.dtype)


def unmerge(w: Array, a: Array, b: Array, *, scaling: float) -> Array:
    """Return w - scaling B A, rounded once to w's type: the inverse of `merge` but for rounding.

    Arguments and errors as in `merge`. Error: u |W + D| from the merge and u |W'| from here, W' the
    result; the bits of the original come back only where they were not rounded away.

    >>> w, a = np.ones((1, 1), np.float16), np.full((1, 1), 1000, np.float16)
    >>> merged = merge(w, a, a, scaling=0.01)  # 10001 is no float16: its neighbours are 8 apart
    >>> merged.tolist(), unmerge(merged, a, a, scaling=0.01).tolist()
    ([[10000.0]], [[0.0]])
    """
    return merge(w, a, b, scaling=-check.real("scaling", scaling))


def merge_dequantized(
    packed: UInt8,
    absmax: Float32,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: DTypeLike = np.float32,
) -> Array:
    """Return W^ + scaling B A, dtype[shape], rounded once; W^ is `dequantize_4bit` in float32.

    Arguments and errors as in `dequantize_4bit` and `merge`. Error: u |W^ + D| per element. To take
    the change out, call `unmerge`; `quantize_4bit` of its result gives the codes of `packed` again
    as long as the two roundings stay small beside absmax, since every decoded value is a level.

    >>> packed, absmax = quantize_4bit(np.eye(2, dtype=np.float32))
    >>> a, b = np.array([[1, 2]], np.float32), np.ones((2, 1), np.float32)
    >>> merge_dequantized(packed, absmax, a, b, shape=(2, 2), scaling=0.5).tolist()
    [[1.5, 1.0], [0.5, 2.0]]
    """
    wanted = check.float_type("dtype", dtype)
    dims = check.matrix_shape("shape", shape)
    w = dequantize_4bit(packed, absmax, shape=dims, blocksize=blocksize, quant_type=quant_type)
    return rounded(w.astype(np.float64) + _change(a, b, dims, scaling), wanted)


def merge_requantized(
    packed: UInt8,
    absmax: Float32,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> tuple[UInt8, Float32]:
    """Quantize W^ + scaling B A again: packed and absmax as from `quantize_4bit`.

    Arguments and errors as in `merge_dequantized`. Error per element, for NF4: g absmax' +
    2**-24 |W^ + D|, where absmax' = max |W^ + D| over the block and g = 0.152. That is as large as
    the error of the first quantization, and a small change is lost in it.

    >>> packed, absmax = quantize_4bit(np.array([[1, 0, 0, 0]], np.float32))
    >>> a, b = np.full((1, 4), 0.03, np.float32), np.ones((1, 1), np.float32)
    >>> again = merge_requantized(packed, absmax, a, b, shape=(1, 4), scaling=1.0)
    >>> dequantize_4bit(*again, shape=(1, 4)).tolist()  # only the scale has changed
    [[1.0299999713897705, 0.0, 0.0, 0.0]]

    With -scaling the change is taken out again, at a second such error: g absmax' + g absmax'' +
    2**-24 (|W^ + D| + |W''|), where W'' is that result and absmax'' its scale.

    >>> a = np.full((1, 4), 0.042, np.float32)
    >>> again = merge_requantized(packed, absmax, a, b, shape=(1, 4), scaling=1.0)
    >>> back = merge_requantized(*again, a, b, shape=(1, 4), scaling=-1.0)
    >>> print(dequantize_4bit(*back, shape=(1, 4)).round(4))  # was 1, 0, 0, 0
    [[1.     0.0796 0.0796 0.0796]]
    """
    decoded = dequantize_4bit(
        packed, absmax, shape=shape, blocksize=blocksize, quant_type=quant_type
    )
    merged = merge(decoded, a, b, scaling=scaling)
    return quantize_4bit(merged, blocksize=blocksize, quant_type=quant_type)
