"""S10. LoRA: y = x W' + s ((x*mask) A') B', and its gradients; W has none.

s is alpha / r or alpha / sqrt(r), a float64 rounded once.  Mask entries are 0 or 1/(1-p), taken as
they are passed; only the adapter's branch is masked.  With g = dy B and h = (x*mask) A'::

    dx = dy W + s (g A)*mask      dA = s g' (x*mask)      dB = s dy' h

y and dx have the type of x, dA and dB that of A.  A packed W is decoded as S9 says.

Bound.  A term of x W' meets its dot and the sum with the branch: gamma_(K+1) |x||W'|.  One of the
branch meets the mask, two dots, s rounded once and applied, the sum: gamma_(K+r+4) |s| |x*mask|
|A'| |B'|, in whatever order the matrices are multiplied.  dx: gamma_(N+1) |dy||W| + gamma_(N+r+4)
|s| (|dy||B|)|A| mask.  dA: gamma_(N+M+3) |s| (|dy||B|)'|x*mask|, dB: gamma_(K+M+3) |s| |dy|'
(|x*mask||A'|), M the number of rows.  Where products are zero, K, N and M are the numbers of those
that are not.  Then one rounding to the result's type, as in S9.

In 16 bits a step that is kept in type T adds u_T times what passes through it: h, g and x*mask
(lora_rounding hidden), or every step (separate: as layers of torch do).  The probe finds which: of
(1 + e)^2 - T((1 + e)^2) nothing is left where the step rounds.  Merged weights must be declared.

A bound of zero demands zero.  Beside the bound stand whole numbers, on which no step rounds: there
every result is exact.  Lawful orders come within a factor of two of the bound on small layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import LORA
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.families.lora import bounds, inputs
from qloracle_conformance.judging.bounds import Bounded, within
from qloracle_conformance.judging.checks import Check, Plan, layers
from qloracle_conformance.judging.compare import NOTHING, Outcome, Values
from qloracle_conformance.judging.views import View


def judge_layer(case: Case, values: Values, view: View) -> Outcome:
    """Every element of every result within the derived bound."""
    if case.function.endswith("backward"):
        return _all_within(case, values, bounds.backward(case, view))
    return _all_within(case, values, (bounds.forward(case, view),))


def judge_only_results(case: Case, values: Values, view: View) -> Outcome:
    """Every element the one number that any order of summation gives."""
    return _all_within(case, values, bounds.only_results(case, view))


def _all_within(case: Case, values: Values, due: tuple[Bounded, ...]) -> Outcome:
    outcome = NOTHING
    for name, got, own in zip(FUNCTIONS[case.function].results, values, due, strict=True):
        outcome += within(name, got, own, _place(own))
    return outcome


def _place(due: Bounded) -> Callable[[int], str]:
    rows, columns = due.exact.shape
    return lambda i: f"row {i // columns}, column {i % columns} of [{rows}, {columns}]"


LAYERS: dict[str, Callable[[Plan], Iterator[Case]]] = {
    "rounding": inputs.rounding,
    "shapes": inputs.shapes,
}


TABLES: dict[str, tuple[str, ...]] = {
    name: ("nf4",) if name.startswith("qlora") else () for name in LORA
}


def _checks(function: str) -> tuple[Check, ...]:
    tables = TABLES[function]
    judged = (0, 1, 2) if function.endswith("backward") else (0,)
    only = {"integers": inputs.integers} | ({"weights": inputs.weights} if tables else {})
    return (
        *layers("S10", function, tables, judge_only_results, only, judged=judged),
        *layers("S10", function, tables, judge_layer, LAYERS, judged=judged, search=inputs.edits),
    )


CHECKS = tuple(check for function in LORA for check in _checks(function))
