"""Double quantization: who pays for the scales?

One float32 absmax for 64 weights costs 32 / 64 = 0.5 bit per weight. The absmax are therefore
quantized too, to 8 bits in groups of 256 (arXiv:2305.14314, section 3, "Double Quantization"):

    offset             = mean of absmax                                   float32
    r                  = absmax - offset                                  float32
    codes, nested      = quantize_blockwise(r, dynamic map, 256)          S4, S5
    absmax'            = float32(float32(level * nested_absmax) + offset)             (S8)

>>> bits_per_weight(64, None), bits_per_weight(64, 256)
(4.5, 4.126953125)

An absmax is positive, and a signed codebook wastes half its codes on positive numbers, so the mean
is subtracted first: on normal weights that makes the error of the scales 3.5 times smaller. The
paper writes the subtraction into no equation and calls the second level "8-bit floats"; the code
that everybody runs subtracts, and uses the dynamic map, which holds +1 but ends at -0.993.

>>> absmax = np.array([2.0, 2.5, 3.0, 2.5], np.float32)
>>> codes, nested_absmax, offset = quantize_absmax(absmax)
>>> codes.tolist(), nested_absmax.tolist(), float(offset)
([0, 127, 255, 127], [0.5], 2.5)
>>> dequantize_absmax(codes, nested_absmax, offset).tolist()
[2.0035157203674316, 2.5, 3.0, 2.5]

Where implementations differ, this is what the specification chooses.

* The offset is the mean of an exact sum (`math.fsum`), so it does not depend on the order of
  summation. A sum in float32 does; other implementations are therefore judged within a bound.
* The decode rounds twice, after the product and after the sum. A fused multiply-add rounds once and
  differs in some elements, visible only in a float32 result.
* Nothing is clamped: an absmax far below the mean may come back negative, and zero rarely comes
  back as zero. That is why a block of zeros must hold the code of zero.
* Files carry their own 8-bit map (a PyTorch without fused arithmetic makes a different one), so
  both functions take one.
"""

import math

import numpy as np

from qloracle import arguments as check
from qloracle.arguments import Float32, UInt8
from qloracle.blockwise import dequantize_blockwise, quantize_blockwise
from qloracle.codebook import dynamic_codebook


def quantize_absmax(
    absmax: Float32, *, codebook: Float32 | None = None, blocksize: int = 256
) -> tuple[UInt8, Float32, np.float32]:
    """Quantize nb scales: codes uint8[nb], nested_absmax float32[ceil(nb / blocksize)], offset.

    absmax: finite float32[nb]; codebook: None for the signed dynamic map, else 2 to 256 finite
    float32 that never decrease. TypeError or ValueError otherwise. The offset of no scales is 0.

    Source: rule S8; bitsandbytes 0.50.2, `quantize_4bit(compress_statistics=True)`.

    >>> quantize_absmax(np.array([3], np.float32))  # one scale is its own mean
    (array([127], dtype=uint8), array([0.], dtype=float32), np.float32(3.0))
    """
    scales = check.finite("absmax", check.vector("absmax", absmax, np.float32))
    levels = dynamic_codebook() if codebook is None else codebook
    offset = np.float32(math.fsum(scales.tolist()) / max(scales.size, 1))
    with np.errstate(all="ignore"):
        r = check.finite("absmax - offset", scales - offset)  # nb
    codes, nested_absmax = quantize_blockwise(r, levels, blocksize=blocksize)
    return codes, nested_absmax, offset


def dequantize_absmax(
    codes: UInt8,
    nested_absmax: Float32,
    offset: np.float32,
    *,
    codebook: Float32 | None = None,
    blocksize: int = 256,
) -> Float32:
    """Decode the scales, float32[nb], with two roundings and no clamp.

    codes: uint8[nb]; nested_absmax: finite float32[ceil(nb / blocksize)]; offset: finite
    np.float32 or float32 of shape (); codebook as in `quantize_absmax`.

    Source: rule S8; bitsandbytes 0.50.2, `dequantize_4bit` with `state2`.

    >>> codes, nested = np.array([0, 255], np.uint8), np.array([1], np.float32)
    >>> dequantize_absmax(codes, nested, np.float32(0.5)).tolist()
    [-0.49296873807907104, 1.5]
    """
    mean, nb = check.scalar("offset", offset), check.vector("codes", codes, np.uint8).size
    levels = dynamic_codebook() if codebook is None else codebook
    groups = -(-nb // check.integer("blocksize", blocksize, least=1))
    check.finite("nested_absmax", check.vector("nested_absmax", nested_absmax, np.float32, groups))
    r = dequantize_blockwise(codes, nested_absmax, levels, shape=(nb,), blocksize=blocksize)  # nb
    with np.errstate(all="ignore"):
        return np.asarray(r + mean, np.float32)


def bits_per_weight(blocksize: int = 64, nested_blocksize: int | None = 256) -> float:
    """Count the bits of a 4-bit weight and its part of the scales; None: plain float32 scales.

    The one float32 offset of a whole tensor is left out.

    >>> 65e9 * (bits_per_weight(64, None) - bits_per_weight()) / 8 / 1e9  # GB saved in a 65B model
    3.031005859375
    """
    block = check.integer("blocksize", blocksize, least=1)
    if nested_blocksize is None:
        return 4 + 32 / block
    group = check.integer("nested_blocksize", nested_blocksize, least=1)
    return 4 + 8 / block + 32 / (block * group)
