"""Double quantization: the scales of the scales, in the words of torch.

The rule is that of `qloracle.nested`. What is particular here is the offset, the mean of the
absmax. A sum of floats depends on the order of summing, and a GPU, several threads and NumPy all
have orders of their own. A sum of integers does not. A float32 is an integer of 24 bits times a
power of two, so the integers are summed apart for each power, which is exact, and the 256 sums are
put together in Python, where integers have no limit:

>>> absmax = torch.tensor([1.0, 2.0**-24, 2.0**-53, 2.0**-53])
>>> exact_sum(absmax) == 1 + 2**-24 + 2**-52, exact_sum(absmax.flip(0)) == exact_sum(absmax)
(True, True)
>>> absmax.double().sum().item() == 1 + 2**-24 + 2**-52
False

Memory, measured on a CPU: 19 bytes for each absmax beside input and result, that is 0.3 bytes for
each weight in a block of 64.
"""

from typing import TypeAlias

import torch
from torch import Tensor

from qloracle import arguments as plain
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.torch_backend import values
from qloracle_gpu.torch_backend.blockwise import dequantize_by, map_or, quantize_by
from qloracle_gpu.torch_backend.operators import operator

Coded: TypeAlias = tuple[Tensor, Tensor, Tensor]  # codes, nested_absmax and the offset


def _fake_codes(absmax: Tensor, _: Tensor | None, blocksize: int) -> Coded:
    nb = absmax.numel()
    codes = absmax.new_empty(nb, dtype=torch.uint8)
    return codes, absmax.new_empty(-(-nb // blocksize)), absmax.new_empty(())


@operator(_fake_codes)
def quantize_absmax(
    absmax: Tensor, *, codebook: Tensor | None = None, blocksize: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize nb scales: codes uint8[nb], nested_absmax float32[ceil(nb / blocksize)], offset.

    absmax: finite float32[nb]; codebook: None for the signed dynamic map, else 2 to 256 finite
    float32 that never decrease. The offset is float32 of shape (); that of no scales is 0.
    TypeError or ValueError otherwise.

    Source: rule S8; `qloracle.quantize_absmax`.

    >>> codes, nested_absmax, offset = quantize_absmax(torch.tensor([2.0, 2.5, 3.0, 2.5]))
    >>> codes.tolist(), nested_absmax.tolist(), offset.item()
    ([0, 127, 255, 127], [0.5], 2.5)
    """
    here = values.beside(absmax)
    known = check.vector(here, "absmax", absmax, "float32")
    _, thresholds = map_or("dynamic", here, "codebook", codebook)
    mean = exact_sum(known) / max(known.numel(), 1)
    offset = torch.tensor(mean, dtype=torch.float32, device=known.device)
    r = values.finite("absmax - offset", known - offset)  # nb
    codes, nested_absmax = quantize_by(thresholds, r, blocksize)
    return codes, nested_absmax, offset


@operator(lambda codes, nested_absmax, *_: nested_absmax.new_empty(codes.numel()))
def dequantize_absmax(
    codes: Tensor,
    nested_absmax: Tensor,
    offset: Tensor,
    *,
    codebook: Tensor | None = None,
    blocksize: int = 256,
) -> Tensor:
    """Decode the scales, float32[nb], with two roundings and no clamp.

    codes: uint8[nb]; nested_absmax: finite float32[ceil(nb / blocksize)]; offset: finite float32 of
    shape (); codebook as in `quantize_absmax`.

    Source: rule S8; `qloracle.dequantize_absmax`.

    >>> codes, nested = torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([1.0])
    >>> dequantize_absmax(codes, nested, torch.tensor(0.5)).tolist()
    [-0.49296873807907104, 1.5]
    """
    here = values.beside(codes)
    known = check.vector(here, "codes", codes, "uint8")
    levels, _ = map_or("dynamic", here, "codebook", codebook)
    mean: Tensor = check.scalar(here, "offset", offset)
    groups = -(-known.numel() // plain.integer("blocksize", blocksize, least=1))
    nested = check.vector(here, "nested_absmax", nested_absmax, "float32", groups)
    return dequantize_by(levels, known, nested, blocksize, torch.float32) + mean


def exact_sum(values: Tensor) -> float:
    """Sum finite float32[n] exactly, then round once to float64; any order gives the same.

    >>> exact_sum(torch.tensor([3e38, 1.0, -3e38]))
    1.0
    """
    bits = values.contiguous().view(torch.int32)
    power = bits >> 23 & 0xFF  # 0 for subnormals: they have power 1, but no hidden bit
    size = bits & 0x7FFFFF | (power > 0).int() << 23  # |value| = size * 2 ** (power - 150)
    signed = torch.where(bits < 0, -size, size).long()
    sums = torch.zeros(256, dtype=torch.int64, device=bits.device).index_add_(0, power, signed)
    parts: list[int] = sums.tolist()
    total = sum(part << max(power, 1) for power, part in enumerate(parts))
    return total / 2**150  # Python divides integers with one rounding
