"""A second opinion: rules S1 to S8 in exact integer arithmetic.

It shares no code with the reference. Where the two differ, one of them is wrong.

The functions at the end are the protocol's, so the module is an implementation like any other.
Every number in them comes from `softfloat`, which computes a result as an exact rational and rounds
it once. NumPy only carries bits in and out, and finds the distinct pairs so that each is computed
once.

Levels, thresholds and values are float32 bit patterns, Python ints, until they leave.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qloracle_conformance.judging.exact.softfloat import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SIGN,
    Format,
    add,
    cast,
    divide,
    exact,
    multiply,
    nearest,
    order,
    units,
)

Array = npt.NDArray[Any]
Bits = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rule = Callable[[int, int], int]

FORMATS = {
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.float16): FLOAT16,
    np.dtype(ml_dtypes.bfloat16): BFLOAT16,
}

# S1: codebooks.

NF4 = [
    0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
    0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000,
]  # fmt: skip
FP4 = [nearest(Fraction(k, 192)) for k in (0, 1, 128, 192, 64, 96, 32, 48)]  # by 3-bit code
LEVELS = {
    "nf4": NF4,
    "fp4": FP4 + [level and SIGN | level for level in FP4],  # code 8 is +0 in the table, too
}


def _decade(i: int, cells: int) -> list[Fraction]:
    """Midpoints of a grid over 0.1 to 1, times 10**(i - 6), every step rounded to float32.

    The recipe's float64 products and sums fit into 53 bits, so float32's are the only roundings.
    """

    def rounded(value: Fraction) -> Fraction:
        return exact(nearest(value))

    low, scale = rounded(Fraction(1, 10)), rounded(Fraction(10) ** (i - 6))
    step = rounded((1 - low) / cells)
    half = (cells + 1) // 2
    grid = [rounded(low + step * k) for k in range(half)]
    grid += [rounded(1 - step * (cells - k)) for k in range(half, cells + 1)]
    return [rounded(rounded((a + b) / 2) * scale) for a, b in pairwise(grid)]


@cache
def dynamic_levels(signed: bool = True) -> tuple[int, ...]:
    """Patterns of the 8-bit dynamic map, ascending.

    >>> [f"{level:08x}" for level in dynamic_levels()[126:129]], len(dynamic_levels(signed=False))
    (['b513a3b7', '00000000', '3513a3b7'], 256)
    """
    positive = [x for i in range(7) for x in _decade(i, 2**i if signed else 2 ** (i + 1))]
    negative = [-x for x in positive] if signed else []
    return tuple(nearest(x) for x in sorted([*negative, Fraction(0), *positive, Fraction(1)]))


# S2 and S5: codes.


def thresholds(levels: Iterable[int]) -> list[int]:
    """Midpoints of ascending levels, rounded once, as integers to compare by `order`."""
    return [order(add(low, high, halvings=1)) for low, high in pairwise(levels)]


def _scaled(x: int, absmax: int) -> int:
    return order(divide(x, absmax)) if absmax else 0  # in a zero block every q is +0


def ascending_rule(levels: Sequence[int]) -> Rule:
    """S5 on ascending levels: the code of x in a block with this absmax; a tie takes the lower."""
    limits = thresholds(levels)
    return lambda x, absmax: bisect_left(limits, _scaled(x, absmax))


def fp4_rule() -> Rule:
    """S5 for FP4: the magnitude is coded, the sign is bit 3."""
    codes = sorted(range(8), key=FP4.__getitem__)
    limits = thresholds(FP4[code] for code in codes)

    def rule(x: int, absmax: int) -> int:
        q = _scaled(x, absmax)
        return codes[bisect_left(limits, abs(q))] | (q < 0) << 3

    return rule


# Arrays: bits in, bits out.


def _each(rule: Rule, left: npt.ArrayLike, right: npt.ArrayLike = 0) -> Bits:
    """Apply a rule to each distinct pair once, and hand its results out."""
    pairs = np.asarray(left, np.uint64) << np.uint64(32) | np.asarray(right, np.uint64)
    distinct, where = np.unique(pairs, return_inverse=True)
    results = (rule(pair >> 32, pair & 0xFFFFFFFF) for pair in distinct.tolist())
    return np.fromiter(results, np.uint32, distinct.size)[where]


def _format(dtype: np.dtype[Any]) -> Format:
    if dtype not in FORMATS:
        raise TypeError(f"float32, float16 or bfloat16 is wanted, not {dtype}")
    return FORMATS[dtype]


def _bits(x: npt.ArrayLike) -> Bits:
    """float32 patterns of an array of any of the three types, flattened row-major."""
    x = np.ascontiguousarray(x).reshape(-1)
    fmt = _format(x.dtype)
    raw = x.view(f"u{x.itemsize}").astype(np.uint32)
    if (bad := np.flatnonzero(raw & fmt.infinity == fmt.infinity)).size:
        raise ValueError(f"{bad.size} values are not finite, the first at {bad[0]}")
    return raw if fmt is FLOAT32 else _each(lambda bits, _: cast(bits, fmt, FLOAT32), raw)


def _values(bits: Bits, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    """S7's last step: float32 patterns rounded to an output type."""
    kind = np.dtype(dtype)
    fmt = _format(kind)
    out = bits if fmt is FLOAT32 else _each(lambda bits, _: cast(bits, FLOAT32, fmt), bits)
    return out.astype(f"u{kind.itemsize}").view(kind).reshape(shape)


