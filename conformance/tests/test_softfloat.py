"""The integer arithmetic against the machine's own, bit for bit; planted faults must show."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from qloracle_conformance.judging.exact import softfloat
from qloracle_conformance.judging.exact.softfloat import BFLOAT16, FLOAT16, FLOAT32, Format, encode

# Where rounding changes its ways: zero, both ends of the subnormals, 1, the top, and neighbours.
EDGES = [0, 1, 2, 3, 0x7FFFFF, 0x800000, 0x800001, 0x33800000, 0x33800001, 0x3F7FFFFF, 0x3F800000]
EDGES += [0x3F800001, 0x3FC00000, 0x40000000, 0x4B7FFFFF, 0x7E800000, 0x7F000000, 0x7F7FFFFF]
TYPES = {"float16": (np.float16, FLOAT16), "bfloat16": (ml_dtypes.bfloat16, BFLOAT16)}


def floats(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def finite(bits):
    return bits[np.isfinite(floats(bits))]


def pairs():
    """All pairs of edges in all signs, and random pairs that are far apart, near, and subnormal."""
    rng = np.random.default_rng(1)
    edges = np.array([*EDGES, *(bits | softfloat.SIGN for bits in EDGES)], np.uint32)
    wild = finite(rng.integers(0, 2**32, 20_000, np.uint32))[:19_000]
    near = wild + rng.integers(0, 3, wild.size, np.uint32) * np.uint32(0x800000)
    tiny = rng.integers(0, 2**24, wild.size, np.uint32)
    left = np.concatenate([np.repeat(edges, edges.size), wild, wild, tiny])
    right = np.concatenate([np.tile(edges, edges.size), wild[::-1], near, tiny[::-1]])
    keep = np.isfinite(floats(left)) & np.isfinite(floats(right))
    return left[keep], right[keep]


def mismatches(operation, ufunc, left, right):
    got = np.array([operation(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)])
    with np.errstate(all="ignore"):
        return int((got != ufunc(floats(left), floats(right)).view(np.uint32)).sum())


def wrong_results(name):
    left, right = pairs()
    if name == "divide":
        keep = floats(right) != 0
        left, right = left[keep], right[keep]
    return mismatches(getattr(softfloat, name), getattr(np, name), left, right)


def every_value(kind):
    bits = np.arange(2**16, dtype=np.uint16)
    fmt = dict(TYPES.values())[kind]
    return bits[bits & fmt.infinity != fmt.infinity].view(kind)


def cast_inputs(kind):
    """float32 of every value of a 16-bit type, every midpoint of two, and what lies beside them."""
    values = np.sort(every_value(kind).astype(np.float64))
    beyond = 2 * values[-1] - values[-2]  # the next value, if the type went on
    values = np.array([-beyond, *values, beyond])
    middles = (values[1:] + values[:-1]) / 2
    with np.errstate(over="ignore"):
        exact = np.concatenate([values, middles]).astype(np.float32).view(np.uint32)
    return finite(np.concatenate([exact, exact + np.uint32(1), exact - np.uint32(1)]))


def wrong_casts(kind, fmt):
    bits = cast_inputs(kind)
    with np.errstate(all="ignore"):
        expected = floats(bits).astype(kind).view(np.uint16)
    got = [softfloat.cast(pattern, FLOAT32, fmt) for pattern in bits.tolist()]
    return int((np.array(got) != expected).sum())


@pytest.mark.parametrize("name", ["divide", "multiply", "add"])
def test_an_operation_is_the_machines(name):
    assert wrong_results(name) == 0


@pytest.mark.parametrize(("kind", "fmt"), TYPES.values(), ids=TYPES)
def test_a_cast_to_16_bits_is_the_machines(kind, fmt):
    assert wrong_casts(kind, fmt) == 0


@pytest.mark.parametrize(("kind", "fmt"), TYPES.values(), ids=TYPES)
def test_widening_is_exact(kind, fmt):
    values = every_value(kind)
    got = [softfloat.cast(bits, fmt, FLOAT32) for bits in values.view(np.uint16).tolist()]
    assert (np.array(got) == values.astype(np.float32).view(np.uint32)).all()


def test_float64_is_rounded_by_the_same_rule():
    rng = np.random.default_rng(2)
    double = Format(53, -1074, 1 << 63, 0x7FF << 52)
    for m, e in zip(
        rng.integers(1, 2**62, 2000).tolist(), rng.integers(-1140, 960, 2000).tolist(), strict=True
    ):
        expected = float(Fraction(m) * Fraction(2) ** e)
        assert encode(m, e, double) == int(np.float64(expected).view(np.uint64))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (Fraction(1) + Fraction(1, 2**24), 0x3F800000),  # a tie goes to the even pattern,
        (Fraction(1) + Fraction(3, 2**24), 0x3F800002),  # up or down,
        (Fraction(1) + Fraction(1, 2**24) + Fraction(1, 2**400), 0x3F800001),  # and only a tie
        (Fraction(1, 2**150), 0),
        (Fraction(3, 2**150), 2),
        (-(Fraction(2) ** -149), 0x80000001),
        (Fraction(2**24 - 1) * 2**104, 0x7F7FFFFF),
        (Fraction(2**25 - 1) * 2**103, 0x7F800000),  # halfway beyond the largest: infinity
        (Fraction(2**25 - 1) * 2**103 - 1, 0x7F7FFFFF),
    ],
)
def test_a_rational_is_rounded_once(value, bits):
    assert softfloat.nearest(value) == bits


def test_a_midpoint_neither_overflows_nor_rounds_twice():
    largest = 0x7F7FFFFF
    assert softfloat.add(largest, largest, halvings=1) == largest
    assert softfloat.add(1, 2, halvings=1) == 2  # 1.5 units tie to 2
    assert softfloat.add(2, 3, halvings=1) == 2  # so do 2.5


def test_order_is_the_order_of_values():
    bits = pairs()[0]
    keys = np.array([softfloat.order(pattern) for pattern in bits.tolist()])
    assert (
        np.sign(keys[1:] - keys[:-1]) == np.sign(np.diff(floats(bits).astype(np.float64)))
    ).all()


def truncating(m, e, fmt=FLOAT32):
    places = max(m.bit_length() - fmt.precision, fmt.emin - e, 0)
    return encode(m >> places, e + places, fmt)


def ties_up(m, e, fmt=FLOAT32):
    return encode(2 * m + 1, e - 1, fmt) if m else 0


def flushing(m, e, fmt=FLOAT32):
    bits = encode(m, e, fmt)
    return bits if bits >> fmt.precision - 1 else 0


def saturating(m, e, fmt=FLOAT32):
    return min(encode(m, e, fmt), fmt.infinity - 1)


@pytest.mark.parametrize("fault", [truncating, ties_up, flushing, saturating])
def test_a_fault_in_rounding_is_found(monkeypatch, fault):
    monkeypatch.setattr(softfloat, "encode", fault)
    assert wrong_results("multiply") > 0
    assert wrong_casts(*TYPES["float16"]) > 0


@pytest.mark.parametrize("fault", [truncating, flushing, saturating])
def test_a_fault_in_rounding_a_quotient_is_found(monkeypatch, fault):
    monkeypatch.setattr(softfloat, "encode", fault)
    assert wrong_results("divide") > 0
