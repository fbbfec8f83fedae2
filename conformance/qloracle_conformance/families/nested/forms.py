"""Rule P5 on nested scales: the data of S8."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.nested import s08_nested as s8
from qloracle_conformance.judging.checks import Plan, in_every_form
from qloracle_conformance.judging.compare import Outcome, Values
from qloracle_conformance.judging.views import View


def encode(plan: Plan) -> Iterator[Case]:
    """Double quantization of a full group, of more than one, and of fewer than a vector's lanes."""
    for n in (256, 600, 5):
        yield s8.quantize_case(s8.group_ramp(plan.rng, n), f"{n} absmax")
    yield s8.quantize_case(np.full(70, 0.5, np.float32), "all equal")


def decode(plan: Plan) -> Iterator[Case]:
    """The same sizes back."""
    for n in (256, 600, 5):
        yield s8.decode_case(plan, n, 256, None)
    case = s8.decode_case(plan, 600, 256, None)
    yield case.with_arrays(nested_absmax=np.full(3, 0.5, np.float32))


def judge_all(case: Case, values: Values, view: View) -> Outcome:
    """All of S8: offset, scales and codes."""
    return s8.judge_nested(case, values, view) + s8.judge_offset(case, values, view)


CHECKS = (
    *in_every_form("quantize_absmax", encode, judge_all, (0, 1, 2), axes=False),
    *in_every_form("dequantize_absmax", decode, s8.judge_denested, axes=False),
)
