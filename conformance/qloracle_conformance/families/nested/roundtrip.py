"""What a round trip shows of a state that cannot be taken apart: `quantize_nested` and back.

Only the decoded values are seen.  But the largest element of a block has level +1 or -1, so its
value *is* the block's scale, and every other value must be the level that S5 gives times that
scale.  How far the scale lies from the block's absmax is S8's business.

A 16-bit result shows the scale only rounded: then a value must be one that S7 gives for some scale
that rounds to the one shown.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import Dialect
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.judging import compare, expected
from qloracle_conformance.judging.bounds import TINY, Bounded, U, gamma, within
from qloracle_conformance.judging.compare import NOTHING, Mismatch, Outcome, Values, blocks_of
from qloracle_conformance.judging.expected import Blocks, Float32
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

GROUP = 256  # scales that are coded together
# Half the widest gap of the dynamic map, just below 1; its lowest level lies as far from -1.
HALF_GAP = 1 + float(qloracle.dynamic_codebook()[0])
STEP = 1 / 128  # of 256 equal steps from -1 to 127/128
ROUNDINGS = {"dynamic": 6, "linear": 4}  # of numbers up to the largest residual; counted in S8


def leads(x: NDArray[Any], blocks: Blocks) -> NDArray[np.int64]:
    """The first element of the largest magnitude in each block, as flat indices."""
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    padded = np.full((blocks.sizes.size, int(blocks.sizes.max(initial=1))), -1, np.float32)
    padded[blocks.index, np.arange(x.size) - starts[blocks.index]] = np.abs(x.astype(np.float32))
    found: NDArray[np.int64] = starts + np.argmax(padded, axis=1)
    return found


def shown_scales(x: NDArray[Any], got: Float32, lead: NDArray[np.int64]) -> Float32:
    """The scale of each block: what its largest element decodes to, without that element's sign."""
    sign = np.where(x.reshape(-1)[lead].astype(np.float32) < 0, -1, 1)
    return (got[lead] * sign).astype(np.float32)


def usable_scales(shown: Float32, absmax: Float32, dtype: str, dialect: Dialect) -> Float32:
    """The scales that values are judged over: those shown, or absmax where S8 could not give them.

    As with absmax in S4, a scale that is not finite cannot serve, nor one that is not positive
    where S8 allows none below zero.
    """
    bound = scale_bound(absmax, dtype, dialect)
    allowed = np.abs(shown.astype(np.float64) - absmax) <= bound  # beside an outlier also below 0
    return np.where(np.isfinite(shown) & ((shown > 0) | allowed), shown, absmax).astype(np.float32)


def ranks(x: NDArray[Any], blocks: Blocks, levels: Float32, dialect: Dialect) -> NDArray[np.int64]:
    """S5: the level of each element over its block's true absmax."""
    q = expected.scaled(x, expected.absmax_of(x, blocks, {}), blocks, dialect)
    if dialect["thresholds"] == "nearest" and dialect["input_type"] == "own":
        return expected.nearest_ranks(q, levels, x.dtype.name)
    return expected.coder(levels, dialect, "nf4").ranks(q)


def allowed_range(
    levels: Float32, scale: Float32, dtype: str, dialect: Dialect
) -> tuple[Float32, Float32]:
    """The least and the largest value that a level may have, given the scale that was shown."""
    if dtype == "float32" or dialect["decode"] == "output_type":
        value = expected.product(levels, scale, dtype, dialect).astype(np.float32)
        return value, value
    own = scale.astype(FLOAT_TYPES[dtype])
    toward = (np.array(-np.inf, own.dtype), np.array(np.inf, own.dtype))
    ends = [(own.astype("f4") + np.nextafter(own, t).astype("f4")) / np.float32(2) for t in toward]
    values = [expected.product(levels, end, dtype, dialect).astype(np.float32) for end in ends]
    return np.minimum(*values), np.maximum(*values)


def judge_values(case: Case, values: Values, view: View) -> Outcome:
    """Every value is the level that S5 gives times the scale that its block shows."""
    x, got = case.arrays["x"], values[0].reshape(-1).astype(np.float32)
    if got.size != x.size or not x.size:
        return NOTHING
    blocks = blocks_of(case, view)
    lead = leads(x.reshape(-1), blocks)
    absmax = expected.absmax_of(x, blocks, {})
    dtype, shown = case.options["dtype"], shown_scales(x, got, lead)
    scale = usable_scales(shown, absmax, dtype, view.dialect)[blocks.index]
    rank = ranks(x, blocks, view.levels, view.dialect)
    low, high = allowed_range(view.levels[rank], scale, dtype, view.dialect)
    zero = (absmax == 0)[blocks.index]
    with np.errstate(invalid="ignore"):
        bad = ~((got >= low) & (got <= high)) & ~zero
    at = np.flatnonzero(bad)
    if not at.size:
        return Outcome(int((~zero).sum()))
    i = int(at[0])
    reason = (
        f"x = {show(x.reshape(-1)[i])} has level {show(view.levels[rank[i]])}; block "
        f"{blocks.index[i]} shows the scale {show(scale[i])} at element {lead[blocks.index[i]]}"
    )
    error = abs(float(got[i]) - float(low[i]))
    first = Mismatch("values", i, show(got[i]), show(low[i]), reason, 0.0, error)
    return Outcome(int((~zero).sum()), at.size, first, where=compare.Wrong("values", x.size, at))


