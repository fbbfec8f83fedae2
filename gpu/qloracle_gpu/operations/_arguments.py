"""What counts as an argument: the reference's checks, for the arrays of any machine.

An array is checked by its shape and by the name of its type, so that NumPy, CuPy and torch need no
checks of their own.  Nothing looks at a value: on a GPU that would wait for all that was launched
before.  A NaN in x or a code that names no level is therefore not refused; the kernels' comments
say what becomes of it.  Plain values (words, counts, shapes) are checked by the reference's own
`qloracle.arguments`, with its messages.
"""

from __future__ import annotations

import math

from qloracle import arguments as plain
from qloracle.arguments import FLOAT_NAMES
from qloracle_gpu.devices import Array, Device, type_name

FLOAT_TYPES = ("float32", "float16", "bfloat16")

# One warp takes a block, or eight of the smallest; an octet of a lane lies in one block.
BLOCKSIZES = tuple(1 << power for power in range(5, 13))  # 32 ... 4096


def blocksize(value: object) -> int:
    """Return a block size that the kernels are made for.

    >>> blocksize(48)
    Traceback (most recent call last):
        ...
    ValueError: blocksize must be a power of two from 32 to 4096, got 48
    """
    number = plain.integer("blocksize", value, least=1)
    if number not in BLOCKSIZES:
        raise ValueError(
            f"blocksize must be a power of two from {BLOCKSIZES[0]} to {BLOCKSIZES[-1]}, "
            f"got {number}"
        )
    return number


def float_type(name: str, value: object) -> str:
    """Return the protocol's name of a float type: given by name, as NumPy's dtype or as torch's.

    >>> import numpy as np
    >>> float_type("dtype", "bfloat16"), float_type("dtype", np.float16)
    ('bfloat16', 'float16')
    """
    word = str(value).removeprefix("torch.")
    if word in FLOAT_TYPES:
        return word
    return plain.float_type(name, value).name  # type: ignore[arg-type]  # that is what it finds out


def floats(device: Device, name: str, value: object) -> Array:
    """Return a contiguous array of one of the three float types."""
    checked = device.array(name, value)
    if type_name(checked) not in FLOAT_TYPES:
        raise TypeError(f"{name} must have dtype {FLOAT_NAMES}, got {type_name(checked)}")
    return checked


def typed(device: Device, name: str, value: object, dtype: str) -> Array:
    """Return a contiguous array of exactly this type."""
    checked = device.array(name, value)
    if type_name(checked) != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {type_name(checked)}")
    return checked


def rows(device: Device, name: str, value: object, width: int, beside: str) -> Array:
    """Return floats of shape (..., width). `beside` names what they must fit."""
    known = floats(device, name, value)
    shape = tuple(known.shape)
    if not shape or shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}) beside {beside}, got {shape}")
    return known


def shaped(
    device: Device, name: str, value: object, shape: tuple[int, ...], beside: str, *types: str
) -> Array:
    """Return an array of this shape and of one of these types. `beside` names what it must fit."""
    known = device.array(name, value)
    if type_name(known) not in types:
        words = " or ".join(dict.fromkeys(types))
        raise TypeError(f"{name} must have dtype {words}, got {type_name(known)}")
    if tuple(known.shape) != shape:
        raise ValueError(
            f"{name} must have shape {shape} beside {beside}, got {tuple(known.shape)}"
        )
    return known


def vector(device: Device, name: str, value: object, dtype: str, size: int | None = None) -> Array:
    """Return a one-dimensional array of exactly this type and, where one is given, this length."""
    checked = typed(device, name, value, dtype)
    shape = tuple(checked.shape)
    if len(shape) != 1 or size not in (None, shape[0]):
        length = "n" if size is None else size
        raise ValueError(f"{name} must have shape ({length},), got {shape}")
    return checked


def scalar(device: Device, name: str, value: object) -> Array:
    """Return a float32 of shape ()."""
    checked = typed(device, name, value, "float32")
    if tuple(checked.shape):
        raise ValueError(f"{name} must have shape (), got {tuple(checked.shape)}")
    return checked


def codebook(device: Device, name: str, value: object) -> Array:
    """Return 2 to 256 float32 levels; that they never decrease is the caller's word."""
    levels = vector(device, name, value, "float32")
    if not 2 <= levels.shape[0] <= 256:
        raise ValueError(f"{name} must hold 2 to 256 levels, got {levels.shape[0]}")
    return levels


def count(array: Array) -> int:
    """Return the number of elements; () holds one."""
    return math.prod(array.shape)
