"""PEFT's LoRA layers behind the protocol: on a real `nn.Linear`, and on a real `Linear4bit`.

Read with peft 0.21.2 and bitsandbytes 0.50.2.  Gradients are autograd's through the layer, in
training mode.  PEFT draws a dropout mask itself; so that one can be passed in, a module that
multiplies by it stands where PEFT has its `nn.Dropout`.  `scaling` is put where PEFT keeps
alpha / r.  The backward pass of a `Linear4bit` of two weights raises in bitsandbytes, without
PEFT too: the one byte that they are packed into is read as transposed.  This file imports nothing
of the kit's, so that a repro script can carry it along whole.
"""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

logging.disable(logging.WARNING)  # importing them tells of optional kernels that are not there
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from bitsandbytes.functional import QuantState, get_4bit_type
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft import LoraConfig
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
logging.disable(logging.NOTSET)

arrays = "torch"
device = "cuda" if torch.cuda.is_available() else "cpu"
limits = {"blocksize": [32, 64, 128, 256, 512, 1024, 2048, 4096]}
NAME = "default"  # what PEFT calls an adapter that got no name


class Masked(nn.Module):
    """Stands in the place of dropout: multiplies by the mask that it was given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the mask."""
        return x * self.mask


def lora_forward(x: Tensor, w: Tensor, a: Tensor, b: Tensor, **adapter: Any) -> Tensor:
    """`peft.tuners.lora.Linear.forward`; `adapter` is its scaling and its dropout_mask."""
    return _result(_adapted(_linear(w), a, b, **adapter), x)


def lora_backward(
    dy: Tensor, x: Tensor, w: Tensor, a: Tensor, b: Tensor, **adapter: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd gives through `peft.tuners.lora.Linear` for x, A and B."""
    return _gradients(_adapted(_linear(w), a, b, **adapter), x, dy)


def qlora_forward(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout_mask: Tensor | None = None,
    **weight: Any,
) -> Tensor:
    """`peft.tuners.lora.Linear4bit.forward`; `weight` is its shape, blocksize and quant_type."""
    base = _linear4bit(packed, absmax, x.dtype, **weight)
    return _result(_adapted(base, a, b, scaling, dropout_mask), x)


def qlora_backward(
    dy: Tensor,
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout_mask: Tensor | None = None,
    **weight: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd gives through `peft.tuners.lora.Linear4bit` for x, A and B."""
    base = _linear4bit(packed, absmax, x.dtype, **weight)
    return _gradients(_adapted(base, a, b, scaling, dropout_mask), x, dy)


def _linear(w: Tensor) -> nn.Linear:
    """A frozen linear layer of a weight."""
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(w.detach(), requires_grad=False)
    return layer


def _linear4bit(
    packed: Tensor,
    absmax: Tensor,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> Linear4bit:
    """A 4-bit layer as loading a checkpoint makes it: empty, then given its weight."""
    if quant_type not in ("nf4", "fp4"):
        raise NotImplementedError(f"Linear4bit has no quant_type {quant_type!r}")
    packed, absmax = packed.contiguous(), absmax.contiguous()  # as every checkpoint has them
    state = QuantState(
        absmax, torch.Size(shape), get_4bit_type(quant_type, packed.device), blocksize, quant_type,
        dtype,
    )  # fmt: skip
    layer = Linear4bit(shape[1], shape[0], False, dtype, quant_type=quant_type, device="meta")
    layer.weight = Params4bit.from_prequantized(
        packed[:, None], state.as_dict(packed=True), device=packed.device, module=layer
    )
    return layer


def _adapted(
    base: nn.Linear, a: Tensor, b: Tensor, scaling: float, dropout_mask: Tensor | None = None
) -> LoraLinear | LoraLinear4bit:
    """The layer with an adapter of its own weights, scaling and mask."""
    kind = LoraLinear4bit if isinstance(base, Linear4bit) else LoraLinear
    layer = kind(base, NAME, LoraConfig(init_lora_weights=False), r=a.shape[0])
    layer.lora_A[NAME].weight = nn.Parameter(a.detach())
    layer.lora_B[NAME].weight = nn.Parameter(b.detach())
    layer.scaling[NAME] = scaling
    if dropout_mask is not None:
        layer.lora_dropout[NAME] = Masked(dropout_mask)
    return layer


def _result(layer: LoraLinear | LoraLinear4bit, x: Tensor) -> Tensor:
    y: Tensor = layer(x.detach().requires_grad_())
    return y.detach()


def _gradients(
    layer: LoraLinear | LoraLinear4bit, x: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, A and B; the base weight is frozen."""
    x = x.detach().requires_grad_()
    a, b = (part[NAME].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
    dx, da, db = torch.autograd.grad(layer(x), (x, a, b), dy)
    return dx, da, db
