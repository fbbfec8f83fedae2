"""S1. Codebooks are pinned by their float32 bits, each with a derivation that reproduces them.

NF4: 16 values, the quantiles of a normal distribution on a float32 grid from 0.9677083 to 0.5,
divided by the largest.  FP4: bitsandbytes' table.  INT4: k/7, k = -7..7.  The 8-bit dynamic maps:
midpoints of a float32 grid 0.1..1 in each of seven decades.  `qloracle.codebook` derives them.

Judged by decoding every code at absmax = 1, where the product is the level itself; for the 8-bit
maps, at nested_absmax = 1 and offset = 0; and where a state cannot be taken apart, by a round trip
of every level beside 256 scales, each value over what its block's largest comes back as.

Another table is a finding with its name; the other rules are then judged under the table that was
found, so that one wrong level is one failure.
"""

from collections.abc import Iterator

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.cases import bytes_case
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.compare import Outcome, Values, exact
from qloracle_conformance.judging.expected import f32
from qloracle_conformance.judging.views import QUANT_TYPES, View


def levels_four_bit(plan: Plan) -> Iterator[Case]:
    """Each code in both nibbles of a byte, so that the nibble order cannot matter."""
    levels = qloracle.codebook(plan.view.table)
    packed = np.resize(np.arange(levels.size, dtype=np.uint8) * np.uint8(17), 32)
    for dtype in FLOAT_TYPES:
        yield bytes_case(plan.view, packed, f32(1), 64, dtype, "each code at absmax 1")


def judge_levels(case: Case, values: Values, view: View) -> Outcome:
    """The pinned bits, or those of the declared table."""
    declared = view.dialect if not undeclared_table(view) else {}
    levels = expected.four_bit_levels(view.table, declared)
    codes = expected.unpack(case.arrays["packed"], 64, "high_first")
    correct = expected.round_to(levels[codes], case.options["dtype"])
    return exact("values", values[0].reshape(-1), correct, "the level's pinned bits")


def undeclared_table(view: View) -> bool:
    """Whether the table that the probe found is a finding: then S1's own is demanded."""
    return any(finding.field in ("codebook", "map_8bit") for finding in view.findings)


CHECKS = (
    Check("S1", "levels", "dequantize_4bit", levels_four_bit, judge_levels, tables=QUANT_TYPES),
)
