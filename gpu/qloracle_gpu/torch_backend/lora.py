"""LoRA in the words of torch: a frozen weight, and a thin product beside it that is learnt.

The rule and its gradients are told in `qloracle.lora`. Here is how tensors carry them out.

* Everything is float32: x, W, A and B are widened, the hidden h = s (x * mask) A' stays in float32,
  and each element is rounded once, to the type of the result.
* A product meets W a few rows at a time, as (rows, W[rows]), so that W may as well be packed: the
  layer of `linear4bit` hands decoded rows to the same two functions.
* The functions of the protocol are operators of torch, under `torch.ops.qloracle`. An operator is a
  closed box to a compiler, which sees the shape of the result and the operator that is the
  gradient. The box holds the numerics: no compiler reorders or fuses what is in it.

So the forward pass can be differentiated, by torch's own means:

>>> x, w = torch.tensor([1.0, 2.0], requires_grad=True), torch.eye(2)
>>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
>>> y = lora_forward(x, w, a, b, scaling=0.5)
>>> y.backward(torch.tensor([1.0, 0.0]))
>>> x.grad, lora_backward(torch.tensor([1.0, 0.0]), x, w, a, b, scaling=0.5)[0]
(tensor([6., 5.]), tensor([6., 5.]))

What a gradient needs is what was passed in: h is computed again, and nothing widened is kept. W and
the mask get no gradient, and a gradient has none of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, library

from qloracle_gpu.torch_backend import _arguments as check
from qloracle_gpu.torch_backend.precision import full_float32

CHUNK = 1 << 18  # elements of W held in float32 at a time; a single row may be longer
Chunks: TypeAlias = Iterable[tuple[slice, Tensor]]  # rows of W, and W[rows] in float32
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor]  # dx, da, db


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
    a: (r, in) and b: (out, r), both in x's type or both float32, r at most min(out, in); scaling:
    a finite number; dropout_mask: x's shape and type, entries 0 or one 1 / (1 - p). All finite.
    TypeError or ValueError otherwise. y has a gradient with respect to x, a and b.

    Source: rule S10; `qloracle.lora_forward`.

    >>> x, w = torch.tensor([1.0, 2.0]), torch.eye(2)
    >>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [20.0]])
    >>> lora_forward(x, w, a, b, scaling=0.5)  # h = 3
    tensor([16., 32.])
    """
    weight = check.numbers("w", w, check.tensor("x", x).device)
    mask = operands(
        x, a, b, dropout_mask, check.matrix_shape("the shape of w", tuple(weight.shape))
    )
    y: Tensor = _forward_op(x, weight, a, b, check.real("scaling", scaling), mask)
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
    weight = check.numbers("w", w, check.tensor("x", x).device)
    dims = check.matrix_shape("the shape of w", tuple(weight.shape))
    mask = operands(x, a, b, dropout_mask, dims)
    known = output_gradient(dy, x, dims)
    tensors = known, x.detach(), weight, a.detach(), b.detach()
    gradients: Gradients = _backward_op(*tensors, check.real("scaling", scaling), mask)
    return gradients


# ---- the two passes, for W in any form -----------------------------------------------------------


def forward(
    x: Tensor, chunks: Chunks, a: Tensor, b: Tensor, scaling: float, mask: Tensor | None
) -> Tensor:
    """Return y of shape (..., out), in x's type."""
    with full_float32(x.device):
        x32, b32 = matrix(x), b.float()
        h = _masked(x32, mask) @ a.float().mT * scaling  # M, r
        y = x.new_empty(len(x32), len(b))
        for rows, w in chunks:
            y[:, rows] = x32 @ w.mT + h @ b32[rows].mT  # the one rounding
    return y.view(*x.shape[:-1], len(b))


