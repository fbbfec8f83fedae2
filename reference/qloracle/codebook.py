"""Where the sixteen numbers come from.

A 4-bit code names one of sixteen levels in [-1, 1]; the list of levels is the codebook. Trained
weights look normally distributed, so QLoRA spaces the levels by the quantiles of N(0, 1): densely
near zero, where the weights are. This is NF4 (arXiv:2305.14314, section 3 and appendix E; made by
`create_normal_map` of bitsandbytes 0.50.2).

The construction. Quantiles at evenly spaced probabilities would put the outermost level at infinity
(probability 1), so the last probability is an offset below 1: the mean of 1 - 1/30 and 1 - 1/32,
from half a bin of 15 and of 16. Zero must be a level, or padding and zero weights would be moved.
An even count cannot be symmetric around a zero, so the positive side gets eight quantiles and the
negative side seven. Everything is divided by the largest. (Equation 4 of the paper, the means of
neighbouring quantiles Q(i / 17), is another table: it has no zero and ends at infinity.)

>>> print(nf4_codebook().round(4))
[-1.     -0.6962 -0.5251 -0.3949 -0.2844 -0.1848 -0.0911  0.      0.0796
  0.1609  0.2461  0.3379  0.4407  0.5626  0.723   1.    ]
>>> derived = normal_float_codebook(4, offset=NF4_OFFSET)
>>> int((derived.view(np.uint32) == nf4_codebook().view(np.uint32)).sum())
16

The definition is the bits, the formula is its explanation: bitsandbytes typed the offset as
0.9677083, and the exact fraction rounds to the next float32, which moves 12 of the 16 levels.

>>> paper = normal_float_codebook(4)
>>> int((paper.view(np.uint32) != nf4_codebook().view(np.uint32)).sum())
12

Between two levels stands a threshold, their midpoint (S2). A value above it takes the upper code, a
value on it the lower one. The midpoint is rounded to float32: libraries that search the nearest
level by distance instead differ at 6 of the 15, and torchao's levels, typed with four decimals,
differ at 13 of the 16.

>>> print(thresholds(nf4_codebook())[:3])
[-0.8480964  -0.6106329  -0.45999527]
"""

import numpy as np
from numpy.typing import NDArray

from qloracle import _arguments as check
from qloracle._arguments import Float32

QUANT_TYPES = ("nf4", "fp4", "int4", "notes")

# NF4 is pinned and not computed: the last bit of a quantile is the math library's business, and
# sixteen numbers that depend on the machine would be no standard.
NF4_BITS = (
    0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
    0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000,
)  # fmt: skip
NF4_OFFSET = 0.9677083

# FP4 as bitsandbytes has it: a sign bit over eight magnitudes, whose 3-bit codes do not follow
# their size. Sorted by size, magnitude i has code FP4_CODES[i].
TWELFTHS = (0, 1 / 16, 2, 3, 4, 6, 8, 12)
FP4_MAGNITUDES = tuple(float(np.float32(k) / np.float32(12)) for k in TWELFTHS)
FP4_CODES = (0, 1, 6, 7, 4, 5, 2, 3)

NOTES = (0.018, 0.102, 0.194, 0.302, 0.431, 0.588, 0.784, 1.0)


