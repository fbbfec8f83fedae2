"""LoRA beside a frozen weight, dense or packed: L3 for all arrays, torch's on a CPU too.

The rule and its gradients are explained in `qloracle.lora`. Everything is float32: the arguments
are widened, the hidden h = s (x * mask) A' stays in float32, and each result is rounded once, to
its type. W is met a few rows at a time; where the kernels multiply and x has few rows, a packed W
takes one launch. The adapter's own products are the machine's.

Values are not looked at: a mask is taken as it is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from qloracle import arguments as plain
from qloracle_gpu.devices import Array, Arrays, Device, type_name
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations import products
from qloracle_gpu.operations.blockwise import Nested
from qloracle_gpu.operations.products import Added, Chunks, as_matrix, heights

Gradients: TypeAlias = tuple[Array, Array, Array]  # dx, da, db
Forward: TypeAlias = Callable[[Array, Added, str], Array]  # x, added, dtype -> x W' + added
Backward: TypeAlias = Callable[[Array], Array]  # dy -> dy W, in float32


class Given(NamedTuple):
    """What a layer is given, checked: x (..., in), A [r, in], B [out, r] and the mask, like x."""

    x: Array
    a: Array
    b: Array
    mask: Array | None


def lora_forward(
    device: Arrays,
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
    a: (r, in) and b: (out, r), both in x's type or both float32, of any rank r; scaling:
    a finite number; dropout_mask: x's shape and type. TypeError or ValueError otherwise.

    Source: rule S10; `qloracle.lora_forward`.
    """
    weight = check.matrix(device, "w", w)
    layer = given(device, x, a, b, dropout_mask, tuple(weight.shape))
    through = partial(products.times_rows, device, widened(device, weight), weight.shape[0])
    return forward(device, layer, through, scaling)


def lora_backward(
    device: Arrays,
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
    weight = check.matrix(device, "w", w)
    dims = tuple(weight.shape)
    layer = given(device, x, a, b, dropout_mask, dims)
    known = output_gradient(device, dy, x, dims)
    back = partial(products.times, device, widened(device, weight), dims[1])
    return backward(device, known, layer, back, scaling)


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
    layer = given(device, x, a, b, dropout_mask, dims)
    weight = products.weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    through = partial(products.forward, device, weight)
    return forward(device, layer, through, scaling)


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
    layer = given(device, x, a, b, dropout_mask, dims)
    known = output_gradient(device, dy, x, dims)
    weight = products.weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    back = partial(products.backward, device, weight)
    return backward(device, known, layer, back, scaling)


# ---- the two passes, for W in any form -----------------------------------------------------------


@np.errstate(all="ignore")  # NumPy is one of the machines
def forward(device: Arrays, layer: Given, through: Forward, scaling: float) -> Array:
    """Return y of shape (..., out), in x's type: one rounding at the end."""
    scaling = plain.real("scaling", scaling)
    x, masked, _ = _inputs(device, layer)
    a, b = device.cast(layer.a, "float32"), device.cast(layer.b, "float32")
    h = device.product(masked, a.T) * scaling  # M, r
    y = through(x, lambda rows: device.product(h, b[rows].T), type_name(layer.x))
    return y.reshape((*layer.x.shape[:-1], b.shape[0]))


@np.errstate(all="ignore")
def backward(device: Arrays, dy: Array, layer: Given, back: Backward, scaling: float) -> Gradients:
    """Return dx in x's type, da and db in a's type."""
    scaling = plain.real("scaling", scaling)
    _, masked, mask = _inputs(device, layer)
    a, b = device.cast(layer.a, "float32"), device.cast(layer.b, "float32")
    dy32 = device.cast(as_matrix(dy), "float32")
    dh = device.product(dy32, b) * scaling  # M, r
    h = device.product(masked, a.T) * scaling  # M, r
    branch = device.product(dh, a)
    dx = back(dy32) + (branch if mask is None else branch * mask)
    da, db = device.product(dh.T, masked), device.product(dy32.T, h)
    dx = device.cast(dx, type_name(layer.x)).reshape(tuple(layer.x.shape))
    return dx, device.cast(da, type_name(layer.a)), device.cast(db, type_name(layer.a))


def widened(device: Arrays, w: Array) -> Chunks:
    """Return a weight that is not packed, a few rows at a time."""
    slices = heights(w.shape[0], w.shape[1], device.chunk)
    return ((rows, device.cast(w[rows], "float32")) for rows in slices)


def _inputs(device: Arrays, layer: Given) -> tuple[Array, Array, Array | None]:
    """Return x [M, in], x * mask and the mask, in float32."""
    x = device.cast(as_matrix(layer.x), "float32")
    if layer.mask is None:
        return x, x, None
    mask = device.cast(as_matrix(layer.mask), "float32")
    return x, x * mask, mask


# ---- what is checked -----------------------------------------------------------------------------


def given(
    device: Arrays, x: Array, a: Array, b: Array, mask: Array | None, dims: tuple[int, ...]
) -> Given:
    """Check what a layer of this shape (out, in) is given."""
    (out, width), beside = dims, f"w of shape {dims}"
    own = check.rows(device, "x", x, width, beside)
    kind, r = type_name(own), a.shape[0] if len(getattr(a, "shape", ())) else 0
    known_a = check.typed(device, "a", a, kind, "float32")
    known_b = check.typed(device, "b", b, type_name(known_a))
    check.shaped("a", known_a, (r, width), beside)
    check.shaped("b", known_b, (out, r), f"a of shape {tuple(known_a.shape)} and {beside}")
    if mask is not None:
        mask, shape = check.floats(device, "dropout_mask", mask, kind), tuple(own.shape)
        check.shaped("dropout_mask", mask, shape, f"x of shape {shape}")
    return Given(own, known_a, known_b, mask)


def output_gradient(device: Arrays, dy: object, x: Array, dims: tuple[int, ...]) -> Array:
    """Return dy, once it has the leading dimensions and the type of x."""
    beside = f"x of shape {tuple(x.shape)} and w of shape {dims}"
    known = check.floats(device, "dy", dy, type_name(x))
    return check.shaped("dy", known, (*x.shape[:-1], dims[0]), beside)
