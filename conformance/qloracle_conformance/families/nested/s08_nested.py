"""S8. Double quantization: offset = mean of absmax, r = float32(absmax - offset), r by S4 and S5.

The 8-bit code is that of the signed dynamic map (or the codebook passed in), 256 values a group.
Decoding: float32(level * nested_absmax), then float32(+ offset): two roundings, no clamp, so that a
small absmax may come back negative.  n = 0: offset 0.0.

Offset.  Any order of summing n non-negative numbers makes an error of at most gamma_(n-1) times
the sum (each of n - 1 additions rounds once); the division by n, or the product with a rounded
1/n, adds at most two roundings.  So |offset - mean| <= gamma_(n+1) mean + 2^-150, with
gamma_k = k u / (1 - k u), u = 2^-24.  Sequential summation of equal terms at stagnation
nearly reaches the bound.  For large n it is wide enough to hide an offset in bfloat16, so there are
also data on which every order is exact (small integers times 2^k, n a power of two): there the
offset must be exact to the bit.

Codes and nested_absmax are judged against the implementation's own offset, the decoder against the
codes that it is given, with its own default map or a map passed in.

A state that cannot be taken apart (`quantize_nested`) shows the scale s of a block as the value of
its largest element.  Let a be the block's absmax, m the largest |absmax - mean| of its group, and u
the unit roundoff of the type that is computed in.  The offset may be off by e = (gamma_(n+1) + u)
mean: the same number is taken off and added back, so it moves only the largest residual, to m + e
at most.  Coding moves a residual by at most h (m + e): h = 0.0070313 for the dynamic map (half its
widest gap, and the distance of -1 from its lowest level), or 1/256 for 256 equal steps, 1/128 above
the last one.  Four numbers of at most m + e are rounded on the way: the difference, the quotient
(twice with a reciprocal) and the decoded residual; with the map also its level and its threshold.
So k = 4, or 6.  Then the sum is rounded, and a 16-bit result once more, by u'.  With nine
underflows |s - a| <= (h + k u) (m + e) + (u + u') (a + m + e) + 9 tiny.  A small scale may come
back negative.  The probe names the scheme from scales whose mean is exact: another than the dynamic
map is a finding.  The scales of a layer of tiny weights differ little, so 128 / m, if it is kept in
float16, must not overflow.
"""

import math
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES, GROUP_SIZES
from qloracle_conformance.families.codes import values as values_passed_in
from qloracle_conformance.families.codes.judge import compare_codes
from qloracle_conformance.families.nested import inputs
from qloracle_conformance.families.nested.inputs import codes_case, scales_case
from qloracle_conformance.families.nested.roundtrip import judge_scales
from qloracle_conformance.judging import compare, expected
from qloracle_conformance.judging.bounds import TINY, Bounded, gamma, within
from qloracle_conformance.judging.checks import Check, Plan, in_every_form
from qloracle_conformance.judging.compare import Outcome, Values, exact, under_its_map
from qloracle_conformance.judging.expected import Float32, full_mantissa
from qloracle_conformance.judging.views import View

EDGES = (range(4), range(15, 18), range(62, 67), range(127, 130), range(254, 259), range(511, 514))
SIZES = (*chain(*EDGES), 770)


