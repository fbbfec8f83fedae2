"""bitsandbytes behind the protocol: its public functions, its own values, nothing repaired.

Read with bitsandbytes 0.50.2.  Tensors go in as they come, strides and all, and its own results
come out: the packed bytes lose their axis of length 1, which the protocol allows, and a decoded
result keeps the shape that bitsandbytes gives it.  A step of an optimizer is one `step()` of a real
one, on state of its own that holds the state passed in.  `device` is CUDA where torch finds one.
This file imports nothing of the kit's, so that a repro script can carry it along whole.
"""

import logging
from typing import Any

import torch
from torch import Tensor

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it announces a missing optional kernel
import bitsandbytes  # noqa: E402
import bitsandbytes.functional as bnb  # noqa: E402

arrays = "torch"
device = "cuda" if torch.cuda.is_available() else "cpu"
_FOUR_BIT_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
limits = {
    "quantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},  # no 0-d tensors
    "dequantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},
    "quantize_absmax": {"blocksize": [256], "codebook": ["default"], "sign": ["non-negative"]},
    "dequantize_absmax": {"blocksize": [256]},
    "matmul_4bit": {"blocksize": _FOUR_BIT_SIZES},
    "matmul_4bit_backward": {"blocksize": _FOUR_BIT_SIZES},
    "adam_step_8bit": {"blocksize": [256]},
}
_CARRIER_BLOCKSIZE = 64  # block of the weight that carries absmax values in and out


def quantize_4bit(
    x: Tensor, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Tensor, Tensor]:
    """`bitsandbytes.functional.quantize_4bit` -> packed, absmax."""
    _refuse_unknown(quant_type)
    packed, state = bnb.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return packed.squeeze(1), state.absmax  # it keeps packed bytes as a column


def dequantize_4bit(
    packed: Tensor, absmax: Tensor, *, dtype: torch.dtype = torch.float32, **weight: Any
) -> Tensor:
    """`bitsandbytes.functional.dequantize_4bit` with a state made of the arguments."""
    return bnb.dequantize_4bit(packed[:, None], _state(absmax, dtype, **weight))


def quantize_blockwise(
    x: Tensor, codebook: Tensor, *, blocksize: int = 256
) -> tuple[Tensor, Tensor]:
    """`bitsandbytes.functional.quantize_blockwise` -> codes, absmax."""
    codes, state = bnb.quantize_blockwise(x, code=codebook, blocksize=blocksize)
    return codes.reshape(-1), state.absmax


