"""What counts as an argument: the reference's checks, for the arrays of any machine.

An array is checked by its shape and by the name of its type, so that NumPy, CuPy and torch share
these checks.  Nothing here looks at a value: on a GPU that would wait for all that was launched
before.  A NaN in x or a code that names no level is therefore not refused (by `torch_backend` on a
CPU it is); the kernels' comments say what becomes of it.  Plain values (words, counts, shapes) are
checked by the reference's own `qloracle.arguments`, with its messages.
"""

import math

from qloracle import arguments as plain
from qloracle.arguments import FLOAT_NAMES
from qloracle_gpu.devices import Array, Arrays, type_name

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


def floats(device: Arrays, name: str, value: object, *types: str) -> Array:
    """Return an array of one of the three float types, or of those among them that are given."""
    known = device.array(name, value)
    if type_name(known) not in FLOAT_TYPES:
        raise TypeError(f"{name} must have dtype {FLOAT_NAMES}, got {type_name(known)}")
    return _typed(name, known, *(types or FLOAT_TYPES))


def typed(device: Arrays, name: str, value: object, *types: str) -> Array:
    """Return an array of one of these types."""
    return _typed(name, device.array(name, value), *types)


def _typed(name: str, known: Array, *types: str) -> Array:
    if type_name(known) not in types:
        words = " or ".join(dict.fromkeys(types))
        raise TypeError(f"{name} must have dtype {words}, got {type_name(known)}")
    return known


def matrix(device: Arrays, name: str, value: object) -> Array:
    """Return floats of shape (out, in)."""
    known = floats(device, name, value)
    if len(known.shape) != 2:
        raise ValueError(f"the shape of {name} must be (out, in), got {tuple(known.shape)}")
    return known


def rows(device: Arrays, name: str, value: object, width: int, beside: str) -> Array:
    """Return floats of shape (..., width). `beside` names what they must fit.

    >>> import numpy as np
    >>> from qloracle_gpu.devices.gcc import Host
    >>> rows(Host(), "x", np.ones((2, 3, 5), np.float32), 4, "shape (7, 4)")
    Traceback (most recent call last):
        ...
    ValueError: x must have shape (..., 4) beside shape (7, 4), got (2, 3, 5)
    """
    known = floats(device, name, value)
    shape = tuple(known.shape)
    if not shape or shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}) beside {beside}, got {shape}")
    return known


def shaped(name: str, known: Array, shape: tuple[int, ...], beside: str) -> Array:
    """Return an array of this shape. `beside` names what it must fit."""
    if tuple(known.shape) != shape:
        raise ValueError(
            f"{name} must have shape {shape} beside {beside}, got {tuple(known.shape)}"
        )
    return known


def vector(device: Arrays, name: str, value: object, dtype: str, size: int | None = None) -> Array:
    """Return a one-dimensional array of exactly this type and, where one is given, this length."""
    known = typed(device, name, value, dtype)
    shape = tuple(known.shape)
    if len(shape) != 1 or (size is not None and shape[0] != size):
        length = "n" if size is None else size
        raise ValueError(f"{name} must have shape ({length},), got {shape}")
    return known


def scalar(device: Arrays, name: str, value: object) -> Array:
    """Return a float32 of shape ()."""
    known = typed(device, name, value, "float32")
    if tuple(known.shape):
        raise ValueError(f"{name} must have shape (), got {tuple(known.shape)}")
    return known


def codebook(device: Arrays, name: str, value: object) -> Array:
    """Return 2 to 256 float32 levels; that they never decrease is the caller's word."""
    levels = vector(device, name, value, "float32")
    if not 2 <= levels.shape[0] <= 256:
        raise ValueError(f"{name} must hold 2 to 256 levels, got {levels.shape[0]}")
    return levels


def count(array: Array) -> int:
    """Return the number of elements; () holds one."""
    return math.prod(array.shape)
