"""What double quantization shows: its default map, its roundings, how it scales residuals."""

import itertools
from collections.abc import Iterator

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.families.codes.probe_decoders import name_table
from qloracle_conformance.families.codes.probe_quantizers import name_zero
from qloracle_conformance.families.nested import inputs, roundtrip
from qloracle_conformance.families.nested.s08_nested import judge_denested, judge_nested
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.compare import blocks_of
from qloracle_conformance.judging.expected import full_mantissa
from qloracle_conformance.judging.views import View

TRIALS = 96  # groups at most; most residuals do not distinguish the recipes
TELLING = 8  # groups that do are enough
KINDS = ("normalisation_full", "normalisation_partial")
CODING = {
    "normalisation_full": ("divide", "reciprocal"),
    "thresholds": ("midpoint", "nearest", "literal"),
}


def decoder(ask: Asker, view: View) -> Found:
    """The default map of `dequantize_absmax`, and whether it rounds twice."""
    found, rng = _map(ask, view), np.random.default_rng(11)
    codes = rng.integers(0, 256, 1024).astype(np.uint8)
    case = inputs.codes_case(codes, full_mantissa(rng, 4, -2, 2), 0.7123)
    return found | ask.explain(view, ["decode"], [case], judge_denested)


def _map(ask: Asker, view: View) -> Found:
    """Every code at nested_absmax 1 and offset 0; the view takes over the map that it shows."""
    one, every = np.ones(1, np.float32), np.arange(256, dtype=np.uint8)
    got = ask.first(inputs.codes_case(every, one, 0.0), 256)
    if got is None:
        return {}
    named = {"baseline": expected.baseline_map()}
    return name_table(view, "map_8bit", got.astype(np.float32), view.levels, named)


def quantizer(ask: Asker, view: View) -> Found:
    """The code of a zero group, and how residuals are scaled."""
    found = _zero_group(ask, view)
    for name, size in (("normalisation_full", 256), ("normalisation_partial", 255)):
        cases = itertools.islice(_telling(view, size), TELLING)
        found |= ask.explain(view, [name], cases, judge_nested, {name: ("divide", "reciprocal")})
    return found


def _zero_group(ask: Asker, view: View) -> Found:
    """One absmax is its own mean: the residual, and so the group, is zero."""
    got = ask.values(inputs.scales_case(np.ones(1, np.float32)))
    if got is None or got[0].size != 1 or got[1].size != 1 or got[1].reshape(-1)[0] != 0:
        return {}
    return name_zero(view, int(view.coder.ranks_of(got[0].reshape(-1))[0]), "group")


def _telling(view: View, size: int) -> Iterator[Case]:
    """Groups with residuals that get another code when they are multiplied than when divided."""
    rng, blocks = np.random.default_rng(13), expected.blocks_of((size,), 256)
    for _ in range(TRIALS):
        absmax = inputs.candidates(rng, view.coder.thresholds, size)
        residual = absmax - np.float32(1)  # the mean
        scale = expected.absmax_of(residual, blocks, {})
        divided, multiplied = (
            view.coder.ranks(expected.scaled(residual, scale, blocks, dict.fromkeys(KINDS, how)))
            for how in ("divide", "reciprocal")
        )
        if (divided != multiplied).any():
            yield inputs.scales_case(absmax)


# ---- what a round trip shows of states that cannot be taken apart -------------------------------


def nested(ask: Asker, view: View) -> Found:
    """All fields of `quantize_nested`."""
    return ask.in_turn(view, _table, _coding, _halves, _scale)


def _table(ask: Asker, view: View) -> Found:
    """Which table explains every level beside every scale; else each level at a scale near 1."""
    case = next(inputs.levels(view.levels))
    x, blocks = case.arrays["x"], blocks_of(case, view)
    got = ask.first(case, x.size)
    if got is None:
        return {}
    got = got.astype(np.float32)
    scale = roundtrip.shown_scales(x, got, roundtrip.leads(x.reshape(-1), blocks))
    for name in BY_NAME["codebook"].values:
        table = expected.four_bit_levels("nf4", {"codebook": name})
        if np.array_equal(np.outer(scale, np.resize(table, 64)).astype("f4").reshape(-1), got):
            view.levels = table
            wrong = np.count_nonzero(table != qloracle.nf4_codebook())
            return {"codebook": (name, f"{wrong} of 16 levels differ from the pinned bits")}
    with np.errstate(all="ignore"):
        ratio = (got[:16] / scale[0]).astype(np.float32)
    if np.isfinite(ratio).all() and (np.diff(ratio) > 0).all():
        view.levels = ratio
    return {"codebook": (UNNAMED, "the levels over the block's largest are no named table's")}


def _coding(ask: Asker, view: View) -> Found:
    """Which normalisation and which thresholds explain float32 values around every threshold."""
    rng = np.random.default_rng(17)
    x = inputs.row_candidates(rng, view.coder.thresholds, 96)
    case = inputs.case(x, "around the thresholds")
    return ask.explain(view, list(CODING), [case], roundtrip.judge_values, CODING)


def _halves(ask: Asker, view: View) -> Found:
    """Whether 16-bit values are scaled, coded and decoded in their own type."""
    for dtype in ("bfloat16", "float16"):
        cases = [inputs.case(inputs.all_halves(dtype), f"all {dtype} values up to 1")]
        cases += [c for c in inputs.levels(view.levels) if c.arrays["x"].dtype.name == dtype]
        found = ask.explain(view, ["input_type", "decode"], cases, roundtrip.judge_values)
        if found:
            return found
    return {}


def _scale(ask: Asker, view: View) -> Found:
    """Scales whose mean is exact in any order: which scheme gives those that are shown."""
    absmax = np.resize(expected.f32(1, 2, 4, 5, 7, 10, 13, 22), 256)  # mean 8, r from -7 to 14
    x = np.zeros((256, 64), np.float32)
    x[:, 0] = absmax
    got = ask.first(inputs.case(x, "scales with an exact mean"), x.size)
    if got is None:
        return {}
    shown = got.reshape(256, 64)[:, 0].astype(np.float32)
    for name, scheme in {"dynamic": roundtrip.dynamic, "linear": roundtrip.linear}.items():
        if np.array_equal(scheme(absmax), shown):
            return {"nested_scale": (name, "256 scales with an exact mean agree")}
    wrong = int(np.argmax(roundtrip.dynamic(absmax) != shown))
    return {"nested_scale": (UNNAMED, f"the scale {absmax[wrong]} comes back as {shown[wrong]}")}
