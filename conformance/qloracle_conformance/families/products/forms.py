"""Rule P5 on products: whole numbers, which no lawful rounding can move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import LINEAR
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.products import inputs
from qloracle_conformance.families.products.s09_products import judge_only_result
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Plan, in_every_form


def product(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a 4-bit layer, with rows and without, with a bias and without."""
    rng, view = plan.rng, plan.view
    for columns, others, lead in ((70, 17, (5,)), (64, 8, (2, 3)), (130, 5, ())):
        shape = inputs.facing(view, columns, others)
        codes = rng.choice(inputs.whole_codes(view), shape[0] * shape[1]).astype(np.uint8)
        weight = inputs.layer(view, codes, expected.f32(1, 2, 4), shape, 64)
        for dtype in FLOAT_TYPES.values():
            x = rng.integers(-3, 4, (*lead, columns)).astype(dtype)
            bias = None if inputs.backward(view) else np.arange(others).astype(dtype)
            yield inputs.call(view, x, weight, f"whole numbers {[*lead, columns]}", bias)
    yield inputs.call(view, np.ones((3, columns), np.float32), weight, "all equal")


CHECKS = tuple(
    check
    for name in LINEAR
    for check in in_every_form(name, product, judge_only_result, tables=("nf4",))
)
