"""Calls of a quantizer or a decoder under the table of a view."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Arrays, Case
from qloracle_conformance.families.codes.shapes import Shape
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Plan


def encode_case(plan: Plan, x: np.ndarray, blocksize: int, note: str = "") -> Case:
    """A quantizer's call on x for the view of a plan."""
    view = plan.view
    if view.quant_type:
        options = {"blocksize": blocksize, "quant_type": view.table}
        return Case("quantize_4bit", {"x": x}, options, note)
    arrays = {"x": x, "codebook": view.levels}
    return Case("quantize_blockwise", arrays, {"blocksize": blocksize}, note)


def packed_case(
    plan: Plan, codes: NDArray[np.uint8], scale: NDArray[np.float32], shape: Shape,
    blocksize: int, dtype: str, note: str = "",
) -> Case:  # fmt: skip
    """A decoder's call on codes, packed where the function takes packed bytes."""
    view = plan.view
    options: dict[str, Any] = {"shape": list(shape), "blocksize": blocksize, "dtype": dtype}
    if view.quant_type:
        packed = expected.pack(codes, view.dialect["nibble_order"])
        four_bit: Arrays = {"packed": packed, "absmax": scale}
        return Case("dequantize_4bit", four_bit, options | {"quant_type": view.table}, note)
    coded: Arrays = {"codes": codes, "absmax": scale, "codebook": view.levels}
    return Case("dequantize_blockwise", coded, options, note)
