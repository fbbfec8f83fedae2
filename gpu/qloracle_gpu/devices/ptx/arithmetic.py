"""What the instructions compute, on arrays of lanes: every rounding is PTX's.

NumPy rounds `+ - * /` and the square root of float32 and float64 to nearest even, keeps subnormal
numbers and wraps integers, as PTX's `.rn` forms do.  What follows is the rest.
"""

from typing import Any, TypeAlias

import numpy as np

Lanes: TypeAlias = Any  # a NumPy array: one element a lane, or one for all
ONES = np.array([0xFFFFFFFF], np.uint32)


def fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Return a b + c of float32, rounded once.

    The product is exact in float64.  The sum is rounded to odd there: towards zero, and then, if
    anything was lost, to an odd last bit.  Of 53 bits that loses nothing that a rounding to 24
    could see (Boldo and Melquiond, 2008).

    >>> x, one = np.float32([1 + 2.0**-12]), np.float32([1])
    >>> fma(x, x, -one) - 2.0**-11, (x * x - one) - 2.0**-11
    (array([5.9604645e-08], dtype=float32), array([0.], dtype=float32))
    """
    product, addend = np.multiply(a, b, dtype=np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    odd = np.isfinite(lost) & (lost != 0) & (bits & 1 == 0)
    towards = np.where((lost > 0) == (total > 0), 1, -1)  # up in magnitude, or down
    return (bits + odd * towards).view(np.float64).astype(np.float32)


def largest(a: Lanes, b: Lanes) -> Lanes:
    """Return the greater number, of a number and a NaN the number, and +0 of two zeros.

    >>> largest(np.float32([np.nan, -0.0, -0.0]), np.float32([1, 0, -0.0])).tolist()
    [1.0, 0.0, -0.0]
    """
    bits = f"u{a.itemsize}"
    alike = (a.view(bits) & b.view(bits)).view(a.dtype)
    return np.where(a == b, alike, np.fmax(a, b))


def least(a: Lanes, b: Lanes) -> Lanes:
    """Return the lesser number, of a number and a NaN the number, and -0 of two zeros."""
    bits = f"u{a.itemsize}"
    alike = (a.view(bits) | b.view(bits)).view(a.dtype)
    return np.where(a == b, alike, np.fmin(a, b))


def shift_left(a: Lanes, by: Lanes) -> Lanes:
    """Return a << by, 0 where all bits leave."""
    width = 8 * a.itemsize
    shifted = a << np.minimum(by, width - 1).astype(a.dtype)
    return np.where(by < width, shifted, a.dtype.type(0))


def shift_right(a: Lanes, by: Lanes) -> Lanes:
    """Return a >> by, 0 or the sign where all bits leave."""
    width = 8 * a.itemsize
    if a.dtype.kind == "i":
        return a >> np.minimum(by, width - 1).astype(a.dtype)
    shifted = a >> np.minimum(by, width - 1).astype(a.dtype)
    return np.where(by < width, shifted, a.dtype.type(0))


def extract(a: Lanes, start: Lanes, length: Lanes) -> Lanes:
    """bfe.u32: `length` bits from bit `start` on.

    >>> extract(np.uint32([0xABCD]), np.uint32([4]), np.uint32([8]))
    array([188], dtype=uint32)
    """
    shifted = shift_right(a, start & 0xFF)
    return shifted & ~shift_left(ONES, length & 0xFF)


def insert(a: Lanes, into: Lanes, start: Lanes, length: Lanes) -> Lanes:
    """bfi: `into`, with the low `length` bits of a from bit `start` on; of 32 bits or of 64.

    >>> hex(insert(np.uint32([0xFF]), np.uint32([0x12345678]), np.uint32([8]), np.uint32([4]))[0])
    '0x12345f78'
    >>> hex(insert(np.uint64([7]), np.uint64([1]), np.uint32([32]), np.uint32([32]))[0])
    '0x700000001'
    """
    ones = ~np.zeros(1, a.dtype)
    field = shift_left(~shift_left(ones, length & 0xFF), start & 0xFF)
    return (into & ~field) | (shift_left(a, start & 0xFF) & field)


def permute(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """prmt.b32: four bytes of the eight of (b, a), each named by four bits of the selector.

    >>> hex(permute(np.uint32([0x33221100]), np.uint32([0x77665544]), np.uint32([0x7610]))[0])
    '0x77661100'
    """
    pair = a.astype(np.uint64) | b.astype(np.uint64) << 32
    result = np.zeros(1, np.uint32)
    for place in range(4):
        chosen = (selector >> (4 * place)) & 0xF
        byte = (pair >> ((chosen & 7).astype(np.uint64) * 8)).astype(np.uint32) & 0xFF
        byte = np.where(chosen & 8, (byte >> 7) * np.uint32(0xFF), byte)  # its sign, eight times
        result = result | byte << (8 * place)
    return result


def table_logic(a: Lanes, b: Lanes, c: Lanes, table: int) -> Lanes:
    """lop3.b32: bit by bit, the entry of an eight-bit table under the bits of a, b, c.

    >>> a, b, c = np.uint32([[0xF0], [0xCC], [0xAA]])
    >>> hex(table_logic(a, b, c, 0xE8)[0])
    '0xe8'
    """
    result = np.zeros(1, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result = result | (
                (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            )
    return result


def funnel(low: Lanes, high: Lanes, by: Lanes, *, left: bool) -> Lanes:
    """shf.wrap: 32 bits of the 64 of (high, low), shifted by `by` modulo 32.

    >>> low, high, by = np.uint32([[0x89ABCDEF], [0x01234567], [8]])
    >>> hex(funnel(low, high, by, left=True)[0])
    '0x23456789'
    """
    distance = (by & 31).astype(np.uint64)
    pair = low.astype(np.uint64) | high.astype(np.uint64) << 32
    return ((pair << distance) >> 32 if left else pair >> distance).astype(np.uint32)


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Return the integer quotient, towards zero; by 0 it is all ones, as PTX leaves open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    whole, ones = a // safe, ~(a & 0)
    if a.dtype.kind == "i":
        whole = whole + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, ones, whole)
