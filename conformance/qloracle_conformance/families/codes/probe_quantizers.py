"""What quantizers show: nibble order, layout, absmax, zero blocks, thresholds, normalisation."""

import numpy as np

from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes import values
from qloracle_conformance.families.codes.cases import encode, encode_case, typed_case
from qloracle_conformance.families.codes.judge import judge_absmax, judge_codes, judge_encoded
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.expected import Float32, f32, full_mantissa
from qloracle_conformance.judging.views import View, specified_levels


def four_bit(ask: Asker, view: View) -> Found:
    """All fields of `quantize_4bit`."""
    return ask.in_turn(view, _nibble_order, blockwise)


def blockwise(ask: Asker, view: View) -> Found:
    """The fields of both quantizers."""
    found = ask.in_turn(view, _layout, _absmax_type, _zero_block, _thresholds, _subnormals)
    if found.get("thresholds", (UNNAMED, ""))[0] != UNNAMED:
        found |= ask.in_turn(view, _normalisation, _input_type)
    return found


def _nibble_order(ask: Asker, view: View) -> Found:
    case = typed_case(ask, view, np.resize(f32(1, -1), 64))
    got = ask.values(case)
    if got is None or not got[0].size:
        return {}
    byte = int(got[0].reshape(-1)[0])
    high, low = view.coder.ranks_of(np.array([byte >> 4, byte & 15]))
    if high == low:
        return {}
    order = "high_first" if high > low else "low_first"
    return {"nibble_order": (order, f"[1, -1, ...] packs to 0x{byte:02x}")}


def _layout(ask: Asker, view: View) -> Found:
    """Rows of 40 in blocks of 64: two absmax if blocks run on, three if rows restart them."""
    x = np.repeat(f32(1, 2, 4), 40).reshape(3, 40)
    got = ask.values(typed_case(ask, view, x, 64))
    if got is None or got[1].size not in (2, 3):
        return {}
    layout = "flat" if got[1].size == 2 else "per_row"
    return {"layout": (layout, f"rows of 40 in blocks of 64 give {got[1].size} absmax")}


def _absmax_type(ask: Asker, view: View) -> Found:
    """16 blocks whose scales have full mantissas, as far as the input's type can hold them."""
    x = full_mantissa(np.random.default_rng(3), 16, -3, 3).repeat(ask.blocksize(view))
    case = typed_case(ask, view, x.reshape(16, -1))
    return ask.explain(view, ["absmax_type"], [case], judge_absmax)


def _zero_block(ask: Asker, view: View) -> Found:
    got = encode(ask, view, np.zeros(ask.blocksize(view), np.float32))
    return {} if got is None else name_zero(view, int(got[0][0]), "block")


def name_zero(view: View, rank: int, what: str) -> Found:
    """Name the code that zeros were given; where two names mean one level, the declared one."""
    coder, declared = view.coder, view.dialect["zero_block"]
    fitting = [n for n in BY_NAME["zero_block"].values if coder.zero_rank(n) == rank]
    name = declared if declared in fitting else [*fitting, UNNAMED][0]
    code = coder.code_of(rank) if rank >= 0 else "outside the table"
    return {"zero_block": (name, f"a zero {what} has code {code}")}


# ---- thresholds ----------------------------------------------------------------------------------


def _thresholds(ask: Asker, view: View) -> Found:
    """Name the thresholds under the decoder's table or, if they have no name there, under S1's.

    A decoder with one wrong level does not make its quantizer wrong.
    """
    found = _named_thresholds(ask, view)
    shown, pinned = view.levels, specified_levels(view.table)
    if found.get("thresholds", ("", ""))[0] == UNNAMED and not np.array_equal(shown, pinned):
        view.levels = pinned
        again = _named_thresholds(ask, view)
        if again["thresholds"][0] != UNNAMED:
            return again
        view.levels = shown
    return found


