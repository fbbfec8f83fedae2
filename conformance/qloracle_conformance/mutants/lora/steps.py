"""A LoRA layer in steps: a mutant replaces one of them and says why.

Read the matrices, mask x, keep the hidden numbers, and then one step for each result.  Those are
given the `Layer`, which is all that the call has at hand.
"""

from collections.abc import Callable
from functools import partial
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
    dy: Array  # m, out; zeros in the forward pass
    g: Array  # m, r: dy B
    total: Total
    type: np.dtype[Any]
    axes: tuple[int, ...]
    given: bool  # whether a mask was passed


Sides = Callable[[Array, Array, float], tuple[Array, Array, Any]]
Cover = Callable[[Array, Array], Array]  # x, mask
Hidden = Callable[[Array, Layer], Array]  # h or g
See = Callable[[Layer], Layer]
Result = Callable[[Layer], Array]


def as_given(a: Array, b: Array, s: float) -> tuple[Array, Array, Any]:
    """A, B and the scaling in float32."""
    return wide(a), wide(b), np.float32(s)


def output(own: Layer) -> Array:
    """x W' + s (h B'), the two rounded apart."""
    return np.asarray(own.total(own.x, own.w) + own.s * own.total(own.h, own.b))


def x_gradient(own: Layer) -> Array:
    """dy W + s (g A) * mask."""
    return np.asarray(own.total(own.dy, own.w.T) + own.s * own.total(own.g, own.a.T) * own.mask)


def a_gradient(own: Layer) -> Array:
    """s g' (x * mask)."""
    return np.asarray(own.s * own.total(own.g.T, own.masked.T))


def b_gradient(own: Layer) -> Array:
    """s dy' h."""
    return np.asarray(own.s * own.total(own.dy.T, own.h.T))


def unscaled(own: Layer) -> Layer:
    """The layer with a scaling of 1."""
    return own._replace(s=np.float32(1))


class Lora(NamedTuple):
    """The steps of a layer, on a dense weight or a packed one."""

    sides: Sides = as_given
    cover: Cover = np.multiply
    hidden: Hidden = lambda h, own: h  # they stay in float32
    see: See = lambda own: own  # the last step before the results
    y: Result = output
    dx: Result = x_gradient
    da: Result = a_gradient
    db: Result = b_gradient
    total: Total = sums.blas
    decode: Decode = decoded

    def layer(
        self, x: Array, w: Array, a: Array, b: Array, *, scaling: float,
        dropout_mask: Array | None = None, dy: Array | None = None,
    ) -> Layer:  # fmt: skip
        """What the results are made of."""
        a, b, s = self.sides(a, b, scaling)
        rows, given = wide(x), dropout_mask is not None
        mask = np.ones_like(rows) if dropout_mask is None else wide(dropout_mask)
        masked = self.cover(rows, mask) if given else rows
        h = self.total(masked, a)
        grad = np.zeros((len(rows), len(b)), np.float32) if dy is None else wide(dy)
        g = h if dy is None else self.total(grad, b.T)
        more = self.total, x.dtype, x.shape[:-1], given
        own = Layer(rows, masked, mask, w, a, b, s, h, grad, g, *more)
        return self.see(own._replace(h=self.hidden(h, own), g=self.hidden(g, own)))

    @np.errstate(all="ignore")
    def _forward(self, x: Array, w: Array, *sides: Array, **options: Any) -> Array:
        return finished(self.y(self.layer(x, wide(w), *sides, **options)), x)

    @np.errstate(all="ignore")
    def _backward(
        self, dy: Array, x: Array, w: Array, a: Array, b: Array, **options: Any
    ) -> tuple[Array, Array, Array]:
        own = self.layer(x, wide(w), a, b, dy=dy, **options)
        return (
            finished(self.dx(own), x),
            self.da(own).astype(a.dtype),
            self.db(own).astype(b.dtype),
        )

    def _packed(
        self, apply: Step, *arrays: Array, scaling: float, dropout_mask: Array | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        *rows, packed, absmax, a, b = arrays
        w = self.decode(packed, absmax, rows[-1], **options)
        return apply(*rows, w, a, b, scaling=scaling, dropout_mask=dropout_mask)

    def forward(self) -> dict[str, Step]:
        """The layer alone, on either weight."""
        packed = partial(self._packed, self._forward)
        return {"lora_forward": self._forward, "qlora_forward": packed}

    def backward(self) -> dict[str, Step]:
        """Its gradients alone."""
        packed = partial(self._packed, self._backward)
        return {"lora_backward": self._backward, "qlora_backward": packed}

    def both(self) -> dict[str, Step]:
        """All four functions."""
        return self.forward() | self.backward()


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
