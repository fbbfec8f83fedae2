"""What a round trip shows: the table, how values are scaled and coded, and how scales are coded."""

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.families.nested import inputs, roundtrip
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.compare import blocks_of
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View

CODING = {
    "normalisation_full": ("divide", "reciprocal"),
    "thresholds": ("midpoint", "nearest", "literal"),
}


def nested(ask: Asker, view: View) -> Found:
    """All fields of `quantize_nested`; later ones are read under what the earlier ones showed."""
    found: Found = {}
    for probe in (_table, _coding, _halves, _scale):
        found |= probe(ask, view)
        view.dialect |= {k: v for k, (v, _) in found.items() if v in BY_NAME[k].values}
    return found


def _ask(ask: Asker, case: Case) -> Float32 | None:
    """The decoded values, flat; None without an answer of the right size."""
    got = ask.values(case)
    if got is None or got[0].size != case.arrays["x"].size:
        return None
    return got[0].reshape(-1).astype(np.float32)


def _table(ask: Asker, view: View) -> Found:
    """Which table explains every level beside every scale; else each level at a scale near 1."""
    case = next(inputs.levels(view.levels))
    got = _ask(ask, case)
    if got is None:
        return {}
    x, blocks = case.arrays["x"], blocks_of(case, view)
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
    got = _ask(ask, inputs.case(x, "scales with an exact mean"))
    if got is None:
        return {}
    shown = got.reshape(256, 64)[:, 0]
    for name, correct in {"dynamic": _dynamic(absmax), "linear": _linear(absmax)}.items():
        if np.array_equal(correct, shown):
            return {"nested_scale": (name, "256 scales with an exact mean agree")}
    wrong = int(np.argmax(_dynamic(absmax) != shown))
    return {"nested_scale": (UNNAMED, f"the scale {absmax[wrong]} comes back as {shown[wrong]}")}


def _dynamic(absmax: Float32) -> Float32:
    return qloracle.dequantize_absmax(*qloracle.quantize_absmax(absmax))


def _linear(absmax: Float32) -> Float32:
    """256 equal steps from -1 to 127/128 of the largest residual."""
    mean = np.float32(absmax.mean(dtype=np.float64))
    residual = absmax - mean
    factor = np.float32(256) / (np.float32(2) * np.abs(residual).max())
    codes = np.clip(np.rint(residual * factor), -128, 127).astype(np.float32)
    return np.asarray(codes / factor + mean, np.float32)
