"""Layers that share: three projections of one input, and a gated MLP.

The gradient of an input that several layers read is the sum of their gradients. In attention, x
goes into the projections q, k and v, and

    dx = dx_q + dx_k + dx_v

each with its own W, A and B (`shared_input_backward`). The sum is formed in float64 and rounded
once; an autograd that adds the gradients as they arrive rounds each of them to x's type first.

The feed-forward block of current models is gated (arXiv:2002.05202): one projection decides how
much of another passes.

    g = gate(x)    u = up(x)    h = silu(g) * u    y = down(h)        silu(g) = g / (1 + exp(-g))

With dh from `down`, and sigma(g) = 1 / (1 + exp(-g)),

    du = dh * silu(g)        dg = dh * u * sigma(g) (1 + g (1 - sigma(g)))

and gate and up share x. g, u, h, dg and du are kept in x's type, as kernels keep them: each is
rounded once where it is formed. A layer's weight is an array or packed in 4 bits; rank 0 means no
adapter.

>>> from qloracle import quantize_4bit
>>> rng = np.random.default_rng(0)
>>> shapes = [(6, 4), (6, 4), (4, 6)]
>>> weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
>>> gate, up, down = (Linear(w) for w in weights)
>>> block = GatedMLP(gate, up, Linear(Packed(*quantize_4bit(down.weight), shape=(4, 6))))
>>> x = rng.standard_normal((2, 4)).astype(np.float32)
>>> y = block.forward(x)
>>> dx, gradients_of_adapters = block.backward(np.ones_like(y), x)
>>> y.shape, dx.shape, len(gradients_of_adapters)
((2, 4), (2, 4), 3)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qloracle import arguments as check
from qloracle._rounding import rounded
from qloracle.arguments import Array, Float64
from qloracle.linear4bit import Packed, product, product_backward
from qloracle.lora import branch, gradients, operands

AdapterGradients: TypeAlias = tuple[Array, Array]  # da, db


@dataclass(frozen=True, eq=False)
class Linear:
    """A frozen weight (out, in), an array or packed, with or without an adapter.

    a: (r, in), b: (out, r) and scaling as in `lora_forward`.
    """

    weight: Array | Packed
    a: Array | None = None
    b: Array | None = None
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return check.matrix_shape("shape", tuple(self.weight.shape))

    @property
    def adapter(self) -> tuple[Array, Array]:
        """A and B, of rank 0 where there is no adapter."""
        out, width = self.shape
        if self.a is None or self.b is None:
            return np.zeros((0, width), np.float32), np.zeros((out, 0), np.float32)
        return self.a, self.b

    def forward(self, x: Array, dropout_mask: Array | None = None) -> Array:
        """Return y as `lora_forward` does, or as `qlora_forward` does if the weight is packed."""
        x64, masked, a, b, _ = operands(x, *self.adapter, dropout_mask, self.shape)
        y = self._product(x64) + branch(masked, a, b, self.scaling)  # M, out
        return rounded(y, x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def backward(
        self, dy: Array, x: Array, dropout_mask: Array | None = None
    ) -> tuple[Array, AdapterGradients]:
        """Return dx, and da and db, as `lora_backward` or `qlora_backward` does."""
        dx, of_adapter = self.gradients(dy, x, dropout_mask)
        return rounded(dx, x.dtype).reshape(x.shape), of_adapter

    def gradients(
        self, dy: Array, x: Array, dropout_mask: Array | None = None
    ) -> tuple[Float64, AdapterGradients]:
        """Return dx before it is rounded, float64[M, in], and da and db in the type of a."""
        a, b = self.adapter
        through_w, shape = self._product_backward, self.shape
        dx, da, db = gradients(dy, x, a, b, through_w, shape, self.scaling, dropout_mask)
        return dx, (rounded(da, a.dtype), rounded(db, a.dtype))

    def _product(self, x: Float64) -> Float64:
        w = self.weight
        return product(x, w) if isinstance(w, Packed) else x @ check.as_float64("weight", w).T

    def _product_backward(self, dy: Float64) -> Float64:
        w = self.weight
        return product_backward(dy, w) if isinstance(w, Packed) else dy @ check.as_float64("w", w)


def shared_input_backward(
    layers: Sequence[Linear], dys: Sequence[Array], x: Array
) -> tuple[Array, list[AdapterGradients]]:
    """Return dx of x's shape and type, the sum over the layers, and (da, db) of each of them.

    layers: at least one, all reading x; dys: one dy for each layer, as in `lora_backward`.
    ValueError otherwise.

    >>> layers = [Linear(np.full((1, 1), w, np.float32)) for w in (1, 20, 300)]
    >>> one = np.ones((1, 1), np.float32)
    >>> shared_input_backward(layers, [one, one, one], one)[0].tolist()
    [[321.0]]
    """
    if not layers or len(layers) != len(dys):
        raise ValueError(f"layers and dys must pair up, got {len(layers)} and {len(dys)}")
    pairs = [layer.gradients(dy, x) for layer, dy in zip(layers, dys, strict=True)]
    dx = np.sum([dx for dx, _ in pairs], axis=0)  # M, in
    return rounded(dx, x.dtype).reshape(x.shape), [of_adapter for _, of_adapter in pairs]


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """y = down(silu(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear

    def forward(self, x: Array) -> Array:
        """Return y of shape (..., out of down), in x's type."""
        return self.down.forward(_gated(self.gate.forward(x), self.up.forward(x)))

    def backward(self, dy: Array, x: Array) -> tuple[Array, list[AdapterGradients]]:
        """Return dx of x's shape and type, and (da, db) of gate, up and down.

        Nothing is kept from the forward pass but x: g, u and h are computed again.
        """
        g, u = self.gate.forward(x), self.up.forward(x)
        dh, of_down = self.down.backward(dy, _gated(g, u))
        dg, du = _gated_backward(dh, g, u)
        dx, of_shared = shared_input_backward([self.gate, self.up], [dg, du], x)
        return dx, [*of_shared, of_down]


def expit(x: Float64) -> Float64:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


@np.errstate(all="ignore")  # exp may underflow, in silence whatever the caller has set
def _gated(g: Array, u: Array) -> Array:
    """Return h = silu(g) * u, rounded once to their type."""
    g64, u64 = check.as_float64("gate(x)", g), check.as_float64("up(x)", u)
    return rounded(g64 * expit(g64) * u64, g.dtype)


@np.errstate(all="ignore")
def _gated_backward(dh: Array, g: Array, u: Array) -> tuple[Array, Array]:
    """Return dg and du, each rounded once."""
    dh64, g64, u64 = (check.as_float64(*each) for each in (("dh", dh), ("g", g), ("u", u)))
    sigma = expit(g64)
    dg = dh64 * u64 * sigma * (1 + g64 * (1 - sigma))
    return rounded(dg, g.dtype), rounded(dh64 * g64 * sigma, g.dtype)
