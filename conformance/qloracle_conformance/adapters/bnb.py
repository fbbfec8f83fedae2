"""bitsandbytes behind the protocol: its public functions, its own values, nothing repaired.

Read with bitsandbytes 0.50.2.  Tensors go in as they come, strides and all, and its own results
come out: the packed bytes lose their axis of length 1, which the protocol allows, and a decoded
result keeps the shape that bitsandbytes gives it.  `device` is CUDA where torch finds one.  This
file imports nothing of the kit's, so that a repro script can carry it along whole.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it announces a missing optional kernel
import bitsandbytes.functional as bnb  # noqa: E402

arrays = "torch"
device = "cuda" if torch.cuda.is_available() else "cpu"
_FOUR_BIT_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
limits = {
    "quantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},  # no 0-d tensors
    "dequantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},
    "quantize_absmax": {"blocksize": [256], "codebook": ["default"], "sign": ["non-negative"]},
    "dequantize_absmax": {"blocksize": [256]},
}
_CARRIER_BLOCKSIZE = 64  # block of the weight that carries absmax values in and out


def quantize_4bit(
    x: Tensor, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Tensor, Tensor]:
    """`bitsandbytes.functional.quantize_4bit` -> packed, absmax."""
    _refuse_unknown(quant_type)
    packed, state = bnb.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return _drop_unit_axis(packed), state.absmax


def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`bitsandbytes.functional.dequantize_4bit` with a state made of the arguments."""
    _refuse_unknown(quant_type)
    state = bnb.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        dtype=dtype,
        blocksize=blocksize,
        quant_type=quant_type,
        code=bnb.get_4bit_type(quant_type, device=packed.device),
    )
    return bnb.dequantize_4bit(packed[:, None], state)


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


def _drop_unit_axis(tensor: Tensor) -> Tensor:
    """bitsandbytes keeps packed bytes as a column."""
    return tensor[:, 0] if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor


def _refuse_unknown(quant_type: str) -> None:
    if quant_type not in ("nf4", "fp4"):
        raise NotImplementedError(f"bitsandbytes has no quant_type {quant_type!r}")
