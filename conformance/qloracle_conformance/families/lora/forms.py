"""Rule P5 on LoRA layers: whole numbers, which no lawful rounding can move."""

from __future__ import annotations

from collections.abc import Iterator

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import LORA
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.lora import inputs
from qloracle_conformance.families.lora.s10_lora import TABLES, judge_only_results
from qloracle_conformance.judging.checks import Plan, in_every_form


def adapter(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a LoRA layer, with a mask and without."""
    for dtype in FLOAT_TYPES:
        for masked in (False, True):
            yield inputs.whole(plan.rng, plan.view, (12, 5, 2, (4,), 2, 1), dtype, masked)
            yield inputs.whole(plan.rng, plan.view, (70, 17, 2, (2, 3), 1, 1), "float32", masked)


CHECKS = tuple(
    check
    for name in LORA
    for check in in_every_form(name, adapter, judge_only_results, tables=TABLES[name])
)
