"""LoRA beside a frozen weight, dense or packed: L3 in products of the machine.

The rule and its gradients are told in `qloracle.lora`. Everything is float32: what is passed in is
widened, the hidden h = s (x * mask) A' stays in float32, and each result is rounded once, to its
type. W is met a few rows at a time; a packed one as `products` does it, in one launch where x has
few rows. The adapter's own products are the machine's.

Values are not looked at: a mask is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from qloracle import arguments as plain
from qloracle_gpu.devices import Array, Device, type_name
from qloracle_gpu.operations import _arguments as check
from qloracle_gpu.operations import products
from qloracle_gpu.operations.blockwise import Nested
from qloracle_gpu.operations.products import Chunks, as_matrix, heights

Gradients: TypeAlias = tuple[Array, Array, Array]  # dx, da, db
Through: TypeAlias = Callable[[Array], Array]  # float32 rows times W' or W


class Operands(NamedTuple):
    """What a layer is given, in float32: x [M, in], x * mask, A [r, in], B [out, r], the mask."""

    x: Array
    masked: Array
    a: Array
    b: Array
    mask: Array | None


def lora_forward(
    device: Device,
    x: Array,
    w: Array,
    a: Array,
    b: Array,
    *,
    scaling: float,
    dropout_mask: Array | None = None,
) -> Array:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    x: (..., in), any number of leading dimensions; w: (out, in), any of the three float types;
    a: (r, in) and b: (out, r), both in x's type or both float32, r at most min(out, in); scaling:
    a finite number; dropout_mask: x's shape and type. TypeError or ValueError otherwise.

    Source: rule S10; `qloracle.lora_forward`.
    """
    weight, dims = _dense(device, w)
    given = _operands(device, x, a, b, dropout_mask, dims)
    through = partial(_times_rows, device, weight)
    y = _forward(device, given, through, plain.real("scaling", scaling))
    return device.cast(y, type_name(x)).reshape((*x.shape[:-1], dims[0]))


def lora_backward(
    device: Device,
    dy: Array,
    x: Array,
    w: Array,
    a: Array,
    b: Array,
    *,
    scaling: float,
    dropout_mask: Array | None = None,
) -> Gradients:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `lora_forward`.
    w is frozen and gets no gradient.

    Source: rule S10; `qloracle.lora_backward`.
    """
    weight, dims = _dense(device, w)
    given = _operands(device, x, a, b, dropout_mask, dims)
    wide = _output_gradient(device, dy, x, dims)
    back = partial(_times, device, weight)
    gradients = _backward(device, wide, given, back, plain.real("scaling", scaling))
    return _narrowed(device, gradients, x, a)


def qlora_forward(
    device: Device,
    x: Array,
    packed: Array,
    absmax: Array | None,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Array | None = None,
    nested: Nested | None = None,
) -> Array:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    The weight as in `matmul_4bit` (absmax is None where nested is given), all else as in
    `lora_forward`.

    Source: rules S9, S10; `qloracle.qlora_forward`.
    """
    dims = plain.matrix_shape("shape", shape)
    given = _operands(device, x, a, b, dropout_mask, dims)
    weight = products.weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    through = partial(products.forward, device, weight=weight)
    y = _forward(device, given, through, plain.real("scaling", scaling))
    return device.cast(y, type_name(x)).reshape((*x.shape[:-1], dims[0]))