def backward(
    dy: Tensor,
    x: Tensor,
    chunks: Chunks,
    a: Tensor,
    b: Tensor,
    scaling: float,
    mask: Tensor | None,
) -> Gradients:
    """Return dx in x's type, da and db in a's type."""
    with full_float32(x.device):
        dy32, masked, a32 = matrix(dy), _masked(matrix(x), mask), a.float()
        dh = dy32 @ b.float() * scaling  # M, r
        h = masked @ a32.mT * scaling  # M, r
        dx = input_gradient(dy32, chunks, x.shape[-1]) + _masked(dh @ a32, mask)
        da, db = dh.mT @ masked, dy32.mT @ h
    return dx.to(x.dtype).view(x.shape), da.to(a.dtype), db.to(b.dtype)


def input_gradient(dy: Tensor, chunks: Chunks, width: int) -> Tensor:
    """Return dy W, float32[M, in], of float32[M, out]."""
    dx = dy.new_zeros(len(dy), width)
    for rows, w in chunks:
        dx.addmm_(dy[:, rows], w)
    return dx


def matrix(x: Tensor) -> Tensor:
    """Return float32[M, width]: all leading dimensions as one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).float()


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * matrix(mask)


def heights(out: int, width: int) -> list[slice]:
    """Cut the rows of W into slices of about CHUNK elements.

    >>> heights(5, CHUNK // 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    height = max(CHUNK // max(width, 1), 1)
    return [slice(top, min(top + height, out)) for top in range(0, out, height)]


def _widened(w: Tensor) -> Chunks:
    """Return W a few rows at a time."""
    return ((rows, w[rows].float()) for rows in heights(*w.shape))


# ---- the same as operators of torch --------------------------------------------------------------


@library.custom_op("qloracle::lora_forward", mutates_args=())
def _forward_op(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float, dropout_mask: Tensor | None
) -> Tensor:
    return forward(x, _widened(w), a, b, scaling, dropout_mask)


@library.custom_op("qloracle::lora_backward", mutates_args=())
def _backward_op(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropout_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return backward(dy, x, _widened(w), a, b, scaling, dropout_mask)


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


# ---- what is checked -----------------------------------------------------------------------------


def operands(
    x: Tensor, a: Tensor, b: Tensor, dropout_mask: Tensor | None, shape: tuple[int, int]
) -> Tensor | None:
    """Check what a layer of this shape is given; return the mask, cut from the graph."""
    (out, width), beside = shape, f"w of shape {shape}"
    device = check.rows("x", x, width, beside).device
    check.same_type("a", check.tensor("a", a, device), x.dtype, torch.float32)
    check.same_type("b", check.tensor("b", b, device), a.dtype)
    r = a.shape[0] if a.ndim else 0
    check.shaped("a", a, (r, width), beside, device)
    check.shaped("b", b, (out, r), f"a of shape {tuple(a.shape)} and {beside}", device)
    if r > min(shape):
        raise ValueError(
            f"the rank r must be at most min(out, in), got a of shape {tuple(a.shape)} and "
            f"b of shape {tuple(b.shape)} beside {beside}"
        )
    return None if dropout_mask is None else _mask(dropout_mask, x)


def output_gradient(dy: Tensor, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return dy, once it has the leading dimensions and the type of x."""
    beside = f"x of shape {tuple(x.shape)} and w of shape {shape}"
    known = check.shaped("dy", dy, (*x.shape[:-1], shape[0]), beside, x.device)
    check.same_type("dy", dy, x.dtype)
    return known


def _mask(dropout_mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask, once its entries are 0 or one common 1 / (1 - p), which is at least 1."""
    shape = tuple(x.shape)
    mask = check.shaped("dropout_mask", dropout_mask, shape, f"x of shape {shape}", x.device)
    check.same_type("dropout_mask", dropout_mask, x.dtype)
    if not mask.numel() or not check.looked_at(mask):
        return mask
    kept = mask.amax().clamp(min=1)
    wrong = (mask != 0) & (mask != kept)
    if wrong.any():
        first = int(wrong.reshape(-1).nonzero()[0])
        raise ValueError(
            f"dropout_mask must hold 0 and one value 1 / (1 - p), got "
            f"{float(mask.reshape(-1)[first])} at flat index {first} beside {float(kept)}"
        )
    return mask