def judge_zeros(case: Case, values: Values, view: View) -> Outcome:
    """A block of zeros decodes to zeros, whatever its scale became; the others as ever."""
    x, got = case.arrays["x"].reshape(-1), values[0].reshape(-1)
    if got.size != x.size:
        return NOTHING
    blocks = blocks_of(case, view)
    zero = (expected.absmax_of(x, blocks, {}) == 0)[blocks.index]
    correct = np.where(zero, np.float32(0), got.astype(np.float32))
    reason = "x = 0 in a block of zeros: only the code of zero means 0"
    return compare.exact("values", got, correct, reason) + judge_values(case, values, view)


def judge_scales(case: Case, values: Values, view: View) -> Outcome:
    """S8: how far the scale that a block shows may lie from its absmax."""
    x, got = case.arrays["x"].reshape(-1), values[0].reshape(-1).astype(np.float32)
    if got.size != x.size or not x.size:
        return NOTHING
    blocks = blocks_of(case, view)
    absmax = expected.absmax_of(x, blocks, {})
    kept = np.flatnonzero(absmax)  # a block of zeros shows no scale
    lead = leads(x, blocks)[kept]
    bound = scale_bound(absmax, case.options["dtype"], view.dialect)[kept]
    correct = Bounded(absmax[kept].astype(np.float64), bound)

    def why(i: int) -> str:
        return f"the scale of block {kept[i]}, whose absmax is {show(absmax[kept[i]])}"

    found = within("values", shown_scales(x, got, lead), correct, why)
    if found.first is None or found.where is None:
        return found
    i = int(lead[found.first.index])
    due = show(x[i].astype(np.float32))
    first = replace(found.first, index=i, got=show(got[i]), expected=due)
    return replace(found, first=first, where=compare.Wrong("values", x.size, lead[found.where.at]))


def judge_blocks(case: Case, values: Values, view: View) -> Outcome:
    """S3 end to end: values over the scale of their own block, and that near its own absmax."""
    return judge_values(case, values, view) + judge_scales(case, values, view)


def scale_bound(absmax: Float32, dtype: str, dialect: Dialect) -> NDArray[np.float64]:
    """The bound on |scale - absmax| of each block; derived in rule S8."""
    a, own = absmax.astype(np.float64), dialect["input_type"] == "own"
    u = U[dtype] if own else U["float32"]
    mean = float(a.mean())
    slip = (gamma(a.size + 1) + u) * mean
    residual = a - mean
    starts = np.arange(0, a.size, GROUP)
    largest = np.maximum.reduceat(np.abs(residual), starts).repeat(GROUP)[: a.size] + slip
    share = np.full(a.size, HALF_GAP)
    if dialect["nested_scale"] == "linear":
        share = np.where(residual > 0.99 * largest, STEP, STEP / 2)
    coded = (share + ROUNDINGS[dialect["nested_scale"]] * u) * largest
    shown = u + (0 if own or dtype == "float32" else U[dtype])  # the sum, and a 16-bit result
    return np.asarray(coded + shown * (a + largest) + 9 * TINY[dtype])


def dynamic(absmax: Float32) -> Float32:
    """S8: what the scales come back as."""
    return qloracle.dequantize_absmax(*qloracle.quantize_absmax(absmax))


def linear(absmax: Float32, most: float = np.inf) -> Float32:
    """Scales in 256 equal steps, group by group, the mean removed; `most` is the largest factor."""
    mean = np.float32(absmax.mean(dtype=np.float64))
    residual = absmax - mean
    starts = np.arange(0, absmax.size, GROUP)
    largest = np.maximum.reduceat(np.abs(residual), starts).repeat(GROUP)[: absmax.size]
    with np.errstate(all="ignore"):
        factor = np.float32(128) / largest
        factor = np.where(factor > most, np.float32(np.inf), factor)
        codes = np.clip(np.rint(residual * factor), -128, 127)
        return np.where(largest == 0, mean, codes / factor + mean)
