"""The tables: pinned by their bits, derived by their recipes, and the facts told about them."""

import hashlib
import pydoc
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

import qloracle as q
from qloracle.codebook import FP4_CODES, FP4_MAGNITUDES, QUANT_TYPES

# The decimals that bitsandbytes prints, an independent copy of the pinned bits.
NF4_DECIMALS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# The thresholds that its kernels spell out.
NF4_THRESHOLDS = (
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
    -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
    0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
    0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
)  # fmt: skip
FP4_BITS = (
    0x00000000, 0x3BAAAAAB, 0x3F2AAAAB, 0x3F800000, 0x3EAAAAAB, 0x3F000000, 0x3E2AAAAB, 0x3E800000,
    0x00000000, 0xBBAAAAAB, 0xBF2AAAAB, 0xBF800000, 0xBEAAAAAB, 0xBF000000, 0xBE2AAAAB, 0xBE800000,
)  # fmt: skip
DYNAMIC_SHA256 = {
    True: "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c",
    False: "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398",
}
SORTED = {
    "nf4": q.nf4_codebook(),
    "fp4 magnitudes": np.array(FP4_MAGNITUDES, np.float32),
    "int4": q.int4_codebook(),
    "notes": q.notes_codebook(),
    "dynamic": q.dynamic_codebook(),
    "dynamic unsigned": q.dynamic_codebook(signed=False),
    "af-like": q.normal_float_codebook(3),
}


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).tolist()


def test_nf4_is_pinned_and_derived():
    assert bits(q.nf4_codebook()) == bits(NF4_DECIMALS)
    assert bits(q.normal_float_codebook(4, offset=0.9677083)) == bits(NF4_DECIMALS)


def test_the_papers_offset_gives_another_table():
    differ = np.not_equal(bits(q.normal_float_codebook(4)), bits(q.nf4_codebook()))
    assert differ.sum() == 12
    assert np.abs(q.normal_float_codebook(4) - q.nf4_codebook()).max() < 2e-6
    exact = q.normal_float_codebook(4, offset=(29 / 30 + 31 / 32) / 2)
    assert bits(exact) == bits(q.normal_float_codebook(4))


def test_fp4_is_pinned_and_its_codes_lead_to_its_magnitudes():
    levels = q.fp4_codebook()
    assert bits(levels) == list(FP4_BITS)
    assert bits(levels[list(FP4_CODES)]) == bits(FP4_MAGNITUDES)
    assert tuple(sorted(FP4_MAGNITUDES)) == FP4_MAGNITUDES


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_map_is_pinned(signed):
    levels = q.dynamic_codebook(signed=signed)
    digest = hashlib.sha256(levels.astype("<f4").tobytes()).hexdigest()
    assert digest == DYNAMIC_SHA256[signed]
    assert levels.size == 256
    assert {0.0, 1.0} <= set(levels.tolist())
    assert -1.0 not in levels
    assert (levels[0] == 0) != signed


def test_int4_and_notes():
    assert bits(q.int4_codebook()) == bits([np.float32(k) / np.float32(7) for k in range(-7, 8)])
    assert bits(q.notes_codebook()) == bits(-q.notes_codebook()[::-1])
    assert 0 not in q.notes_codebook()


@pytest.mark.parametrize("name", SORTED)
def test_thresholds_are_exact_midpoints_rounded_once(name):
    levels = SORTED[name]
    t = q.thresholds(levels)
    assert t.dtype == np.float32
    assert (np.diff(t) > 0).all()
    for low, high, middle in zip(levels[:-1], levels[1:], t, strict=True):
        exact = (Fraction(float(low)) + Fraction(float(high))) / 2
        error = abs(exact - Fraction(float(middle)))
        neighbours = (np.nextafter(middle, np.float32(s)) for s in (-2, 2))
        assert all(error <= abs(exact - Fraction(float(other))) for other in neighbours)
    assert bits(t) == bits((levels[:-1] + levels[1:]) / np.float32(2))  # float32 finds the same


def test_nf4_thresholds_are_the_published_ones():
    assert bits(q.thresholds(q.nf4_codebook())) == bits(NF4_THRESHOLDS)


def test_thresholds_do_not_overflow():
    top = np.finfo(np.float32).max
    assert q.thresholds(np.array([top, top], np.float32)).tolist() == [float(top)]


def test_nearest_by_distance_is_another_rule():
    levels = q.nf4_codebook()
    t = q.thresholds(levels)
    nearest = np.abs(t[:, None] - levels).argmin(axis=1)  # a tie takes the lower level here too
    assert np.flatnonzero(nearest != np.arange(15)).tolist() == [0, 1, 3, 4, 12, 14]


def test_four_decimals_are_another_table():
    assert (q.nf4_codebook().round(4) != q.nf4_codebook()).sum() == 13


@pytest.mark.parametrize("width", range(2, 9))
def test_normal_float_of_every_width(width):
    levels = q.normal_float_codebook(width)
    assert levels.dtype == np.float32
    assert levels.shape == (2**width,)
    assert (np.diff(levels) > 0).all()
    assert levels[2 ** (width - 1) - 1] == 0
    assert levels[-1] == 1
    assert levels[0] == -1


@pytest.mark.parametrize("p", [1e-9, 0.025, 0.5, 0.6, 0.9677083])
def test_normal_quantile_agrees_with_the_standard_library(p):
    assert q.normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-14)


def test_normal_quantile_keeps_the_shape_and_knows_the_ends():
    p = np.array([[0.0, 0.5, 1.0]])
    assert q.normal_quantile(p).tolist() == [[-np.inf, 0.0, np.inf]]


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_a_returned_table_belongs_to_the_caller(quant_type):
    q.codebook(quant_type)[:] = 9
    assert np.abs(q.codebook(quant_type)).max() == 1


@pytest.mark.parametrize("wanted", ["qloracle.codebook", q.codebook])
def test_help_reaches_the_lesson(wanted):
    text = pydoc.plain(pydoc.render_doc(wanted))
    assert "Return the sixteen levels of a 4-bit type" in text
    assert "Where the sixteen numbers come from." in text
    assert "The bits are the definition; the formula explains them." in text
