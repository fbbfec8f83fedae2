"""The codebooks of `qloracle` as tensors: made at import, and sent to each device once.

A table lives as long as the process, so it must be a plain tensor whatever the call that first
needs it runs under: not one of `torch.inference_mode`, and not the fake tensor of a tracer, which
holds no numbers.

>>> table("levels", "nf4", torch.device("cpu"))[7:10]
tensor([0.0000, 0.0796, 0.1609])
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import qloracle
from qloracle.arguments import Array
from qloracle.codebook import FP4_CODES, FP4_MAGNITUDES, QUANT_TYPES


def table(kind: str, name: str, device: torch.device) -> Tensor:
    """Return a table of a 4-bit type, or of a dynamic map, sent to a device at the first time only.

    The dynamic maps are "dynamic", which is the signed one, and "unsigned". The kinds of tables:

    levels      float32, in code order
    thresholds  between the levels, float32; those of FP4 lie between magnitudes
    pairs       the two levels that each byte names: 256 pairs of float32, each seen as one int64
    codes       of FP4's magnitudes, from the smallest up, uint8[8]

    One int64 is moved at once, which on a CPU takes a quarter of the time of a row of two floats.

    >>> table("pairs", "nf4", torch.device("cpu"))[[0x0F]].view(torch.float32)  # codes 0 and 15
    tensor([-1.,  1.])
    """
    key = kind, name, device
    if key in _SENT:
        return _SENT[key]
    with torch.inference_mode(False):
        sent = _MADE[kind, name].to(device)
    if type(sent) is Tensor:
        _SENT[key] = sent
    return sent


def _all() -> Iterator[tuple[tuple[str, str], Array]]:
    for name in QUANT_TYPES:
        levels = qloracle.codebook(name)
        two = np.stack([levels.repeat(16), np.tile(levels, 16)], axis=1)
        ordered = np.array(FP4_MAGNITUDES, np.float32) if name == "fp4" else levels
        yield ("levels", name), levels
        yield ("thresholds", name), qloracle.thresholds(ordered)
        yield ("pairs", name), two.view(np.int64).reshape(-1)
    for name in ("dynamic", "unsigned"):
        levels = qloracle.dynamic_codebook(signed=name == "dynamic")
        yield ("levels", name), levels
        yield ("thresholds", name), qloracle.thresholds(levels)
    yield ("codes", "fp4"), np.array(FP4_CODES, np.uint8)


with torch.inference_mode(False):
    _MADE = {key: torch.from_numpy(table) for key, table in _all()}
_SENT: dict[tuple[str, str, torch.device], Tensor] = {}
