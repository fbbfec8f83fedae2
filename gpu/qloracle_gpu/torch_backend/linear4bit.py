"""The 4-bit linear layer in the words of torch: W is decoded a few rows at a time, and let go.

The rule is that of `qloracle.linear4bit`, the adapter in `lora`. What is particular here:

* A slice of rows may begin and end within a block. The bytes name pairs of levels, one look-up as
  in `dequantize_4bit`; then the block that was begun, the whole blocks as a matrix, and the block
  that is left unfinished are each multiplied by their scale, in place.
* The weight is float32 whatever the type of x, and at every number of rows: one row and a thousand
  use the same weights.
* The functions are operators of torch, as those of `lora`. The gradient decodes again: what is
  kept for it is what was passed in, x and the packed weight.

>>> from qloracle_gpu.torch_backend.blockwise import quantize_4bit
>>> packed, absmax = quantize_4bit(torch.eye(3), blocksize=3)
>>> x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> y = matmul_4bit(x, packed, absmax, shape=(3, 3), blocksize=3)
>>> y.sum().backward()
>>> y.tolist(), x.grad.tolist()
([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])

Memory beside arguments and results, measured on a CPU for W of 4096 x 4096 and 16 rows of x: 2 to
4 MiB, forward and backward alike, while the weight in float32 has 64. Most of it is one slice of
rows; the rest grows with the rows of x, of which there is a copy in float32 where x has 16 bits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, library

from qloracle import arguments as plain
from qloracle.codebook import QUANT_TYPES
from qloracle_gpu.devices import type_name
from qloracle_gpu.devices.on_torch import Tensors
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations import lora as adapter
from qloracle_gpu.operations import products
from qloracle_gpu.operations.lora import Given, Gradients
from qloracle_gpu.operations.products import Chunks, as_matrix, heights
from qloracle_gpu.torch_backend import cuda, lora, tables, values
from qloracle_gpu.torch_backend.lora import given, like


def matmul_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    bias: Tensor | None = None,
) -> Tensor:
    """Return y = x W' + bias of shape (..., out), in x's type.

    x: float32, float16 or bfloat16 (..., in), finite, any number of leading dimensions; packed,
    absmax, blocksize and quant_type as in `dequantize_4bit`; shape: (out, in) of W; bias: None or
    finite (out,), x's type or float32. TypeError or ValueError otherwise. y has a gradient with
    respect to x and to the bias.

    Source: rule S9; `qloracle.matmul_4bit`.

    >>> from qloracle_gpu.torch_backend.blockwise import quantize_4bit
    >>> packed, absmax = quantize_4bit(torch.tensor([[0.0, 1, -1], [2, 0, 2]]), blocksize=3)
    >>> x, bias = torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20])
    >>> matmul_4bit(x, packed, absmax, shape=(2, 3), blocksize=3, bias=bias)
    tensor([ 9., 28.])
    """
    dims, here = values.matrix_shape("shape", shape), values.beside(x)
    kind = type_name(check.rows(here, "x", x, dims[1], f"shape {dims}"))
    weight = _weight(here, packed, absmax, dims, blocksize, quant_type)
    if bias is not None:
        known = check.floats(here, "bias", bias, kind, "float32")
        check.shaped("bias", known, dims[:1], f"shape {dims}")
    y: Tensor = _product_op(x, *weight, list(dims), blocksize, quant_type, bias)
    return y


def matmul_4bit_backward(
    dy: Tensor,
    packed: Tensor,
    absmax: Tensor,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> Tensor:
    """Return dx = dy W of shape (..., in), in dy's type; W gets no gradient.

    dy: float32, float16 or bfloat16 (..., out), finite; the rest as in `matmul_4bit`.

    Source: rule S9; `qloracle.matmul_4bit_backward`.

    >>> from qloracle_gpu.torch_backend.blockwise import quantize_4bit
    >>> packed, absmax = quantize_4bit(torch.tensor([[0.0, 1, -1], [2, 0, 2]]), blocksize=3)
    >>> dy = torch.tensor([1.0, 10])
    >>> matmul_4bit_backward(dy, packed, absmax, shape=(2, 3), blocksize=3)
    tensor([20.,  1., 19.])
    """
    dims, here = values.matrix_shape("shape", shape), values.beside(dy)
    known = check.rows(here, "dy", dy, dims[0], f"shape {dims}")
    weight = _weight(here, packed, absmax, dims, blocksize, quant_type)
    dx: Tensor = _product_backward_op(known, *weight, list(dims), blocksize, quant_type)
    return dx


def qlora_forward(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """Return y = x W' + scaling ((x * mask) A') B' of shape (..., out), in x's type.

    The weight as in `matmul_4bit`, all else as in `lora_forward`.

    Source: rules S9, S10; `qloracle.qlora_forward`.

    >>> from qloracle_gpu.torch_backend.blockwise import quantize_4bit
    >>> packed, absmax = quantize_4bit(torch.eye(2))
    >>> x, a, b = torch.tensor([1.0, 2]), torch.tensor([[1.0, 1]]), torch.tensor([[10.0], [20]])
    >>> qlora_forward(x, packed, absmax, a, b, shape=(2, 2), scaling=0.5)
    tensor([16., 32.])
    """
    dims, here = values.matrix_shape("shape", shape), values.beside(x)
    mask = given(here, x, a, b, dropout_mask, dims).mask
    weight = _weight(here, packed, absmax, dims, blocksize, quant_type)
    s = values.real("scaling", scaling)
    y: Tensor = _qlora_op(x, *weight, a, b, list(dims), s, blocksize, quant_type, mask)
    return y


def qlora_backward(
    dy: Tensor,
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    shape: Sequence[int],
    scaling: float,
    blocksize: int = 64,
    quant_type: str = "nf4",
    dropout_mask: Tensor | None = None,
) -> Gradients:
    """Return dx of x's shape and type, da and db of the shapes of a and b and in a's type.

    dy: (..., out), with the leading dimensions and the type of x; the rest as in `qlora_forward`.

    Source: rules S9, S10; `qloracle.qlora_backward`.

    >>> from qloracle_gpu.torch_backend.blockwise import quantize_4bit
    >>> packed, absmax = quantize_4bit(torch.eye(2))
    >>> x, a, b = torch.tensor([1.0, 2]), torch.tensor([[1.0, 1]]), torch.tensor([[10.0], [20]])
    >>> dy = torch.tensor([1.0, 0])
    >>> dx, da, db = qlora_backward(dy, x, packed, absmax, a, b, shape=(2, 2), scaling=0.5)
    >>> dx.tolist(), da.tolist(), db.tolist()
    ([6.0, 5.0], [[5.0, 10.0]], [[1.5], [0.0]])
    """
    dims, here = values.matrix_shape("shape", shape), values.beside(x)
    own = given(here, x, a, b, dropout_mask, dims)
    known = adapter.output_gradient(here, dy, own.x, dims)
    weight = _weight(here, packed, absmax, dims, blocksize, quant_type)
    form = list(dims), values.real("scaling", scaling), blocksize, quant_type, own.mask
    gradients: Gradients = _qlora_backward_op(known, own.x, *weight, own.a, own.b, *form)
    return gradients


def _weight(
    here: Tensors,
    packed: Tensor,
    absmax: Tensor,
    shape: tuple[int, int],
    blocksize: int,
    quant_type: str,
) -> tuple[Tensor, Tensor]:
    """Return codes and scales, once they are those of a weight of this shape."""
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    n, step = shape[0] * shape[1], values.integer("blocksize", blocksize, least=1)
    known = check.vector(here, "packed", packed, "uint8", (n + 1) // 2)
    return known, check.vector(here, "absmax", absmax, "float32", -(-n // step))


# ---- W, a few rows at a time ---------------------------------------------------------------------


def row_chunks(
    packed: Tensor, absmax: Tensor, shape: Sequence[int], blocksize: int, quant_type: str
) -> Chunks:
    """Decode W a few rows at a time: yields the slice of rows and float32[rows, in].

    Rows need not start with a block, nor with a byte.

    >>> packed, absmax = torch.tensor([0xF0, 0xF7], dtype=torch.uint8), torch.ones(1)
    >>> for rows, w in row_chunks(packed, absmax, (1, 3), 64, "nf4"):
    ...     print(rows, w)
    slice(0, 1, None) tensor([[ 1., -1.,  1.]])
    """
    out, width = shape
    for rows in heights(out, width, lora.CHUNK):
        start, stop = rows.start * width, rows.stop * width
        levels = _levels(packed, start, stop, quant_type)
        _scale(levels, absmax, start, min(blocksize, max(out * width, 1)))
        yield rows, levels.view(rows.stop - rows.start, width)


def _levels(packed: Tensor, start: int, stop: int, quant_type: str) -> Tensor:
    """Return the levels of the elements start to stop of the flat weight (S6)."""
    some, odd = packed[start // 2 : (stop + 1) // 2], start % 2  # odd: begins with a low nibble
    pairs = tables.pairs(quant_type, packed.device).index_select(0, some.int())
    return pairs.view(torch.float32)[odd : odd + stop - start]


def _scale(levels: Tensor, absmax: Tensor, start: int, step: int) -> None:
    """Multiply each level by the absmax of its block (S7), the first of them element `start`."""
    n, first = levels.numel(), start // step
    ahead = min(-start % step, n)  # of a block that began before
    whole = (n - ahead) // step
    head, body, tail = levels.split([ahead, whole * step, n - ahead - whole * step])
    after = first + (ahead > 0)
    head.mul_(absmax[first : first + 1])
    body.view(whole, step).mul_(absmax[after : after + whole, None])
    tail.mul_(absmax[after + whole : after + whole + 1])


# ---- the same as operators of torch --------------------------------------------------------------


@library.custom_op("qloracle::matmul_4bit", mutates_args=())
def _product_op(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    shape: list[int],
    blocksize: int,
    quant_type: str,
    bias: Tensor | None,
) -> Tensor:
    if cuda.takes(x, blocksize):
        form = {"shape": shape, "blocksize": blocksize, "quant_type": quant_type, "bias": bias}
        product: Tensor = cuda.on(x).matmul_4bit(x, packed, absmax, **form)
        return product
    chunks = row_chunks(packed, absmax, shape, blocksize, quant_type)
    added = None if bias is None else bias.float().__getitem__
    layer = as_matrix(x).float(), added, type_name(x)
    y: Tensor = products.times_rows(Tensors(x.device), chunks, shape[0], *layer)
    return y.view(*x.shape[:-1], shape[0])


@library.custom_op("qloracle::matmul_4bit_backward", mutates_args=())
def _product_backward_op(
    dy: Tensor, packed: Tensor, absmax: Tensor, shape: list[int], blocksize: int, quant_type: str
) -> Tensor:
    if cuda.takes(dy, blocksize):
        form = {"shape": shape, "blocksize": blocksize, "quant_type": quant_type}
        product: Tensor = cuda.on(dy).matmul_4bit_backward(dy, packed, absmax, **form)
        return product
    chunks = row_chunks(packed, absmax, shape, blocksize, quant_type)
    dx: Tensor = products.times(Tensors(dy.device), chunks, shape[1], as_matrix(dy).float())
    return dx.to(dy.dtype).view(*dy.shape[:-1], shape[1])


@library.custom_op("qloracle::qlora_forward", mutates_args=())
def _qlora_op(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    shape: list[int],
    scaling: float,
    blocksize: int,
    quant_type: str,
    dropout_mask: Tensor | None,
) -> Tensor:
    if cuda.takes(x, blocksize):
        form = _form(shape, scaling, blocksize, quant_type, dropout_mask)
        y: Tensor = cuda.on(x).qlora_forward(x, packed, absmax, a, b, **form)
    else:
        chunks, here = row_chunks(packed, absmax, shape, blocksize, quant_type), Tensors(x.device)
        through = partial(products.times_rows, here, chunks, shape[0])
        y = adapter.forward(here, Given(x, a, b, dropout_mask), through, scaling)
    return y


@library.custom_op("qloracle::qlora_backward", mutates_args=())
def _qlora_backward_op(
    dy: Tensor,
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    shape: list[int],
    scaling: float,
    blocksize: int,
    quant_type: str,
    dropout_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if cuda.takes(x, blocksize):
        form = _form(shape, scaling, blocksize, quant_type, dropout_mask)
        gradients: Gradients = cuda.on(x).qlora_backward(dy, x, packed, absmax, a, b, **form)
        return gradients
    here, chunks = Tensors(x.device), row_chunks(packed, absmax, shape, blocksize, quant_type)
    back = partial(products.times, here, chunks, shape[1])
    return adapter.backward(here, dy, Given(x, a, b, dropout_mask), back, scaling)


def _form(
    shape: list[int], scaling: float, blocksize: int, quant_type: str, mask: Tensor | None
) -> dict[str, Any]:
    """Name what follows the arrays of `qlora_forward` and `qlora_backward`."""
    weight = {"shape": shape, "blocksize": blocksize, "quant_type": quant_type}
    return {**weight, "scaling": scaling, "dropout_mask": mask}


@_product_op.register_fake
def _(x: Tensor, packed: Tensor, absmax: Tensor, shape: list[int], *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], shape[0])


@_product_backward_op.register_fake
def _(dy: Tensor, packed: Tensor, absmax: Tensor, shape: list[int], *_: object) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], shape[1])


@_qlora_op.register_fake
def _(x: Tensor, packed: Tensor, absmax: Tensor, a: Tensor, b: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], b.shape[0])


@_qlora_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, packed: Tensor, absmax: Tensor, a: Tensor, b: Tensor, *_: object
) -> Any:
    return like(x, a, b)


def _keep_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, absmax, *ctx.form, bias = inputs
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.save_for_backward(packed, absmax)


def _product_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _product_backward_op(dy, *ctx.saved_tensors, *ctx.form)
    if ctx.needs_input_grad[6]:
        dbias = as_matrix(dy).float().sum(0).to(ctx.bias_type)
    return dx, None, None, None, None, None, dbias


def _keep_qlora(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shape, ctx.scaling, ctx.blocksize, ctx.quant_type, mask = inputs
    ctx.save_for_backward(*tensors, mask)


def _qlora_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, mask = ctx.saved_tensors
    form = ctx.shape, ctx.scaling, ctx.blocksize, ctx.quant_type
    dx, da, db = _qlora_backward_op(dy, *tensors, *form, mask)
    return dx, None, None, da, db, *[None] * 5


_product_op.register_autograd(_product_gradient, setup_context=_keep_product)
_qlora_op.register_autograd(_qlora_gradient, setup_context=_keep_qlora)
