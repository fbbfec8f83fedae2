"""S4. absmax = max |x| of the block, exact, in float32; 0 stays 0.

The largest of a list needs no rounding, whatever the order of comparison, so equality is demanded.
16-bit input is widened to float32 first.  Judged with the largest element at every position of a
block and of either sign, at every scale from subnormal to the largest float32, on blocks of zeros,
full and short, and on random volume.

A block of zeros stores 0: any other value would be the scale of nothing, and would enter the mean
of a double quantization.
"""

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes import values
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.families.codes.judge import judge_absmax
from qloracle_conformance.judging.checks import Plan, layers
from qloracle_conformance.judging.expected import full_mantissa
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES


def zeros(plan: Plan) -> Iterator[Case]:
    """Blocks of zeros, short and full, alone and beside others."""
    for n in (1, 2, 63, 64, 65, 127, 128, 129):
        yield encode_case(plan.view, np.zeros(n, np.float32), 64, "nothing but zeros")
    for n in (65, 96, 130, 192):
        x = np.ones(n, np.float32)
        x[64:] = 0
        x[0] = 2
        yield encode_case(plan.view, x, 64, "zeros after other blocks")
        yield encode_case(plan.view, -x[::-1].copy(), 64, "zeros, and -0.0, before other blocks")


def positions(plan: Plan) -> Iterator[Case]:
    """The largest element at every position of a full and of a short block, of either sign."""
    for size, blocksize in ((64, 64), (40, 64), (32, 32)):
        eye = np.eye(size, dtype=np.float32) * np.float32(0.7) + np.float32(0.3)
        own = np.arange(1, size + 1) * (1 - 2 * (np.arange(size) % 2))  # sign and scale of a row
        eye = eye * own.astype(np.float32)[:, None]
        if size == blocksize:
            yield encode_case(plan.view, eye, blocksize, "the largest at each place")
        else:
            for row in eye[:: 1 if plan.deep else 3]:
                yield encode_case(plan.view, row, blocksize, "the largest at each place, short")


def scales(plan: Plan) -> Iterator[Case]:
    """Edges of float32 and full mantissas; 16-bit types, all their magnitudes."""
    scale = np.concatenate([values.extremes(), full_mantissa(plan.rng, 64, -100, 100)])
    pattern = np.linspace(-0.9, 0.9, 64, dtype=np.float32)
    pattern[17] = -1
    yield encode_case(plan.view, scale[:, None] * pattern, 64, "edges of the scale")
    for dtype in ("float16", "bfloat16"):
        yield encode_case(plan.view, values.rows_of_all(dtype), 64, f"all {dtype} values")


LAYERS = {"zeros": zeros, "positions": positions, "scales": scales, "volume": values.volume}
CHECKS = (
    *layers("S4", "quantize_4bit", QUANT_TYPES[:2], judge_absmax, LAYERS, judged=(1,)),
    *layers("S4", "quantize_blockwise", MAPS[:1], judge_absmax, LAYERS, judged=(1,)),
)
