"""The 4-bit linear layer: a product with a weight that is never in memory as a whole.

The layer keeps packed codes and scales. A product decodes a few rows of W, uses them and drops
them, forward and backward alike; the backward pass decodes again and saves nothing of W.

    y  = x W' + bias        dx = dy W        W: `dequantize_4bit` in float32, (out, in)      (S9)

>>> from qloracle import quantize_4bit
>>> rng = np.random.default_rng(0)
>>> w, x = (rng.standard_normal(shape).astype(np.float32) for shape in [(96, 64), (2, 64)])
>>> packed, absmax = quantize_4bit(w)
>>> y = matmul_4bit(x, packed, absmax, shape=w.shape)
>>> y.shape, bool((y[0] == matmul_4bit(x[0], packed, absmax, shape=w.shape)).all())
((2, 96), True)

QLoRA is this layer with an adapter beside it (arXiv:2305.14314, equation 5; `qloracle.lora`). The
gradient flows *through* the frozen 4-bit weight into x, and into A and B, but never into W.

A sum of d products in float32, in any order, is off by at most gamma_d sum |x w|, where gamma_d =
d u / (1 - d u) and u = 2**-24. `qloracle explain S9` derives the bound, and says how a kernel that
loses bits of its inputs, as TF32 does, is caught although it stays within it.

Where implementations differ, this is what the specification chooses.

* The weight is the float32 product of level and scale, whatever the number of rows of x. Libraries
  round the scale or the weight to x's type in some of their kernels, so that one layer has two sets
  of weights, one at M = 1 and one at M = 64.
* Sums are formed in float64, the bias included, and the result is rounded once.
* A bias has x's type or float32 and is never rounded to x's type.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from qloracle import arguments as check
from qloracle._rounding import rounded
from qloracle.arguments import Array, Float32, Float64, UInt8
from qloracle.blockwise import unpack_4bit
from qloracle.codebook import codebook as codebook_of
from qloracle.lora import branch, gradients, operands

CHUNK = 2**16  # weights decoded at a time; a single row may be longer


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight in 4 bits: what `quantize_4bit` returned, and its shape (out, in)."""

    packed: UInt8
    absmax: Float32
    shape: tuple[int, int]
    blocksize: int = 64
    quant_type: str = "nf4"


def product(x: Float64, w: Packed) -> Float64:
    """Return x W', float64[M, out]."""
    y = np.empty((len(x), w.shape[0]))
    for rows, part in row_chunks(w):
        y[:, rows] = x @ part.astype(np.float64).T
    return y


def product_backward(dy: Float64, w: Packed) -> Float64:
    """Return dy W, float64[M, in]."""
    dx = np.zeros((len(dy), w.shape[1]))
    for rows, part in row_chunks(w):
        dx += dy[:, rows] @ part.astype(np.float64)
    return dx


