"""What a tensor's numbers must be, and whether they can be looked at.

Types, shapes and devices are checked by `qloracle_gpu.operations.arguments`, as those of any
machine's arrays.  Here are the checks that only torch can afford: a CPU need not wait for a value.
The same mistakes raise the same errors as in the reference.

>>> here = beside(torch.ones(1))
>>> here.array("x", torch.tensor([1.0, torch.inf]))
Traceback (most recent call last):
    ...
ValueError: x must be finite, got 1 non-finite values of 2, the first inf at flat index 1
>>> check.vector(here, "absmax", torch.ones(2, device="meta"), "float32", 2)
Traceback (most recent call last):
    ...
ValueError: absmax must lie on cpu like the call's other tensors, got meta

A value can be looked at only where the call can wait for it: see `can_wait`.  On a GPU whose
kernels are used it is not looked at: see `KERNELS`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

import torch
from torch import Tensor

from qloracle.arguments import FLOAT_NAMES
from qloracle_gpu.devices.on_torch import Tensors

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# True where CUDA tensors take the kernels of `qloracle_gpu.kernels`, which CuPy compiles.
KERNELS = torch.version.cuda is not None and find_spec("cupy") is not None
_unlooked = ContextVar("unlooked", default=False)


def can_wait(values: Tensor) -> bool:
    """Tell whether the values can be read: not while a graph is captured."""
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def looked_at(values: Tensor) -> bool:
    """Tell whether it is checked that the values are numbers: not where that alone would wait."""
    return can_wait(values) and not (KERNELS and values.is_cuda) and not _unlooked.get()


@contextmanager
def unlooked() -> Iterator[None]:
    """Look at no value within: a gradient that torch itself asks for may be infinite."""
    token = _unlooked.set(True)
    try:
        yield
    finally:
        _unlooked.reset(token)


class Checked(Tensors):
    """The tensors of a call: all on one device, floats finite, a mask of 0 and one other value."""

    def array(self, name: str, value: object) -> Tensor:
        """Return a dense tensor of this device, once its values are known to be lawful."""
        known = numbers(name, super().array(name, value))
        return dropout_mask(known) if name == "dropout_mask" else known


def place_of(value: object) -> torch.device:
    """Return where a call's first tensor lies; what is no tensor is refused later, by name."""
    return value.device if isinstance(value, Tensor) else torch.device("cpu")


def beside(value: object) -> Checked:
    """Return the device of a call's first tensor, for all of them."""
    return Checked(place_of(value))


def numbers(name: str, values: Tensor) -> Tensor:
    """Return a tensor of any type and shape, once it is known that floats in it are finite."""
    if values.dtype not in FLOAT_TYPES or not values.numel() or not looked_at(values):
        return values
    ends = torch.stack(torch.aminmax(values))  # NaN if any is, and no copy of them all
    finite(name, values.reshape(-1), shown_by=ends)
    return values


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


def codes_below(name: str, codes: Tensor, levels: int) -> Tensor:
    """Return the codes, once it is known that each of them names a level."""
    if levels > 255 or not codes.numel() or not can_wait(codes) or codes.max() < levels:
        return codes
    first = int((codes >= levels).nonzero()[0, 0])
    raise ValueError(
        f"{name} must be below {levels}, got {int(codes[first])} as element {first} "
        f"of {codes.numel()}"
    )


def dropout_mask(mask: Tensor) -> Tensor:
    """Return the mask, once its entries are 0 or one common 1 / (1 - p), which is at least 1."""
    if mask.dtype not in FLOAT_TYPES or not mask.numel() or not looked_at(mask):
        return mask
    kept = mask.amax().clamp(min=1)
    wrong = (mask != 0) & (mask != kept)
    if wrong.any():
        first = int(wrong.reshape(-1).nonzero()[0])
        raise ValueError(
            f"dropout_mask must hold 0 and one value 1 / (1 - p), got "
            f"{float(mask.reshape(-1)[first])} at flat index {first} beside {float(kept)}"
        )
    return mask


def float_type(name: str, value: object) -> torch.dtype:
    """Return one of the three float types."""
    if not isinstance(value, torch.dtype) or value not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {value!r}")
    return value
