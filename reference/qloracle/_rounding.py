"""One rounding, from float64 to the type of the result.

A sum of products is formed in float64 and rounded once. For float32 and float16, NumPy's own cast
does that. The cast to bfloat16 goes through float32 (ml_dtypes 0.6), and rounding twice is not
rounding once:

>>> import ml_dtypes
>>> above_the_tie = np.array([1 + 2**-8 + 2**-40])  # neighbours in bfloat16: 1 and 1 + 2**-7
>>> float(above_the_tie.astype(ml_dtypes.bfloat16)[0])
1.0
>>> float(rounded(above_the_tie, np.dtype(ml_dtypes.bfloat16))[0])
1.0078125
"""

from typing import Any

import ml_dtypes
import numpy as np

from qloracle.arguments import Array, Float32, Float64


@np.errstate(all="ignore")  # overflow to inf is the right result
def rounded(values: Float64, dtype: np.dtype[Any]) -> Array:
    """Round once, to nearest, ties to even; values beyond the largest become inf.

    >>> rounded(np.array([65519.9, 65520.0]), np.dtype(np.float16)).tolist()
    [65504.0, inf]
    """
    if dtype != ml_dtypes.bfloat16:
        return values.astype(dtype)
    return np.asarray(_to_odd(values)).astype(dtype)


def _to_odd(values: Float64) -> Float32:
    """Round to float32, an inexact value to its neighbour with an odd last bit.

    A number whose last bit is odd is never a tie in a type at least two bits narrower, so the next
    rounding still sees on which side of the tie the value lay.
    """
    nearest = values.astype(np.float32)
    away = np.abs(nearest) > np.abs(values)
    cut = np.where(away, np.nextafter(nearest, np.float32(0)), nearest)  # toward zero
    odd: Float32 = (cut.view(np.uint32) | (cut != values).astype(np.uint32)).view(np.float32)
    return odd
