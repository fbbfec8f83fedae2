"""The arrays of four frameworks: from NumPy to theirs and back, to the bit.

An implementation that declares ``arrays = "torch"`` (or "cupy", "jax") gets that framework's arrays
and types, on its `device`.  bfloat16, which NumPy has only through ml_dtypes, travels by its bits.

The same numbers can lie in memory in several *forms*; rule P5 asks for all of them.  Where a form
leaves gaps between the elements, or before the first, that memory holds POISON, and it is part of
what is hashed before and after a call.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from qloracle_conformance.contract.protocol import FLOAT_TYPES, VIEWS

NAMES = ("numpy", "torch", "cupy", "jax")
POISON = 0x7F  # of every byte that is not the array's: a huge float, or a NaN
OFFSET = {"offset": 64, "unaligned": 1}  # elements before the first: aligned for vectors, or not
DELAY = 20_000_000  # GPU cycles (about 10 ms) that hold a side stream back


# ---- to the framework ----------------------------------------------------------------------------


def give(array: np.ndarray, framework: str, device: str, form: str = "") -> tuple[Any, Any]:
    """Hand an array over in a form: (the argument, the whole memory that it lies in)."""
    if form not in VIEWS or not array.size or (array.ndim == 0 and form not in OFFSET):
        whole = convert(array, framework, device)
        return whole, whole
    if form == "strided":  # every second element of its rows
        wide = poisoned((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        whole = convert(wide, framework, device)
        return whole[..., ::2], whole
    if form == "transposed":  # its axes lie in the opposite order; one axis alone cannot
        whole = convert(array.T.copy(), framework, device)
        axes = tuple(range(array.ndim))[::-1]
        return (whole.permute(axes) if framework == "torch" else whole.transpose(axes)), whole
    if form == "expanded":
        return _expanded(array, framework, device)
    start = OFFSET[form]
    buffer = poisoned((array.size + 2 * start,), array.dtype)
    buffer[start : start + array.size] = array.reshape(-1)
    whole = convert(buffer, framework, device)
    return whole[start : start + array.size].reshape(array.shape), whole


def _expanded(array: np.ndarray, framework: str, device: str) -> tuple[Any, Any]:
    """One element or one row, with a stride of zero, where that is the same array."""
    parts = array.reshape(-1)[:1], array[:1]
    part = next((part for part in parts if (part == array).all()), array)
    whole = convert(part.copy(), framework, device)
    if part is array:
        return whole, whole
    if framework == "torch":
        return whole.expand(array.shape), whole
    return sys.modules["cupy"].broadcast_to(whole, array.shape), whole


def poisoned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array that holds nothing yet."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = POISON
    return array


def convert(array: np.ndarray, framework: str, device: str) -> Any:
    """Make a framework's array on a device; it owns its memory or shares the private copy's."""
    match framework:
        case "torch":
            import torch

            if array.dtype == ml_dtypes.bfloat16:
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
            return torch.from_numpy(array).to(device)
        case "cupy":
            import cupy

            with cupy.cuda.Device(_number(device)):
                bits = array.dtype == ml_dtypes.bfloat16
                moved = cupy.asarray(array.view(np.uint16) if bits else array)
                return moved.view(array.dtype) if bits else moved
        case "jax":
            import jax

            platform = device.partition(":")[0].replace("cuda", "gpu")
            return jax.device_put(array, jax.devices(platform)[_number(device)])
    return array


def make_current(framework: str, device: str) -> None:
    """Make a device the current one where a framework computes on that, as CuPy does."""
    if framework == "cupy":
        sys.modules["cupy"].cuda.Device(_number(device)).use()


def _number(device: str) -> int:
    """The index in a device's name.

    >>> _number("cuda:1"), _number("cuda")
    (1, 0)
    """
    return int(device.partition(":")[2] or 0)


def dtype(name: str, framework: str) -> Any:
    """A framework's own type by its name; NotImplementedError where JAX would take another one."""
    match framework:
        case "torch":
            import torch

            return getattr(torch, name)
        case "jax":
            import jax

            found = getattr(jax.numpy, name)
            if jax.dtypes.canonicalize_dtype(found) != found:
                raise NotImplementedError(f"JAX has no {name} here (jax_enable_x64)")
            return found
    return FLOAT_TYPES[name].type


# ---- and back ------------------------------------------------------------------------------------


def take(value: Any) -> np.ndarray:
    """Read any framework's array (or what NumPy can read) as a private NumPy array."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(value, torch.Tensor):
        # A tensor of any device; requires_grad, lazy conjugates and negations are resolved.
        host = value.detach().resolve_conj().resolve_neg().cpu()
        if host.dtype == torch.bfloat16:
            return np.array(host.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(host.numpy())
    if cupy is not None and isinstance(value, cupy.ndarray):
        if value.dtype.name == "bfloat16":
            return np.array(value.view(np.uint16).get()).view(ml_dtypes.bfloat16)
        return np.array(value.get())
    return np.array(value)  # a copy: a later change of the result must not reach the reading


# ---- where a call runs ---------------------------------------------------------------------------


def forms(framework: str, device: str) -> list[str]:
    """The forms that can be tried with a framework's arrays on a device of this machine."""
    found = {"torch": list(VIEWS), "cupy": list(VIEWS)}.get(framework, [])
    if framework == "torch" and device.startswith("cuda"):
        import torch

        return [*found, "side_stream", *["second_device"] * (torch.cuda.device_count() > 1)]
    return found


def device_for(device: str, form: str) -> str:
    """The device of a call: the next one where the form asks for a second device."""
    return f"cuda:{1 - min(_number(device), 1)}" if form == "second_device" else device


@contextlib.contextmanager
def queue(form: str, device: str, arguments: list[Any]) -> Iterator[None]:
    """Run a call on a stream of its own, on which its inputs arrive late.

    A kernel that is launched on the default stream instead reads the inputs before they are there:
    until the delay is over they hold POISON.
    """
    if form != "side_stream":
        yield
        return
    import torch

    stream = torch.cuda.Stream(device)
    staged = [tensor.clone() for tensor in arguments]
    for tensor in arguments:
        tensor.view(torch.uint8).fill_(POISON) if tensor.ndim else tensor.fill_(POISON)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        for tensor, late in zip(arguments, staged, strict=True):
            tensor.copy_(late, non_blocking=True)
        try:
            yield
        finally:  # a call that raised must not leave late copies to the next one
            stream.synchronize()
