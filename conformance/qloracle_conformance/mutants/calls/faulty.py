"""Faults around the values: rules P1 to P4, which hold for every call of every level."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.parts import Array, Decoder, Encoder, Step, each, fault, then

RACES, GARBAGE = itertools.cycle((0, 0x10)), itertools.cycle(range(16))


def _remembered(key: Callable[[Array, Array], Any]) -> Step:
    """A decoder that computes a result once for each key of its arrays and options."""
    known: dict[str, Array] = {}

    def dequantize_4bit(packed: Array, absmax: Array, **options: Any) -> Array:
        place = str((key(packed, absmax), options))
        if place not in known:
            known[place] = qloracle.dequantize_4bit(packed, absmax, **options)
        return known[place].copy()

    return dequantize_4bit


# fmt: off
# ---- P1: number, type and shape of what comes back -----------------------------------------------
AbsmaxFloat64 = fault("P1",
    "The absmax comes back as float64 (bitsandbytes #529: it inherits a default type).",
    **Encoder(peak=lambda x, b: parts.peaks(x, b).astype(np.float64)).both())
CodesInt64 = fault("P1", "The codes come back as int64, as searchsorted returns them (rule P1).",
    quantize_blockwise=then(qloracle.quantize_blockwise,
        lambda codes, absmax: (codes.astype(np.int64), absmax)))
OffsetAsFloat = fault("P1",
    "The offset comes back as a Python float, not as the float32 that it is (rule P1).",
    quantize_absmax=then(qloracle.quantize_absmax,
        lambda codes, scales, offset: (codes, scales, float(offset))))
PhantomScale = fault("P1",
    "An odd number of blocks gets one extra absmax, a zero (bitsandbytes' Triton backend).",
    quantize_4bit=then(qloracle.quantize_4bit, lambda packed, absmax:
        (packed, np.append(absmax, np.zeros(absmax.size % 2, np.float32)))))
TypeIgnored = fault("P1", "The result is float32, whatever type was asked for (rule P1).",
    **Decoder(multiply=lambda levels, scale, _: parts.product(levels, scale, np.float32)).both())
RowOfOne = fault("P1",
    "A vector of even length comes back as a matrix of one row (bitsandbytes #2047).",
    dequantize_4bit=then(qloracle.dequantize_4bit, lambda values:
        values[None] if values.ndim == 1 and values.size % 2 == 0 else values))
ScalarAsVector = fault("P1", "A scalar comes back as a vector of one element (rule P1).",
    dequantize_4bit=then(qloracle.dequantize_4bit, np.atleast_1d))
OneByteTransposed = fault("P1",
    "A matrix packed in one byte comes back transposed (bitsandbytes 0.50.2, dequantize_4bit).",
    dequantize_4bit=then(qloracle.dequantize_4bit, lambda values:
        values.T if values.size in (1, 2) else values))

# ---- P2 to P4: what a call leaves behind for the next one ----------------------------------------
InputOverwritten = fault("P2", "The input is normalised in place: x /= absmax (KernelBench #82).",
    **each(parts.spoiling(lambda x: x // 2),
        "quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise"))
SharedBuffer = fault("P3",
    "Results live in one buffer for each type, which the next call overwrites (unsloth #4026).",
    **each(parts.pooled, "dequantize_4bit", "dequantize_blockwise"))
RacingByte = fault("P4",
    "A race: on every second call the last byte differs (as in bitsandbytes #1061).",
    quantize_4bit=then(qloracle.quantize_4bit, lambda packed, absmax:
        (np.append(packed[:-1], packed[-1:] ^ np.uint8(next(RACES))), absmax)))
SpareNibbleGarbage = fault("P4",
    "The spare nibble holds what lay in memory: the same call gives other bytes (rule P4).",
    quantize_4bit=Encoder(pack=lambda codes: parts.packed_pairs(
        np.append(codes, np.uint8(next(GARBAGE))) if codes.size % 2 else codes)).four_bit)
ScalesRemembered = fault("S7",
    "A cache of decoded weights knows bytes and shape, not the scales (reference-kernels #104).",
    dequantize_4bit=_remembered(lambda packed, absmax: packed.tobytes()))
ShapesRemembered = fault("S7",
    "A result is replayed for every input of its shape and options (reference-kernels #162).",
    dequantize_4bit=_remembered(lambda packed, absmax: (packed.shape, absmax.shape)))
