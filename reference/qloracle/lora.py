"""LoRA: learn a small change of a frozen weight.

The weight W [out, in] is frozen. What is learnt is the product of two thin matrices beside it,
A [r, in] and B [out, r] (arXiv:2106.09685):

    y  = x W' + s ((x * mask) A') B'            s = alpha / r, or alpha / sqrt(r)             (S10)

The mask is dropout and applies to the adapter's branch only. With h = (x * mask) A' and
dh = s (dy B), the chain rule gives

    dB = s dy' h        dA = dh' (x * mask)        dx = dy W + mask * (dh A)

and W has no gradient, hence no optimizer state: that is what saves the memory. A layer of 100 x 100
has 10,000 weights, an adapter of rank 4 has 800. At rank 50 nothing is saved, and above rank 100
the adapter can express nothing more; neither is an error.

B starts at zero, so the first step sees the model unchanged. Then dA is zero and only B moves. With
both at zero neither would ever move.

>>> rng = np.random.default_rng(0)
>>> x, w, a = (rng.standard_normal(s).astype(np.float32) for s in [(3, 4), (5, 4), (2, 4)])
>>> b = np.zeros((5, 2), np.float32)
>>> dx, da, db = lora_backward(np.ones((3, 5), np.float32), x, w, a, b, scaling=0.5)
>>> bool(da.any()), bool(db.any())
(False, True)

alpha / r shrinks the change as the rank grows; alpha / sqrt(r) keeps its size (arXiv:2312.03732).
The spread of an entry of s B A, for A and B of fixed spread:

>>> for r in (4, 16, 64):
...     spread = (rng.standard_normal((400, r)) @ rng.standard_normal((r, 400))).std() / 64
...     by_root = lora_scaling(16, r, rank_stabilized=True) * spread
...     print(f"{lora_scaling(16, r) * spread:.2f} {by_root:.2f}")
0.13 0.25
0.06 0.25
0.03 0.25

Where implementations differ, this is what the specification chooses. Every element is a sum in
float64, rounded once to the result's type. Libraries round h, x * mask or the two branches on the
way, and round s B A into W when they merge. How far an element may then be off depends on how many
roundings each of its terms can meet; `qloracle explain S10` counts them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle._rounding import rounded
from qloracle.arguments import Array, Float64


def branch(masked: Float64, a: Float64, b: Float64, scaling: float) -> Float64:
    """Return the adapter's part of y, float64[M, out]: s ((x * mask) A') B'."""
    return check.real("scaling", scaling) * (masked @ a.T) @ b.T


def branch_backward(
    dy: Float64, masked: Float64, a: Float64, b: Float64, scaling: float
) -> tuple[Float64, Float64, Float64]:
    """Return the adapter's part of dx, before the mask, and da and db, all in float64."""
    dh = check.real("scaling", scaling) * (dy @ b)  # M, r
    h = masked @ a.T  # M, r
    return dh @ a, dh.T @ masked, scaling * (dy.T @ h)


def lora_forward(
    x: Array, w: Array, a: Array, b: Array, *, scaling: float, dropout_mask: Array | None = None
) -> Array:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    x: (..., in), any number of leading dimensions; w: (out, in), any of the three float types;
    a: (r, in) and b: (out, r), both in x's type or both float32, of any rank r; scaling: a
    finite number, used as it is; dropout_mask: x's shape and type, each entry 0 or one and the same
    1 / (1 - p). All finite. TypeError or ValueError otherwise.

    Source: rule S10; arXiv:2106.09685, equation 3.

    >>> x, w = np.array([1, 2], np.float32), np.eye(2, dtype=np.float32)
    >>> a, b = np.array([[1, 1]], np.float32), np.array([[10], [20]], np.float32)
    >>> lora_forward(x, w, a, b, scaling=0.5).tolist()  # h = 3
    [16.0, 32.0]
    """
    weight = check.as_float64("w", w)
    x64, masked, a64, b64, _ = operands(x, a, b, dropout_mask, weight.shape)
    y = x64 @ weight.T + branch(masked, a64, b64, scaling)  # M, out
    return rounded(y, x.dtype).reshape(*x.shape[:-1], len(weight))


def lora_backward(
    dy: Array,
    x: Array,
    w: Array,
    a: Array,
    b: Array,
    *,
    scaling: float,
    dropout_mask: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `lora_forward`.
    w is frozen and gets no gradient.

    Source: rule S10.

    >>> x, w = np.array([1, 2], np.float32), np.eye(2, dtype=np.float32)
    >>> a, b = np.array([[1, 1]], np.float32), np.array([[10], [20]], np.float32)
    >>> dx, da, db = lora_backward(np.array([1, 0], np.float32), x, w, a, b, scaling=0.5)
    >>> dx.tolist(), da.tolist(), db.tolist()
    ([6.0, 5.0], [[5.0, 10.0]], [[1.5], [0.0]])
    """
    weight = check.as_float64("w", w)
    dims = check.matrix_shape("the shape of w", weight.shape)
    dx, da, db = gradients(dy, x, a, b, lambda dy: dy @ weight, dims, scaling, dropout_mask)
    return rounded(dx, x.dtype).reshape(x.shape), rounded(da, a.dtype), rounded(db, a.dtype)