def row_chunks(w: Packed) -> Iterator[tuple[slice, Float32]]:
    """Decode W a few rows at a time: yields the slice of rows and float32[rows, in].

    The values and errors are those of `dequantize_4bit`. A row need not begin with a block, nor
    with a byte.

    >>> from qloracle import quantize_4bit
    >>> packed, absmax = quantize_4bit(np.ones((2, 40_000), np.float32))
    >>> for rows, part in row_chunks(Packed(packed, absmax, shape=(2, 40_000))):
    ...     print(rows, part.shape)
    slice(0, 1, None) (1, 40000)
    slice(1, 2, None) (1, 40000)
    """
    levels = codebook_of(w.quant_type)
    out, width = check.matrix_shape("shape", w.shape)
    n = out * width
    step = min(check.integer("blocksize", w.blocksize, least=1), max(n, 1))
    check.vector("packed", w.packed, np.uint8, (n + 1) // 2)
    check.finite("absmax", check.vector("absmax", w.absmax, np.float32, -(-n // step)))
    height = max(CHUNK // max(width, 1), 1)
    for top in range(0, out, height):
        rows = slice(top, min(top + height, out))
        start, stop = rows.start * width, rows.stop * width
        flat = _decode(w.packed, w.absmax, levels, start, stop, step)
        yield rows, flat.reshape(rows.stop - rows.start, width)


@np.errstate(all="ignore")  # a product may underflow
def _decode(
    packed: UInt8, absmax: Float32, levels: Float32, start: int, stop: int, step: int
) -> Float32:
    """Return the elements start to stop of the flat weight, float32[stop - start] (S7)."""
    odd = start % 2  # then the first element is a low nibble
    codes = unpack_4bit(packed[start // 2 : (stop + 1) // 2], stop - start + odd)[odd:]
    return levels[codes] * absmax[np.arange(start, stop) // step]


def matmul_4bit(
    x: Array,
    packed: UInt8,
    absmax: Float32,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    bias: Array | None = None,
) -> Array:
    """Return y = x W' + bias of shape (..., out), in x's type.

    x: float32, float16 or bfloat16 (..., in), finite, any number of leading dimensions; packed,
    absmax, blocksize and quant_type as in `dequantize_4bit`; shape: (out, in) of W; bias: None or
    finite (out,), in x's type or float32. TypeError or ValueError otherwise.

    Source: rule S9; bitsandbytes 0.50.2, `matmul_4bit`.

    >>> from qloracle import quantize_4bit
    >>> w = np.array([[0, 1, -1], [2, 0, 2]], np.float32)
    >>> packed, absmax = quantize_4bit(w, blocksize=3)
    >>> x, bias = np.array([1, 2, 3], np.float32), np.array([10, 20], np.float32)
    >>> matmul_4bit(x, packed, absmax, shape=(2, 3), blocksize=3, bias=bias).tolist()
    [9.0, 28.0]
    """
    dims = check.matrix_shape("shape", shape)
    x64 = check.rows("x", x, dims[1], f"shape {dims}")  # M, in
    y = product(x64, Packed(packed, absmax, dims, blocksize, quant_type))
    if bias is not None:
        check.shaped("bias", bias, dims[:1], f"shape {dims}")
        check.same_type("bias", bias, x.dtype, np.dtype(np.float32))
        y += check.as_float64("bias", bias)
    return rounded(y, x.dtype).reshape(*x.shape[:-1], dims[0])


def matmul_4bit_backward(
    dy: Array,
    packed: UInt8,
    absmax: Float32,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> Array:
    """Return dx = dy W of shape (..., in), in dy's type; W and the bias get no gradient.

    dy: float32, float16 or bfloat16 (..., out), finite; the rest as in `matmul_4bit`.

    Source: rule S9; bitsandbytes 0.50.2, `MatMul4Bit.backward`.

    >>> from qloracle import quantize_4bit
    >>> packed, absmax = quantize_4bit(np.array([[0, 1, -1], [2, 0, 2]], np.float32), blocksize=3)
    >>> dy = np.array([1, 10], np.float32)
    >>> matmul_4bit_backward(dy, packed, absmax, shape=(2, 3), blocksize=3).tolist()
    [20.0, 1.0, 19.0]
    """
    dims = check.matrix_shape("shape", shape)
    dy64 = check.rows("dy", dy, dims[0], f"shape {dims}")  # M, out
    dx = product_backward(dy64, Packed(packed, absmax, dims, blocksize, quant_type))
    return rounded(dx, dy.dtype).reshape(*dy.shape[:-1], dims[1])


def qlora_forward(
    x: Array,
    packed: UInt8,
    absmax: Float32,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Array | None = None,
) -> Array:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    The weight as in `matmul_4bit`, all else as in `lora_forward`.

    Source: rules S9, S10; arXiv:2305.14314, equation 5.

    >>> from qloracle import quantize_4bit
    >>> packed, absmax = quantize_4bit(np.eye(2, dtype=np.float32))
    >>> x, a = np.array([1, 2], np.float32), np.array([[1, 1]], np.float32)
    >>> b = np.array([[10], [20]], np.float32)
    >>> qlora_forward(x, packed, absmax, a, b, shape=(2, 2), scaling=0.5).tolist()
    [16.0, 32.0]
    """
    dims = check.matrix_shape("shape", shape)
    x64, masked, a64, b64, _ = operands(x, a, b, dropout_mask, dims)
    w = Packed(packed, absmax, dims, blocksize, quant_type)
    y = product(x64, w) + branch(masked, a64, b64, scaling)  # M, out
    return rounded(y, x.dtype).reshape(*x.shape[:-1], dims[0])


def qlora_backward(
    dy: Array,
    x: Array,
    packed: UInt8,
    absmax: Float32,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `qlora_forward`.

    Source: rules S9, S10.

    >>> from qloracle import quantize_4bit
    >>> packed, absmax = quantize_4bit(np.eye(2, dtype=np.float32))
    >>> x, a = np.array([1, 2], np.float32), np.array([[1, 1]], np.float32)
    >>> b, dy = np.array([[10], [20]], np.float32), np.array([1, 0], np.float32)
    >>> dx, da, db = qlora_backward(dy, x, packed, absmax, a, b, shape=(2, 2), scaling=0.5)
    >>> dx.tolist(), da.tolist(), db.tolist()
    ([6.0, 5.0], [[5.0, 10.0]], [[1.5], [0.0]])
    """
    dims = check.matrix_shape("shape", shape)
    through_w = partial(product_backward, w=Packed(packed, absmax, dims, blocksize, quant_type))
    dx, da, db = gradients(dy, x, a, b, through_w, dims, scaling, dropout_mask)
    return rounded(dx, x.dtype).reshape(x.shape), rounded(da, a.dtype), rounded(db, a.dtype)