def dequantize_blockwise(
    codes: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    *,
    shape: tuple[int, ...],
    blocksize: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`bitsandbytes.functional.dequantize_blockwise` with a state made of the arguments."""
    state = bnb.QuantState(absmax=absmax, code=codebook, blocksize=blocksize, dtype=dtype)
    return bnb.dequantize_blockwise(codes.view(shape), state)


def quantize_absmax(
    absmax: Tensor, *, codebook: Tensor | None = None, blocksize: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantization as `quantize_4bit(compress_statistics=True)` performs it.

    bitsandbytes has no function for this step alone.  So a weight is made whose blocks have
    exactly these absmax values (one element each, the rest zero), and its state is read.
    """
    weight = absmax.new_zeros(absmax.numel(), _CARRIER_BLOCKSIZE)
    weight[:, 0] = absmax
    _, state = bnb.quantize_4bit(
        weight, blocksize=_CARRIER_BLOCKSIZE, quant_type="nf4", compress_statistics=True
    )
    return state.absmax, state.state2.absmax, state.offset


def dequantize_absmax(
    codes: Tensor,
    nested_absmax: Tensor,
    offset: Tensor,
    *,
    codebook: Tensor | None = None,
    blocksize: int = 256,
) -> Tensor:
    """Nested decoding as `dequantize_4bit` performs it: a weight of all ones shows its scales."""
    map_8bit = bnb.create_dynamic_map().to(codes.device) if codebook is None else codebook
    nested = bnb.QuantState(
        absmax=nested_absmax, code=map_8bit, blocksize=blocksize, dtype=torch.float32
    )
    state = bnb.QuantState(
        absmax=codes,
        shape=torch.Size((codes.numel(), _CARRIER_BLOCKSIZE)),
        dtype=torch.float32,
        blocksize=_CARRIER_BLOCKSIZE,
        quant_type="nf4",
        code=bnb.get_4bit_type("nf4", device=codes.device),
        offset=offset,
        state2=nested,
    )
    ones = codes.new_full((codes.numel() * _CARRIER_BLOCKSIZE // 2, 1), 0xFF)
    return bnb.dequantize_4bit(ones, state)[:, 0]


def matmul_4bit(
    x: Tensor, packed: Tensor, absmax: Tensor, *, bias: Tensor | None = None, **weight: Any
) -> Tensor:
    """`bitsandbytes.matmul_4bit` of a weight that is said to have had x's type."""
    if bias is not None and bias.dtype != x.dtype:
        raise NotImplementedError(f"matmul_4bit takes no {bias.dtype} bias with {x.dtype} x")
    state = _state(absmax, x.dtype, **weight)
    y: Tensor = bitsandbytes.matmul_4bit(x, packed[:, None], state, bias=bias)
    return y


def matmul_4bit_backward(
    dy: Tensor, packed: Tensor, absmax: Tensor, *, shape: tuple[int, ...], **weight: Any
) -> Tensor:
    """What autograd gives through `bitsandbytes.matmul_4bit`; the x is zeros, for dx needs none."""
    state = _state(absmax, dy.dtype, shape=shape, **weight)
    x = dy.new_zeros((*dy.shape[:-1], shape[1]), requires_grad=True)
    y = bitsandbytes.matmul_4bit(x, packed[:, None], state)
    (dx,) = torch.autograd.grad(y, x, dy)
    return dx


def adam_step(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    decoupled_weight_decay: bool = True,
    **numbers: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`bitsandbytes.optim.AdamW`, and `Adam` where the decay is said to be coupled."""
    kind = bitsandbytes.optim.AdamW if decoupled_weight_decay else bitsandbytes.optim.Adam
    weight = _parameter(param, grad)
    optimizer = _optimizer(kind, weight, **numbers)
    state = _put(optimizer, weight, step, state1=m, state2=v)
    optimizer.step()
    return weight.detach(), state["state1"], state["state2"]


def adam_step_8bit(
    param: Tensor,
    grad: Tensor,
    m_codes: Tensor,
    m_absmax: Tensor,
    v_codes: Tensor,
    v_absmax: Tensor,
    *,
    step: int,
    blocksize: int = 256,
    m_codebook: Tensor | None = None,
    v_codebook: Tensor | None = None,
    **numbers: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`bitsandbytes.optim.AdamW8bit`, whose blocks are of 256; codes keep the shape they had."""
    if blocksize != 256:
        raise NotImplementedError(f"AdamW8bit has blocks of 256, not of {blocksize}")
    weight = _parameter(param, grad)
    # As it stands, fewer than 4,096 elements keep their state in float32.
    optimizer = _optimizer(bitsandbytes.optim.AdamW8bit, weight, min_8bit_size=0, **numbers)
    given = {"state1": m_codes, "absmax1": m_absmax, "state2": v_codes, "absmax2": v_absmax}
    state = _put(optimizer, weight, step, **given)
    maps = {"qmap1": m_codebook, "qmap2": v_codebook}
    state.update({name: own.clone() for name, own in maps.items() if own is not None})
    optimizer.step()
    after = (state[name].reshape(tensor.shape) for name, tensor in given.items())
    return (weight.detach(), *after)


def _optimizer(
    kind: Any, weight: torch.nn.Parameter, *, lr: float, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, **more: float,
) -> torch.optim.Optimizer:  # fmt: skip
    optimizer: torch.optim.Optimizer = kind([weight], lr, (beta1, beta2), eps, weight_decay, **more)
    return optimizer


def _state(
    absmax: Tensor,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
) -> bnb.QuantState:
    """The state of a weight of a type, scales not nested."""
    _refuse_unknown(quant_type)
    return bnb.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        dtype=dtype,
        blocksize=blocksize,
        quant_type=quant_type,
        code=bnb.get_4bit_type(quant_type, device=absmax.device),
    )


def _parameter(param: Tensor, grad: Tensor) -> torch.nn.Parameter:
    """A parameter that may be changed, with its gradient."""
    if grad.dtype != param.dtype:  # torch's own law
        raise NotImplementedError(f"a {param.dtype} parameter takes no {grad.dtype} gradient")
    weight = torch.nn.Parameter(param.clone())
    weight.grad = grad.clone()
    return weight


def _put(
    optimizer: Any, weight: torch.nn.Parameter, step: int, **tensors: Tensor
) -> dict[str, Any]:
    """Let the optimizer make its state, and fill that in, so that its next step is `step`."""
    optimizer.init_state(optimizer.param_groups[0], weight, 0, 0)
    state: dict[str, Any] = optimizer.state[weight]
    state["step"] = step - 1
    for name, tensor in tensors.items():
        state[name].copy_(tensor.reshape(state[name].shape))
    return state


def _refuse_unknown(quant_type: str) -> None:
    if quant_type not in ("nf4", "fp4"):
        raise NotImplementedError(f"bitsandbytes has no quant_type {quant_type!r}")
