"""Where the sixteen numbers come from.

A 4-bit code names one of sixteen levels in [-1, 1]; the list of levels is the codebook. Trained
weights look normally distributed, so QLoRA places the levels at quantiles of N(0, 1): close
together near zero, where most weights are. This is NF4 (arXiv:2305.14314, section 3 and appendix E;
`create_normal_map` in bitsandbytes 0.50.2). The picture is reference/docs/levels.png.

The construction. Quantiles at evenly spaced probabilities would put the outermost level at infinity
(probability 1), so the last probability is an offset below 1: the mean of 1 - 1/30 and 1 - 1/32,
half a bin out of 15 and out of 16. Zero must be a level, or padding and pruned weights would move.
An even count cannot be symmetric around a zero, so the positive side gets eight quantiles and the
negative side seven. Everything is divided by the largest. (Equation 4 of the paper, the means of
neighbouring quantiles Q(i / 17), gives another table: it has no zero and ends at infinity.)

>>> print(nf4_codebook().round(4))
[-1.     -0.6962 -0.5251 -0.3949 -0.2844 -0.1848 -0.0911  0.      0.0796
  0.1609  0.2461  0.3379  0.4407  0.5626  0.723   1.    ]
>>> derived = normal_float_codebook(4, offset=NF4_OFFSET)
>>> int((derived.view(np.uint32) == nf4_codebook().view(np.uint32)).sum())
16

The bits are the definition; the formula explains them. bitsandbytes types the offset as 0.9677083.
The exact fraction rounds to the float32 next to it, and that moves 12 of the 16 levels:

>>> paper = normal_float_codebook(4)
>>> int((paper.view(np.uint32) != nf4_codebook().view(np.uint32)).sum())
12

Between neighbouring levels lies a threshold, their midpoint (S2). A value above it takes the upper
code; a value exactly on it takes the lower one. The midpoint is rounded to float32. A library that
searches for the nearest level by distance disagrees at 6 of the 15 thresholds, and torchao, which
types its levels with four decimals, at 13 of the 16 levels.

>>> print(thresholds(nf4_codebook())[:3])
[-0.8480964  -0.6106329  -0.45999527]
"""

import inspect
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qloracle import arguments as check
from qloracle.arguments import Float32

QUANT_TYPES = ("nf4", "fp4")

# NF4 is pinned, not computed: the last bit of a quantile depends on the math library, and sixteen
# numbers that depend on the machine would be no standard.
NF4_BITS = (
    0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
    0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000,
)  # fmt: skip
NF4_OFFSET = 0.9677083

# FP4 as bitsandbytes has it: a sign bit above eight magnitudes, whose 3-bit codes do not follow
# their size. Sorted by size, magnitude i has code FP4_CODES[i].
TWELFTHS = (0, 1 / 16, 2, 3, 4, 6, 8, 12)
FP4_MAGNITUDES = tuple(float(np.float32(k) / np.float32(12)) for k in TWELFTHS)
FP4_CODES = (0, 1, 6, 7, 4, 5, 2, 3)

NOTES = (0.018, 0.102, 0.194, 0.302, 0.431, 0.588, 0.784, 1.0)  # of notes_codebook


def nf4_codebook() -> Float32:
    """Return the sixteen levels of NF4, float32[16], by their bits (S1).

    >>> f"{nf4_codebook().view(np.uint32)[8]:08x}"
    '3da2faff'
    """
    return np.array(NF4_BITS, np.uint32).view(np.float32)


def normal_float_codebook(bits: int, offset: float | None = None) -> Float32:
    """Return the NormalFloat levels of 2 to 8 bits, float32[2**bits], rising from -1 to 1.

    offset: the largest probability, 0.5 < offset < 1; None: the paper's formula,
    1 - (1 / (2**bits - 1) + 1 / 2**bits) / 4. ValueError for other bits or offsets.

    Source: arXiv:2305.14314, section 3; `create_normal_map`, bitsandbytes 0.50.2.

    >>> print(normal_float_codebook(2).round(4))
    [-1.      0.      0.4358  1.    ]
    """
    if not 2 <= check.integer("bits", bits) <= 8:
        raise ValueError(f"bits must lie in 2..8, got {bits}")
    if offset is None:
        offset = 1 - (1 / (2**bits - 1) + 1 / 2**bits) / 4
    if not 0.5 < check.real("offset", offset) < 1 or np.float32(offset) in (0.5, 1):
        raise ValueError(f"offset must lie between 0.5 and 1 in float32, got {offset!r}")
    half = 2 ** (bits - 1)
    above = normal_quantile(_grid(offset, 0.5, half + 1)[:-1])  # half
    below = -normal_quantile(_grid(offset, 0.5, half)[:-1])  # half - 1
    levels: Float32 = np.sort(np.concatenate([below, [0.0], above]).astype(np.float32))  # 2**bits
    scaled: Float32 = levels / levels[-1]
    return scaled


