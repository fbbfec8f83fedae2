"""The 4-bit linear layer in the words of torch: W is decoded a few rows at a time, and let go.

The rule is that of `qloracle.linear4bit`, the adapter in `lora`. What is particular here:

* A slice of rows may begin and end within a block. The bytes name pairs of levels, one look-up as
  in `dequantize_4bit`; then the block that was begun, the whole blocks as a matrix, and the block
  that is left unfinished are each multiplied by their scale, in place.
* The weight is float32 whatever the type of x, and at every number of rows: one row and a thousand
  use the same weights.
* The gradient decodes again: what is kept for it is what was passed in, x and the packed weight.

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
from torch import Tensor

from qloracle import arguments as plain
from qloracle.codebook import QUANT_TYPES
from qloracle_gpu.devices import type_name
from qloracle_gpu.devices.on_torch import Tensors
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations import lora as adapter
from qloracle_gpu.operations import products
from qloracle_gpu.operations.products import Chunks, as_matrix, heights
from qloracle_gpu.torch_backend import values
from qloracle_gpu.torch_backend.lora import Gradients
from qloracle_gpu.torch_backend.operators import boxed, like, operator
from qloracle_gpu.torch_backend.tables import table

# ---- torch's gradients ---------------------------------------------------------------------------


def _keep_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, absmax, *ctx.form, bias = inputs
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.save_for_backward(packed, absmax)


def _product_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = boxed(matmul_4bit_backward)(dy, *ctx.saved_tensors, *ctx.form)
    if ctx.needs_input_grad[6]:
        dbias = as_matrix(dy).float().sum(0).to(ctx.bias_type)
    return dx, None, None, None, None, None, dbias


def _keep_layer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shape, ctx.scaling, ctx.blocksize, ctx.quant_type, mask = inputs
    ctx.save_for_backward(*tensors, mask)


def _layer_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, mask = ctx.saved_tensors
    form = ctx.shape, ctx.scaling, ctx.blocksize, ctx.quant_type
    dx, da, db = boxed(qlora_backward)(dy, *tensors, *form, mask)
    return dx, None, None, da, db, *[None] * 5


# ---- the functions -------------------------------------------------------------------------------


@operator(
    lambda x, packed, absmax, shape, *_: x.new_empty(*x.shape[:-1], shape[0]),
    _keep_product,
    _product_gradient,
    learns=("x", "bias"),
)
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
    dims, here = plain.matrix_shape("shape", shape), values.beside(x)
    known = check.rows(here, "x", x, dims[1], f"shape {dims}")
    kind, chunks = type_name(known), _rows_of(here, packed, absmax, dims, blocksize, quant_type)
    bias = products.bias_of(here, bias, kind, dims)
    added = None if bias is None else bias.float().__getitem__
    y: Tensor = products.times_rows(here, chunks, dims[0], as_matrix(known).float(), added, kind)
    return y.view(*known.shape[:-1], dims[0])


@operator(lambda dy, packed, absmax, shape, *_: dy.new_empty(*dy.shape[:-1], shape[1]), looks=False)
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
    dims, here = plain.matrix_shape("shape", shape), values.beside(dy)
    known = check.rows(here, "dy", dy, dims[0], f"shape {dims}")
    chunks = _rows_of(here, packed, absmax, dims, blocksize, quant_type)
    dx: Tensor = products.times(here, chunks, dims[1], as_matrix(known).float())
    return dx.to(known.dtype).view(*known.shape[:-1], dims[1])


@operator(
    lambda x, packed, absmax, a, b, *_: x.new_empty(*x.shape[:-1], b.shape[0]),
    _keep_layer,
    _layer_gradient,
    learns=("x", "a", "b"),
)
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
    dims, here = plain.matrix_shape("shape", shape), values.beside(x)
    layer = adapter.given(here, x, a, b, dropout_mask, dims)
    chunks = _rows_of(here, packed, absmax, dims, blocksize, quant_type)
    through = partial(products.times_rows, here, chunks, dims[0])
    y: Tensor = adapter.forward(here, layer, through, scaling)
    return y


@operator(lambda dy, x, packed, absmax, a, b, *_: like(x, a, b), looks=False)
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
    dims, here = plain.matrix_shape("shape", shape), values.beside(x)
    layer = adapter.given(here, x, a, b, dropout_mask, dims)
    known = adapter.output_gradient(here, dy, layer.x, dims)
    chunks = _rows_of(here, packed, absmax, dims, blocksize, quant_type)
    back = partial(products.times, here, chunks, dims[1])
    return adapter.backward(here, known, layer, back, scaling)


def _rows_of(
    here: Tensors,
    packed: Tensor,
    absmax: Tensor,
    dims: tuple[int, int],
    blocksize: int,
    quant_type: str,
) -> Chunks:
    """Return a weight a few rows at a time, once codes and scales are those of its shape."""
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    n, step = dims[0] * dims[1], plain.integer("blocksize", blocksize, least=1)
    known = check.vector(here, "packed", packed, "uint8", (n + 1) // 2)
    scales = check.vector(here, "absmax", absmax, "float32", -(-n // step))
    return row_chunks(known, scales, dims, step, quant_type)


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
    for rows in heights(out, width, Tensors.chunk):
        start, stop = rows.start * width, rows.stop * width
        levels = _levels(packed, start, stop, quant_type)
        _scale(levels, absmax, start, min(blocksize, max(out * width, 1)))
        yield rows, levels.view(rows.stop - rows.start, width)


def _levels(packed: Tensor, start: int, stop: int, quant_type: str) -> Tensor:
    """Return the levels of the elements start to stop of the flat weight (S6)."""
    some, odd = packed[start // 2 : (stop + 1) // 2], start % 2  # odd: begins with a low nibble
    pairs = table("pairs", quant_type, packed.device).index_select(0, some.int())
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