def normal_quantile(p: float | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the value below which a share p of N(0, 1) lies; float64, in the shape of p.

    0 and 1 give the infinities. ValueError outside [0, 1].

    >>> float(normal_quantile(0.5))
    0.0
    >>> print(f"{normal_quantile(0.6):.4f}")
    0.2533
    """
    from scipy.special import ndtri  # a third of the time that importing this package takes

    share = np.asarray(p, np.float64)
    outside = share[~((share >= 0) & (share <= 1))]
    if outside.size:
        raise ValueError(f"p must lie in [0, 1], got {outside[0]}")
    return np.asarray(ndtri(share))


def _grid(start: float, end: float, n: int) -> NDArray[np.float64]:
    """Return n float32 points from start to end, each computed from the nearer end, rounded once.

    This is `linspace` of PyTorch where it fuses product and sum. The tables below were made by it,
    and their last bits show it.
    """
    a, b = float(np.float32(start)), float(np.float32(end))
    step = float(np.float32((b - a) / (n - 1)))
    i = np.arange(n)
    points = np.where(i < n // 2, a + step * i, b - step * (n - 1 - i))
    return points.astype(np.float32).astype(np.float64)


def normal_float_codebook(bits: int, offset: float | None = None) -> Float32:
    """Return the NormalFloat levels of 2 to 8 bits, float32[2**bits], rising from -1 to 1.

    offset is the largest probability, 0.5 < offset < 1; None takes the paper's formula,
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


def nf4_codebook() -> Float32:
    """Return the sixteen levels of NF4, float32[16], by their bits (S1).

    >>> f"{nf4_codebook().view(np.uint32)[8]:08x}"
    '3da2faff'
    """
    return np.array(NF4_BITS, np.uint32).view(np.float32)


def fp4_codebook() -> Float32:
    """Return the sixteen levels of bitsandbytes' FP4, float32[16], in code order, not sorted.

    Code 8, zero with the sign bit, is +0 in the table.

    >>> print(fp4_codebook()[:8].round(4))
    [0.     0.0052 0.6667 1.     0.3333 0.5    0.1667 0.25  ]
    """
    positive = np.zeros(8, np.float32)
    positive[list(FP4_CODES)] = FP4_MAGNITUDES
    return np.concatenate([positive, np.float32(0) - positive])  # 0 - 0 is +0, as in the original


def int4_codebook() -> Float32:
    """Return fifteen even levels k / 7 for k = -7..7, float32[15]; code 15 names nothing.

    >>> print(int4_codebook()[7:].round(4))
    [0.     0.1429 0.2857 0.4286 0.5714 0.7143 0.8571 1.    ]
    """
    return np.arange(-7, 8).astype(np.float32) / np.float32(7)


def notes_codebook() -> Float32:
    """Return the symmetric levels that study notes pass on as "the NF4 table", float32[16].

    They are not NF4: none of them is zero, and no quantile rule yields them.

    >>> print(np.abs(notes_codebook() - nf4_codebook()).max().round(4))
    0.0878
    """
    positive = np.array(NOTES, np.float32)
    return np.concatenate([-positive[::-1], positive])


def dynamic_codebook(*, signed: bool = True) -> Float32:
    """Return the 8-bit dynamic map, float32[256], sorted: seven decades, each split twice as fine.

    Decade i, 10**(i - 7) to 10**(i - 6), holds 2**i levels of each sign (unsigned: 2**(i + 1)
    levels), the midpoints of an even grid. Then 0 and 1 join, but not -1. TypeError unless signed
    is a bool.

    Source: arXiv:2110.02861, section 2; `create_dynamic_map`, bitsandbytes 0.50.2.

    >>> levels = dynamic_codebook()
    >>> levels.size, f"{levels[0]:.4f}", f"{levels[levels > 0][0]:.1e}"
    (256, '-0.9930', '5.5e-07')
    """
    if not isinstance(signed, bool):
        raise TypeError(f"signed must be a bool, got {type(signed).__name__} {signed!r}")
    levels = [np.array([0, 1], np.float32)]
    for i in range(7):
        grid = _grid(0.1, 1.0, 2 ** (i if signed else i + 1) + 1).astype(np.float32)
        decade = (grid[:-1] + grid[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        levels += [decade, -decade] if signed else [decade]
    return np.sort(np.concatenate(levels))


def codebook(quant_type: str) -> Float32:
    """Return the levels of a 4-bit type in code order; quant_type is nf4, fp4, int4 or notes.

    ValueError for another word, TypeError for what is no word.

    >>> codebook("int4").size
    15
    """
    makers = (nf4_codebook, fp4_codebook, int4_codebook, notes_codebook)
    check.choice("quant_type", quant_type, QUANT_TYPES)
    return makers[QUANT_TYPES.index(quant_type)]()


def thresholds(codebook: Float32) -> Float32:
    """Return the midpoints between neighbours, float32[levels - 1] (S2).

    codebook: 2 to 256 finite float32 that never decrease, else TypeError or ValueError. FP4 is not
    sorted: its thresholds stand between its magnitudes.

    >>> thresholds(np.array([-1, 0, 0.5], np.float32)).tolist()
    [-0.5, 0.25]
    """
    levels = check.table("codebook", codebook).astype(np.float64)  # no sum overflows there
    return ((levels[:-1] + levels[1:]) / 2).astype(np.float32)
