"""Faults around the values: rules P1 to P4, which hold for every call of every level."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import (
    Array,
    Right,
    Step,
    decoder,
    decoder_8bit,
    encoder,
    encoder_8bit,
    packed_pairs,
    peaks,
    product,
)


class AbsmaxFloat64(Right):
    """The absmax comes back as float64 (bitsandbytes #529: it inherits a default type)."""

    kills = "P1"
    quantize_4bit = staticmethod(encoder(peak=lambda x, b: peaks(x, b).astype(np.float64)))
    quantize_blockwise = staticmethod(
        encoder_8bit(peak=lambda x, b: peaks(x, b).astype(np.float64))
    )


class CodesInt64(Right):
    """The codes come back as int64, as searchsorted returns them (rule P1)."""

    kills = "P1"

    @staticmethod
    def quantize_blockwise(x: Array, codebook: Array, **options: Any) -> tuple[Array, Array]:
        codes, absmax = qloracle.quantize_blockwise(x, codebook, **options)
        return codes.astype(np.int64), absmax


class OffsetAsFloat(Right):
    """The offset comes back as a Python float, not as the float32 that it is (rule P1)."""

    kills = "P1"

    @staticmethod
    def quantize_absmax(absmax: Array, **options: Any) -> tuple[Array, Array, float]:
        codes, nested_absmax, offset = qloracle.quantize_absmax(absmax, **options)
        return codes, nested_absmax, float(offset)


class PhantomScale(Right):
    """An odd number of blocks gets one absmax more, a zero (bitsandbytes' Triton backend)."""

    kills = "P1"

    @staticmethod
    def quantize_4bit(x: Array, **options: Any) -> tuple[Array, Array]:
        packed, absmax = qloracle.quantize_4bit(x, **options)
        return packed, np.append(absmax, np.zeros(absmax.size % 2, np.float32))


class TypeIgnored(Right):
    """The result is float32, whatever type was asked for (rule P1)."""

    kills = "P1"
    dequantize_4bit = staticmethod(decoder(multiply=lambda a, b, _: product(a, b, np.float32)))
    dequantize_blockwise = staticmethod(
        decoder_8bit(multiply=lambda a, b, _: product(a, b, np.float32))
    )


class RowOfOne(Right):
    """A vector of even length comes back as a matrix of one row (bitsandbytes #2047)."""

    kills = "P1"

    @staticmethod
    def dequantize_4bit(
        packed: Array, absmax: Array, *, shape: tuple[int, ...], **options: Any
    ) -> Array:
        values = qloracle.dequantize_4bit(packed, absmax, shape=shape, **options)
        return values[None, :] if len(shape) == 1 and values.size % 2 == 0 else values


class ScalarAsVector(Right):
    """A scalar comes back as a vector of one element (rule P1)."""

    kills = "P1"

    @staticmethod
    def dequantize_4bit(packed: Array, absmax: Array, **options: Any) -> Array:
        return np.atleast_1d(qloracle.dequantize_4bit(packed, absmax, **options))


class OneByteTransposed(Right):
    """A matrix packed in one byte comes back transposed (bitsandbytes 0.50.2, dequantize_4bit)."""

    kills = "P1"

    @staticmethod
    def dequantize_4bit(packed: Array, absmax: Array, **options: Any) -> Array:
        values = qloracle.dequantize_4bit(packed, absmax, **options)
        return values.T if packed.size == 1 else values


class InputOverwritten(Right):
    """The input is normalised in place: x /= absmax (KernelBench #82)."""

    kills = "P2"

    @staticmethod
    def _scribbles(function: Step) -> Step:
        def scribble(first: Array, *rest: Any, **options: Any) -> Any:
            result = function(first, *rest, **options)
            first[...] = first // 2
            return result

        return scribble

    quantize_4bit = staticmethod(_scribbles(Right.quantize_4bit))
    dequantize_4bit = staticmethod(_scribbles(Right.dequantize_4bit))
    quantize_blockwise = staticmethod(_scribbles(Right.quantize_blockwise))
    dequantize_blockwise = staticmethod(_scribbles(Right.dequantize_blockwise))


class SharedBuffer(Right):
    """Results live in one buffer for each type, which the next call overwrites (unsloth #4026)."""

    kills = "P3"

    @staticmethod
    def _pooled(function: Step) -> Step:
        pool: dict[Any, Array] = {}

        def pooled(*arrays: Array, **options: Any) -> Array:
            result = function(*arrays, **options)
            buffer = pool.get(result.dtype, np.zeros(0, result.dtype))
            if buffer.size < result.size:
                buffer = pool[result.dtype] = np.zeros(2 * result.size, result.dtype)
            buffer[: result.size] = result.reshape(-1)
            return buffer[: result.size].reshape(result.shape)

        return pooled

    dequantize_4bit = staticmethod(_pooled(Right.dequantize_4bit))
    dequantize_blockwise = staticmethod(_pooled(Right.dequantize_blockwise))


class RacingByte(Right):
    """A race: on every second call the last byte is another one (as in bitsandbytes #1061)."""

    kills = "P4"

    @staticmethod
    def _racing() -> Step:
        races = itertools.cycle((False, True))

        def quantize_4bit(x: Array, **options: Any) -> tuple[Array, Array]:
            packed, absmax = qloracle.quantize_4bit(x, **options)
            packed[-1:] ^= np.uint8(0x10 if next(races) else 0)
            return packed, absmax

        return quantize_4bit

    quantize_4bit = staticmethod(_racing())


class SpareNibbleGarbage(Right):
    """The spare nibble holds what lay in memory: the same call gives other bytes (rule P4)."""

    kills = "P4"

    @staticmethod
    def _pack() -> Step:
        garbage = itertools.cycle(range(16))

        def pack(codes: Array) -> Array:
            packed = packed_pairs(codes)
            packed[-1:] |= np.uint8(next(garbage) if codes.size % 2 else 0)
            return packed

        return pack

    quantize_4bit = staticmethod(encoder(pack=_pack()))


def _remembered(key: Step) -> Step:
    """A decoder that computes a result once for each key of its arrays and options."""
    known: dict[str, Array] = {}

    def dequantize_4bit(packed: Array, absmax: Array, **options: Any) -> Array:
        place = str((key(packed, absmax), options))
        if place not in known:
            known[place] = qloracle.dequantize_4bit(packed, absmax, **options)
        return known[place].copy()

    return dequantize_4bit


class ScalesRemembered(Right):
    """A cache of decoded weights knows bytes and shape, not the scales (reference-kernels #104)."""

    kills = "S7"
    dequantize_4bit = staticmethod(_remembered(lambda packed, absmax: packed.tobytes()))


class ShapesRemembered(Right):
    """A result is replayed for every input of its shape and options (reference-kernels #162)."""

    kills = "S7"
    dequantize_4bit = staticmethod(_remembered(lambda packed, absmax: (packed.shape, absmax.shape)))
