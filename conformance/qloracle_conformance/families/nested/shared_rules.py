"""Rules S1, S3 and S5 on nested scales: the default map, and states that cannot be taken apart.

What they demand is said in their own modules; how a round trip shows it, in `roundtrip`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.s01_codebook import undeclared_table
from qloracle_conformance.families.nested import inputs, roundtrip
from qloracle_conformance.families.nested.roundtrip import judge_blocks, judge_values, judge_zeros
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Check, Plan, layers
from qloracle_conformance.judging.compare import Outcome, Values, exact
from qloracle_conformance.judging.views import View


def levels_map(plan: Plan) -> Iterator[Case]:
    """All 256 codes of the default map."""
    codes, one = np.arange(256, dtype=np.uint8), np.ones(1, np.float32)
    yield inputs.codes_case(codes, one, 0.0, "each code of the map")


def judge_map(case: Case, values: Values, view: View) -> Outcome:
    """The pinned signed map, or the declared baseline one."""
    baseline = view.dialect.get("map_8bit") == "baseline" and not undeclared_table(view)
    correct = expected.baseline_map() if baseline else qloracle.dynamic_codebook()
    return exact("absmax", values[0], correct, "the level of this code")


def levels_round_trip(plan: Plan) -> Iterator[Case]:
    """Each level in each of 256 blocks, there and back."""
    yield from inputs.levels(plan.view.levels)


def judge_round_trip(case: Case, values: Values, view: View) -> Outcome:
    """The pinned levels, or those of the declared table, over the scales that are shown."""
    declared = view.dialect if not undeclared_table(view) else {}
    pinned = expected.four_bit_levels(view.table, declared)
    return roundtrip.judge_values(case, values, replace(view, levels=pinned))


ROUND_TRIPS = (
    (1,), (2,), (63,), (65,), (3, 130), (5, 7, 9), (129, 128),
    (16384,), (512, 32), (2048, 8), (4, 4096), (64, 512),
)  # fmt: skip


def round_trips(plan: Plan) -> Iterator[Case]:
    """There and back: blocks of distant scales, in rows that are no multiple of the block."""
    for shape in ROUND_TRIPS:
        blocks = expected.blocks_of(shape, 64)
        x = inputs.scales(blocks.sizes.size)[blocks.index]
        x = np.where(np.arange(x.size) % 3 == 1, -x, x).astype(np.float32).reshape(shape)
        yield inputs.case(x, f"shape {shape}")


def nested_zeros(plan: Plan) -> Iterator[Case]:
    """Blocks of zeros whose coded scale is not zero: beside others, and beside a huge one."""
    for outlier in (1.0, 10.0, 100.0):
        x = np.outer(inputs.scales(), np.linspace(-1, 1, 64)).astype(np.float32)
        x[7], x[100:103] = x[7] * np.float32(outlier), 0
        yield inputs.case(x, "blocks of zeros among others")
    yield inputs.case(np.zeros((256, 64), np.float32), "zeros")


def nested_full(plan: Plan) -> Iterator[Case]:
    """There and back: values for which dividing and multiplying differ; scales below zero."""
    for _ in range(plan.pick(2, 8)):
        x = inputs.row_candidates(plan.rng, plan.view.coder.thresholds, 64)
        yield inputs.case(x, "around the thresholds")
    yield inputs.case(inputs.outlier(), "scales that come back negative")


def nested_halves(plan: Plan) -> Iterator[Case]:
    """There and back: all 16-bit values from -1 to 1."""
    for dtype in ("float16", "bfloat16"):
        yield inputs.case(inputs.all_halves(dtype), f"all {dtype} values")


def nested_volume(plan: Plan) -> Iterator[Case]:
    """There and back: normal weights in all types."""
    for dtype in FLOAT_TYPES.values():
        x = plan.rng.standard_normal((plan.pick(256, 2048), 64)) * 0.02
        yield inputs.case(x.astype(dtype), "random volume")


NESTED = {"full": nested_full, "16bit": nested_halves, "volume": nested_volume}

CHECKS = (
    Check("S1", "map", "dequantize_absmax", levels_map, judge_map),
    Check("S1", "levels", "quantize_nested", levels_round_trip, judge_round_trip, tables=("nf4",)),
    Check("S3", "shapes", "quantize_nested", round_trips, judge_blocks, tables=("nf4",)),
    *layers("S5", "quantize_nested", ("nf4",), judge_values, NESTED),
    *layers("S5", "quantize_nested", ("nf4",), judge_zeros, {"zeros": nested_zeros}),
)
