"""S11b. 8-bit Adam: decode m and v (S7), step as S11 in float32, move p, code m' and v' (S4, S5).

m has the signed dynamic map and v the unsigned one (or `m_codebook` and `v_codebook`), 256 elements
a block.  p moves by m' and v' as they are before they are coded.

m' and v' themselves are not visible, so everything is judged by intervals.  The decoded states
are exact numbers; around the exact m' and v' stand S11's bounds.

absmax.  The largest |m'| of a block lies between the largest of the lower ends and the largest of
the upper ends.

Codes.  Each must be the one that S5 gives for some value of the interval over the own absmax.  The
quotient is one float32 division, or the product with the rounded reciprocal, two roundings: gamma_2
of itself wider at both ends.  An interval is a few u wide and most levels of the maps lie 2^-8 of
themselves apart, so that nearly every element has one right code.  Beside random data stand
gradients 16 u above and below every threshold.  A state and a gradient of zero make m' and v' zero
to the bit, and their codes must be those of zero, 127 and 0.  (bitsandbytes 0.50.2 on a CPU gives
0 the code 131, 2.1e-5 of absmax: from the next step on the parameter drifts.)  In a block whose own
absmax is 0 every code says zero: they are recorded, not judged.

p'.  S11, and what the intervals add: the step is largest for the largest |m'| over the smallest v'.
Without state and gradient p' = p.  The old state is decoded and never coded again: blocks that lack
their largest level would change.

Lawful and found by the probe: S11's fields; a code of m moved by one where its level has not the
sign of m' (sign_nudge); a parameter that moves by what the new codes say (state_used: rounded),
which is judged without intervals, for then m' and v' can be seen.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam import bounds, inputs
from qloracle_conformance.families.adam.inputs import BETAS, coded, fresh, ordinary_8bit, sized
from qloracle_conformance.families.adam.s11_adam import judge_moved
from qloracle_conformance.judging import compare
from qloracle_conformance.judging.bounds import Bounded, within
from qloracle_conformance.judging.checks import Plan, in_every_form, layers
from qloracle_conformance.judging.compare import NOTHING, Mismatch, Outcome, Values, Wrong
from qloracle_conformance.judging.expected import Float32, f32
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

RESULTS = {"m": (1, 2), "v": (3, 4)}  # where the codes and the absmax stand among the results
STATE = ("m_codes", "m_absmax", "v_codes", "v_absmax")
EDGES = (1, 2, 15, 17, 33, 255, 256, 257, 511, 512, 513, 1000, 4097)
NEAR = 2.0**-20  # 16 u: how near to a threshold a code is still certain


def states(plan: Plan) -> Iterator[Case]:
    """Random states under scales that differ by 2^k; from nothing; six pairs of betas."""
    rng = plan.rng
    for beta1, beta2 in BETAS:
        options: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "step": 2}
        yield ordinary_8bit(rng, (700,), "a ramp of scales", **options)
        yield coded(sized(rng, (300,), -1, 1), sized(rng, (300,), -4, 0), fresh(300), **options)


def codes(plan: Plan) -> Iterator[Case]:
    """Every code of both maps as a state, and first gradients at every threshold."""
    every, zero, one = np.arange(256, dtype=np.uint8), np.zeros(256, np.float32), f32(1)
    state: dict[str, Any] = {"m_codes": every, "m_absmax": one, "v_codes": every, "v_absmax": one}
    yield coded(zero, zero, state, "every code", step=2)
    yield coded(zero, zero, {**state, "m_absmax": f32(0.7123), "v_absmax": f32(1.3e-5)}, step=2)
    for kind in ("m", "v"):
        thresholds = bounds.coder_of(coded(zero, zero, state), kind).thresholds.astype(np.float64)
        for near in (1 - NEAR, 1 + NEAR):
            q = thresholds * near
            grad = np.append(q if kind == "m" else np.sqrt(q), 1.0).astype(np.float32)
            yield coded(zero[: grad.size], grad, fresh(grad.size), f"{kind} near its thresholds")


def zeros(plan: Plan) -> Iterator[Case]:
    """Elements without state and gradient, beside large ones and in blocks of their own."""
    rng = plan.rng
    for step in (1, 7):
        grad, state = sized(rng, (600,), -3, 0), inputs.random_state(rng, 600)
        still = np.arange(600) % 3 > 0
        still[256:512] = True
        grad[still] = 0
        for kind, code in inputs.ZERO_CODES.items():
            state[f"{kind}_codes"][still] = code
        yield coded(sized(rng, (600,), -3, 3), grad, state, "zeros beside large ones", step=step)
        yield coded(sized(rng, (300,), -3, 3), np.zeros(300, "f4"), fresh(300), "nothing may move")


def steps(plan: Plan) -> Iterator[Case]:
    """At p = 0 and beside parameters; the first step from nothing, later ones from a state."""
    yield from inputs.steps(plan)
    yield from inputs.parameters(plan)


def blocks(plan: Plan) -> Iterator[Case]:
    """Sizes around a block, two and sixteen, other block sizes, no axis, two and three."""
    rng = plan.rng
    for n in EDGES:
        yield ordinary_8bit(rng, (n,), f"{n} elements", step=2, lr=0.1)
    for size in (64, 128):
        for n in (size - 1, size + 1, 5 * size + 3):
            yield ordinary_8bit(rng, (n,), f"blocks of {size}", size, step=2, lr=0.1)
    for shape in ((), (3, 100), (2, 256), (3, 7, 31)):
        yield ordinary_8bit(rng, shape, f"shape {shape}", step=2, lr=0.1)


def maps(plan: Plan) -> Iterator[Case]:
    """Maps passed in: coarse ones of other sizes, and the signed map for both."""
    rng = plan.rng
    few, squares = f32(-1, -0.25, 0, 0.5, 1), np.linspace(0, 1, 16, dtype=np.float32) ** 2
    signed = qloracle.dynamic_codebook()
    pairs = ((qloracle.nf4_codebook(), squares), (few, f32(0, 0.25, 1)), (signed, signed))
    for m_map, v_map in pairs:
        case = ordinary_8bit(rng, (600,), f"maps of {m_map.size} and {v_map.size}", step=4)
        yield case.with_arrays(
            m_codes=rng.integers(0, m_map.size, 600).astype(np.uint8),
            v_codes=rng.integers(v_map.size // 2, v_map.size, 600).astype(np.uint8),
            m_codebook=m_map,
            v_codebook=v_map,
        )


# ---- the judgement -------------------------------------------------------------------------------


def judge_states(case: Case, values: Values, view: View) -> Outcome:
    """The new scales, and the new codes over them."""
    expected = bounds.moments(case, view.dialect)
    parts = (_judge_state(kind, case, values, expected[kind], view) for kind in ("m", "v"))
    return sum(parts, NOTHING)


def _judge_state(kind: str, case: Case, values: Values, expected: Bounded, view: View) -> Outcome:
    codes, absmax = (values[i] for i in RESULTS[kind])
    if not expected.exact.size:
        return NOTHING
    scales = bounds.largest(case, expected)
    why = f"the largest |{kind}'| of the block"
    found = within(f"{kind}_absmax", absmax, scales, lambda _: why)
    if codes.size != expected.exact.size:
        return found
    own = compare.own_scales(absmax, scales.exact.astype(np.float32))
    return found + judge_codes(kind, case, codes, expected, own, view)


def judge_codes(
    kind: str, case: Case, codes: NDArray[Any], expected: Bounded, absmax: Float32, view: View
) -> Outcome:
    """Each code is one that S5 gives for some moment within its bound."""
    coder, flat = bounds.coder_of(case, kind), codes.reshape(-1)
    low, high = bounds.ranks(case, kind, expected, absmax, view.dialect)
    got = coder.ranks_of(flat)
    bad = (got < low) | (got > high)
    idle = bad & (got >= 0) & (bounds.spread(case, absmax) == 0)  # every code says 0 there
    bad &= ~idle
    counted = Outcome(flat.size, recorded=int(idle.sum()))
    if not bad.any():
        return counted
    at = np.flatnonzero(bad)
    i, name = int(at[0]), f"{kind}_codes"
    ends = dict.fromkeys(str(coder.code_of(int(rank[i]))) for rank in (low, high))
    scale = show(bounds.spread(case, absmax)[i])
    text = f"{kind}' = {show(expected.exact[i])}, absmax = {scale}"
    text += "; state and gradient are zero" if expected.exact[i] == expected.bound[i] == 0 else ""
    distance = float(max(low[i] - got[i], got[i] - high[i]))
    first = Mismatch(
        name, i, show(flat[i].astype(np.uint8)), " to ".join(ends), text, 0.0, distance
    )
    return counted + Outcome(0, at.size, first, where=Wrong(name, flat.size, at))


def judge_step(case: Case, values: Values, view: View) -> Outcome:
    """p', from the intervals of m' and v', or from what the returned codes say."""
    if view.dialect["state_used"] == "exact":
        m, v = bounds.moments(case, view.dialect).values()
    elif [value.size for value in values[1:]] != [case.arrays[name].size for name in STATE]:
        return NOTHING
    else:
        decoded = (bounds.decoded(case, k, values[i], values[j]) for k, (i, j) in RESULTS.items())
        m, v = map(bounds.known, decoded)
    return judge_moved(case, values[0], (m, v), view)


def judge_all(case: Case, values: Values, view: View) -> Outcome:
    """The states, and the step."""
    return judge_states(case, values, view) + judge_step(case, values, view)


STATES = {"states": states, "codes": codes}
STEPS = {"step": steps, "eps": inputs.eps, "order": inputs.order, "decay": inputs.decays}
WHOLE = {
    "zeros": zeros, "blocks": blocks, "maps": maps, "types": inputs.types, "volume": inputs.volume,
}  # fmt: skip
EVERY = (0, 1, 2, 3, 4)
CHECKS = (
    *layers("S11b", "adam_step_8bit", (), judge_states, STATES, judged=EVERY[1:]),
    *layers("S11b", "adam_step_8bit", (), judge_step, STEPS),
    *layers("S11b", "adam_step_8bit", (), judge_all, WHOLE, judged=EVERY, search=inputs.edited),
    *in_every_form("adam_step_8bit", inputs.forms, judge_all, EVERY),
)
