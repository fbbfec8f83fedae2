"""Sort, or assume? Two ways to sixteen bins that hold equally many values.

The first idea is order: sort the values, cut the sorted list into sixteen equal runs, and let the
number of the run be the code. Each code is then used equally often, which is what
"information-theoretically optimal" means in arXiv:2305.14314. The price is the sort and the memory
for the order, and equal values may land in different bins.

The second idea assumes a distribution. A fraction p of N(0, 1) lies below Q(p), so the fifteen
thresholds Q(1/16) to Q(15/16) cut it into equal parts, and a comparison replaces the sort.

>>> print([f"{q:.4f}" for q in normal_quantile(np.array([0.5, 0.6]))])  # 10 % lie between the two
['0.0000', '0.2533']
>>> print(normal_thresholds(4)[8:].round(4))
[0.1573 0.3186 0.4888 0.6745 0.8871 1.1503 1.5341]

Where the assumption holds, it costs nothing. On normal data both ways have the same error:

>>> rng = np.random.default_rng(0)
>>> x = rng.standard_normal(200_000).astype(np.float32)
>>> ranked, assumed = rank_codes(x), normal_codes(x)
>>> print(f"{mean_square(x, ranked):.4f} {mean_square(x, assumed):.4f}")
0.0226 0.0225

Where it does not, the bins are no longer equal. Laplace data crowd into some of them:

>>> x = rng.laplace(size=200_000).astype(np.float32)
>>> fractions = np.bincount(normal_codes(x), minlength=16) / x.size
>>> print(f"{fractions.min():.2f} to {fractions.max():.2f}")
0.04 to 0.10

Whoever also takes the value of each bin from the assumption, so that only a mean and a standard
deviation need to be stored, pays in full. Uniform data, with values from the data and from N(0, 1):

>>> x = rng.uniform(-1, 1, 200_000).astype(np.float32)
>>> codes = normal_codes(x)
>>> values = np.mean(x, dtype=np.float64) + np.std(x, dtype=np.float64) * normal_means(4)
>>> print(f"{mean_square(x, codes):.5f} {np.mean((x - values[codes]) ** 2):.5f}")
0.00179 0.00607
>>> print(f"{mean_square(x, rank_codes(x)):.5f}")  # sorted
0.00130

NF4 keeps the quantiles and gives up the equal bins: its scale is the absmax of a small block, its
outermost levels are -1 and 1, and each value takes the nearest level. That bounds the tails, where
equal bins are widest, and the error falls by more than half (`qloracle.blockwise`):

>>> from qloracle import dequantize_4bit, quantize_4bit
>>> x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
>>> print(f"{np.mean((x - dequantize_4bit(*quantize_4bit(x), shape=x.shape)) ** 2):.4f}")
0.0085
"""

import numpy as np
from numpy.typing import NDArray

from qloracle import arguments as check
from qloracle.arguments import Array, Float32, UInt8
from qloracle.codebook import normal_quantile


def rank_codes(x: Array, bits: int = 4) -> UInt8:
    """Code each value by its rank, uint8[n]: 2**bits bins of equal size, whatever the data.

    x: finite float32, float16 or bfloat16 of any shape, n >= 1 elements; bits: 1 to 8. TypeError
    or ValueError otherwise. Bin sizes differ by one at most; of equal values the earlier one
    counts as the smaller.

    >>> rank_codes(np.array([0.3, -5.0, 0.1, 0.2], np.float32), bits=1).tolist()
    [1, 0, 0, 1]
    """
    values, bins = _values(x), _bins(bits)
    codes = np.empty(values.size, np.uint8)
    codes[np.argsort(values, kind="stable")] = np.arange(values.size) * bins // values.size
    return codes


def normal_codes(x: Array, bits: int = 4) -> UInt8:
    """Code each value by the quantiles of a normal distribution, uint8[n]; no sort.

    The distribution has the mean and the standard deviation of x. Arguments and errors as in
    `rank_codes`; a value on a threshold takes the lower code.

    >>> normal_codes(np.array([0.3, -5.0, 0.1, 0.2], np.float32), bits=1).tolist()
    [1, 0, 1, 1]
    """
    values = _values(x).astype(np.float64)
    spread = float(values.std()) or 1.0  # equal values: all of them at the mean
    z = (values - values.mean()) / spread  # n
    codes: UInt8 = np.searchsorted(normal_thresholds(bits), z, side="left").astype(np.uint8)
    return codes


def normal_thresholds(bits: int = 4) -> NDArray[np.float64]:
    """Return the thresholds between 2**bits bins of equal probability, float64[2**bits - 1].

    >>> print(normal_thresholds(2).round(4))
    [-0.6745  0.      0.6745]
    """
    bins = _bins(bits)
    return normal_quantile(np.arange(1, bins) / bins)


def normal_means(bits: int = 4) -> NDArray[np.float64]:
    """Return the mean of N(0, 1) within each of those bins, float64[2**bits].

    The mean between a and b is (phi(a) - phi(b)) / (Phi(b) - Phi(a)), where phi is the density and
    Phi(b) - Phi(a) = 2**-bits.

    >>> print(normal_means(2).round(4))
    [-1.2711 -0.3247  0.3247  1.2711]
    """
    bins = _bins(bits)
    ends = normal_quantile(np.arange(bins + 1) / bins)  # from -inf to inf
    density = np.exp(-(ends**2) / 2) / np.sqrt(2 * np.pi)  # 2**bits + 1
    means: NDArray[np.float64] = (density[:-1] - density[1:]) * bins
    return means


def bin_means(x: Array, codes: UInt8, bits: int = 4) -> NDArray[np.float64]:
    """Return the mean of the values in each bin, float64[2**bits]; NaN for an empty bin.

    Decode by `bin_means(x, codes)[codes]`. codes: uint8[n], each below 2**bits, else TypeError or
    ValueError.

    >>> x = np.array([0.25, -5.0, 0.5, 0.75], np.float32)
    >>> bin_means(x, rank_codes(x, bits=1), bits=1).tolist()
    [-2.375, 0.625]
    """
    values, bins = _values(x), _bins(bits)
    known = check.codes_below("codes", check.vector("codes", codes, np.uint8, values.size), bins)
    counts = np.bincount(known, minlength=bins)  # 2**bits
    sums = np.bincount(known, weights=values, minlength=bins)  # 2**bits
    means = np.full(bins, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def mean_square(x: Array, codes: UInt8, bits: int = 4) -> float:
    """Return the mean squared error when each value is replaced by the mean of its bin.

    >>> mean_square(np.array([1, 3], np.float32), np.array([0, 0], np.uint8))
    1.0
    """
    return float(np.mean((_values(x) - bin_means(x, codes, bits)[codes]) ** 2))


def _values(x: Array) -> Float32:
    values = check.as_flat_float32("x", x)
    if not values.size:
        raise ValueError(f"x must hold at least one element, got shape {np.shape(x)}")
    return values


def _bins(bits: int) -> int:
    if not 1 <= check.integer("bits", bits) <= 8:
        raise ValueError(f"bits must lie in 1..8, got {bits}")
    return 1 << int(bits)
