"""A real `bitsandbytes.nn.Linear4bit` behind the protocol, in training and in evaluation.

Read with bitsandbytes 0.50.2.  Each mode is an object of this file: `training` (`train()`, and x
has a gradient) and `evaluation` (`eval()` and `no_grad()`).  On a CPU that has AVX512-BF16 they
differ: in evaluation the layer packs its weight anew in its first call, keeps scales in bfloat16,
and computes in bfloat16 whatever x's type is.  It does so only where the outputs are a multiple of
32 and the inputs even, and refuses others.

The layer is built as a checkpoint is loaded, from packed bytes and scales, and computes in x's
type.  Its bias is turned into that type by the layer itself.  This file imports nothing of the
kit's, so that a repro script can carry it along whole.
"""

import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it announces a missing optional kernel
from bitsandbytes.functional import QuantState, get_4bit_type  # noqa: E402
from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: E402


def trained(
    x: Tensor, packed: Tensor, absmax: Tensor, *, bias: Tensor | None = None, **weight: Any
) -> Tensor:
    """`Linear4bit.forward` in training; `weight` is its shape, blocksize and quant_type."""
    y: Tensor = _layer(packed, absmax, x.dtype, bias, **weight)(x.detach().requires_grad_())
    return y.detach()


def gradient(
    dy: Tensor, packed: Tensor, absmax: Tensor, *, shape: tuple[int, ...], **weight: Any
) -> Tensor:
    """What autograd gives through the layer; the x is zeros, for dx needs none."""
    layer = _layer(packed, absmax, dy.dtype, shape=shape, **weight)
    x = dy.new_zeros((*dy.shape[:-1], shape[1]), requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x), x, dy)
    return dx


@torch.no_grad()
def evaluated(
    x: Tensor, packed: Tensor, absmax: Tensor, *, bias: Tensor | None = None, **weight: Any
) -> Tensor:
    """`Linear4bit.forward` in inference."""
    layer = _layer(packed, absmax, x.dtype, bias, **weight).eval()
    try:
        y: Tensor = layer(x)
    except AssertionError as refusal:  # "N must be divisible by block_n", "K must be even"
        raise NotImplementedError(f"Linear4bit in eval() on this CPU: {refusal}") from refusal
    return y


def _layer(
    packed: Tensor,
    absmax: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> Linear4bit:
    """The layer as loading a checkpoint makes it: empty, then given its weight."""
    if quant_type not in ("nf4", "fp4"):
        raise NotImplementedError(f"Linear4bit has no quant_type {quant_type!r}")
    packed, absmax = packed.contiguous(), absmax.contiguous()  # as every checkpoint has them
    state = QuantState(
        absmax, torch.Size(shape), get_4bit_type(quant_type, packed.device), blocksize, quant_type,
        dtype,
    )  # fmt: skip
    layer = Linear4bit(
        shape[1], shape[0], bias is not None, dtype, quant_type=quant_type, device="meta"
    )
    layer.weight = Params4bit.from_prequantized(
        packed[:, None], state.as_dict(packed=True), device=packed.device, module=layer
    )
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone())
    return layer


DECLARED = {
    "arrays": "torch",
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "limits": {"blocksize": [32, 64, 128, 256, 512, 1024, 2048, 4096]},
}
training = SimpleNamespace(matmul_4bit=trained, matmul_4bit_backward=gradient, **DECLARED)
evaluation = SimpleNamespace(matmul_4bit=evaluated, **DECLARED)
