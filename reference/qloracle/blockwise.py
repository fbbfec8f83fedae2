"""NF4 in one page: a block, its absmax, and the nearest of sixteen levels.

A weight matrix is flattened row by row and cut into blocks of `blocksize` consecutive elements
(S3). For each block

    absmax = max |x|                                        float32, exact                   (S4)
    q      = x / absmax                                     one float32 division
    code   = number of thresholds t[i] with q > t[i]        so a tie takes the lower code    (S5)

and two codes share a byte, the first in the high nibble (S6). Back again:

    x'     = level[code] * absmax                           float32, then rounded to dtype   (S7)

These are equations 1 and 2 of arXiv:2305.14314, specified to the bit. Four elements of one block:

>>> x = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
>>> packed, absmax = quantize_4bit(x)
>>> absmax.tolist(), [f"{byte:02x}" for byte in packed]
([2.0], ['a0', '7c'])
>>> print(dequantize_4bit(packed, absmax, shape=(4,)))
[ 0.4922246  -2.          0.          0.88141966]

0.5 / 2 = 0.25 is nearest to level 10 (0.2461), so 0.5 became 0.4922. The absmax and zero come back
exactly, and nothing moves by more than half the widest gap, 0.1519 absmax.

Where implementations differ, this is what the specification chooses.

* The scale is the block's absmax, not a standard deviation, so no element is ever clipped.
* Division. bitsandbytes multiplies by the rounded reciprocal (on CPU it divides in a short last
  block), which moves a code only where x / absmax lies within about an ulp of a threshold.
* A block of zeros has q = +0 everywhere, hence code 7 in NF4 (code 0 in bitsandbytes on CUDA). Both
  decode to 0 here. After double quantization, though, its absmax may come back as something other
  than zero, and then only the code of q = 0 still means zero.
* Blocks cross rows. A matrix of 20 columns in blocks of 16 has no scale "per row".
* Codes are defined by thresholds, not by distance: in float32 those are two different rules.
* Subnormal numbers count. A block whose absmax is 1e-40 is coded like any other.
* NaN and infinity are refused: no two libraries agree on a block that contains one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle.arguments import Array, Float32, UInt8
from qloracle.codebook import FP4_CODES, FP4_MAGNITUDES, QUANT_TYPES, thresholds
from qloracle.codebook import codebook as codebook_of

# ---- the rules -----------------------------------------------------------------------------------


@np.errstate(all="ignore")  # a quotient may underflow, in silence whatever the caller has set
def _normalized(x: Float32, blocksize: int) -> tuple[Float32, Float32]:
    """Return q = x / absmax, float32[n] in [-1, 1], and the absmax of each block (S3 to S5)."""
    absmax = np.maximum.reduceat(np.abs(x), np.arange(0, x.size, blocksize))  # ceil(n / blocksize)
    scale = _spread(absmax, x.size, blocksize)  # n
    q = np.zeros_like(x)  # what a block of zeros keeps: 0 / 0 is never computed
    return np.divide(x, scale, out=q, where=scale != 0), absmax


def _count_below(between: Float32, q: Float32) -> UInt8:
    """Count for each q the thresholds strictly below it: the code (S5)."""
    return np.searchsorted(between, q, side="left").astype(np.uint8)


def _codes_4bit(q: Float32, quant_type: str) -> UInt8:
    """Return the code of each q. FP4's codes are not in order: magnitude and sign go apart (S5)."""
    if quant_type == "nf4":
        return _count_below(thresholds(codebook_of("nf4")), q)
    between = thresholds(np.array(FP4_MAGNITUDES, np.float32))
    magnitude = np.array(FP4_CODES, np.uint8)[_count_below(between, np.abs(q))]  # ties toward zero
    sign = (q < 0).astype(np.uint8)
    return magnitude | sign << np.uint8(3)


@np.errstate(all="ignore")  # overflow to inf is the right result
def _decoded(levels: Float32, absmax: Float32, blocksize: int, dtype: np.dtype[Any]) -> Array:
    """Return level * absmax, rounded to float32 and then once more to dtype (S7)."""
    return (levels * _spread(absmax, levels.size, blocksize)).astype(dtype)


def _spread(absmax: Float32, n: int, blocksize: int) -> Float32:
    """Repeat the absmax for each element of its block, float32[n]."""
    return np.repeat(absmax, blocksize)[:n]


# ---- the functions -------------------------------------------------------------------------------


