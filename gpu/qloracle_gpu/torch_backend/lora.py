"""LoRA in the words of torch: a frozen weight, and a thin product beside it that is learnt.

The rule and its gradients are explained in `qloracle.lora`; the algebra is that of
`qloracle_gpu.operations.lora`, the same for the tensors of any device. W is met a few rows at
a time, so that it may as well be packed: see `linear4bit`.

The functions of the protocol are operators of torch, under `torch.ops.qloracle`. An operator is a
closed box to a compiler, which sees the shape of the result and the operator that is the gradient.
The box holds the numerics: no compiler reorders or fuses what is in it. So torch can differentiate
the forward pass:

>>> x, w = torch.tensor([1.0, 2.0], requires_grad=True), torch.eye(2)
>>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
>>> y = lora_forward(x, w, a, b, scaling=0.5)
>>> y.backward(torch.tensor([1.0, 0.0]))
>>> x.grad, lora_backward(torch.tensor([1.0, 0.0]), x, w, a, b, scaling=0.5)[0]
(tensor([6., 5.]), tensor([6., 5.]))

What a gradient needs is what was passed in: h is computed again, and nothing widened is kept. W and
the mask get no gradient, and a gradient has none of its own.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qloracle_gpu.devices.on_torch import Tensors
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations import lora, products
from qloracle_gpu.operations.lora import Given, Gradients
from qloracle_gpu.torch_backend import values

CHUNK = 1 << 18  # elements of W held in float32 at a time; a single row may be longer


def lora_forward(
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    x: (..., in), any number of leading dimensions; w: (out, in), any of the three float types;
    a: (r, in) and b: (out, r), both in x's type or both float32, of any rank r; scaling:
    a finite number; dropout_mask: x's shape and type, entries 0 or one 1 / (1 - p). All finite.
    TypeError or ValueError otherwise. y has a gradient with respect to x, a and b.

    Source: rule S10; `qloracle.lora_forward`.

    >>> x, w = torch.tensor([1.0, 2.0]), torch.eye(2)
    >>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
    >>> lora_forward(x, w, a, b, scaling=0.5)  # h = 3
    tensor([16., 32.])
    """
    here = values.beside(x)
    weight = check.matrix(here, "w", w)
    mask = given(here, x, a, b, dropout_mask, tuple(weight.shape)).mask
    y: Tensor = _forward_op(x, weight, a, b, values.real("scaling", scaling), mask)
    return y


def lora_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout_mask: Tensor | None = None,
) -> Gradients:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `lora_forward`.
    w is frozen and gets no gradient.

    Source: rule S10; `qloracle.lora_backward`.

    >>> x, w = torch.tensor([1.0, 2.0]), torch.eye(2)
    >>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
    >>> dx, da, db = lora_backward(torch.tensor([1.0, 0.0]), x, w, a, b, scaling=0.5)
    >>> dx.tolist(), da.tolist(), db.tolist()
    ([6.0, 5.0], [[5.0, 10.0]], [[1.5], [0.0]])
    """
    here = values.beside(x)
    weight = check.matrix(here, "w", w)
    own = given(here, x, a, b, dropout_mask, tuple(weight.shape))
    known = lora.output_gradient(here, dy, own.x, tuple(weight.shape))
    s = values.real("scaling", scaling)
    gradients: Gradients = _backward_op(known, own.x, weight, own.a, own.b, s, own.mask)
    return gradients


def given(
    here: Tensors, x: Tensor, a: Tensor, b: Tensor, mask: Tensor | None, dims: tuple[int, ...]
) -> Given:
    """Check what a layer of this shape is given, and the values of its mask."""
    own = lora.given(here, x, a, b, mask, dims)
    values.dropout_mask(own.mask)
    return own


# ---- the same as operators of torch --------------------------------------------------------------


@torch.library.custom_op("qloracle::lora_forward", mutates_args=())
def _forward_op(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float, dropout_mask: Tensor | None
) -> Tensor:
    here, layer = Tensors(x.device), Given(x, a, b, dropout_mask)
    through = partial(products.times_rows, here, lora.widened(here, w, CHUNK), len(w))
    y: Tensor = lora.forward(here, layer, through, scaling)
    return y


@torch.library.custom_op("qloracle::lora_backward", mutates_args=())
def _backward_op(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropout_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    here, layer = Tensors(x.device), Given(x, a, b, dropout_mask)
    back = partial(products.times, here, lora.widened(here, w, CHUNK), w.shape[1])
    return lora.backward(here, dy, layer, back, scaling)


@_forward_op.register_fake
def _(x: Tensor, w: Tensor, a: Tensor, b: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, w: Tensor, a: Tensor, b: Tensor, *_: object) -> Any:
    return like(x, a, b)


def like(*tensors: Tensor) -> Any:
    """Return tensors of the same shapes and types, dense, without numbers."""
    return tuple(t.new_empty(t.shape) for t in tensors)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, a, b, ctx.scaling, mask = inputs
    ctx.save_for_backward(x, w, a, b, mask)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, a, b, mask = ctx.saved_tensors
    dx, da, db = _backward_op(dy, x, w, a, b, ctx.scaling, mask)
    return dx, None, da, db, None, None


_forward_op.register_autograd(_gradient, setup_context=_keep)
