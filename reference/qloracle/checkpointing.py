"""Gradient checkpointing: forget the activations, compute them again.

Backpropagation through a stack of n layers needs the input of each of them. Ordinarily all n are
kept. With checkpoints only every k-th is kept, and on the way back the inputs of a segment of k
layers are computed again from its first (arXiv:1604.06174): about n / k + k inputs in memory
instead of n, for one more forward pass. The best k is about sqrt(n):

>>> best_segment(32), [stored_inputs(32, k) for k in (1, 2, 4, 8, 16, 32)]
(4, [32, 17, 11, 11, 17, 32])

Nothing is approximated. The same layers see the same inputs, so the gradients agree to the bit, as
long as the layers do the same at the second call: one that draws a new dropout mask does not.

A layer is anything with `forward(x)` and `backward(dy, x)`, which returns dx and the layer's own
gradients, like those of `qloracle.layers`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from qloracle import arguments as check
from qloracle.arguments import Array


class Layer(Protocol):
    """What a stack is made of."""

    def forward(self, x: Array, /) -> Array:
        """Return y."""

    def backward(self, dy: Array, x: Array, /) -> tuple[Array, Any]:
        """Return dx and the gradients of the layer's own parameters."""


def forward_checkpointed(
    layers: Sequence[Layer], x: Array, *, segment: int
) -> tuple[Array, list[Array]]:
    """Return y and the inputs of layers 0, k, 2k ...; segment is k, and 1 keeps every input.

    ValueError for a segment below 1.

    Source: arXiv:1604.06174, section 3.
    """
    k, kept = check.integer("segment", segment, least=1), []
    for i, layer in enumerate(layers):
        if i % k == 0:
            kept.append(x)
        x = layer.forward(x)
    return x, kept


def backward_checkpointed(
    layers: Sequence[Layer], dy: Array, kept: Sequence[Array], *, segment: int
) -> tuple[Array, list[Any]]:
    """Return dx and the gradients of each layer, in the layers' order.

    kept and segment as in `forward_checkpointed`; ValueError where they do not match.

    Source: arXiv:1604.06174, section 3.
    """
    k = check.integer("segment", segment, least=1)
    if len(kept) != -(-len(layers) // k):
        raise ValueError(
            f"kept must hold {-(-len(layers) // k)} inputs of {len(layers)} layers in segments of "
            f"{k}, got {len(kept)}"
        )
    of_layers: list[Any] = []
    for first in reversed(range(0, len(layers), k)):
        run = layers[first : first + k]
        inputs = _inputs(run, kept[first // k])
        for layer in reversed(run):
            dy, of_layer = layer.backward(dy, inputs.pop())
            of_layers.append(of_layer)
    return dy, of_layers[::-1]


def stored_inputs(layers: int, segment: int) -> int:
    """Count the inputs held at a time: the checkpoints, and those computed again.

    >>> stored_inputs(10, 4)  # checkpoints at 0, 4 and 8; 1, 2 and 3 are computed from 0
    6
    """
    n = check.integer("layers", layers)
    k = check.integer("segment", segment, least=1)
    return -(-n // k) + max(min(k, n) - 1, 0)


def best_segment(layers: int) -> int:
    """Return the smallest segment with the fewest stored inputs; it lies near the square root.

    >>> [best_segment(n) for n in (1, 4, 10, 100)]
    [1, 2, 2, 10]
    """
    n = check.integer("layers", layers, least=1)
    return min(range(1, 2 * math.isqrt(n) + 2), key=lambda k: stored_inputs(n, k))


def _inputs(layers: Sequence[Layer], x: Array) -> list[Array]:
    """Return the input of each layer, computed again from the first."""
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(layer.forward(inputs[-1]))
    return inputs