def group_ramp(rng: np.random.Generator, n: int, group: int = 256) -> Float32:
    """Absmax values whose spread differs from group to group by powers of two."""
    scale = np.ldexp(1.0, -(np.arange(n) // group % 7)) * np.float32(0.02)
    x: NDArray[np.float64] = 0.05 + scale * rng.uniform(-1, 1, n)
    return x.astype(np.float32)


def maps() -> Iterator[Float32]:
    """Maps that a caller may pass in: the baseline map, NF4's levels, three levels."""
    yield expected.baseline_map()
    yield from values_passed_in.maps()[:2]


def groups(plan: Plan) -> Iterator[Case]:
    """Every count around a group's edges, ragged last groups with own scales, other maps."""
    for n in SIZES:
        yield scales_case(group_ramp(plan.rng, n), f"{n} absmax")
    for size in GROUP_SIZES:
        absmax = group_ramp(plan.rng, 5 * size + 3, size)
        yield scales_case(absmax, f"groups of {size}", blocksize=size)
    many = 257 * 256 + 1  # more groups than eight bits can count
    yield scales_case(group_ramp(plan.rng, many), f"{many} absmax")
    for codebook in maps():
        yield scales_case(group_ramp(plan.rng, 600), "a map passed in").with_arrays(
            codebook=codebook
        )


def residuals(plan: Plan) -> Iterator[Case]:
    """Residuals at the outer thresholds, equal values, one large among small, zero blocks."""
    rng, thresholds = plan.rng, plan.view.coder.thresholds
    for size in (256, 255, 64, 512):
        for _ in range(plan.pick(8, 64)):
            absmax = inputs.candidates(rng, thresholds, size)
            yield scales_case(absmax, "residuals near thresholds")
    yield scales_case(np.full(700, 0.1, np.float32), "all equal")
    spike = np.full(257, 0.001, np.float32)
    spike[256] = 1000
    yield scales_case(spike, "one large among small")
    zeros = group_ramp(rng, 300)
    zeros[::5] = 0
    yield scales_case(zeros, "blocks of zeros among others")
    for _ in range(plan.pick(2, 20)):
        x = np.abs(rng.standard_normal((plan.pick(2000, 20000), 8))).max(axis=1)
        yield scales_case(x.astype(np.float32), "absmax of normal blocks")


def judge_nested(case: Case, values: Values, view: View) -> Outcome:
    """nested_absmax and codes, against the implementation's own offset."""
    absmax, size = case.arrays["absmax"], case.options["blocksize"]
    if values[0].size != absmax.size or values[2].size != 1:
        return Outcome(0)
    with np.errstate(all="ignore"):
        offset = np.float32(values[2].reshape(-1)[0].astype(np.float32))
        residual = absmax - (offset if np.isfinite(offset) else np.float32(0))
    blocks = expected.blocks_of((absmax.size,), size)
    correct = expected.absmax_of(residual, blocks, {})
    reason = "the largest |absmax - offset| of the group"
    outcome = exact("nested_absmax", values[1], correct, reason)
    codes, scale = values[0].reshape(-1), compare.own_scales(values[1], correct)
    return outcome + compare_codes(
        "code", codes, residual, scale, blocks, under_its_map(case, view)
    )


def offsets(plan: Plan) -> Iterator[Case]:
    """Ordinary data of many sizes for the bound; integers times 2^k for equality; nothing."""
    rng = plan.rng
    yield scales_case(np.zeros(0, np.float32), "nothing")
    for n in (1, 2, 4, 64, 256, 1024, 4096):
        for power in (-20, 0, 9):
            x = np.ldexp(rng.integers(1, 64, n).astype(np.float32), power)
            yield scales_case(x.astype(np.float32), "integers: every order is exact")
    for n in (3, 7, 100, 1000, plan.pick(5000, 100_003)):
        yield scales_case(rng.uniform(0, 1, n).astype(np.float32), "uniform")
        yield scales_case(np.exp(rng.normal(0, 3, n)).astype(np.float32), "wide")


def judge_offset(case: Case, values: Values, view: View) -> Outcome:
    """The derived bound, or equality where every order of summation is exact."""
    absmax = case.arrays["absmax"].astype(np.float64)
    n = absmax.size
    mean = math.fsum(absmax) / n if n else 0.0
    simple = case.note.startswith("integers") or n == 0
    bound = 0.0 if simple else float(gamma(n + 1)) * mean + TINY["float32"]
    why = "every order of summation is exact here" if simple else f"mean of {n} values"
    return within("offset", values[2], Bounded(*np.array([[mean], [bound]])), lambda _: why)


def decode_groups(plan: Plan) -> Iterator[Case]:
    """Group edges with a scale for each group, negative results, and maps passed in."""
    for n in (*SIZES[1:], 257 * 256 + 1):  # the last: more groups than eight bits can count
        yield decode_case(plan, n)
    for codebook in maps():
        case = decode_case(plan, 600, levels=codebook.size)
        yield case.with_arrays(codebook=codebook)
    for size in GROUP_SIZES:
        yield decode_case(plan, 5 * size + 3, size)


def decode_case(plan: Plan, n: int, size: int = 256, levels: int = 256) -> Case:
    """Random codes; full-mantissa scales of which the largest exceed the offset."""
    rng, groups_ = plan.rng, -(-n // size)
    scale = rng.uniform(0.5, 1, groups_) * 2.0 ** (np.arange(groups_) % 5 - 2)
    codes = rng.integers(0, levels, n).astype(np.uint8)
    note = f"{n} codes, groups of {size}"
    return codes_case(codes, scale.astype(np.float32), 0.7123, note, size)


def decode_volume(plan: Plan) -> Iterator[Case]:
    """Products and sums that two roundings and one rounding tell apart."""
    rng, n = plan.rng, plan.pick(4096, 1 << 18)
    for offset in (0.7123, 1e-3, 17.0, 0.0):
        codes = rng.integers(0, 256, n).astype(np.uint8)
        yield codes_case(codes, full_mantissa(rng, n // 256, -6, 6), offset, "random volume")


def judge_denested(case: Case, values: Values, view: View) -> Outcome:
    """level * nested_absmax + offset, in the dialect's roundings."""
    blocks = expected.blocks_of(case.arrays["codes"].shape, case.options["blocksize"])
    levels = under_its_map(case, view).levels[case.arrays["codes"]]
    scale = case.arrays["nested_absmax"][blocks.index]
    correct = expected.nested_value(levels, scale, float(case.arrays["offset"]), view.dialect)
    return exact("absmax", values[0], correct, "level * nested_absmax + offset, rounded twice")


def round_trips(plan: Plan) -> Iterator[Case]:
    """Scales as weights have them, also tiny ones, equal, one large among small, and steps."""
    rng = plan.rng
    body = rng.uniform(-1, 1, (512, 64))
    body[:, 5] = 1
    kinds = {
        "as weights have them": np.abs(rng.standard_normal(512)) * 0.01 + 0.05,
        "of tiny weights": np.abs(rng.standard_normal(512)) * 0.0002 + 0.0025,
        "all equal": np.full(512, 0.1),
        "one large among small": np.where(np.arange(512) == 77, 100.0, 1.0),
        "steps across groups": np.where(np.arange(512) < 300, 1.0, 3.0) + np.arange(512) % 7 / 50,
    }
    for note, scale in kinds.items():
        for dtype in FLOAT_TYPES.values():
            yield inputs.case((body * scale[:, None]).astype("f4").astype(dtype), note)


# ---- rule P5, on data that no lawful rounding can move -------------------------------------------


def forms_of_scales(plan: Plan) -> Iterator[Case]:
    """Double quantization of a full group, of more than one, and of fewer than a vector's lanes."""
    rng = plan.rng
    for n in (256, 600, 5):
        yield scales_case(group_ramp(rng, n), f"{n} absmax")


def forms_of_codes(plan: Plan) -> Iterator[Case]:
    """The same sizes back."""
    for n in (256, 600, 5):
        yield decode_case(plan, n)


def judge_all(case: Case, values: Values, view: View) -> Outcome:
    """All of S8: offset, scales and codes."""
    return judge_nested(case, values, view) + judge_offset(case, values, view)


CHECKS = (
    Check("S8", "scales", "quantize_nested", round_trips, judge_scales, tables=("nf4",)),
    Check("S8", "groups", "quantize_absmax", groups, judge_nested, (0, 1)),
    Check("S8", "residuals", "quantize_absmax", residuals, judge_nested, (0, 1)),
    Check("S8", "offset", "quantize_absmax", offsets, judge_offset, (2,)),
    Check("S8", "groups", "dequantize_absmax", decode_groups, judge_denested),
    Check("S8", "volume", "dequantize_absmax", decode_volume, judge_denested, directed=False),
    *in_every_form("quantize_absmax", forms_of_scales, judge_all, (0, 1, 2), axes=False),
    *in_every_form("dequantize_absmax", forms_of_codes, judge_denested, axes=False),
)
