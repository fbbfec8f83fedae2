"""Faults in how arrays are read and written: rule P5, and the gaps around a view (rule P2).

Only implementations on tensors are handed views, so these are kernels on torch tensors.  They do
what a kernel does that takes a tensor's pointer and forgets the rest.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.calling import frameworks
from qloracle_conformance.mutants.parts import Array, Step, fault, refusing, variant

TORCH = {"arrays": "torch"}
Read = Callable[[Any], Any]  # a tensor -> what the kernel takes for it


def kernel(name: str, read: Read = lambda tensor: tensor) -> Step:
    """A kernel on tensors that is right but for how it reads them."""

    def call(*tensors: Any, **options: Any) -> Any:
        arrays = [frameworks.take(read(tensor)) for tensor in tensors]
        named = {key: _plain(value) for key, value in options.items()}
        results = getattr(qloracle, name)(*arrays, **named)
        return tuple(map(_tensor, results)) if isinstance(results, tuple) else _tensor(results)

    return call


def _plain(value: Any) -> Any:
    """An option as NumPy's callers write it."""
    text = str(value)
    if text.startswith("torch."):
        return frameworks.dtype(text.removeprefix("torch."), "numpy")
    return frameworks.take(value) if hasattr(value, "device") else value


def _tensor(array: Array) -> Any:
    return frameworks.convert(np.array(array), "torch", "cpu")


def from_memory(tensor: Any, start: int) -> Any:
    """As many elements of a tensor's memory as it has, one after the other, from `start` on."""
    steps = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
    return tensor.as_strided(tensor.shape, steps, start)


def _rounded_down(tensor: Any) -> Any:
    """What a load from the next lower multiple of 16 bytes finds."""
    lanes = 16 // tensor.itemsize
    start = tensor.storage_offset() // lanes * lanes
    return from_memory(tensor, start) if tensor.is_contiguous() else tensor


def _stride_of_zero(codes: Any, nested_absmax: Any, offset: Any, **options: Any) -> Any:
    if nested_absmax.numel() > 1 and nested_absmax.stride(0) == 0:  # as if noise came after
        nested_absmax = nested_absmax.clone()
        nested_absmax[1:] = 1e-3
    return kernel("dequantize_absmax")(codes, nested_absmax, offset, **options)


def _scratch_in_the_gaps(absmax: Any, **options: Any) -> Any:
    if absmax.ndim and absmax.stride(0) == 2:
        absmax.as_strided(absmax.shape, (2,), absmax.storage_offset() + 1).zero_()
    return kernel("quantize_absmax")(absmax, **options)


def into(function: Step, write: Callable[..., Any]) -> Step:
    """The function with `out`, into which it writes in its own way."""

    def call(*arrays: Array, out: Any = None, **options: Any) -> Any:
        values = function(*arrays, **options)
        if out is None:
            return values
        write(out, values, **options)
        return out

    return call


def _whole_blocks(out: Array, values: Array, *, blocksize: int, **_: Any) -> None:
    whole = values.size - values.size % blocksize
    out.reshape(-1)[:whole] = values.reshape(-1)[:whole]


# fmt: off
# ---- views ---------------------------------------------------------------------------------------
OnTensors = variant("", "Every function on tensors, whatever their strides and offsets.",
    TORCH, **{name: kernel(name) for name in (
        "quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise",
        "quantize_absmax", "dequantize_absmax")})
RefusesViews = variant("", "It refuses views, and says so in its limits.",
    TORCH | {"limits": {"views": []}},
    dequantize_4bit=refusing(kernel("dequantize_4bit"), ValueError("packed is a view"),
        lambda packed, *_, **__: packed.storage_offset() or not packed.is_contiguous()))
IgnoresStrides = fault("P5",
    "The kernel reads on from the tensor's pointer, as if it were contiguous.",
    TORCH, quantize_4bit=kernel("quantize_4bit", lambda t: from_memory(t, t.storage_offset())))
TakesColumnsForRows = fault("P5",
    "A transposed tensor is read as it lies in memory: its columns pass for rows.",
    TORCH, quantize_blockwise=kernel("quantize_blockwise", lambda t: from_memory(t, 0)
        if t.ndim > 1 and t.stride(0) == 1 and not t.is_contiguous() else t))
ReadsFromTheStorage = fault("P5",
    "The kernel takes the pointer of the storage, not that of the view in it.",
    TORCH, dequantize_4bit=kernel("dequantize_4bit",
        lambda t: from_memory(t, 0) if t.is_contiguous() else t))
RoundsThePointerDown = fault("P5",
    "A vector load of 16 bytes takes the aligned address below the pointer.",
    TORCH, dequantize_blockwise=kernel("dequantize_blockwise", _rounded_down))
TakesStridesOfZero = fault("P5",
    "It reads as many elements as the shape has, and past the one that is there.",
    TORCH, dequantize_absmax=_stride_of_zero)
FlattensByView = fault("P5",
    "It calls `view(-1)`, which some strides do not allow, and declares no limit.",
    TORCH, quantize_4bit=kernel("quantize_4bit", lambda t: t.view(-1)))
ScratchBetweenElements = fault("P2",
    "It uses the memory between the elements of a strided tensor as scratch (rule P2).",
    TORCH, quantize_absmax=_scratch_in_the_gaps)

# ---- out= ----------------------------------------------------------------------------------------
WritesIntoOut = variant("", "It writes its results into `out` where that is given.",
    dequantize_4bit=into(
        qloracle.dequantize_4bit, lambda out, values, **_: np.copyto(out, values)))
ForgetsOut = fault("P5", "It accepts `out` and leaves it as it was.",
    quantize_4bit=into(qloracle.quantize_4bit, lambda out, values, **_: None))
WritesWholeBlocksOnly = fault("P5", "The short last block never reaches `out`.",
    dequantize_blockwise=into(qloracle.dequantize_blockwise, _whole_blocks))
AddsToOut = fault("P5", "It adds its results to what `out` held before.",
    dequantize_absmax=into(
        qloracle.dequantize_absmax, lambda out, values, **_: np.add(out, values, out=out)))
