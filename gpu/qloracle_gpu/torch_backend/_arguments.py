"""What counts as a tensor argument: `qloracle.arguments` for torch.

The same mistakes raise the same errors, and one more is possible here: two tensors of a call on two
devices.

>>> floats("x", torch.tensor([1, 2]))
Traceback (most recent call last):
    ...
TypeError: x must have dtype float32, float16 or bfloat16, got int64
>>> vector("absmax", torch.ones(2, device="meta"), torch.float32, 2, torch.device("cpu"))
Traceback (most recent call last):
    ...
ValueError: absmax must lie on cpu like the call's other tensors, got meta

What a tensor holds can be looked at only where the call can wait for it: see `can_wait`. On a GPU
whose kernels are used, it is not looked at: see `KERNELS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from qloracle import arguments as plain
from qloracle.arguments import FLOAT_NAMES, Float32

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# True where CUDA tensors take the kernels of `qloracle_gpu.kernels`, which CuPy compiles.
KERNELS = torch.version.cuda is not None and find_spec("cupy") is not None


def can_wait(values: Tensor) -> bool:
    """Tell whether the values can be read: not while a graph is compiled or captured."""
    if torch.compiler.is_compiling():
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def looked_at(values: Tensor) -> bool:
    """Tell whether it is checked that the values are numbers: not where that alone would wait."""
    return can_wait(values) and not (KERNELS and values.is_cuda)


def tensor(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Return a dense tensor with values, cut from the graph of gradients."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
    if device not in (None, value.device):
        raise ValueError(
            f"{name} must lie on {device} like the call's other tensors, got {value.device}"
        )
    if value.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on meta")
    return value.detach().resolve_neg()


def floats(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Return a tensor of one of the three float types."""
    checked = tensor(name, value, device)
    if checked.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must have dtype {FLOAT_NAMES}, got {_word(checked.dtype)}")
    return checked


def finite(name: str, values: Tensor, *, shown_by: Tensor | None = None) -> Tensor:
    """Return the values [n], once it is known that none is NaN or infinite.

    `shown_by` are fewer numbers that are finite only if the values are, such as their absmax.
    """
    shown = values if shown_by is None else shown_by
    if not looked_at(shown) or shown.isfinite().all():
        return values
    bad = values.isfinite().logical_not().nonzero()[:, 0]
    first = int(bad[0])
    raise ValueError(
        f"{name} must be finite, got {len(bad)} non-finite values of {values.numel()}, "
        f"the first {float(values[first])} at flat index {first}"
    )


def numbers(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Return a tensor of one of the three float types, of any shape, and finite."""
    checked = floats(name, value, device)
    if not checked.numel() or not looked_at(checked):
        return checked
    ends = torch.stack(torch.aminmax(checked))  # NaN if any is, and no copy of them all
    finite(name, checked.reshape(-1), shown_by=ends)
    return checked


def rows(
    name: str, value: object, width: int, beside: str, device: torch.device | None = None
) -> Tensor:
    """Return finite numbers of shape (..., width). `beside` names what they must fit.

    >>> rows("x", torch.ones(2, 3, 5), 4, "shape (7, 4)")
    Traceback (most recent call last):
        ...
    ValueError: x must have shape (..., 4) beside shape (7, 4), got (2, 3, 5)
    """
    shape = tuple(floats(name, value, device).shape)
    if not shape or shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}) beside {beside}, got {shape}")
    return numbers(name, value, device)


def shaped(
    name: str, value: object, shape: tuple[int, ...], beside: str, device: torch.device
) -> Tensor:
    """Return finite numbers of exactly this shape. `beside` names what they must fit."""
    got = tuple(floats(name, value, device).shape)
    if got != shape:
        raise ValueError(f"{name} must have shape {shape} beside {beside}, got {got}")
    return numbers(name, value, device)


def same_type(name: str, value: Tensor, *allowed: torch.dtype) -> None:
    """Refuse a tensor whose type is none of these."""
    if tensor(name, value).dtype not in allowed:
        words = " or ".join(dict.fromkeys(_word(dtype) for dtype in allowed))
        raise TypeError(f"{name} must have dtype {words}, got {_word(value.dtype)}")


def vector(
    name: str,
    value: object,
    dtype: torch.dtype,
    size: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return a one-dimensional tensor of exactly this dtype; length and device where given."""
    checked = tensor(name, value, device)
    if checked.dtype != dtype:
        raise TypeError(f"{name} must have dtype {_word(dtype)}, got {_word(checked.dtype)}")
    if checked.ndim != 1 or (size is not None and checked.numel() != size):
        length = "n" if size is None else size
        raise ValueError(f"{name} must have shape ({length},), got {tuple(checked.shape)}")
    return checked


def scalar(name: str, value: object, device: torch.device) -> Tensor:
    """Return a finite float32 of shape ()."""
    checked = tensor(name, value, device)
    if checked.dtype != torch.float32:
        raise TypeError(f"{name} must have dtype float32, got {_word(checked.dtype)}")
    if checked.ndim:
        raise ValueError(f"{name} must have shape (), got {tuple(checked.shape)}")
    return finite(name, checked.view(1)).view(())


def table(name: str, value: object, device: torch.device) -> Float32:
    """Return a codebook, checked as the reference checks it, in NumPy: it is small."""
    return plain.codebook(name, vector(name, value, torch.float32, None, device).cpu().numpy())


def codes_below(name: str, codes: Tensor, levels: int) -> Tensor:
    """Return the codes, once it is known that each of them names a level."""
    if levels > 255 or not codes.numel() or not can_wait(codes) or codes.max() < levels:
        return codes
    first = int((codes >= levels).nonzero()[0, 0])
    raise ValueError(
        f"{name} must be below {levels}, got {int(codes[first])} as element {first} "
        f"of {codes.numel()}"
    )


def integer(name: str, value: int, least: int) -> int:
    """Return an int that is large enough. A compiler may hand over a symbol, of which no more is
    known than that it is a number.
    """
    return value if torch.compiler.is_compiling() else plain.integer(name, value, least)


def real(name: str, value: float) -> float:
    """Return a finite number, or a compiler's symbol."""
    return value if torch.compiler.is_compiling() else plain.real(name, value)


def matrix_shape(name: str, value: Sequence[int]) -> tuple[int, int]:
    """Return the shape (out, in) of a weight, in numbers or a compiler's symbols."""
    if torch.compiler.is_compiling() and len(value) == 2:
        return value[0], value[1]
    return plain.matrix_shape(name, value)


def float_type(name: str, value: object) -> torch.dtype:
    """Return one of the three float types."""
    if not isinstance(value, torch.dtype) or value not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {value!r}")
    return value


def _word(dtype: torch.dtype) -> str:
    """Name a type as NumPy does.

    >>> _word(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
