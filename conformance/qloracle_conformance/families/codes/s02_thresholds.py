"""S2. Thresholds are float32 midpoints: t[i] = float32((c[i] + c[i+1]) / 2); only q > t[i] counts.

A tie takes the lower code.  (FP4: on the eight magnitudes.)  Judged at power-of-two absmax from
2^-149 to 2^127, where x / absmax and x * (1 / absmax) are the same number, so that nothing but the
threshold can move a code: every threshold and its neighbours up to 2 ulps, every level, zero.

Other sets are dialects if they have a name (nearest, literal, cuda); a set without a name fails
here, and `>=` is not a dialect.
"""

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes import values
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.families.codes.judge import judge_codes
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.expected import Float32, unordered
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES


def candidates(plan: Plan, scale: Float32) -> Float32:
    """Thresholds +-2 ulps, levels and zero, at each scale."""
    coder = plan.view.coder
    levels = scale[:, None] * coder.levels[None, :]
    zeros = np.zeros((scale.size, 1), np.float32)
    return np.concatenate([zeros, values.around(coder.thresholds, scale), levels], axis=1)


def at_powers(plan: Plan) -> Iterator[Case]:
    """All candidates at every power of two, the simplest scale first."""
    one = np.ones(1, np.float32)
    x = values.anchored(candidates(plan, one), one, 64)
    yield encode_case(plan.view, x, 64, "thresholds at 1")
    many = plan.view.coder.thresholds.size > 15
    exponents = values.NORMAL_POWERS[:: 8 if many and not plan.deep else 1]
    for powers in (exponents, values.SUBNORMAL_POWERS):
        scale = values.powers(powers)
        x = values.anchored(candidates(plan, scale), scale, 64)
        yield encode_case(plan.view, x, 64, "thresholds at powers of two")


def all_of_float32(plan: Plan) -> Iterator[Case]:
    """Every float32 in [-1, 1] at absmax 1."""
    last, step = 0x3F800000, 63 << 15
    for start in range(-last, last + 1, step):
        q = unordered(np.arange(start, min(start + step, last + 1), dtype=np.int64))
        x = values.anchored(q[None, :], np.ones(1, np.float32), 64)
        yield encode_case(plan.view, x, 64, "all")


CHECKS = (
    Check("S2", "powers", "quantize_4bit", at_powers, judge_codes, tables=QUANT_TYPES),
    Check("S2", "all-float32", "quantize_4bit", all_of_float32, judge_codes, tables=("nf4",),
          directed=False, profiles=("exhaustive",)),
    Check("S2", "powers", "quantize_blockwise", at_powers, judge_codes, tables=MAPS),
)  # fmt: skip
