"""The judges of codes, scales and decoded values.

Codes are judged on the implementation's own absmax, so that one fault does not show twice.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import BANDS, Dialect
from qloracle_conformance.judging import compare, expected
from qloracle_conformance.judging.compare import NOTHING, Outcome, Values, Wrong, blocks_of, exact
from qloracle_conformance.judging.expected import Blocks, Float32
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View


def judge_absmax(case: Case, values: Values, view: View) -> Outcome:
    """S4: absmax is the largest magnitude of its block, exact."""
    correct = expected.absmax_of(case.arrays["x"], blocks_of(case, view), view.dialect)
    return exact("absmax", values[1], correct, "the largest |x| of the block")


def judge_codes(case: Case, values: Values, view: View) -> Outcome:
    """S5: each code is the number of thresholds below x / absmax, on the own absmax."""
    x, blocks, view = case.arrays["x"], blocks_of(case, view), compare.under_its_map(case, view)
    codes = codes_in(case, values[0], view)
    if codes is None:
        return NOTHING
    absmax = compare.own_scales(values[1], expected.absmax_of(x, blocks, view.dialect))
    return compare_codes("code", codes, x, absmax, blocks, view)


def judge_encoded(case: Case, values: Values, view: View) -> Outcome:
    """S3: both results of a quantizer, on data whose codes no lawful rounding can move."""
    return judge_absmax(case, values, view) + judge_codes(case, values, view)


def declared_order(view: View) -> str:
    """The nibble order that was asked for, whatever was found."""
    asked = (finding.expected for finding in view.findings if finding.field == "nibble_order")
    return next(asked, view.dialect["nibble_order"])


def codes_in(case: Case, raw: NDArray[Any], view: View) -> NDArray[Any] | None:
    """The codes that a result holds, unpacked where it is packed; None if the count is wrong."""
    n, flat = case.arrays["x"].size, raw.reshape(-1)
    if view.quant_type:
        if flat.size != (n + 1) // 2:
            return None
        return expected.unpack(flat.astype(np.uint8), n, view.dialect["nibble_order"])
    return flat if flat.size == n else None


def compare_codes(
    name: str, codes: NDArray[Any], x: NDArray[Any], absmax: Float32, blocks: Blocks, view: View
) -> Outcome:
    """Compare codes by the level that they name; count the band and what is only recorded."""
    if not codes.size:
        return NOTHING
    coder, dialect = view.coder, view.dialect
    q = expected.scaled(x, absmax, blocks, dialect)
    correct, got = coder.ranks(q), coder.ranks_of(codes)
    if not absmax.all():
        zero = coder.zero_rank(dialect.get("zero_block", "zero"))
        correct[absmax[blocks.index] == 0] = zero
    bad = got != correct
    if not bad.any():
        return Outcome(codes.size)
    scale = absmax[blocks.index]
    recorded = bad & _only_recorded(scale, blocks, dialect)
    near = bad & ~recorded & (np.abs(got - correct) == 1)
    near &= expected.band(q, coder.thresholds, blocks, dialect)
    bad &= ~recorded & ~near
    outcome = Outcome(codes.size, int(bad.sum()), None, int(near.sum()), int(recorded.sum()))
    if not bad.any():
        return outcome
    at = np.flatnonzero(bad)
    i = int(at[0])
    first = compare.Mismatch(
        name, i, show(codes.reshape(-1)[i].astype(np.uint8)), str(coder.code_of(int(correct[i]))),
        _why(x.reshape(-1)[i], scale[i], q[i], coder, int(correct[i])),
        0.0, abs(int(got[i]) - int(correct[i])),
    )  # fmt: skip
    where = Wrong(name, codes.size, at, correct[at], codes.reshape(-1)[at])
    return replace(outcome, first=first, where=where)


def _only_recorded(scale: Float32, blocks: Blocks, dialect: Dialect) -> NDArray[np.bool_]:
    """A reciprocal of a subnormal may overflow: its codes are recorded, not judged (S5)."""
    inexact = expected.by_recipe(blocks, dialect, lambda recipe: recipe != "divide")
    approximate = expected.by_recipe(blocks, dialect, BANDS.__contains__)
    beyond = inexact & (scale < expected.SMALLEST_NORMAL) | approximate & (scale > 2.0**126)
    return np.asarray(beyond & (scale != 0))


def _why(x: Any, scale: Any, q: Any, coder: expected.Coder, rank: int) -> str:
    text = f"x = {show(x)}, absmax = {show(scale)}, q = {show(q)}"
    below = f"t[{rank - 1}] = {show(coder.thresholds[rank - 1])} < q" if rank else "q"
    t = coder.thresholds
    above = f" <= t[{rank}] = {show(t[rank])}" if rank < t.size else ""
    return f"{text}; {below}{above}"


def judge_decoded(case: Case, values: Values, view: View) -> Outcome:
    """S7: level * absmax, one float32 rounding, then one rounding to the output type."""
    blocks, view = blocks_of(case, view), compare.under_its_map(case, view)
    n = blocks.index.size
    if view.quant_type:
        codes = expected.unpack(case.arrays["packed"], n, view.dialect["nibble_order"])
    else:
        codes = case.arrays["codes"].reshape(-1)
    levels, scale = view.levels[codes], case.arrays["absmax"][blocks.index]
    correct = expected.product(levels, scale, case.options.get("dtype", "float32"), view.dialect)

    def why(i: int) -> str:
        block = f"block {blocks.index[i]} of absmax {show(scale[i])}"
        return f"code {codes[i]}, level {show(levels[i])}, {block}"

    return exact("values", values[0], correct, why)
