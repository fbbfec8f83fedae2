"""S9. The product of a 4-bit layer: y = x W' + bias, and dx = dy W, W having no gradient.

Judged against the exact product with the weights that the implementation itself uses, as one-hot
rows show them: to the bit those of `dequantize_4bit`, in float32 or in the type of x (the probe
finds which), and the same for any number of rows.  y and dx have the type of x and dy.

Bound.  Of the d products that are not zero (and the bias), each is rounded once and passes through
at most d - 1 additions (adding an exact zero rounds nothing), so any order of summation in float32,
fused or not, is within E = gamma_d (sum |x w| + |bias|) + d 2^-149, gamma_d = d u / (1 - d u),
u = 2^-24.  The result is then rounded to its type: E + u_T (|exact| + E) + tiny_T.  Tensor cores
that truncate have u = 2^-23 (found by the probe).  A declared order has a smaller d: in chunks of c
a term meets c roundings in its chunk and one for each chunk, pairwise ceil(log2 K) and that of its
product.  The kit sums in float64; its own error, K 2^-53 times the same sum, is added.  Sequential
sums at stagnation reach the whole bound.

On ordinary data this bound would let TF32 and dropped products pass, so sharper probes stand beside
it.  One-hot rows show every weight alone (equality); where the row has a full mantissa the result
is one product (d = 1), in all columns of a K that is a multiple of nothing.  On wide whole numbers
every order is exact (equality).  One large product stands among small ones, and sums cancel.  Last,
the second moment of the error on data of both signs, m = mean (err / (u sqrt(sum (x w)^2)))^2 / K.
A partial sum is at most sqrt(sum (x w)^2) in the mean, and loses at most u of itself when it is
rounded to nearest, up or down: K such steps add up like a random walk, and m <= 1.  Truncated, it
loses up to 2 u, always toward zero, and the steps may all add up: m <= 4 K.  Lawful sums reach a
tenth of the one, a twentieth of the other; TF32 gives 20,000 at K = 1024, and a product that is
left out millions.
"""

from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES, FUNCTIONS, LINEAR
from qloracle_conformance.families.products import bounds, inputs
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.bounds import U, nearest, within
from qloracle_conformance.judging.checks import Check, Plan, in_every_form, layers
from qloracle_conformance.judging.compare import NOTHING, Mismatch, Outcome, Values
from qloracle_conformance.judging.views import QUANT_TYPES, View


def judge_product(case: Case, values: Values, view: View) -> Outcome:
    """Every element within the derived bound."""
    name = FUNCTIONS[case.function].results[0]
    return within(name, values[0], bounds.product(case, view))


def judge_only_result(case: Case, values: Values, view: View) -> Outcome:
    """Every element the one number that any order of summation gives."""
    rows, matrix, bias = bounds.operands(case, view)
    only = nearest(rows @ matrix.T + bias, bounds.incoming(case).dtype.name)
    return within(FUNCTIONS[case.function].results[0], values[0], only)


def judge_moment(case: Case, values: Values, view: View) -> Outcome:
    """The mean square of the error, in units of u times the root of the sum of squares, over K."""
    rows, matrix, bias = bounds.operands(case, view)
    exact, got = rows @ matrix.T + bias, values[0].astype(np.float64)
    if got.size != exact.size:
        return NOTHING
    error = np.abs(got.reshape(exact.shape) - exact)
    with np.errstate(all="ignore"):  # where nothing is added up, any error is infinite
        units = error / (U["float32"] * np.sqrt(rows**2 @ (matrix**2).T))
    units = np.nan_to_num(np.where(error == 0, 0.0, units), nan=1e150, posinf=1e150)
    moment = float(np.mean(units**2)) / rows.shape[1]
    most = 4.0 * rows.shape[1] if view.dialect["accumulate"] == "truncated" else 1.0
    if moment <= most:
        return Outcome(1, use=moment / most)
    worst = int(np.argmax(units))
    name = FUNCTIONS[case.function].results[0]
    first = Mismatch(
        f"second moment of {name}", worst, f"{moment:.3g}", f"at most {most}",
        f"over {got.size} elements, K = {rows.shape[1]}", most, moment,
    )  # fmt: skip
    return Outcome(1, 1, first, use=moment / most)


LAYERS = {"one_hot": inputs.one_hot, "swamped": inputs.swamped, "shapes": inputs.shapes}


def _checks(function: str) -> tuple[Check, ...]:
    main = ("nf4",)
    return (
        *layers("S9", function, QUANT_TYPES, judge_only_result, {"weights": inputs.weights}),
        *layers("S9", function, main, judge_only_result, {"integers": inputs.integers}),
        *layers("S9", function, main, judge_product, LAYERS, search=inputs.edits),
        *layers("S9", function, main, judge_moment, {"moment": inputs.symmetric}),
        *in_every_form(function, forms, judge_only_result, (0,), main),
    )


# ---- rule P5, on data that no lawful rounding can move -------------------------------------------


def forms(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a 4-bit layer, with rows and without, with a bias and without."""
    rng, view = plan.rng, plan.view
    for columns, others, lead in ((70, 17, (5,)), (64, 8, (2, 3)), (130, 5, ())):
        shape = inputs.facing(view, columns, others)
        codes = rng.choice(inputs.whole_codes(view), shape[0] * shape[1]).astype(np.uint8)
        weight = inputs.layer(view, codes, expected.f32(1, 2, 4), shape, 64)
        for dtype in FLOAT_TYPES.values():
            x = rng.integers(-3, 4, (*lead, columns)).astype(dtype)
            bias = None if inputs.backward(view) else np.arange(others).astype(dtype)
            yield inputs.call(view, x, weight, f"whole numbers {[*lead, columns]}", bias)


CHECKS = tuple(check for function in LINEAR for check in _checks(function))
