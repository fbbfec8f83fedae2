"""Floating-point arithmetic on bit patterns, in Python integers: the ground of `rational`.

A finite float is an integer times a power of two, so sums, products and quotients of floats are
exact rationals. Each is computed as one here and rounded once, by `encode`, which is all that this
module knows about rounding. No floating-point operation takes part.

A pattern is an int; it is float32's where no format is named.
"""

from fractions import Fraction
from typing import NamedTuple


class Format(NamedTuple):
    """A binary floating-point format, as IEEE 754 lays it out."""

    precision: int  # bits of a significand, the hidden one included
    emin: int  # exponent of the last place of a subnormal
    sign: int
    infinity: int


FLOAT32 = Format(24, -149, 0x80000000, 0x7F800000)
FLOAT16 = Format(11, -24, 0x8000, 0x7C00)
BFLOAT16 = Format(8, -133, 0x8000, 0x7F80)
SIGN = FLOAT32.sign


def encode(m: int, e: int, fmt: Format = FLOAT32) -> int:
    """Pattern of m * 2**e >= 0, rounded to nearest, ties to even.

    >>> hex(encode(1, 0)), hex(encode(2**24 + 1, 0)), hex(encode(3, -150)), hex(encode(1, 128))
    ('0x3f800000', '0x4b800000', '0x2', '0x7f800000')
    """
    if not m:
        return 0
    drop = max(m.bit_length() - fmt.precision, fmt.emin - e)  # places below the last one kept
    if drop > 0:
        odd = m >> drop & 1
        m = (m + (1 << drop - 1) - 1 + odd) >> drop
    else:
        m <<= -drop
    # Added, not joined: the hidden bit, or a carry out of the significand, raises the exponent.
    return min(m + (e + drop - fmt.emin << fmt.precision - 1), fmt.infinity)


def decode(bits: int, fmt: Format = FLOAT32) -> tuple[int, int]:
    """Integers (m, e), m * 2**e the magnitude of a pattern; infinity reads as 2**(emax + 1).

    >>> decode(0x3F800000), decode(0x80000001), decode(0x7F800000)
    ((8388608, -23), (1, -149), (8388608, 105))
    """
    exponent = (bits & fmt.sign - 1) >> fmt.precision - 1
    hidden = 1 << fmt.precision - 1
    m = bits & hidden - 1
    return (m | hidden, fmt.emin + exponent - 1) if exponent else (m, fmt.emin)


def units(bits: int) -> int:
    """Value of a float32 pattern in units of 2**-149, of which every float32 is a multiple.

    >>> units(0x80000003), units(0x3F800000) == 2**149
    (-3, True)
    """
    m, e = decode(bits)
    m <<= e - FLOAT32.emin
    return -m if bits & SIGN else m


def ratio(n: int, d: int, e: int = 0) -> int:
    """Pattern of n / d * 2**e >= 0.

    >>> hex(ratio(1, 3)), hex(ratio(1, 10)), hex(ratio(1, 3, -149))
    ('0x3eaaaaab', '0x3dcccccd', '0x0')
    """
    places = d.bit_length() + FLOAT32.precision + 2
    quotient, rest = divmod(n << places, d)
    # The quotient has places to spare, so all that matters of the rest is whether there is one.
    return encode(quotient << 1 | (rest > 0), e - places - 1)


def divide(x: int, y: int) -> int:
    """Pattern of x / y, y not zero.

    >>> hex(divide(0x3F800000, 0xC0400000))  # 1 / -3
    '0xbeaaaaab'
    """
    (m, e), (n, f) = decode(x), decode(y)
    return (x ^ y) & SIGN | ratio(m, n, e - f)


def multiply(x: int, y: int) -> int:
    """Pattern of x * y.

    >>> hex(multiply(0x3EAAAAAB, 0xC0400000))  # float32(1/3) * -3
    '0xbf800000'
    """
    (m, e), (n, f) = decode(x), decode(y)
    return (x ^ y) & SIGN | encode(m * n, e + f)


def add(x: int, y: int, halvings: int = 0) -> int:
    """Pattern of (x + y) / 2**halvings; y is finite, x may be infinite.

    >>> hex(add(0x3F800000, 0xBF800000)), hex(add(0x3F800000, 0x40000000, halvings=1))
    ('0x0', '0x3fc00000')
    """
    if x & FLOAT32.infinity == FLOAT32.infinity:
        return x
    total = units(x) + units(y)
    if not total:
        return x & y & SIGN
    return SIGN * (total < 0) | encode(abs(total), FLOAT32.emin - halvings)


def cast(bits: int, source: Format, target: Format) -> int:
    """Pattern in another format.

    >>> hex(cast(0x3EAAAAAB, FLOAT32, BFLOAT16)), hex(cast(0xC77FF000, FLOAT32, FLOAT16))
    ('0x3eab', '0xfc00')
    """
    return target.sign * (bits >= source.sign) | encode(*decode(bits, source), target)


def nearest(value: Fraction) -> int:
    """Pattern nearest to a rational.

    >>> hex(nearest(Fraction("-0.018")))
    '0xbc9374bc'
    """
    return SIGN * (value < 0) | ratio(abs(value.numerator), value.denominator)


def exact(bits: int) -> Fraction:
    """Rational that a pattern stands for.

    >>> exact(0xBF400000)
    Fraction(-3, 4)
    """
    return Fraction(units(bits), 1 << -FLOAT32.emin)


def order(bits: int) -> int:
    """Integer that compares as the pattern's value does; both zeros are 0.

    >>> order(0xBF800000) < order(0x80000000) == order(0) < order(1)
    True
    """
    return SIGN - bits if bits & SIGN else bits
