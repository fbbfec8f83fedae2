"""One rounding from float64, against rounding done in whole numbers."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from qloracle import _rounding
from qloracle._rounding import rounded

fixed = settings(derandomize=True, deadline=None, max_examples=300)
FORMATS = {  # significant bits, exponent of the smallest subnormal, largest value
    np.dtype(np.float32): (24, -149, (2 - 2.0**-23) * 2.0**127),
    np.dtype(np.float16): (11, -24, 65504.0),
    np.dtype(ml_dtypes.bfloat16): (8, -133, (2 - 2.0**-7) * 2.0**127),
}


def by_integers(value, dtype):
    """Round to the nearest multiple of the spacing at this size; Python rounds ties to even."""
    bits, smallest, largest = FORMATS[dtype]
    spacing = Fraction(2) ** max(math.frexp(value)[1] - bits, smallest)
    nearest = round(Fraction(value) / spacing) * spacing
    return math.copysign(float(nearest) if abs(nearest) <= largest else math.inf, value)


def near_a_tie(dtype):
    """Values beside a midpoint of this type, closer than float32 can tell."""
    bits, smallest, _ = FORMATS[dtype]
    codes = st.integers(2 ** (bits - 1), 2**bits - 1)
    exponents = st.integers(smallest, smallest + 60)
    nudges = st.sampled_from([0, 2.0**-24, -(2.0**-24), 2.0**-33, -(2.0**-33)])
    return st.builds(lambda c, e, n: (c + 0.5 + n) * 2.0**e, codes, exponents, nudges)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@fixed
@given(data=st.data())
def test_it_is_one_rounding(dtype, data):
    anything = st.floats(allow_nan=False, allow_infinity=False)
    value = data.draw(st.one_of(near_a_tie(dtype), near_a_tie(dtype).map(float.__neg__), anything))
    assert_one_rounding(value, dtype)


def assert_one_rounding(value, dtype):
    got = rounded(np.array([value]), dtype)
    assert got.dtype == dtype
    assert float(got[0]).hex() == by_integers(value, dtype).hex()


def test_the_cast_by_way_of_float32_is_found(monkeypatch):
    monkeypatch.setattr(_rounding, "_to_odd", lambda values: values.astype(np.float32))
    with pytest.raises(AssertionError):
        assert_one_rounding(1 + 2**-8 + 2**-40, np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_infinities_nan_and_shapes_stay(dtype):
    got = rounded(np.array([[np.inf, -np.inf, np.nan, 1e300]]), dtype).astype(np.float64)
    assert got.shape == (1, 4)
    assert got[0, :2].tolist() == [np.inf, -np.inf]
    assert np.isnan(got[0, 2])
    assert got[0, 3] == np.inf
    assert rounded(np.array(1.5), dtype).shape == ()
    assert rounded(np.zeros((0, 3)), dtype).shape == (0, 3)