def _named_thresholds(ask: Asker, view: View) -> Found:
    """Bisect every threshold, and name the set."""
    thresholds = _bisect(ask, view)
    if thresholds is None:
        return {}
    table, quant_type = view.levels.tobytes(), view.quant_type
    for ties in BY_NAME["fp4_ties"].values if quant_type == "fp4" else ("",):
        for name, named in expected.named_thresholds(
            table, quant_type, ties or "toward_zero"
        ).items():
            flushed = (named == 0) & (np.abs(thresholds) < expected.SMALLEST_NORMAL)
            if np.array_equal(named, np.where(flushed, named, thresholds)):
                found: Found = {"thresholds": (name, f"all {thresholds.size} bisected")}
                return found | ({"fp4_ties": (ties, "negative midpoints")} if ties else {})
    middle = expected.named_thresholds(table, quant_type, "toward_zero")["midpoint"]
    off = expected.ordered(thresholds) - expected.ordered(middle)
    worst = int(np.argmax(np.abs(off)))
    count = int((off != 0).sum())
    example = f"t[{worst}] is {thresholds[worst]} ({off[worst]:+,} ulp)"
    why = f"{count} of {thresholds.size} differ, {example}"
    return {"thresholds": (UNNAMED, why)}


def _bisect(ask: Asker, view: View) -> Float32 | None:
    """The largest float32 whose code is still the lower one, for each threshold, at absmax 1."""
    count = view.coder.thresholds.size
    low = np.full(count, expected.ordered(f32(-1))[0])
    high = -low
    while (high - low > 1).any():
        middle = (low + high) // 2
        x = values.anchored(expected.unordered(middle)[None, :], f32(1), ask.blocksize(view))
        got = encode(ask, view, x)
        if got is None:
            return None
        above = got[0].reshape(x.shape)[:, 1:].reshape(-1)[:count] > np.arange(count)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return expected.unordered(low)


# ---- arithmetic ----------------------------------------------------------------------------------


def _subnormals(ask: Asker, view: View) -> Found:
    """A subnormal beside a normal number, then blocks whose absmax itself is subnormal."""
    lead = f32(2.0**-126, 1.1e-38, 2.0**-127, 2.0**-130, 2.0**-140)
    x = np.zeros((lead.size, ask.blocksize(view)), np.float32)
    x[:, 0], x[:, 1] = lead, lead / 2
    beside, below = ([typed_case(ask, view, rows)] for rows in (x[:1], x[1:]))
    found = ask.explain(view, ["subnormal_input"], beside, judge_encoded)
    return found | ask.explain(view, ["subnormal_scale"], below, judge_encoded)


def _normalisation(ask: Asker, view: View) -> Found:
    """Full and short blocks at scales where x / a and x * (1 / a) fall on different sides."""
    size, thresholds = ask.blocksize(view), view.coder.thresholds
    x, scale = values.discriminating(np.random.default_rng(5), thresholds, 64)
    blocks = values.anchored(x, scale, size)
    short, around = list(blocks[:64, : size - 1]), size
    if thresholds.size > 15:  # one short block holds all candidates of a scale
        short, around = list(values.anchored(x, scale, x.shape[1] + 1)[:24]), 4096
    full = [typed_case(ask, view, blocks, size)]
    partial = [typed_case(ask, view, row, around) for row in short]
    found: Found = {}
    for field, cases in (("normalisation_full", full), ("normalisation_partial", partial)):
        found |= ask.explain(view, [field], cases, judge_codes, unnamed=field)
    return found


def _input_type(ask: Asker, view: View) -> Found:
    """For 16-bit input: is x scaled in float32 or in its own type?"""
    dtype, size = ask.dtype(view, "bfloat16", "float16"), ask.blocksize(view)
    if dtype == "float32":
        return {}
    x = np.random.default_rng(9).standard_normal((64, size)).astype(FLOAT_TYPES[dtype])
    return ask.explain(view, ["input_type"], [encode_case(view, x, size)], judge_codes)
