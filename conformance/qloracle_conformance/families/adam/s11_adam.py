"""S11. Adam: m' = b1 m + (1-b1) g; v' = b2 v + (1-b2) g^2; p' = p - lr (m'/c1)/(sqrt(v'/c2) + eps).

c1 = 1 - b1^t and c2 = 1 - b2^t, t the argument `step`, from 1 to 2^24.  Decoupled decay multiplies
p by (1 - lr wd) before the update; coupled decay adds wd p to g.  m and v are float32; g has p's
type or float32; p' is rounded to p's type once, at the end.  The betas are float64 numbers:
1 - beta, beta^t and 1 - beta^t are formed in float64, and each is rounded to float32 once.

Each stage is judged on the implementation's own previous stage: m' and v' from what it was given,
p' from the m' and v' that it returned.  The exact value is formed in float64, and the bound counts
the roundings that a term meets in any usual form, gamma_k = k u / (1 - k u), u = 2^-24.

m'.  b1 m + (1-b1) g: the constants round, the products and the sum.  m + (1-b1)(g - m): the
constant, the difference, the product, the sum.  So
|m' - exact| <= max(gamma_2 b1, gamma_3 (1-b1)) |m| + gamma_3 (1-b1) |g| + u |m'|.
It does not shrink where the two terms cancel.

v'.  Constant and product of b2 v; constant and two products of (1-b2) g g; the sum.  No term is
negative: gamma_2 b2 v + gamma_3 (1-b2) g^2 + u v', 4u v' at most.

p'.  m'/c1: constant and quotient, 2.  v'/c2: 2, of which the root leaves 1 and adds 1; + eps one
more: 3.  The quotient 1, lr and its product 2.  That is gamma_8 |step|; gamma_9 where there is a
decoupled decay, which some add to the direction before lr multiplies both.  The decay: 1 - lr wd
and its product, gamma_2 (1 - lr wd) |p|, and gamma_3 lr wd |p| for those who form lr wd in float32.
Then the difference, u |p'|, and in 16 bits one rounding more, u_T |p'|.

Coupled.  g' = g + wd p is off by delta = gamma_2 |wd p| + u |g'|; m' by (1-b1) delta more and v' by
(1-b2)(2 |g'| delta + delta^2).

To each are added 3 * 2^-149 for products below the normal numbers, and 2^-12 of the bound for the
products of errors and for the kit's own float64, of which the worst is 1 - b^t, off by 2^-53/(1-b):
2^-40 for a beta of 0.9999, in anybody's float64.  Where no term is left nothing may move: without
state and gradient m, v and p keep their bits, and with lr = 0 p keeps them.

Beside a parameter of 1 the bound of a step is lost in u |p|; at p = 0 it is sharp.  So steps are
tried at p = 0, from nothing and from a state, and beside p from 1e-3 to 1e3; with gradients from
1e-9 to 10, where eps counts and where it does not; out of order and repeated, since a call has no
memory; with decays of lr wd >= 1e-2; with full mantissas everywhere.

Lawful and found by the probe: float32 betas (judged with b = float64(float32(beta)) throughout); a
decay after the update; float32 bias corrections: b^t is off by (t+2) u b^t, which adds
(t+2) u (b1^t / (1-b1^t) + b2^t / (2 (1-b2^t))) to the relative error of the step.  That is much at
step 2 and nothing at 2^24, where an implementation that differs for another reason is caught.  One
that decays in one way, whatever `decoupled_weight_decay` asks for, must declare it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam import bounds, inputs
from qloracle_conformance.families.adam.inputs import BETAS, N, ordinary, sized, stepped, typed
from qloracle_conformance.judging.bounds import Bounded, within
from qloracle_conformance.judging.checks import Plan, in_every_form, layers
from qloracle_conformance.judging.compare import NOTHING, Outcome, Values
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

EDGES = (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4097)
SHAPES = ((), (1, 1), (3, 5), (33, 31), (2, 3, 5), (7, 9, 11))


def moments(plan: Plan) -> Iterator[Case]:
    """First and later moments under six pairs of betas; gradients from 1e-9 to 10; cancellation."""
    rng, zero = plan.rng, np.zeros(N, np.float32)
    for beta1, beta2 in BETAS:
        grad = sized(rng, (N,))
        yield from inputs.at_zero(plan.view, rng, -9, 1, beta1=beta1, beta2=beta2, step=2)
        old = inputs.old_state(rng, grad[::-1])
        yield stepped(zero, grad, *old, "from another size", beta1=beta1, beta2=beta2, step=2)


def zeros(plan: Plan) -> Iterator[Case]:
    """Zero gradients: with a state of zero nothing may move, else the state shrinks."""
    rng, zero = plan.rng, np.zeros(N, np.float32)
    for types in inputs.TYPES:
        case = stepped(sized(rng, (N,), -3, 3), zero, zero, zero, "nothing may move", step=2)
        yield typed(case, *types)
        yield typed(ordinary(rng, (N,), "no gradient", step=3).with_arrays(grad=zero), *types)
    mixed = ordinary(rng, (N,), "zeros among others", step=2)
    still = np.arange(N) % 3 > 0
    yield mixed.with_arrays(
        **{name: np.where(still, 0, mixed.arrays[name]).astype("f4") for name in ("grad", "m", "v")}
    )


def rates(plan: Plan) -> Iterator[Case]:
    """lr 0, so small that no parameter moves, as small as float32 can show, and 1."""
    rng, zero = plan.rng, np.zeros(N, np.float32)
    for step in (1, 10):
        for lr in (0.0, 1e-38):
            case = ordinary(rng, (N,), f"lr {lr}", lr=lr, step=step, weight_decay=0.1)
            yield case
            yield case.with_arrays(grad=zero, m=zero, v=zero)
        for lr in (1e-30, 1.0):
            grad = sized(rng, (N,), -3, 1)
            yield stepped(zero, grad, zero, zero, f"lr {lr} at p = 0", lr=lr, step=step)


def shapes(plan: Plan) -> Iterator[Case]:
    """Sizes around vectors, warps and blocks; no axis, two, three."""
    rng = plan.rng
    for shape in (*((n,) for n in EDGES), *SHAPES):
        yield ordinary(rng, shape, f"shape {shape}", step=2, lr=0.1)


# ---- the judgement -------------------------------------------------------------------------------


def judge_moments(case: Case, values: Values, view: View) -> Outcome:
    """m' and v', from what the implementation was given."""
    expected = bounds.moments(case, view.dialect)

    def why(i: int) -> str:
        old = {name: case.arrays[name].reshape(-1)[i] for name in ("m", "v", "grad")}
        return ", ".join(f"{name} = {show(value)}" for name, value in old.items())

    return within("m", values[1], expected["m"], why) + within("v", values[2], expected["v"], why)


def judge_step(case: Case, values: Values, view: View) -> Outcome:
    """p', from the m' and v' that the implementation returned."""
    param, m, v = values
    if {m.size, v.size} != {case.arrays["param"].size}:
        return NOTHING
    return judge_moved(case, param, (bounds.known(m), bounds.known(v)), view)


