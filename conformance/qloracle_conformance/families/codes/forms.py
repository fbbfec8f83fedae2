"""Rule P5 on quantizers and decoders: the data of S3, which no lawful rounding can move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.families.codes.judge import judge_decoded, judge_encoded
from qloracle_conformance.families.codes.s03_blocks import decode_case, ramp
from qloracle_conformance.judging.checks import Plan, in_every_form

SHAPES = ((192,), (2, 128), (3, 130), (5, 7, 9), (128, 128))


BLOCKSIZES = (64, 256)


def encode(plan: Plan) -> Iterator[Case]:
    """Quantize arrays of one to three axes, with a short last block or without."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            x = ramp(plan, shape, blocksize)
            for dtype in FLOAT_TYPES.values():
                yield encode_case(plan.view, x.astype(dtype), blocksize, f"shape {shape}")
    equal = np.full((5, 70), plan.view.levels.max(), np.float32)
    yield encode_case(plan.view, equal, 64, "all equal")


def decode(plan: Plan) -> Iterator[Case]:
    """Decode into the same shapes and types."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            for dtype in FLOAT_TYPES:
                yield decode_case(plan, shape, blocksize, dtype, f"shape {shape}")
    case = decode_case(plan, (5, 70), 64, "float32", "all scales equal")
    yield case.with_arrays(absmax=np.full_like(case.arrays["absmax"], 3))


ENCODED = (encode, judge_encoded, (0, 1))
DECODED = (decode, judge_decoded, (0,))
CHECKS = (
    *in_every_form("quantize_4bit", *ENCODED, ("nf4",)),
    *in_every_form("dequantize_4bit", *DECODED, ("nf4",), axes=False),
    *in_every_form("quantize_blockwise", *ENCODED, ("signed",)),
    *in_every_form("dequantize_blockwise", *DECODED, ("signed",), axes=False),
)