def _of_block(absmax: Bits, n: int, blocksize: int) -> Bits:
    """S3: the absmax of each element's block."""
    if absmax.size != -(-n // blocksize):
        raise ValueError(f"{absmax.size} scales of {blocksize} elements do not make {n}")
    return absmax[np.arange(n) // blocksize]


def _quantize(x: Bits, rule: Rule, blocksize: int) -> tuple[Bytes, Floats]:
    """S4, then S5."""
    if blocksize < 1:
        raise ValueError(f"blocksize must be at least 1, not {blocksize}")
    absmax = np.maximum.reduceat(x & np.uint32(SIGN - 1), np.arange(0, x.size, blocksize))
    codes = _each(rule, x, _of_block(absmax, x.size, blocksize))
    return codes.astype(np.uint8), absmax.view(np.float32)


def _products(codes: Array, levels: Sequence[int], absmax: Array, blocksize: int) -> Bits:
    """S7's product, rounded to float32."""
    if codes.dtype != np.uint8 or (codes.size and codes.max() >= len(levels)):
        raise ValueError(f"codes must be uint8 below {len(levels)}")
    chosen = np.array(levels, np.uint32)[codes.reshape(-1)]
    return _each(multiply, chosen, _of_block(_bits(absmax), codes.size, blocksize))


# The protocol.


def quantize_4bit(
    x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Bytes, Floats]:
    """S3 to S6: packed codes uint8[ceil(n/2)] and absmax float32[ceil(n/blocksize)].

    `x` is float32, float16 or bfloat16 of any shape. TypeError for another type; ValueError for a
    value that is not finite, an unknown `quant_type` or a blocksize below 1.

    >>> packed, absmax = quantize_4bit(np.float32([[1, -2, 0.5]]), blocksize=2)
    >>> packed.tolist(), absmax.tolist()
    ([192, 247], [2.0, 0.5])
    """
    rule = fp4_rule() if quant_type == "fp4" else ascending_rule(_table(quant_type))
    codes, absmax = _quantize(_bits(x), rule, blocksize)
    spare = np.full(codes.size % 2, rule(0, 0), np.uint8)
    nibbles = np.concatenate([codes, spare])
    return nibbles[::2] << 4 | nibbles[1::2], absmax


def dequantize_4bit(
    packed: Array,
    absmax: Array,
    *,
    shape: tuple[int, ...],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """S7: dtype[shape] from what `quantize_4bit` returns; the same errors, and wrong sizes.

    >>> dequantize_4bit(np.uint8([192, 247]), np.float32([2, 0.5]), shape=(1, 3), blocksize=2)
    array([[ 0.88141966, -2.        ,  0.5       ]], dtype=float32)
    """
    if packed.size != -(-prod(shape) // 2):
        raise ValueError(f"{packed.size} bytes do not hold {prod(shape)} codes")
    nibbles = np.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], axis=1).reshape(-1)
    bits = _products(nibbles[: prod(shape)], _table(quant_type), absmax, blocksize)
    return _values(bits, dtype, shape)


def quantize_blockwise(x: Array, codebook: Floats, *, blocksize: int = 256) -> tuple[Bytes, Floats]:
    """S3 to S5 with any codebook: codes uint8[n], absmax float32[ceil(n/blocksize)].

    `codebook` is 2 to 256 finite float32 values, non-decreasing; else ValueError.

    >>> codes, absmax = quantize_blockwise(np.float32([3, -1, 0]), np.float32([-1, 0, 1]))
    >>> codes.tolist(), absmax.tolist()
    ([2, 1, 1], [3.0])
    """
    return _quantize(_bits(x), ascending_rule(_levels(codebook)), blocksize)


def dequantize_blockwise(
    codes: Array,
    absmax: Array,
    codebook: Floats,
    *,
    shape: tuple[int, ...],
    blocksize: int = 256,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """S7 with any codebook: dtype[shape].

    >>> dequantize_blockwise(np.uint8([2, 1]), np.float32([3]), np.float32([-1, 0, 1]), shape=(2,))
    array([3., 0.], dtype=float32)
    """
    return _values(_products(codes, _levels(codebook), absmax, blocksize), dtype, shape)


def quantize_absmax(
    absmax: Floats, *, codebook: Floats | None = None, blocksize: int = 256
) -> tuple[Bytes, Floats, np.float32]:
    """S8: codes uint8[nb], nested absmax float32[ceil(nb/blocksize)], offset float32.

    The offset is the exact mean, rounded once.

    >>> codes, nested, offset = quantize_absmax(np.float32([1, 2, 6]))
    >>> codes.tolist(), nested.tolist(), float(offset)
    ([23, 47, 255], [3.0], 3.0)
    """
    values = _bits(absmax)
    total = Fraction(sum(map(units, values.tolist())), 1 << -FLOAT32.emin)
    offset = nearest(total / max(values.size, 1))
    rule = ascending_rule(_levels(codebook))
    residuals = _bits(_each(add, values, offset ^ SIGN).view(np.float32))
    codes, nested = _quantize(residuals, rule, blocksize)
    return codes, nested, np.uint32(offset).view(np.float32)


def dequantize_absmax(
    codes: Array,
    nested_absmax: Array,
    offset: npt.ArrayLike,
    *,
    codebook: Floats | None = None,
    blocksize: int = 256,
) -> Floats:
    """S8 backwards: float32[nb], a product and a sum, each rounded.

    >>> dequantize_absmax(np.uint8([23, 47, 255]), np.float32([3]), np.float32(3)).tolist()
    [0.9914064407348633, 2.00390625, 6.0]
    """
    products = _products(codes, _levels(codebook), nested_absmax, blocksize)
    return _each(add, products, _bits(offset)).view(np.float32)


def _table(quant_type: str) -> list[int]:
    if quant_type not in LEVELS:
        raise ValueError(f"quant_type must be one of {', '.join(LEVELS)}, not {quant_type!r}")
    return LEVELS[quant_type]


def _levels(codebook: Floats | None) -> Sequence[int]:
    if codebook is None:
        return dynamic_levels()
    levels: list[int] = _bits(codebook).tolist()
    if not 2 <= len(levels) <= 256 or levels != sorted(levels, key=order):
        raise ValueError("a codebook is 2 to 256 values, none below the one before it")
    return levels
