"""Arrays as Python text: exact to the bit, readable if small, short if simple."""

import base64
import textwrap
import zlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.judging.text import number
from qloracle_conformance.reports.files import printable

FEW, SMALL = 4, 24  # elements that are written one by one: always, and if they differ
ODD = 8  # elements that may differ from the others in a constant array

Array = NDArray[Any]

# What the statements need beside NumPy: hex floats, and arrays by their bytes.
HEX = "f = float.fromhex"
UNPACK = (
    "",
    "def array(dtype, shape, text):",
    "    data = zlib.decompress(base64.b64decode(text))",
    "    return np.frombuffer(data, dtype).reshape(shape).copy()",
    "",
)


def statements(name: str, array: Array) -> list[str]:
    """Lines that bind an equal array to `name`.

    >>> statements("x", np.float32([1, 0.1]))
    ['x = np.array([1.0, f("0x1.99999a0000000p-4")], np.float32)']
    >>> statements("x", np.zeros((30, 2), np.float16))
    ['x = np.full((30, 2), 0.0, np.float16)']
    """
    flat = array.reshape(-1)
    if np.isnan(flat.astype(np.float64)).any():  # a NaN has bits that no literal shows
        return _packed(name, array)
    if flat.size <= FEW:
        return _listed(name, array)
    bits = flat.view(f"u{flat.dtype.itemsize}")  # -0.0 is not 0.0
    kinds, counts = np.unique(bits, return_counts=True)
    odd = np.flatnonzero(bits != kinds[np.argmax(counts)])  # what differs from the most frequent
    if odd.size and flat.size <= SMALL:
        return _listed(name, array)
    if odd.size > ODD:
        return _packed(name, array)
    common = number(np.delete(flat, odd)[0])
    lines = [f"{name} = np.full({array.shape}, {common}, {type_name(array.dtype)})"]
    if odd.size:
        lines.append(f"{name}.flat[{odd.tolist()}] = {_numbers(flat[odd])}")
    return lines


def type_name(dtype: np.dtype[Any]) -> str:
    """The dtype as the script writes it."""
    return f"{'ml_dtypes' if dtype == ml_dtypes.bfloat16 else 'np'}.{dtype.name}"


def wrapped(text: str, indent: int = 0, mark: str = "    ") -> list[str]:
    """A statement or a comment in lines of 100; `mark` begins those that go on."""
    first = " " * indent
    return textwrap.wrap(
        printable(text), 100, initial_indent=first, subsequent_indent=first + mark,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def string(text: str) -> str:
    """A string in double quotes where it can stand so.

    >>> print(string("nf4"), string('a "b"'))
    "nf4" 'a "b"'
    """
    return f'"{text}"' if repr(text) == f"'{text}'" and '"' not in text else repr(text)


def _numbers(values: Array) -> str:
    return f"[{', '.join(number(value) for value in values)}]"


def _listed(name: str, array: Array) -> list[str]:
    values = number(array) if array.ndim == 0 else _numbers(array.reshape(-1))
    shaped = "" if array.ndim < 2 else f".reshape({array.shape})"
    return wrapped(f"{name} = np.array({values}, {type_name(array.dtype)}){shaped}")


def _packed(name: str, array: Array) -> list[str]:
    text = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    lines = [text[i : i + 100] for i in range(0, len(text), 100)]
    return [f'{name} = array({type_name(array.dtype)}, {array.shape}, """', *lines, '""")']
