"""What an optimizer shows: its betas, its corrections, how it decays, how it keeps 8-bit states.

Each value of a field implies a bound.  The first value whose bound holds is adopted, beginning with
the specification's.
"""

from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam import bounds, inputs
from qloracle_conformance.families.adam import s11_adam as s11
from qloracle_conformance.families.adam import s11b_adam_8bit as s11b
from qloracle_conformance.judging.asking import Asker, Found
from qloracle_conformance.judging.bounds import Bounded, within
from qloracle_conformance.judging.compare import Judge, Outcome, Values
from qloracle_conformance.judging.expected import f32
from qloracle_conformance.judging.views import View

N = 64
COUNTS = range(1, 21)  # steps at which a float32 correction shows


def step(ask: Asker, view: View) -> Found:
    """The fields of `adam_step`; later ones are read under what the earlier ones showed."""
    found = ask.explain(view, ["betas"], [_first(ask, view)], s11.judge_moments)
    either = [_decaying(ask, view, decoupled_weight_decay=asked) for asked in (True, False)]
    found |= ask.explain(view, ["decay_mode"], either, s11.judge_moments)
    return found | _arithmetic(ask, view, s11.judge_step)


def step_8bit(ask: Asker, view: View) -> Found:
    """The fields of `adam_step_8bit`."""
    found = ask.explain(view, ["betas"], [_first(ask, view)], _judge_scales)
    found |= ask.explain(view, ["sign_nudge"], [_small(ask, view)], s11b.judge_states)
    found |= ask.explain(view, ["state_used"], [_later(ask, view, 1000)], s11b.judge_step)
    return found | _arithmetic(ask, view, s11b.judge_step)


def _arithmetic(ask: Asker, view: View, judge: Judge) -> Found:
    """The correction, which 16 bits cannot show, and the order of decay and update."""
    found: Found = {}
    if ask.dtype(view) == "float32":
        cases = [_later(ask, view, t) for t in COUNTS]
        found |= ask.explain(view, ["bias_correction"], cases, judge)
    return found | ask.explain(view, ["decay_order"], [_decaying(ask, view)], judge)


def _judge_scales(case: Case, values: Values, view: View) -> Outcome:
    """The absmax alone: float32 betas move them, and no code."""
    expected = bounds.moments(case, view.dialect)
    scales: dict[str, Bounded] = {kind: bounds.largest(case, expected[kind]) for kind in ("m", "v")}
    return within("m_absmax", values[2], scales["m"]) + within("v_absmax", values[4], scales["v"])


# ---- what is asked -------------------------------------------------------------------------------


def _call(ask: Asker, view: View, param: float, seed: int, state: str, **options: Any) -> Case:
    """A call on full-mantissa gradients, from a state of zero ("zero") or of their size."""
    rng = np.random.default_rng(seed)
    grad, dtype = inputs.sized(rng, (N,), -1, 1), ask.dtype(view)
    start = np.full(N, param, np.float32)
    if state == "zero":
        case = inputs.first(view, start, grad, "", **options)
    else:
        case = inputs.later(view, rng, start, grad, "", **options)
    return inputs.typed(case, dtype, dtype)


def _first(ask: Asker, view: View) -> Case:
    """The first step from nothing: m' = (1-b1) g, v' = (1-b2) g^2."""
    return _call(ask, view, 0.0, 17, "zero")


def _later(ask: Asker, view: View, t: int) -> Case:
    """A step at p = 0, from a state."""
    return _call(ask, view, 0.0, 100 + t, "later", step=t)


def _decaying(ask: Asker, view: View, **asked: bool) -> Case:
    """lr wd = 1/4 at p = 1: a decay before or after the update differs by a quarter of it."""
    return _call(ask, view, 1.0, 19, "zero", lr=0.5, weight_decay=0.5, **asked)


def _small(ask: Asker, view: View) -> Case:
    """Below zero, and nearer to it than to the first level of the map, beside 1."""
    grad = f32(1, *[-1e-8 * k for k in range(1, N)])
    case = inputs.coded(np.zeros(N, np.float32), grad, inputs.fresh(N))
    dtype = ask.dtype(view)
    return inputs.typed(case, dtype, dtype)