def judge_moved(
    case: Case, param: NDArray[Any], new: tuple[Bounded, Bounded], view: View
) -> Outcome:
    """p' from m' and v', which are known or lie within bounds."""
    if not case.arrays["param"].size:
        return NOTHING

    def why(i: int) -> str:
        m, v = (show(moment.exact[i]) for moment in new)
        return f"p = {show(case.arrays['param'].reshape(-1)[i])}, m' = {m}, v' = {v}"

    return within("param", param, bounds.parameter(case, *new, view.dialect), why)


def judge_all(case: Case, values: Values, view: View) -> Outcome:
    """The moments, and the step that follows from them."""
    return judge_moments(case, values, view) + judge_step(case, values, view)


STEPS = {
    "step": inputs.steps, "parameters": inputs.parameters, "eps": inputs.eps, "rates": rates,
    "order": inputs.order,
}  # fmt: skip
WHOLE = {
    "decay": inputs.decays, "zeros": zeros, "shapes": shapes, "types": inputs.types,
    "volume": inputs.volume,
}  # fmt: skip
EVERY = (0, 1, 2)
CHECKS = (
    *layers("S11", "adam_step", (), judge_moments, {"moments": moments}, judged=(1, 2)),
    *layers("S11", "adam_step", (), judge_step, STEPS),
    *layers("S11", "adam_step", (), judge_all, WHOLE, judged=EVERY, search=inputs.edited),
    *in_every_form("adam_step", inputs.forms, judge_all, EVERY),
)
