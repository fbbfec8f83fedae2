"""Rule P5 on optimizers: ordinary steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam import inputs
from qloracle_conformance.families.adam import s11_adam as s11
from qloracle_conformance.families.adam import s11b_adam_8bit as s11b
from qloracle_conformance.judging.checks import Plan, in_every_form


def step(plan: Plan) -> Iterator[Case]:
    """A step of Adam on vectors and matrices, and on equal numbers."""
    for shape in ((257,), (33, 17), (4, 128)):
        for types in (("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")):
            case = inputs.ordinary(plan.rng, shape, f"shape {shape}", step=3, weight_decay=0.1)
            yield inputs.typed(case, *types)
    one, half = np.ones((4, 128), np.float32), np.full((4, 128), 0.5, np.float32)
    yield inputs.stepped(one, half, half, half, "all equal", step=3)


def step_8bit(plan: Plan) -> Iterator[Case]:
    """The same on 8-bit states, of one block and of a few."""
    for shape in ((257,), (256,), (33, 17), (4, 256)):
        yield inputs.ordinary_8bit(plan.rng, shape, f"shape {shape}", step=3)
    one, zero = np.ones((2, 256), np.float32), inputs.fresh(512)
    yield inputs.coded(one, one, zero, "all equal")


CHECKS = (
    *in_every_form("adam_step", step, s11.judge_all, (0, 1, 2)),
    *in_every_form("adam_step_8bit", step_8bit, s11b.judge_all, (0, 1, 2, 3, 4)),
)
