"""What decoders show: their table, nibble order, layout, how they round, what they flush."""

from collections.abc import Mapping

import numpy as np

from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.families.codes.cases import decode, packed_case
from qloracle_conformance.families.codes.judge import judge_decoded
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.expected import Float32, full_mantissa
from qloracle_conformance.judging.views import View


def four_bit(ask: Asker, view: View) -> Found:
    """All fields of `dequantize_4bit`; the view takes over the table that it shows."""
    return ask.in_turn(view, _table, _nibble_order, _layout, blockwise)


def blockwise(ask: Asker, view: View) -> Found:
    """The rounding fields of both decoders."""
    return ask.in_turn(view, _recipe, _subnormals)


def _table(ask: Asker, view: View) -> Found:
    """Decode each code at absmax 1: the implementation's own table."""
    codes = np.arange(view.levels.size, dtype=np.uint8)
    both = np.repeat(np.resize(codes, 32), 2)  # the same code in both nibbles: no order matters
    got = decode(ask, view, both, np.ones(1, np.float32), (64,))
    if got is None:
        return {}
    dtype, shown = ask.dtype(view), got.astype(np.float32)[: 2 * codes.size : 2]
    kinds = BY_NAME["codebook"].values if view.table == "nf4" else ()
    tables = {kind: expected.four_bit_levels("nf4", {"codebook": kind}) for kind in kinds}
    named = {kind: expected.round_to(table, dtype) for kind, table in tables.items()}
    return name_table(view, "codebook", shown, expected.round_to(view.levels, dtype), named)


def name_table(
    view: View, field: str, shown: Float32, correct: Float32, named: Mapping[str, Float32]
) -> Found:
    """Name the table that a decoder shows; from now on the view is judged under it."""
    wrong = np.flatnonzero(~(shown == correct))
    if not wrong.size:
        return {}
    if np.isfinite(shown).all():  # nothing is judged under a table that is no table
        view.levels = shown
    same = [name for name, table in named.items() if np.array_equal(table, shown)]
    i = int(wrong[0])
    why = f"{wrong.size} of {shown.size} levels differ: level {i} is {shown[i]}, not {correct[i]}"
    return {field: (same[0] if same else UNNAMED, why)}


def _nibble_order(ask: Asker, view: View) -> Found:
    """One byte with the bottom level in its high nibble and the top level in its low one."""
    top, bottom = int(np.argmax(view.levels)), int(np.argmin(view.levels))
    codes = np.resize(np.array([bottom, top], np.uint8), 64)
    got = decode(ask, view, codes, np.ones(1, np.float32), (64,))
    if got is None or got[0] == got[1]:
        return {}
    assumed = view.dialect["nibble_order"]
    other = "low_first" if assumed == "high_first" else "high_first"
    byte = int(expected.pack(codes[:2], assumed)[0])
    order = assumed if got[0] < got[1] else other
    return {"nibble_order": (order, f"byte 0x{byte:02x} decodes to {got[0]}, {got[1]}")}


def _layout(ask: Asker, view: View) -> Found:
    """Rows of 40 in blocks of 64: two scales if blocks run on, three if rows restart them."""
    top = int(np.argmax(view.levels))
    for layout in ("flat", "per_row"):
        blocks = expected.blocks_of((3, 40), 64, layout)
        scale = np.ldexp(np.float32(1), np.arange(blocks.sizes.size)).astype(np.float32)
        got = decode(ask, view, np.full(120, top, np.uint8), scale, (3, 40), blocksize=64)
        if got is None:
            continue
        if np.array_equal(got.reshape(-1), scale[blocks.index] * view.levels[top]):
            return {"layout": (layout, f"rows of 40 in blocks of 64 take {scale.size} scales")}
    return {}


def _recipe(ask: Asker, view: View) -> Found:
    """16-bit output tells whether the product was made in float32 or in the output type."""
    rng, dtype = np.random.default_rng(7), ask.dtype(view, "bfloat16", "float16")
    if dtype == "float32":
        return {}
    codes = rng.integers(0, view.levels.size, 64 * 16).astype(np.uint8)
    case = packed_case(view, codes, full_mantissa(rng, 16, -3, 3), (16, 64), 64, dtype)
    return ask.explain(view, ["decode"], [case], judge_decoded)


def _subnormals(ask: Asker, view: View) -> Found:
    """A level below 1 at 2**-126, in float32 and after the conversion to bfloat16."""
    below = np.flatnonzero((view.levels > 0.2) & (view.levels < 0.9))
    codes, scale = np.resize(below[:1], 64).astype(np.uint8), expected.f32(2.0**-126)
    cases = [packed_case(view, codes, scale, (64,), 64, t) for t in ("float32", "bfloat16")]
    return ask.explain(view, ["subnormal_output"], cases if below.size else (), judge_decoded)