def lora_scaling(alpha: float, r: int, *, rank_stabilized: bool = False) -> float:
    """Return s = alpha / r, or alpha / sqrt(r): float64, rounded once to float32, as a float.

    alpha: a finite number; r: an int of at least 1. TypeError or ValueError otherwise.

    Source: rule S10; arXiv:2106.09685, section 4.1; arXiv:2312.03732.

    >>> lora_scaling(16, 64), lora_scaling(16, 64, rank_stabilized=True), lora_scaling(1, 3)
    (0.25, 2.0, 0.3333333432674408)
    """
    rank = check.integer("r", r, least=1)
    root = check.boolean("rank_stabilized", rank_stabilized)
    return float(np.float32(check.real("alpha", alpha) / (math.sqrt(rank) if root else rank)))


def draw_dropout_mask(
    rng: np.random.Generator, shape: Sequence[int], p: float, *, dtype: DTypeLike = np.float32
) -> Array:
    """Draw a mask, dtype[shape]: 0 with probability p, else 1 / (1 - p) rounded once.

    The entries that are kept are scaled up so that the mean stays. p: in [0, 1); dtype: float32,
    float16 or bfloat16. TypeError or ValueError otherwise, also where 1 / (1 - p) overflows.

    >>> draw_dropout_mask(np.random.default_rng(1), (6,), 0.5).tolist()
    [2.0, 2.0, 0.0, 2.0, 0.0, 0.0]
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy Generator, got {type(rng).__name__}")
    drop, wanted = check.fraction("p", p), check.float_type("dtype", dtype)
    dims, _ = check.dimensions("shape", shape)
    kept = rounded(np.full(dims, 1 / (1 - drop)), wanted)
    if not np.isfinite(kept).all():
        raise ValueError(f"1 / (1 - p) must be finite in {wanted}, got p = {drop}")
    kept[rng.random(dims) < drop] = 0
    return kept


def gradients(
    dy: Array,
    x: Array,
    a: Array,
    b: Array,
    through_w: Callable[[Float64], Float64],
    shape: tuple[int, int],
    scaling: float,
    dropout_mask: Array | None,
) -> tuple[Float64, Float64, Float64]:
    """Return dx [M, in], da and db in float64, not yet rounded; through_w(dy) is dy W."""
    _, masked, a64, b64, mask = operands(x, a, b, dropout_mask, shape)
    beside = f"x of shape {x.shape} and w of shape {shape}"
    check.shaped("dy", dy, (*x.shape[:-1], shape[0]), beside)
    check.same_type("dy", dy, x.dtype)
    dy64 = check.rows("dy", dy, shape[0], beside)  # M, out
    dx, da, db = branch_backward(dy64, masked, a64, b64, scaling)
    return through_w(dy64) + mask * dx, da, db


def operands(
    x: Array, a: Array, b: Array, dropout_mask: Array | None, shape: tuple[int, ...]
) -> tuple[Float64, Float64, Float64, Float64, Float64]:
    """Check what a layer of this shape takes; return x, x * mask, a, b and the mask in float64."""
    out, width = check.matrix_shape("the shape of w", shape)
    x64 = check.rows("x", x, width, f"w of shape {shape}")  # M, in
    check.same_type("a", a, x.dtype, np.dtype(np.float32))
    check.same_type("b", b, a.dtype)
    a64, b64 = adapter(a, b, (out, width))
    if dropout_mask is None:
        return x64, x64, a64, b64, np.ones((1, 1))
    mask = mask_rows(dropout_mask, x)  # M, in
    return x64, x64 * mask, a64, b64, mask


def adapter(a: Array, b: Array, shape: tuple[int, int]) -> tuple[Float64, Float64]:
    """Return A [r, in] and B [out, r] in float64, once they fit a weight of shape (out, in)."""
    (out, width), beside = shape, f"w of shape {shape}"
    r = check.floats("a", a).shape[0] if np.ndim(a) else 0
    check.shaped("a", a, (r, width), beside)
    check.shaped("b", b, (out, r), f"a of shape {a.shape} and {beside}")
    return check.as_float64("a", a), check.as_float64("b", b)


def mask_rows(dropout_mask: Array, x: Array) -> Float64:
    """Return the mask as float64[M, in], once its entries are 0 or one common 1 / (1 - p)."""
    check.shaped("dropout_mask", dropout_mask, x.shape, f"x of shape {x.shape}")
    check.same_type("dropout_mask", dropout_mask, x.dtype)
    mask = check.as_float64("dropout_mask", dropout_mask)
    kept = mask.max(initial=1)  # 1 / (1 - p) is at least 1
    wrong = (mask != 0) & (mask != kept)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"dropout_mask must hold 0 and one value 1 / (1 - p), got {mask.flat[first]} "
            f"at flat index {first} beside {kept}"
        )
    return mask.reshape(-1 if mask.size else math.prod(x.shape[:-1]), x.shape[-1])
