"""S5. code = number of thresholds t[i] with q > t[i], q = x / absmax in one float32 division.

A tie takes the lower code.  absmax = 0: q is +0 for the whole block, so a block of zeros is code 7
in NF4; with a nested absmax any other code would decode to non-zero.  FP4: m = |q| is coded on the
magnitudes, bit 3 = (q < 0), and codes 0 and 8 are one level.

Codes are judged on the implementation's own absmax.  Multiplying by the rounded reciprocal gives
other numbers than dividing, and is lawful: the probe finds it (separately for full and for short
blocks), it is printed, and from then on demanded exactly.  Judged at full-mantissa scales on values
for which the two differ, on all 65,536 values of both 16-bit types, on blocks of zeros, on small
edits drawn by Hypothesis, and on random volume.

Where a state cannot be taken apart (`quantize_nested`), the largest element of a block shows the
scale, and every other value must be its level times that scale; a block of zeros must decode to
zeros, although its scale may not be zero.
"""

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes import edits, values
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.families.codes.judge import judge_codes
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Plan, layers
from qloracle_conformance.judging.expected import f32
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES


def full_scales(plan: Plan) -> Iterator[Case]:
    """Full blocks of all sizes at scales where x / a and x * (1 / a) fall on different sides."""
    count = plan.pick(64, 256)
    x, scale = values.discriminating(plan.rng, plan.view.coder.thresholds, count)
    for blocksize in (64, 32, 128, 256, 1024, 4096):
        yield encode_case(plan.view, values.anchored(x, scale, blocksize), blocksize, "full blocks")
    x, scale = values.discriminating(plan.rng, plan.view.coder.thresholds, count, -120, 120)
    yield encode_case(plan.view, values.anchored(x, scale, 64), 64, "full blocks, all binades")


def partial_scales(plan: Plan) -> Iterator[Case]:
    """The same values in a short block, alone and after full ones."""
    x, scale = values.discriminating(plan.rng, plan.view.coder.thresholds, 64)
    size = min(x.shape[1] + 1, 1290)
    rows = values.anchored(x, scale, size)
    blocksize = next(b for b in (128, 256, 512, 1024, 2048, 4096) if b > size)
    for row in rows[:64]:
        yield encode_case(plan.view, row, blocksize, "a short block")
    tail = np.concatenate([np.ones(blocksize, np.float32), rows[0]])
    yield encode_case(plan.view, tail, blocksize, "a short block after a full one")


def halves(plan: Plan) -> Iterator[Case]:
    """All finite values of both 16-bit types: beside scales of their own size, and beside 1."""
    for dtype in ("float16", "bfloat16"):
        yield encode_case(plan.view, values.rows_of_all(dtype), 64, f"all {dtype} values")
        for lead in (1.0, 1.5, 1975.0):
            kept = np.clip(values.up_to_one(dtype) * np.float32(lead), -lead, lead)
            row = kept.astype(FLOAT_TYPES[dtype]).astype(np.float32)[None, :]
            blocks = values.anchored(row, f32(lead), 64)
            yield encode_case(plan.view, blocks.astype(FLOAT_TYPES[dtype]), 64, f"beside {lead}")


def zeros(plan: Plan) -> Iterator[Case]:
    """Blocks of zeros, also with a minus sign, full and short, beside a block that is not zero."""
    for n in (1, 2, 64, 65, 100, 128):
        for zero in (0.0, -0.0):
            yield encode_case(plan.view, np.full(n, zero, np.float32), 64, "zeros")
    x = np.zeros((3, 64), np.float32)
    x[1] = np.linspace(-1, 1, 64, dtype=np.float32)
    yield encode_case(plan.view, x, 64, "a block between two of zeros")


def other_maps(plan: Plan) -> Iterator[Case]:
    """Maps of fewer than 256 levels, passed in: their thresholds, and values between them."""
    one = np.ones(1, np.float32)
    for codebook in values.maps():
        thresholds = expected.coder(codebook, plan.view.dialect).thresholds
        between = plan.rng.uniform(-1, 1, (1, 200)).astype(np.float32)
        x = np.concatenate([values.around(thresholds, one), between], axis=1)
        x = values.anchored(x, one, 64)
        case = encode_case(plan.view, x, 64, f"a map of {codebook.size} levels")
        yield case.with_arrays(codebook=codebook)


def edges_of_scale(plan: Plan) -> Iterator[Case]:
    """Subnormal to huge scales, each block a linear ramp and a few thresholds."""
    scale = values.extremes()
    thresholds = np.resize(plan.view.coder.thresholds, (1, 30))
    ramp = np.linspace(-1, 1, 32, dtype="f4")
    x = np.concatenate([scale[:, None] * ramp, scale[:, None] * thresholds], axis=1)
    x = values.anchored(x.astype(np.float32), scale, 64)
    yield encode_case(plan.view, x, 64, "edges of the scale")
    for row in x:
        yield encode_case(plan.view, row[:63], 64, "edges of the scale, short block")


LAYERS = {
    "zeros": zeros,
    "full": full_scales,
    "partial": partial_scales,
    "16bit": halves,
    "extremes": edges_of_scale,
    "volume": values.volume,
}
CHECKS = (
    *layers("S5", "quantize_4bit", QUANT_TYPES, judge_codes, LAYERS, search=edits.encoded),
    *layers("S5", "quantize_blockwise", MAPS, judge_codes, LAYERS, search=edits.encoded),
    *layers("S5", "quantize_blockwise", MAPS[:1], judge_codes, {"maps": other_maps}),
)
