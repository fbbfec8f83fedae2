"""torchao behind the protocol: `to_nf4` and back, nothing repaired.

Read with torchao 0.18.0.  An NF4Tensor always codes its scales, too, and has no way to pass scales
in: so there is nothing here but the round trip.  Everything is computed in the type of x.  This
file imports nothing of the kit's, so that a repro script can carry it along whole.
"""

import logging
import warnings

import torch
from torch import Tensor

logging.disable(logging.WARNING)  # its import tells of CUDA libraries that it does not find
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import NF4Tensor, to_nf4
logging.disable(logging.NOTSET)

arrays = "torch"
device = "cuda" if torch.cuda.is_available() else "cpu"
SCALER_BLOCK = 256  # blocks whose scales are coded together; it takes whole groups of them only
limits = {"ndim": [1, 2], "blocksize": [64], "quant_type": ["nf4"], "multiple": 64 * SCALER_BLOCK}


def quantize_nested(x: Tensor, *, blocksize: int = 64, quant_type: str = "nf4") -> NF4Tensor:
    """`torchao.quantization.to_nf4`."""
    if quant_type != "nf4":
        raise NotImplementedError(f"torchao has no quant_type {quant_type!r} with nested scales")
    return to_nf4(x, blocksize, SCALER_BLOCK)


def dequantize_nested(state: NF4Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as `Tensor.to` gives it back."""
    weight: Tensor = state.to(dtype)
    return weight
