"""Numbers as text: to be read by people, run by scripts, and read back."""

import re
from typing import Any

import numpy as np


def show(value: Any) -> str:
    """Write a number so that it can be read and reproduced: decimal and hex float.

    >>> show(np.float32(0.1)), show(np.uint8(7))
    ('0.1 (0x1.99999a0000000p-4)', '7')
    """
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return str(int(value))
    if not np.isfinite(np.float64(value)) or float(value) == round(float(value), 3):
        return str(float(value))
    return f"{np.float32(value)!s} ({float(value).hex()})"


def number(value: Any) -> str:
    """One number: a short decimal where it is exact, else a hex float.

    >>> number(np.uint8(7)), number(np.float32(-0.5)), number(np.float32(0.1))
    ('7', '-0.5', 'f("0x1.99999a0000000p-4")')
    """
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return str(int(value))
    short = repr(float(value))
    return short if len(short) <= 6 and np.isfinite(float(value)) else f'f("{float(value).hex()}")'


def value_of(text: str) -> float:
    """Read back a number that `show` wrote; nothing is lost.

    >>> value_of("0.1 (0x1.99999a0000000p-4)"), value_of("0x3f"), value_of("-2.0"), value_of("inf")
    (0.10000000149011612, 63.0, -2.0, inf)
    """
    exact = re.search(r"\((\S+)\)$", text)
    if exact:
        return float.fromhex(exact[1])
    return float(int(text, 16)) if text.startswith("0x") else float(text)


# How a script takes the bytes `packed` apart, by nibble order.
NIBBLES = {
    "high_first": "np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)",
    "low_first": "np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)",
}
