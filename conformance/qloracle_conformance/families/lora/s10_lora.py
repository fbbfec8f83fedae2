"""S10. LoRA: y = x W' + s ((x*mask) A') B', and its gradients; W has none.

s is alpha / r or alpha / sqrt(r), a float64 rounded once.  Mask entries are 0 or 1/(1-p), taken as
they are passed; only the adapter's branch is masked.  With g = dy B and h = (x*mask) A'::

    dx = dy W + s (g A)*mask      dA = s g' (x*mask)      dB = s dy' h

y and dx have the type of x, dA and dB that of A.  A packed W is decoded as S9 says.

Bound.  A term of x W' meets its dot and the sum with the branch: gamma_(K+1) |x||W'|.  One of the
branch meets the mask, two dots, s rounded once and applied, the sum: gamma_(K+r+4) |s| |x*mask|
|A'| |B'|, in whatever order the matrices are multiplied and wherever s is applied.  Likewise::

    dx    gamma_(N+1) |dy||W| + gamma_(N+r+4) |s| (|dy||B|)|A| mask
    dA    gamma_(N+M+3) |s| (|dy||B|)'|x*mask|
    dB    gamma_(K+M+3) |s| |dy|'(|x*mask||A'|)

M is the number of rows; K, N and M count the products that are not zero.  Then one rounding to the
result's type, as in S9.

In 16 bits a step whose result is kept in type T adds u_T times the magnitudes that pass through it:
h, g and x*mask (lora_rounding hidden), or every step, x W' and on the branch mask, h, z and s z
(separate, as layers of torch do).  The probe finds which: of (1 + e)^2 - T((1 + e)^2) nothing is
left where the step rounds.  Merged weights must be declared.  W + s B A is then rounded once more
to T; a packed W that one-hot rows show in T may owe that to this very rounding, so W is granted
both.  In float32 the counts already cover all this, with one exception: in a merged product x W'
meets each rounding of the branch, too.

A bound of zero demands zero.  Whole numbers, on which no step rounds, demand exact results.  Lawful
orders come within a factor of two of the bound on small layers.
"""

from collections.abc import Iterator

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES, FUNCTIONS, LORA
from qloracle_conformance.families.lora import bounds, inputs
from qloracle_conformance.families.products import inputs as products
from qloracle_conformance.judging.bounds import Bounded, nearest, rounded, within
from qloracle_conformance.judging.checks import Check, Plan, in_every_form, layers
from qloracle_conformance.judging.compare import NOTHING, Outcome, Values
from qloracle_conformance.judging.views import View


def judge_layer(case: Case, values: Values, view: View) -> Outcome:
    """Every element of every result within the derived bound."""
    return _all_within(case, values, [rounded(*own) for own in bounds.results(case, view)])


def judge_only_results(case: Case, values: Values, view: View) -> Outcome:
    """Every element the one number that any order of summation gives."""
    only = [nearest(exact, dtype) for exact, _, dtype in bounds.results(case, view)]
    return _all_within(case, values, only)


def _all_within(case: Case, values: Values, expected: list[Bounded]) -> Outcome:
    named = zip(FUNCTIONS[case.function].results, values, expected, strict=True)
    return sum((within(name, got, own) for name, got, own in named), NOTHING)


LAYERS = {"rounding": inputs.rounding, "shapes": inputs.shapes}


def _checks(function: str) -> tuple[Check, ...]:
    tables = ("nf4",) if function.startswith("qlora") else ()
    judged = (0, 1, 2) if function.endswith("backward") else (0,)
    only = {"integers": inputs.integers} | ({"weights": products.weights} if tables else {})
    return (
        *layers("S10", function, tables, judge_only_results, only, judged=judged),
        *layers("S10", function, tables, judge_layer, LAYERS, judged=judged, search=inputs.edits),
        *in_every_form(function, forms, judge_only_results, tables=tables),
    )


# ---- rule P5, on data that no lawful rounding can move -------------------------------------------


def forms(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a LoRA layer, with a mask and without."""
    for dtype in FLOAT_TYPES:
        for masked in (False, True):
            yield inputs.whole(plan.rng, plan.view, (12, 5, 2, (4,), 2, 1), dtype, masked)
            yield inputs.whole(plan.rng, plan.view, (70, 17, 2, (2, 3), 1, 1), "float32", masked)


CHECKS = tuple(check for function in LORA for check in _checks(function))