def qlora_backward(
    device: Device,
    dy: Array,
    x: Array,
    packed: Array,
    absmax: Array | None,
    a: Array,
    b: Array,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Array | None = None,
    nested: Nested | None = None,
) -> Gradients:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `qlora_forward`.

    Source: rules S9, S10; `qloracle.qlora_backward`.
    """
    dims = plain.matrix_shape("shape", shape)
    given = _operands(device, x, a, b, dropout_mask, dims)
    wide = _output_gradient(device, dy, x, dims)
    weight = products.weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    back = partial(products.backward, device, weight=weight)
    gradients = _backward(device, wide, given, back, plain.real("scaling", scaling))
    return _narrowed(device, gradients, x, a)


# ---- the two passes, for W in any form -----------------------------------------------------------


@np.errstate(all="ignore")  # NumPy is one of the machines
def _forward(device: Device, given: Operands, through: Through, scaling: float) -> Array:
    """Return y, float32[M, out], before its rounding."""
    h = device.product(given.masked, given.a.T) * scaling  # M, r
    return through(given.x) + device.product(h, given.b.T)


@np.errstate(all="ignore")
def _backward(
    device: Device, dy: Array, given: Operands, back: Through, scaling: float
) -> Gradients:
    """Return dx [M, in], da and db in float32, before their roundings."""
    dh = device.product(dy, given.b) * scaling  # M, r
    h = device.product(given.masked, given.a.T) * scaling  # M, r
    branch = device.product(dh, given.a)
    dx = back(dy) + (branch if given.mask is None else branch * given.mask)
    return dx, device.product(dh.T, given.masked), device.product(dy.T, h)


def _narrowed(device: Device, gradients: Gradients, x: Array, a: Array) -> Gradients:
    """Round each gradient to its type."""
    dx, da, db = gradients
    own = type_name(a)
    dx = device.cast(dx, type_name(x)).reshape(tuple(x.shape))
    return dx, device.cast(da, own), device.cast(db, own)


def _times_rows(device: Device, w: Array, x: Array) -> Array:
    return products.times_rows(device, x, _widened(device, w), w.shape[0])


def _times(device: Device, w: Array, dy: Array) -> Array:
    return products.times(device, dy, _widened(device, w), w.shape[1])


def _widened(device: Device, w: Array) -> Chunks:
    """Return W a few rows at a time."""
    return ((some, device.cast(w[some], "float32")) for some in heights(*w.shape))


# ---- what is checked -----------------------------------------------------------------------------


def _dense(device: Device, w: object) -> tuple[Array, tuple[int, int]]:
    """Return a weight that is not packed, and its shape."""
    known = check.floats(device, "w", w)
    return known, plain.matrix_shape("the shape of w", tuple(known.shape))


@np.errstate(all="ignore")
def _operands(
    device: Device, x: Array, a: Array, b: Array, mask: Array | None, dims: tuple[int, int]
) -> Operands:
    """Check what a layer of this shape is given, and widen it."""
    (out, width), beside = dims, f"w of shape {dims}"
    own = check.rows(device, "x", x, width, beside)
    kind = type_name(own)
    rank = a.shape[0] if len(getattr(a, "shape", ())) else 0
    known_a = check.shaped(device, "a", a, (rank, width), beside, kind, "float32")
    near = f"a of shape {tuple(known_a.shape)} and {beside}"
    known_b = check.shaped(device, "b", b, (out, rank), near, type_name(known_a))
    if rank > min(dims):
        raise ValueError(
            f"the rank r must be at most min(out, in), got a of shape {tuple(known_a.shape)} and "
            f"b of shape {tuple(known_b.shape)} beside {beside}"
        )
    wide = device.cast(as_matrix(own), "float32")
    a32, b32 = device.cast(known_a, "float32"), device.cast(known_b, "float32")
    if mask is None:
        return Operands(wide, wide, a32, b32, None)
    near = f"x of shape {tuple(own.shape)}"
    known = check.shaped(device, "dropout_mask", mask, tuple(own.shape), near, kind)
    mask32 = device.cast(as_matrix(known), "float32")
    return Operands(wide, wide * mask32, a32, b32, mask32)


def _output_gradient(device: Device, dy: object, x: Array, dims: tuple[int, int]) -> Array:
    """Return dy in float32, [M, out], once it has the leading dimensions and the type of x."""
    beside = f"x of shape {tuple(x.shape)} and w of shape {dims}"
    due = (*x.shape[:-1], dims[0])
    return device.cast(
        as_matrix(check.shaped(device, "dy", dy, due, beside, type_name(x))), "float32"
    )
