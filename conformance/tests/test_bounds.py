"""Every bound has a legal witness that comes near it and a fault that exceeds it."""

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.nested.s08_nested import judge_offset

NO_VIEW = None  # the offset is judged without a dialect


def sequential_mean(absmax):
    """Add one by one in float32, as a single thread does, and divide: a legal order."""
    total = np.float32(0)
    for value in absmax:
        total = np.float32(total + value)
    return np.float32(total / np.float32(absmax.size))


def judged(absmax, offset):
    case = Case("quantize_absmax", {"absmax": absmax}, {"blocksize": 256}, "a witness")
    values = (np.zeros(absmax.size, np.uint8), np.zeros(1, np.float32), np.array(offset))
    return judge_offset(case, values, NO_VIEW)


def test_sequential_summation_at_stagnation_comes_near_the_bound():
    """1, then half an ulp again and again: every addition is a tie and is lost."""
    n = 4096
    absmax = np.full(n, 2.0**-24, np.float32)
    absmax[0] = 1
    offset = sequential_mean(absmax)
    mean = absmax.astype(np.float64).mean()
    bound = (n + 1) * 2.0**-24 / (1 - (n + 1) * 2.0**-24) * mean
    assert 0.99 < abs(float(offset) - mean) / bound < 1
    assert judged(absmax, offset).wrong == 0


def test_the_same_data_beyond_the_bound_fail():
    absmax = np.full(64, 0.1, np.float32)
    right = absmax.astype(np.float64).mean()
    outcome = judged(absmax, np.float32(right * (1 + 70 * 2.0**-24)))
    assert outcome.wrong == 1
    assert outcome.first.ratio > 1


def test_a_bfloat16_offset_hides_in_the_bound_and_is_seen_by_the_exact_data():
    """Why integers stand beside the bound: at n = 40,000 it is wider than bfloat16's rounding."""
    rng = np.random.default_rng(0)
    absmax = rng.uniform(1, 2, 40_000).astype(np.float32)
    narrowed = np.float32(qloracle.quantize_absmax(absmax)[2]).view(np.uint32) & 0xFFFF0000
    narrowed = np.uint32(narrowed).view(np.float32)
    assert judged(absmax, narrowed).wrong == 0
    integers = rng.integers(1, 64, 4096).astype(np.float32)
    case = Case("quantize_absmax", {"absmax": integers}, {}, "integers: every order is exact")
    offset = integers.mean().view(np.uint32) & 0xFFFF0000
    values = (
        np.zeros(4096, np.uint8),
        np.zeros(16, np.float32),
        np.uint32(offset).view(np.float32),
    )
    assert judge_offset(case, values, NO_VIEW).wrong == 1


def test_half_the_widest_gap_bounds_the_round_trip_and_is_reached():
    levels = qloracle.nf4_codebook().astype(np.float64)
    half = (np.diff(levels) / 2).max()
    x = np.array([1.0, (levels[0] + levels[1]) / 2], np.float32)
    packed, absmax = qloracle.quantize_4bit(x)
    error = abs(float(qloracle.dequantize_4bit(packed, absmax, shape=(2,))[1]) - float(x[1]))
    assert 0.999 * half < error < half * (1 + 2.0**-22)
