"""Steps of L0 that only its own mutants share: one table, one type or one factor replaced."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.parts import Array, Levels, Multiply, Scale, Step


def levels_with(**tables: Array) -> Levels:
    """Tables by name, some of them replaced."""
    return lambda name: tables[name] if name in tables else qloracle.codebook(name)


def with_entry(table: Array, place: int, value: float) -> Array:
    """Copy a table and replace one entry."""
    changed = table.copy()
    changed[place] = value
    return changed


def by_inverse(inverse: Callable[[Array], Array]) -> Scale:
    """Scaling by an inverse of the absmax of one's own making; +0 stays +0."""

    def scale(flat: Array, absmax: Array, blocksize: int) -> Array:
        factor = parts.spread(inverse(absmax), flat.size, blocksize)
        return np.where(flat == 0, np.float32(0), flat * factor)

    return scale


def in_nf4(code: Callable[[Array], Array]) -> parts.Count:
    """NF4's codes found in another way; FP4's as ever."""
    return lambda q, thresholds: code(q) if thresholds.size == 15 else parts.counted(q, thresholds)


def fp4_encoder(quantize_fp4: Step) -> Step:
    """Build quantize_4bit out of another quantizer of FP4."""

    def quantize_4bit(x: Array, *, quant_type: str = "nf4", **options: Any) -> Any:
        quantize = quantize_fp4 if quant_type == "fp4" else qloracle.quantize_4bit
        return quantize(x, quant_type=quant_type, **options)

    return quantize_4bit


def only_for(narrow: DTypeLike, change: Callable[[Array], Array]) -> Multiply:
    """S7 with the float32 product changed where it is to be rounded to this type."""

    def multiply(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
        values = levels * scale
        return (change(values) if dtype == narrow else values).astype(dtype)

    return multiply


def cut_to_bfloat16(values: Array) -> Array:
    """Keep bfloat16's bits of float32 and drop the others."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
