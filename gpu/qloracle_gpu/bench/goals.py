"""What is aimed at, and whether it was reached: "met", "missed" or "not measured".

A goal names a figure of a case and a limit.  A figure that is not there was not measured; one that
rests on a disturbed measurement was not, either (see `DISTURBED`).

>>> goal = Goal("dequantize", "share of roof", ">=", 0.95)
>>> goal.verdict({"dequantize": {"share of roof": 0.97, "self ratio": 1.0}})
'met'
>>> goal.verdict({"dequantize": {"share of roof": 0.97, "self ratio": 1.2}}), goal.verdict({})
('not measured', 'not measured')
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

Figures = Mapping[str, Mapping[str, float]]  # of each case
DISTURBED = 0.05  # by which a call may differ from itself
SELF = "self ratio"
MET, MISSED, UNKNOWN = "met", "missed", "not measured"


class Goal(NamedTuple):
    """A figure of a case, and the least (">=") or the most ("<=") that it should be."""

    case: str
    figure: str
    sense: str
    limit: float

    def verdict(self, figures: Figures) -> str:
        """Judge what was measured."""
        found = figures.get(self.case, {})
        value, same = found.get(self.figure, math.nan), found.get(SELF, math.nan)
        if not math.isfinite(value) or not abs(same - 1) <= DISTURBED:  # NaN is disturbed, too
            return UNKNOWN
        reached = value >= self.limit if self.sense == ">=" else value <= self.limit
        return MET if reached else MISSED


ROOF, COPY, BNB = "share of roof", "share of copy", "faster than bitsandbytes"
GOALS = (
    Goal("dequantize bfloat16", ROOF, ">=", 0.95),
    Goal("dequantize bfloat16", COPY, ">=", 0.90),
    Goal("dequantize bfloat16", BNB, ">=", 1.5),
    Goal("dequantize nested", "longer than plain", "<=", 1.02),
    Goal("quantize bfloat16", ROOF, ">=", 0.90),
    Goal("product 8 MB, M = 1", ROOF, ">=", 0.25),
    Goal("product 33 MB, M = 1", ROOF, ">=", 0.45),
    Goal("product 67 MB, M = 1", ROOF, ">=", 0.50),
    Goal("product 256 MB, M = 1", ROOF, ">=", 0.70),
    *(
        Goal(f"product {size} MB, M = {m}", "longer than M = 1", "<=", 1.3)
        for size in (8, 33, 67, 256)
        for m in (2, 4, 8, 16)
    ),
    Goal("lora r = 16", "longer than without", "<=", 1.10),
    Goal("adam float32", ROOF, ">=", 0.90),
    Goal("adam float32", "faster than torch fused", ">=", 1.0),
    Goal("adam 8 bits", ROOF, ">=", 0.80),
    Goal("adam 8 bits", BNB, ">=", 1.3),
)
