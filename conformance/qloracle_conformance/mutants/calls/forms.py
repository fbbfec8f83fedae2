"""Faults in how arrays are read and written: rule P5, and the gaps around a view (rule P2).

Only implementations on tensors are handed views, so these are kernels on torch tensors.  They do
what a kernel does that takes a tensor's pointer and forgets the rest.
"""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import qloracle
from qloracle_conformance.calling import frameworks
from qloracle_conformance.mutants.parts import Array, Right

Kernel = Callable[..., Any]


def kernel(name: str, read: Callable[[Any], Any] = lambda tensor: tensor) -> Kernel:
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


class OnTensors(Right):
    """Every function on tensors, in whatever form they come."""

    lawful = True
    arrays = "torch"
    quantize_4bit = staticmethod(kernel("quantize_4bit"))
    dequantize_4bit = staticmethod(kernel("dequantize_4bit"))
    quantize_blockwise = staticmethod(kernel("quantize_blockwise"))
    dequantize_blockwise = staticmethod(kernel("dequantize_blockwise"))
    quantize_absmax = staticmethod(kernel("quantize_absmax"))
    dequantize_absmax = staticmethod(kernel("dequantize_absmax"))


class RefusesViews(Right):
    """It refuses views, and says so in its limits."""

    lawful = True
    arrays = "torch"
    limits: ClassVar[dict[str, list[str]]] = {"views": []}

    @staticmethod
    def dequantize_4bit(packed: Any, absmax: Any, **options: Any) -> Any:
        if packed.storage_offset() or not packed.is_contiguous():
            raise ValueError("packed is a view")
        return OnTensors.dequantize_4bit(packed, absmax, **options)


class WritesIntoOut(Right):
    """It writes its results into `out` where that is given."""

    lawful = True

    @staticmethod
    def dequantize_4bit(packed: Array, absmax: Array, *, out: Any = None, **options: Any) -> Array:
        values: Array = qloracle.dequantize_4bit(packed, absmax, **options)
        if out is None:
            return values
        out[...] = values
        return np.asarray(out)


class IgnoresStrides(Right):
    """The kernel reads from the tensor's pointer on, as if it were contiguous."""

    kills = "P5"
    arrays = "torch"
    quantize_4bit = staticmethod(
        kernel("quantize_4bit", lambda t: from_memory(t, t.storage_offset()))
    )


def is_transposed(tensor: Any) -> bool:
    """True where the first axis lies closest in memory."""
    return bool(tensor.ndim > 1 and tensor.stride(0) == 1 and not tensor.is_contiguous())


class TakesColumnsForRows(Right):
    """A transposed tensor is read as it lies in memory: its columns pass for rows."""

    kills = "P5"
    arrays = "torch"
    quantize_blockwise = staticmethod(
        kernel("quantize_blockwise", lambda t: from_memory(t, 0) if is_transposed(t) else t)
    )


class ReadsFromTheStorage(Right):
    """The kernel takes the pointer of the storage, not that of the view in it."""

    kills = "P5"
    arrays = "torch"
    dequantize_4bit = staticmethod(
        kernel("dequantize_4bit", lambda t: from_memory(t, 0) if t.is_contiguous() else t)
    )


def aligned(tensor: Any) -> Any:
    """What a load from the next lower multiple of 16 bytes finds."""
    lanes = 16 // tensor.itemsize
    start = tensor.storage_offset() // lanes * lanes
    return from_memory(tensor, start) if tensor.is_contiguous() else tensor


class RoundsThePointerDown(Right):
    """A vector load of 16 bytes takes the aligned address below the pointer."""

    kills = "P5"
    arrays = "torch"
    dequantize_blockwise = staticmethod(kernel("dequantize_blockwise", aligned))


class TakesStridesOfZero(Right):
    """It takes the number of elements for the size of the memory and reads what follows it."""

    kills = "P5"
    arrays = "torch"

    @staticmethod
    def dequantize_absmax(codes: Any, nested_absmax: Any, offset: Any, **options: Any) -> Any:
        if nested_absmax.numel() > 1 and nested_absmax.stride(0) == 0:  # as if noise came after
            nested_absmax = nested_absmax.clone()
            nested_absmax[1:] = 1e-3
        return OnTensors.dequantize_absmax(codes, nested_absmax, offset, **options)


class FlattensByView(Right):
    """It calls `view(-1)`, which some strides do not allow, and declares no limit."""

    kills = "P5"
    arrays = "torch"
    quantize_4bit = staticmethod(kernel("quantize_4bit", lambda t: t.view(-1)))


class ScratchBetweenElements(Right):
    """It takes the memory between the elements of a strided tensor for its own (rule P2)."""

    kills = "P2"
    arrays = "torch"

    @staticmethod
    def quantize_absmax(absmax: Any, **options: Any) -> Any:
        if absmax.ndim and absmax.stride(0) == 2:
            absmax.as_strided(absmax.shape, (2,), absmax.storage_offset() + 1).zero_()
        return OnTensors.quantize_absmax(absmax, **options)


class ForgetsOut(Right):
    """It takes `out` and leaves it as it was."""

    kills = "P5"

    @staticmethod
    def quantize_4bit(x: Array, *, out: Any = None, **options: Any) -> Any:
        return qloracle.quantize_4bit(x, **options) if out is None else None


class WritesWholeBlocksOnly(Right):
    """The short last block never reaches `out`."""

    kills = "P5"

    @staticmethod
    def dequantize_blockwise(
        codes: Array, absmax: Array, codebook: Array, *, out: Any = None, **options: Any
    ) -> Any:
        values = qloracle.dequantize_blockwise(codes, absmax, codebook, **options)
        if out is None:
            return values
        whole = values.size - values.size % options["blocksize"]
        out.reshape(-1)[:whole] = values.reshape(-1)[:whole]
        return None


class AddsToOut(Right):
    """It adds its results to what `out` held before."""

    kills = "P5"

    @staticmethod
    def dequantize_absmax(
        codes: Array, nested_absmax: Array, offset: Any, *, out: Any = None, **options: Any
    ) -> Any:
        values = qloracle.dequantize_absmax(codes, nested_absmax, offset, **options)
        if out is None:
            return values
        out += values
        return out
