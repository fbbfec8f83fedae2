"""P5. Arrays in any form: a result does not depend on how its inputs lie in memory, nor on where.

An implementation that takes the arrays of torch or CuPy is also handed views: *strided* (every
second element of a larger array), *transposed* (the axes lie in the opposite order), *offset* (64
elements into their memory: who reads the storage from its start reads something else), *unaligned*
(one element into it: who loads 16 bytes at a time must not) and *expanded* (equal elements that are
one in memory: who reads the next one reads what is not the tensor's).  On a GPU of torch the same
calls are made on a *side_stream*, on which the inputs arrive late, and on a *second_device*
that is not the current one, if there is one.  The memory around a view must not change (P2).

A function that takes `out` is called with buffers for it (of several results a tuple) that hold
other bits before: they must hold the results afterwards, and what is returned, if anything, must be
the same.

Every array of the call has the form.  The data are those of S3 and S8, whose results no lawful
rounding can move; what is wrong in the plain form as well is left to the rule that found it there.
An implementation that refuses views declares so: ``limits = {"views": []}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qloracle_conformance.cases import Case
from qloracle_conformance.checks import Check, Plan
from qloracle_conformance.judging import Judge, Outcome, Values, judge_decoded, judge_encoded
from qloracle_conformance.process.frameworks import FORMS
from qloracle_conformance.protocol import FLOAT_TYPES
from qloracle_conformance.rules import s03_blocks as s3
from qloracle_conformance.rules import s08_nested as s8
from qloracle_conformance.rules.s02_thresholds import encode_case
from qloracle_conformance.views import View

SHAPES = ((192,), (2, 128), (3, 130), (5, 7, 9), (128, 128))
BLOCKSIZES = (64, 256)


def encode(plan: Plan) -> Iterator[Case]:
    """Quantize arrays of one to three axes, with a short last block or without."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            x = s3.ramp(plan, shape, blocksize)
            for dtype in FLOAT_TYPES.values():
                yield encode_case(plan, x.astype(dtype), blocksize, f"shape {shape}")
    equal = np.full((5, 70), plan.view.levels.max(), np.float32)
    yield encode_case(plan, equal, 64, "all equal")


def decode(plan: Plan) -> Iterator[Case]:
    """Decode into the same shapes and types."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            for dtype in FLOAT_TYPES:
                yield s3.decode_case(plan, shape, blocksize, dtype, f"shape {shape}")
    case = s3.decode_case(plan, (5, 70), 64, "float32", "all scales equal")
    yield case.with_arrays(absmax=np.full_like(case.arrays["absmax"], 3))


def encode_nested(plan: Plan) -> Iterator[Case]:
    """Double quantization of a full group, of more than one, and of fewer than a vector's lanes."""
    for n in (256, 600, 5):
        yield s8.quantize_case(s8.group_ramp(plan.rng, n), f"{n} absmax")
    yield s8.quantize_case(np.full(70, 0.5, np.float32), "all equal")


def decode_nested(plan: Plan) -> Iterator[Case]:
    """The same sizes back."""
    for n in (256, 600, 5):
        yield s8.decode_case(plan, n, 256, None)
    case = s8.decode_case(plan, 600, 256, None)
    yield case.with_arrays(nested_absmax=np.full(3, 0.5, np.float32))


def judge_nested(case: Case, values: Values, view: View) -> Outcome:
    """All of S8: offset, scales and codes."""
    return s8.judge_nested(case, values, view) + s8.judge_offset(case, values, view)


def _checks(
    function: str,
    table: str,
    cases: Callable[[Plan], Iterator[Case]],
    judge: Judge,
    judged: tuple[int, ...] = (0,),
) -> list[Check]:
    tables = (table,) if table else ()
    forms = [form for form in FORMS if form != "transposed" or cases is encode]  # one axis has none
    return [
        Check("P5", form, function, cases, judge, judged, tables, directed=False, form=form)
        for form in forms
    ]


CHECKS = (
    *_checks("quantize_4bit", "nf4", encode, judge_encoded, (0, 1)),
    *_checks("dequantize_4bit", "nf4", decode, judge_decoded),
    *_checks("quantize_blockwise", "signed", encode, judge_encoded, (0, 1)),
    *_checks("dequantize_blockwise", "signed", decode, judge_decoded),
    *_checks("quantize_absmax", "", encode_nested, judge_nested, (0, 1, 2)),
    *_checks("dequantize_absmax", "", decode_nested, s8.judge_denested),
)
