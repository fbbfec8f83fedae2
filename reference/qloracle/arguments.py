"""What counts as an argument: the checks that all public functions share.

The specification is strict, so that a mistake shows at the call and not as a wrong number. A weight
has one of three float types (float32, float16, bfloat16): those are what checkpoints hold, and all
three widen to float32 without rounding. float64 would have to be rounded first, and nobody has
agreed how. Wrong types raise TypeError, wrong values ValueError, and the message names the
argument, what was passed and what is allowed.

>>> as_flat_float32("x", np.array([1, 2]))
Traceback (most recent call last):
    ...
TypeError: x must have dtype float32, float16 or bfloat16, got int64
>>> as_flat_float32("x", np.array([0, np.nan, np.inf], np.float32))
Traceback (most recent call last):
    ...
ValueError: x must be finite, got 2 non-finite values of 3, the first nan at flat index 1
>>> integer("blocksize", 0, least=1)
Traceback (most recent call last):
    ...
ValueError: blocksize must be at least 1, got 0
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
UInt8: TypeAlias = NDArray[np.uint8]

FLOAT_TYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
)
FLOAT_NAMES = "float32, float16 or bfloat16"


def array(name: str, value: object) -> Array:
    """Return the value as a base-class ndarray; refuse lists and the tensors of frameworks."""
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    return np.asarray(value)


def floats(name: str, value: object) -> Array:
    """Return an array of one of the three float types."""
    checked = array(name, value)
    if checked.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must have dtype {FLOAT_NAMES}, got {checked.dtype}")
    return checked


@np.errstate(invalid="ignore")  # a signalling NaN is named below, not warned of here
def as_flat_float32(name: str, value: object) -> Float32:
    """Return a private flat copy, float32[n], row-major whatever the strides, and finite."""
    flat = floats(name, value).astype(np.float32).reshape(-1)  # exact for all three types
    return finite(name, flat)


def finite(name: str, values: Float32) -> Float32:
    """Return the values if none of them is NaN or infinite."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{name} must be finite, got {np.count_nonzero(bad)} non-finite values of "
            f"{values.size}, the first {values.flat[first]} at flat index {first}"
        )
    return values


def as_float64(name: str, value: object) -> Float64:
    """Return a private copy in float64, of the same shape and finite, for sums of products."""
    shape = floats(name, value).shape
    return as_flat_float32(name, value).astype(np.float64).reshape(shape)


def rows(name: str, value: object, width: int, beside: str) -> Float64:
    """Return float64[M, width], all leading dimensions as one; `beside` names what it must fit.

    >>> rows("x", np.ones((2, 3, 5), np.float32), 4, "shape (7, 4)")
    Traceback (most recent call last):
        ...
    ValueError: x must have shape (..., 4) beside shape (7, 4), got (2, 3, 5)
    """
    shape = floats(name, value).shape
    if not shape or shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}) beside {beside}, got {shape}")
    return as_float64(name, value).reshape(math.prod(shape[:-1]), width)


def shaped(name: str, value: object, shape: tuple[int, ...], beside: str) -> Array:
    """Return a float array of exactly this shape; `beside` names what it must fit."""
    checked = floats(name, value)
    if checked.shape != shape:
        raise ValueError(f"{name} must have shape {shape} beside {beside}, got {checked.shape}")
    return checked


def same_type(name: str, value: object, *allowed: np.dtype[Any]) -> None:
    """Refuse an array of any other type."""
    dtype = array(name, value).dtype
    if dtype not in allowed:
        names = " or ".join(dict.fromkeys(map(str, allowed)))
        raise TypeError(f"{name} must have dtype {names}, got {dtype}")


def vector(name: str, value: object, dtype: DTypeLike, size: int | None = None) -> Array:
    """Return a one-dimensional array of exactly this dtype and, if a size is given, this length."""
    checked, wanted = array(name, value), np.dtype(dtype)
    if checked.dtype != wanted:
        raise TypeError(f"{name} must have dtype {wanted}, got {checked.dtype}")
    if checked.ndim != 1 or size not in (None, checked.size):
        length = "n" if size is None else size
        raise ValueError(f"{name} must have shape ({length},), got {checked.shape}")
    return checked


def scalar(name: str, value: object) -> np.float32:
    """Return a finite float32, passed as np.float32 or as an array of shape ()."""
    checked = array(name, value)
    if checked.dtype != np.float32:
        raise TypeError(f"{name} must have dtype float32, got {checked.dtype}")
    if checked.ndim:
        raise ValueError(f"{name} must have shape (), got {checked.shape}")
    return np.float32(finite(name, checked)[()])


def codebook(name: str, value: object) -> Float32:
    """Return a codebook: 2 to 256 finite float32 levels that never decrease."""
    levels = finite(name, vector(name, value, np.float32))
    if not 2 <= levels.size <= 256:
        raise ValueError(f"{name} must hold 2 to 256 levels, got {levels.size}")
    falls = np.flatnonzero(levels[1:] < levels[:-1])
    if falls.size:
        raise ValueError(
            f"{name} must not decrease, but level {falls[0] + 1} ({levels[falls[0] + 1]}) "
            f"is below level {falls[0]} ({levels[falls[0]]})"
        )
    return levels


def codes_below(name: str, codes: UInt8, levels: int) -> UInt8:
    """Return the codes if each of them names a level."""
    if codes.size and codes.max() >= levels:
        first = int((codes >= levels).argmax())
        raise ValueError(
            f"{name} must be below {levels}, got {codes[first]} as element {first} of {codes.size}"
        )
    return codes


def integer(name: str, value: object, least: int = 0) -> int:
    """Return an int of at least `least`; a bool does not count as one, nor does 64.0."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def real(name: str, value: object) -> float:
    """Return a finite number; neither a bool nor an array counts as one."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        shown = f"of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {shown}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def at_least(name: str, value: object, least: float) -> float:
    """Return a finite number of at least `least`."""
    number = real(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least:g}, got {number}")
    return number


def boolean(name: str, value: object) -> bool:
    """Return a bool; 1 does not count as one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__} {value!r}")
    return value


def fraction(name: str, value: object) -> float:
    """Return a number in [0, 1)."""
    number = real(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {number}")
    return number


def dimensions(name: str, value: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return the shape as a tuple and the number of elements it holds; () holds one."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple of ints, got {type(value).__name__} {value!r}")
    shape = tuple(integer(name, axis) for axis in value)
    return shape, math.prod(shape)


def matrix_shape(name: str, value: Sequence[int]) -> tuple[int, int]:
    """Return the shape (out, in) of a weight."""
    dims, _ = dimensions(name, value)
    if len(dims) != 2:
        raise ValueError(f"{name} must be (out, in), got {dims}")
    return dims[0], dims[1]


def float_type(name: str, value: DTypeLike) -> np.dtype[Any]:
    """Return one of the three float types, as a dtype."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {value!r}") from None
    if dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {value!r}")
    return dtype


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return one of the allowed names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__} {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
