"""LoRA in the words of torch: a frozen weight, and a thin product beside it that is learnt.

The rule and its gradients are explained in `qloracle.lora`; the algebra is that of
`qloracle_gpu.operations.lora`, the same for the tensors of any device. W is met a few rows at
a time, so that it may as well be packed: see `linear4bit`.

Torch can differentiate the forward pass:

>>> x, w = torch.tensor([1.0, 2.0], requires_grad=True), torch.eye(2)
>>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
>>> y = lora_forward(x, w, a, b, scaling=0.5)
>>> y.backward(torch.tensor([1.0, 0.0]))
>>> x.grad, lora_backward(torch.tensor([1.0, 0.0]), x, w, a, b, scaling=0.5)[0]
(tensor([6., 5.]), tensor([6., 5.]))

What a gradient needs is what was passed in: h is computed again, and nothing widened is kept. W and
the mask get no gradient, and a gradient has none of its own.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from qloracle_gpu.operations import lora
from qloracle_gpu.torch_backend import values
from qloracle_gpu.torch_backend.operators import boxed, like, operator

Gradients: TypeAlias = tuple[torch.Tensor, Tensor, Tensor]  # dx, da, db


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, a, b, ctx.scaling, mask = inputs
    ctx.save_for_backward(x, w, a, b, mask)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w, a, b, mask = ctx.saved_tensors
    dx, da, db = boxed(lora_backward)(dy, x, w, a, b, ctx.scaling, mask)
    return dx, None, da, db, None, None


@operator(
    lambda x, w, *_: x.new_empty(*x.shape[:-1], w.shape[0]),
    _keep,
    _gradient,
    learns=("x", "a", "b"),
    kernels=False,
)
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
    form: dict[str, Any] = {"scaling": scaling, "dropout_mask": dropout_mask}
    y: Tensor = lora.lora_forward(values.beside(x), x, w, a, b, **form)
    return y


@operator(lambda dy, x, w, a, b, *_: like(x, a, b), looks=False, kernels=False)
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
    form: dict[str, Any] = {"scaling": scaling, "dropout_mask": dropout_mask}
    return lora.lora_backward(values.beside(x), dy, x, w, a, b, **form)
