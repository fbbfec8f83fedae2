"""A LoRA layer in steps: a mutant replaces one of them and says why.

`forward` builds `lora_forward` and `qlora_forward`, `backward` both gradients: read the matrices
(`sides`), mask x (`cover`), keep the hidden numbers (`hidden`), and then one step for each result.
Those are given the `Layer`, which is all that the call has at hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.mutants.parts import Array, Step, rounded
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import Decode, decoded, finished, wide
from qloracle_conformance.mutants.products.sums import Total


class Layer(NamedTuple):
    """What a call has at hand: float32 matrices, leading axes as one; without a mask, it is 1."""

    x: Array  # m, in
    masked: Array  # m, in
    mask: Array  # m, in
    w: Array  # out, in
    a: Array  # r, in
    b: Array  # out, r
    s: Any  # a float32 scalar
    h: Array  # m, r
    total: Total
    type: np.dtype[Any]
    axes: tuple[int, ...]
    given: bool  # whether a mask was passed


Sides = Callable[[Array, Array, float], tuple[Array, Array, Any]]
Cover = Callable[[Array, Array], Array]  # x, mask
Hidden = Callable[[Array, Layer], Array]  # h or g
Output = Callable[[Layer], Array]
Gradient = Callable[[Layer, Array, Array], Array]  # the layer, dy, g = dy B


# ---- the steps of a layer ------------------------------------------------------------------------


def as_given(a: Array, b: Array, s: float) -> tuple[Array, Array, Any]:
    """A, B and the scaling in float32."""
    return wide(a), wide(b), np.float32(s)


def covered(x: Array, mask: Array) -> Array:
    """x * mask."""
    return x * mask


def unchanged(h: Array, own: Layer) -> Array:
    """The hidden numbers stay in float32."""
    return h


def output(own: Layer) -> Array:
    """x W' + s (h B'), the two rounded apart."""
    return np.asarray(own.total(own.x, own.w) + own.s * own.total(own.h, own.b))


def x_gradient(own: Layer, dy: Array, g: Array) -> Array:
    """dy W + s (g A) * mask."""
    return np.asarray(own.total(dy, own.w.T) + own.s * own.total(g, own.a.T) * own.mask)


def a_gradient(own: Layer, dy: Array, g: Array) -> Array:
    """s g' (x * mask)."""
    return np.asarray(own.s * own.total(g.T, own.masked.T))


def b_gradient(own: Layer, dy: Array, g: Array) -> Array:
    """s dy' h."""
    return np.asarray(own.s * own.total(dy.T, own.h.T))


def unscaled(own: Layer) -> Layer:
    """The layer with a scaling of 1."""
    return own._replace(s=np.float32(1))


def layer(
    x: Array, w: Array, a: Array, b: Array, scaling: float, mask: Array | None, *,
    sides: Sides, cover: Cover, hidden: Hidden, total: Total,
) -> Layer:  # fmt: skip
    """Read a call and make its hidden numbers."""
    own_a, own_b, s = sides(a, b, scaling)
    rows = wide(x)
    own_mask = np.ones_like(rows) if mask is None else wide(mask)
    masked = rows if mask is None else cover(rows, own_mask)
    own = Layer(
        rows, masked, own_mask, w, own_a, own_b, s, total(masked, own_a), total, x.dtype,
        x.shape[:-1], mask is not None,
    )  # fmt: skip
    return own._replace(h=hidden(own.h, own))


def forward(
    *, sides: Sides = as_given, cover: Cover = covered, hidden: Hidden = unchanged,
    total: Total = sums.blas, y: Output = output, decode: Decode = decoded,
) -> dict[str, Step]:  # fmt: skip
    """Build lora_forward and qlora_forward from the same steps."""
    steps: Any = {"sides": sides, "cover": cover, "hidden": hidden, "total": total}

    @np.errstate(all="ignore")
    def lora_forward(
        x: Array, w: Array, a: Array, b: Array, *, scaling: float, dropout_mask: Array | None = None
    ) -> Array:
        return np.asarray(finished(y(layer(x, wide(w), a, b, scaling, dropout_mask, **steps)), x))

    def qlora_forward(
        x: Array, packed: Array, absmax: Array, a: Array, b: Array, *, scaling: float,
        dropout_mask: Array | None = None, **options: Any,
    ) -> Array:  # fmt: skip
        w = decode(packed, absmax, x, **options)
        return lora_forward(x, w, a, b, scaling=scaling, dropout_mask=dropout_mask)

    return {"lora_forward": lora_forward, "qlora_forward": qlora_forward}


def backward(
    *, sides: Sides = as_given, cover: Cover = covered, hidden: Hidden = unchanged,
    total: Total = sums.blas, dx: Gradient = x_gradient, da: Gradient = a_gradient,
    db: Gradient = b_gradient, decode: Decode = decoded,
) -> dict[str, Step]:  # fmt: skip
    """Build lora_backward and qlora_backward from the same steps."""
    steps: Any = {"sides": sides, "cover": cover, "hidden": hidden, "total": total}

    @np.errstate(all="ignore")
    def lora_backward(
        dy: Array, x: Array, w: Array, a: Array, b: Array, *, scaling: float,
        dropout_mask: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        own = layer(x, wide(w), a, b, scaling, dropout_mask, **steps)
        rows = wide(dy)
        g = hidden(total(rows, own.b.T), own)  # m, r
        return (
            finished(dx(own, rows, g), x),
            da(own, rows, g).astype(a.dtype),
            db(own, rows, g).astype(b.dtype),
        )

    def qlora_backward(
        dy: Array, x: Array, packed: Array, absmax: Array, a: Array, b: Array, *, scaling: float,
        dropout_mask: Array | None = None, **options: Any,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        w = decode(packed, absmax, x, **options)
        return lora_backward(dy, x, w, a, b, scaling=scaling, dropout_mask=dropout_mask)

    return {"lora_backward": lora_backward, "qlora_backward": qlora_backward}


# ---- steps of other roundings --------------------------------------------------------------------


def in_own_type(values: Array, own: Layer) -> Array:
    """Kept in the type of x."""
    return rounded(values, own.type)


def merged(own: Layer) -> Array:
    """x (W + s B A)', the sum in the type of x; with a mask the branch stays apart."""
    if own.given:
        return output(own)
    both = own.w + own.s * own.total(own.b, own.a.T)
    return own.total(own.x, in_own_type(both, own))
