"""bitsandbytes behind the protocol: its public functions, its own values, nothing repaired.

Read with bitsandbytes 0.50.2.  Arrays go in as torch tensors on `device` (CUDA where torch finds
one) and come back as NumPy arrays; bfloat16 travels by its bits.  The decoded result keeps the
shape that bitsandbytes gives it.  This file imports nothing of the kit's, so that a repro script
can carry it along whole.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ml_dtypes
import numpy as np
import torch

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it announces a missing optional kernel
import bitsandbytes.functional as bnb  # noqa: E402

device = os.environ.get("QLORACLE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
_FOUR_BIT_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
limits = {
    "quantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},  # no 0-d tensors
    "dequantize_4bit": {"blocksize": _FOUR_BIT_SIZES, "ndim": [1, 2, 3, 4]},
    "quantize_absmax": {"blocksize": [256], "codebook": ["default"], "sign": ["non-negative"]},
    "dequantize_absmax": {"blocksize": [256]},
}
_CARRIER_BLOCKSIZE = 64  # block of the weight that carries absmax values in and out


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _dtype(dtype: Any) -> torch.dtype:
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
        np.dtype(dtype).name
    ]


def _drop_unit_axis(tensor: torch.Tensor) -> torch.Tensor:
    """bitsandbytes keeps packed bytes as a column; the protocol allows dropping that axis."""
    return tensor[:, 0] if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor


def quantize_4bit(
    x: np.ndarray, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[np.ndarray, np.ndarray]:
    """`bitsandbytes.functional.quantize_4bit` -> packed, absmax."""
    _refuse_unknown(quant_type)
    packed, state = bnb.quantize_4bit(_tensor(x), blocksize=blocksize, quant_type=quant_type)
    return _array(_drop_unit_axis(packed)), _array(state.absmax)


def dequantize_4bit(
    packed: np.ndarray,
    absmax: np.ndarray,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: Any = np.float32,
) -> np.ndarray:
    """`bitsandbytes.functional.dequantize_4bit` with a state made of the arguments."""
    _refuse_unknown(quant_type)
    state = bnb.QuantState(
        absmax=_tensor(absmax),
        shape=torch.Size(shape),
        dtype=_dtype(dtype),
        blocksize=blocksize,
        quant_type=quant_type,
        code=bnb.get_4bit_type(quant_type, device=device),
    )
    return _array(bnb.dequantize_4bit(_tensor(packed)[:, None], state))


def quantize_blockwise(
    x: np.ndarray, codebook: np.ndarray, *, blocksize: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """`bitsandbytes.functional.quantize_blockwise` -> codes, absmax."""
    codes, state = bnb.quantize_blockwise(_tensor(x), code=_tensor(codebook), blocksize=blocksize)
    return _array(codes.reshape(-1)), _array(state.absmax)


def dequantize_blockwise(
    codes: np.ndarray,
    absmax: np.ndarray,
    codebook: np.ndarray,
    *,
    shape: tuple[int, ...],
    blocksize: int = 256,
    dtype: Any = np.float32,
) -> np.ndarray:
    """`bitsandbytes.functional.dequantize_blockwise` with a state made of the arguments."""
    state = bnb.QuantState(
        absmax=_tensor(absmax), code=_tensor(codebook), blocksize=blocksize, dtype=_dtype(dtype)
    )
    return _array(bnb.dequantize_blockwise(_tensor(codes).reshape(shape), state))


def quantize_absmax(
    absmax: np.ndarray, *, codebook: np.ndarray | None = None, blocksize: int = 256
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Double quantization as `quantize_4bit(compress_statistics=True)` performs it.

    bitsandbytes has no function for this step alone.  So a weight is made whose blocks have
    exactly these absmax values (one element each, the rest zero), and its state is read.
    """
    weight = np.zeros((absmax.size, _CARRIER_BLOCKSIZE), np.float32)
    weight[:, 0] = absmax
    _, state = bnb.quantize_4bit(
        _tensor(weight),
        blocksize=_CARRIER_BLOCKSIZE,
        quant_type="nf4",
        compress_statistics=True,
    )
    return _array(state.absmax), _array(state.state2.absmax), _array(state.offset)


def dequantize_absmax(
    codes: np.ndarray,
    nested_absmax: np.ndarray,
    offset: np.ndarray,
    *,
    codebook: np.ndarray | None = None,
    blocksize: int = 256,
) -> np.ndarray:
    """Nested decoding as `dequantize_4bit` performs it: a weight of all ones shows its scales."""
    code = bnb.create_dynamic_map().to(device) if codebook is None else _tensor(codebook)
    nested = bnb.QuantState(
        absmax=_tensor(nested_absmax), code=code, blocksize=blocksize, dtype=torch.float32
    )
    state = bnb.QuantState(
        absmax=_tensor(codes),
        shape=torch.Size((codes.size, _CARRIER_BLOCKSIZE)),
        dtype=torch.float32,
        blocksize=_CARRIER_BLOCKSIZE,
        quant_type="nf4",
        code=bnb.get_4bit_type("nf4", device=device),
        offset=torch.tensor(float(offset), dtype=torch.float32, device=device),
        state2=nested,
    )
    ones = torch.full((codes.size * _CARRIER_BLOCKSIZE // 2, 1), 0xFF, dtype=torch.uint8)
    return _array(bnb.dequantize_4bit(ones.to(device), state)[:, 0])


def _refuse_unknown(quant_type: str) -> None:
    if quant_type not in ("nf4", "fp4"):
        raise NotImplementedError(f"bitsandbytes has no quant_type {quant_type!r}")