def quantize_4bit(
    x: Array | np.generic, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[UInt8, Float32]:
    """Quantize to 4 bits: packed uint8[ceil(n / 2)], absmax float32[ceil(n / blocksize)].

    x: float32, float16 or bfloat16 of any shape, n elements, all finite; blocksize: any int >= 1;
    quant_type: nf4 or fp4. TypeError or ValueError otherwise.

    Source: rules S3 to S6; arXiv:2305.14314, equation 1; bitsandbytes 0.50.2, `quantize_4bit`.

    >>> packed, absmax = quantize_4bit(np.array([[1, -1, 3]], np.float32), blocksize=2)
    >>> packed.tolist(), absmax.tolist()  # the spare nibble holds zero's code
    ([240, 247], [1.0, 3.0])
    """
    check.choice("quant_type", quant_type, QUANT_TYPES)
    q, absmax = _normalized(*_flat(x, blocksize))  # n, ceil(n / blocksize)
    spare = _codes_4bit(np.zeros(1, np.float32), quant_type)[0]
    return pack_4bit(_codes_4bit(q, quant_type), spare=int(spare)), absmax


def dequantize_4bit(
    packed: UInt8,
    absmax: Float32,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: DTypeLike = np.float32,
) -> Array:
    """Decode packed 4-bit codes to dtype[shape].

    packed: uint8[ceil(n / 2)], n the product of shape; absmax: finite float32[ceil(n / blocksize)],
    which may be negative after double quantization; dtype: float32, float16 (65520 and more becomes
    inf) or bfloat16. TypeError or ValueError otherwise.

    Source: rule S7; bitsandbytes 0.50.2, `dequantize_4bit`.

    >>> packed, absmax = np.array([0x0F], np.uint8), np.array([2], np.float32)
    >>> dequantize_4bit(packed, absmax, shape=(2,)).tolist()
    [-2.0, 2.0]
    """
    levels, (dims, n) = codebook_of(quant_type), check.dimensions("shape", shape)
    codes = unpack_4bit(packed, n)  # n
    scales, step, wanted = _scales(absmax, n, blocksize, dtype)
    return _decoded(levels[codes], scales, step, wanted).reshape(dims)


def quantize_blockwise(
    x: Array | np.generic, codebook: Float32, *, blocksize: int = 256
) -> tuple[UInt8, Float32]:
    """Quantize to any sorted codebook: codes uint8[n], absmax float32[ceil(n / blocksize)].

    codebook: 2 to 256 finite float32 that never decrease; x and blocksize as in `quantize_4bit`.

    Source: rules S3 to S5; arXiv:2110.02861, section 2.

    >>> levels = np.array([-1, 0, 1], np.float32)
    >>> codes, absmax = quantize_blockwise(np.array([4, 2, -2.5], np.float32), levels)
    >>> codes.tolist(), absmax.tolist()  # 2 / 4 is a tie
    ([2, 1, 0], [4.0])
    """
    between = thresholds(codebook)
    q, absmax = _normalized(*_flat(x, blocksize))  # n, ceil(n / blocksize)
    return _count_below(between, q), absmax


def dequantize_blockwise(
    codes: UInt8,
    absmax: Float32,
    codebook: Float32,
    *,
    shape: Sequence[int],
    blocksize: int = 256,
    dtype: DTypeLike = np.float32,
) -> Array:
    """Decode codes uint8[n] to dtype[shape]; absmax and dtype as in `dequantize_4bit`.

    Source: rule S7.

    >>> levels, scale = np.array([-1, 0, 1], np.float32), np.array([4], np.float32)
    >>> dequantize_blockwise(np.array([2, 1, 0], np.uint8), scale, levels, shape=(3,)).tolist()
    [4.0, 0.0, -4.0]
    """
    levels, (dims, n) = check.codebook("codebook", codebook), check.dimensions("shape", shape)
    known = check.codes_below("codes", check.vector("codes", codes, np.uint8, n), levels.size)  # n
    scales, step, wanted = _scales(absmax, n, blocksize, dtype)
    return _decoded(levels[known], scales, step, wanted).reshape(dims)


def pack_4bit(codes: UInt8, *, spare: int = 0) -> UInt8:
    """Put two codes in a byte, uint8[ceil(n / 2)]: element 2k high, 2k + 1 low (S6).

    codes: uint8[n], each below 16; spare: fills the last low nibble when n is odd.

    >>> [f"{byte:02x}" for byte in pack_4bit(np.array([1, 2, 3], np.uint8), spare=7)]
    ['12', '37']
    """
    known = check.codes_below("codes", check.vector("codes", codes, np.uint8), 16)
    if check.integer("spare", spare) > 15:
        raise ValueError(f"spare must be below 16, got {spare}")
    pairs = np.full((known.size + 1) // 2 * 2, spare, np.uint8)
    pairs[: known.size] = known
    high, low = pairs.reshape(-1, 2).T  # each ceil(n / 2)
    return high << np.uint8(4) | low


def unpack_4bit(packed: UInt8, n: int) -> UInt8:
    """Return the n codes in ceil(n / 2) bytes, uint8[n]; a spare nibble is dropped unread (S6).

    >>> unpack_4bit(np.array([0x12, 0x37], np.uint8), 3).tolist()
    [1, 2, 3]
    """
    size = (check.integer("n", n) + 1) // 2
    pairs = check.vector("packed", packed, np.uint8, size)
    return np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:n]


# ---- what they accept ----------------------------------------------------------------------------


def _flat(x: Array | np.generic, blocksize: int) -> tuple[Float32, int]:
    """Return x as float32[n] and the blocksize; a block beyond the end is one short block."""
    step = check.integer("blocksize", blocksize, least=1)
    flat = check.as_flat_float32("x", x)
    return flat, min(step, max(flat.size, 1))


def _scales(
    absmax: Float32, n: int, blocksize: int, dtype: DTypeLike
) -> tuple[Float32, int, np.dtype[Any]]:
    """Return the scales of n elements, the blocksize and the dtype of the result."""
    wanted = check.float_type("dtype", dtype)
    step = min(check.integer("blocksize", blocksize, least=1), max(n, 1))
    scales = check.vector("absmax", absmax, np.float32, -(-n // step))
    return check.finite("absmax", scales), step, wanted
