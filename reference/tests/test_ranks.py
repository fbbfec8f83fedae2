"""Order against assumption: the study notes' two ways, with the numbers they give."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qloracle import bin_means, normal_codes, normal_quantile, rank_codes
from qloracle.ranks import mean_square, normal_means, normal_thresholds

fixed = settings(derandomize=True, deadline=None, max_examples=100)
vectors = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))
N = 1_000_000


def draw(name):
    rng = np.random.default_rng(0)
    makers = {"normal": rng.standard_normal, "laplace": rng.laplace, "uniform": rng.uniform}
    return makers[name](size=N).astype(np.float32)


def shares(codes):
    return np.bincount(codes, minlength=16) / codes.size


def test_the_numbers_of_the_notes():
    assert normal_quantile(0.5) == 0
    assert round(float(normal_quantile(0.6)), 4) == 0.2533
    levels_between = [0.1573, 0.3186, 0.4888, 0.6745, 0.8871, 1.1503, 1.5341]
    assert normal_thresholds()[8:].round(4).tolist() == levels_between
    assert normal_thresholds()[7] == 0
    np.testing.assert_allclose(normal_thresholds(), -normal_thresholds()[::-1], atol=1e-15)


@fixed
@given(vectors, st.integers(1, 8))
def test_rank_bins_are_equal_and_ordered(x, bits):
    codes = rank_codes(x, bits)
    sizes = np.bincount(codes, minlength=2**bits)
    assert codes.dtype == np.uint8
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(codes[np.argsort(x, kind="stable")].astype(int)) >= 0).all()


@fixed
@given(vectors, st.integers(1, 8))
def test_normal_bins_are_ordered(x, bits):
    codes = normal_codes(x, bits)
    assert codes.dtype == np.uint8
    assert codes.max() < 2**bits
    assert (np.diff(codes[np.argsort(x, kind="stable")].astype(int)) >= 0).all()


@fixed
@given(vectors, st.integers(1, 8))
def test_bin_means_are_means(x, bits):
    codes = rank_codes(x, bits)
    means = bin_means(x, codes, bits)
    for code in range(2**bits):
        values = x[codes == code].astype(np.float64)
        if values.size:
            assert means[code] == pytest.approx(values.mean(), rel=1e-12, abs=1e-9)
        else:
            assert np.isnan(means[code])


def test_normal_data_the_assumption_is_free():
    x = draw("normal")
    ranked, assumed = mean_square(x, rank_codes(x)), mean_square(x, normal_codes(x))
    assert ranked == pytest.approx(0.0222, rel=0.02)
    assert assumed == pytest.approx(ranked, rel=0.01)
    assert shares(normal_codes(x)) == pytest.approx(1 / 16, abs=0.001)


def test_laplace_data_crowd_into_some_bins():
    share = shares(normal_codes(draw("laplace")))
    assert share.min() == pytest.approx(0.041, abs=0.002)
    assert share.max() == pytest.approx(0.100, abs=0.002)
    assert shares(rank_codes(draw("laplace"))) == pytest.approx(1 / 16, abs=1e-6)


def test_uniform_data_and_the_values_of_the_assumption():
    x = draw("uniform")
    values = x.mean(dtype=np.float64) + x.std(dtype=np.float64) * normal_means()
    assumed = np.mean((x - values[normal_codes(x)]) ** 2)
    assert assumed / mean_square(x, rank_codes(x)) == pytest.approx(4.7, abs=0.1)


def test_normal_means_are_the_means_of_a_long_draw():
    x = draw("normal")
    np.testing.assert_allclose(bin_means(x, normal_codes(x)), normal_means(), atol=0.005)


def test_equal_values():
    x = np.full(32, 0.3, np.float32)
    assert set(normal_codes(x).tolist()) == {7}
    assert rank_codes(x).tolist() == np.repeat(np.arange(16), 2).tolist()  # sorting splits them
    assert mean_square(x, normal_codes(x)) < 1e-15