def _grid(start: float, end: float, n: int) -> NDArray[np.float64]:
    """Return n evenly spaced float32 points: `np.linspace` but for the last bit.

    The tables were made by PyTorch's `linspace` where it fuses product and sum: each point is
    computed from the nearer end and rounded once. Their last bits show it.
    """
    a, b = float(np.float32(start)), float(np.float32(end))
    step = float(np.float32((b - a) / (n - 1)))
    i = np.arange(n)
    points = np.where(i < n // 2, a + step * i, b - step * (n - 1 - i))
    return points.astype(np.float32).astype(np.float64)


def normal_quantile(p: float | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the value below which a fraction p of N(0, 1) lies; float64, in the shape of p.

    0 and 1 give the infinities. ValueError outside [0, 1]. Fifteen digits are right: Wichura's
    AS 241, as in Python's `statistics`.

    >>> float(normal_quantile(0.5))
    0.0
    >>> print(f"{normal_quantile(0.6):.4f}")
    0.2533
    """
    probability = np.asarray(p, np.float64)
    outside = probability[~((probability >= 0) & (probability <= 1))]
    if outside.size:
        raise ValueError(f"p must lie in [0, 1], got {outside[0]}")
    inside = (probability > 0) & (probability < 1)
    values = np.array(np.where(probability < 0.5, -np.inf, np.inf))  # in the shape of p
    values[inside] = [NormalDist().inv_cdf(each) for each in probability[inside].tolist()]
    return values


def thresholds(codebook: Float32) -> Float32:
    """Return the midpoints between neighbours, float32[levels - 1] (S2).

    codebook: 2 to 256 finite float32 that never decrease, else TypeError or ValueError. FP4 is not
    sorted: its thresholds stand between its magnitudes.

    >>> thresholds(np.array([-1, 0, 0.5], np.float32)).tolist()
    [-0.5, 0.25]
    """
    levels = check.codebook("codebook", codebook).astype(np.float64)  # where no sum overflows
    return ((levels[:-1] + levels[1:]) / 2).astype(np.float32)


def codebook(quant_type: str) -> Float32:
    """Return the sixteen levels of a 4-bit type in code order; quant_type is nf4 or fp4.

    ValueError for any other name, TypeError for anything but a string.

    >>> float(codebook("nf4")[7]), float(codebook("fp4")[7])
    (0.0, 0.25)
    """
    makers = {"nf4": nf4_codebook, "fp4": fp4_codebook}
    return makers[check.choice("quant_type", quant_type, QUANT_TYPES)]()


def fp4_codebook() -> Float32:
    """Return the sixteen levels of bitsandbytes' FP4, float32[16], in code order, not sorted.

    Code 8, zero with the sign bit set, is +0 in the table.

    >>> print(fp4_codebook()[:8].round(4))
    [0.     0.0052 0.6667 1.     0.3333 0.5    0.1667 0.25  ]
    """
    positive = np.zeros(8, np.float32)
    positive[list(FP4_CODES)] = FP4_MAGNITUDES
    return np.concatenate([positive, np.float32(0) - positive])  # 0 - 0 is +0, as in the original


def dynamic_codebook(*, signed: bool = True) -> Float32:
    """Return the 8-bit dynamic map, float32[256], sorted: seven decades, each finer than the last.

    Decade i, 10**(i - 7) to 10**(i - 6), holds 2**i levels of each sign (unsigned: 2**(i + 1)
    levels), the midpoints of an even grid. 0 and 1 are added, -1 is not. TypeError unless signed is
    a bool.

    Source: arXiv:2110.02861, section 2; `create_dynamic_map`, bitsandbytes 0.50.2.

    >>> levels = dynamic_codebook()
    >>> levels.size, f"{levels[0]:.4f}", f"{levels[levels > 0][0]:.1e}"
    (256, '-0.9930', '5.5e-07')
    """
    return _dynamic_levels(check.boolean("signed", signed)).copy()


@cache  # every 8-bit step asks for it
def _dynamic_levels(signed: bool) -> Float32:
    levels = [np.array([0, 1], np.float32)]
    for i in range(7):
        grid = _grid(0.1, 1.0, 2 ** (i if signed else i + 1) + 1).astype(np.float32)
        decade = (grid[:-1] + grid[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        levels += [decade, -decade] if signed else [decade]
    return np.sort(np.concatenate(levels))


def int4_codebook() -> Float32:
    """Return fifteen evenly spaced levels, k / 7 for k from -7 to 7, float32[15].

    No type of the protocol; `quantize_blockwise` takes it like any other codebook.

    >>> print(int4_codebook()[7:].round(4))
    [0.     0.1429 0.2857 0.4286 0.5714 0.7143 0.8571 1.    ]
    """
    return np.arange(-7, 8).astype(np.float32) / np.float32(7)


def notes_codebook() -> Float32:
    """Return the symmetric levels that study notes pass on as "the NF4 table", float32[16].

    They are not NF4: no quantile rule yields them, and without a zero they move padding.

    >>> from qloracle import dequantize_blockwise, quantize_blockwise
    >>> codes, absmax = quantize_blockwise(np.array([0, 1], np.float32), notes_codebook())
    >>> dequantize_blockwise(codes, absmax, notes_codebook(), shape=(2,)).tolist()
    [-0.017999999225139618, 1.0]
    """
    positive = np.array(NOTES, np.float32)
    return np.concatenate([-positive[::-1], positive])


# The package exports `codebook`, and the function hides this module of the same name:
# help("qloracle.codebook") shows the function, and must still reach the lesson.
codebook.__doc__ = f"{inspect.cleandoc(codebook.__doc__ or '')}\n\n{__doc__}"
