"""S10: legal layers that come near each bound, faults that it cannot see, and the mutants."""

import numpy as np
import pytest

from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.lora import bounds, inputs
from qloracle_conformance.families.lora import s10_lora as s10
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import full_mantissa
from qloracle_conformance.judging.views import View, specified_levels
from qloracle_conformance.mutants.lora import faulty as lora
from qloracle_conformance.mutants.lora import lawful as lora_lawful
from qloracle_conformance.mutants.lora import steps as lora_steps
from qloracle_conformance.mutants.matrix import judge, spec_of
from qloracle_conformance.mutants.products import steps as product_steps
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.running.verify import verify

RESULTS = ("y", "dx", "da", "db")
LOST = 2.0**-24  # added to 1 it is a tie, and rounded away
RIGHT = lora_steps.Lora()
MERGED = lora_steps.Lora(y=lora_steps.merged)
EVERY = lora_lawful.EveryStepInTypeOfX


def view(function, **fields):
    known = {field.name for field in dialects.fields_of(function)}
    own = {name: value for name, value in fields.items() if name in known}
    return View(function, "", dialects.specification(function) | own, specified_levels(""))


def layers(x, w, a, b, dy, s=1.0, mask=None):
    """A call of lora_forward, and one of lora_backward, on the same data."""
    arrays = {"x": x, "w": w, "a": a, "b": b} | ({} if mask is None else {"dropout_mask": mask})
    options = {"scaling": s}
    return (
        Case("lora_forward", arrays, options, "a witness"),
        Case("lora_backward", arrays | {"dy": dy}, options, "a witness"),
    )


def shares(forward, backward, *, steps=RIGHT, **fields):
    """Of every result the error of a legal computation, in units of E: before the last rounding."""
    arrays, dy = backward.arrays, product_steps.wide(backward.arrays["dy"])
    own = steps._replace(total=sums.in_order).layer(
        arrays["x"], product_steps.wide(arrays["w"]), arrays["a"], arrays["b"], dy=dy,
        scaling=backward.options["scaling"], dropout_mask=arrays.get("dropout_mask"),
    )  # fmt: skip
    due = bounds.results(forward, view("lora_forward", **fields))
    due += bounds.results(backward, view("lora_backward", **fields))
    return {
        name: float((np.abs(getattr(steps, name)(own).astype(float) - exact) / error).max())
        for name, (exact, error, _) in zip(("y", "dx", "da", "db"), due, strict=True)
    }


def largest(count, dtype="float32", masked=False, **how):
    """The largest shares among many layers of one element, all mantissas full."""
    rng, best = np.random.default_rng(0), dict.fromkeys(RESULTS, 0.0)
    for _ in range(count):
        drawn = full_mantissa(rng, 5, -1, 1).reshape(5, 1, 1).astype(FLOAT_TYPES[dtype])
        mask = np.full((1, 1), 10 / 9).astype(drawn.dtype) if masked else None
        found = shares(*layers(*drawn, float(rng.uniform(0.5, 1)), mask), **how)
        best = {name: max(best[name], found[name]) for name in RESULTS}
    return best


# ---- witnesses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_layers_of_one_element_come_within_two_of_every_bound(masked):
    best = largest(600, masked=masked)
    assert min(best.values()) > 0.45, best
    assert max(best.values()) < 1, best


def test_sums_in_order_at_stagnation_reach_the_bounds():
    """1, then numbers that are lost: in the base, in h, in g, and in both terms of dx."""
    n = 1024
    many = np.full((1, n), LOST, np.float32)
    many[0, 0] = 1
    one, ones = np.ones((1, 1), np.float32), np.ones((1, n), np.float32)
    ahead = shares(*layers(many, ones, ones, one, one))  # many columns of x
    assert min(ahead["y"], ahead["db"]) > 0.99, ahead
    behind = shares(*layers(one, ones.T, one, ones.T, many))  # many columns of dy
    assert min(behind["dx"], behind["da"]) > 0.99, behind
    assert max(*ahead.values(), *behind.values()) < 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_kept_in_16_bits_comes_near_its_bound(dtype):
    hidden = lora_steps.Lora(hidden=lora_steps.in_own_type)
    best = largest(300, dtype, steps=hidden, lora_rounding="hidden")
    assert min(best.values()) > 0.85, best
    assert max(best.values()) < 1, best


@pytest.mark.parametrize("masked", [False, True])
def test_steps_rounded_each_on_its_own_come_near_their_bound(masked):
    best = largest(600, "bfloat16", masked, steps=lora_lawful.SEPARATE, lora_rounding="separate")
    assert min(best.values()) > 0.35, best
    assert max(best.values()) < 1, best


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.3), ("bfloat16", 0.8)])
def test_merged_weights_come_near_their_bound(dtype, least):
    assert least < largest(600, dtype, steps=MERGED, lora_merged="yes")["y"] < 1


def test_a_packed_weight_that_is_merged_may_have_been_rounded_twice():
    """It shows 1 in bfloat16, and with next to nothing added to it, it is 1 + 2^-7."""
    one, next_to_nothing = np.ones((1, 1), np.float32), np.full((1, 1), 2.0**-19, np.float32)
    x, a, b = (array.astype(FLOAT_TYPES["bfloat16"]) for array in (one, one, next_to_nothing))
    weight = {"packed": np.uint8([0xF0]), "absmax": np.float32([1 + 2.0**-8 - 2.0**-20])}
    options = {"shape": [1, 1], "blocksize": 64, "quant_type": "nf4", "scaling": 1.0}
    case = Case("qlora_forward", {"x": x, "a": a, "b": b} | weight, options, "a witness")
    y = lora_lawful.DeclaredMerge.qlora_forward(x, *weight.values(), a, b, **options)
    fields = {"product_weights": "own", "lora_merged": "yes"}
    dialect = dialects.specification("qlora_forward", "nf4") | fields
    merging = View("qlora_forward", "nf4", dialect, specified_levels("nf4"))
    ((exact, error, _),) = bounds.results(case, merging)
    assert 0.99 < float(abs(y.astype(float) - exact).item() / error.item()) < 1


def test_merging_in_16_bits_exceeds_the_bound_where_it_is_not_declared():
    assert largest(100, "bfloat16", steps=MERGED)["y"] > 100


@pytest.mark.parametrize("name", RESULTS)
def test_hidden_numbers_of_float32_layers_in_bfloat16_exceed_every_bound(name):
    """An error of up to 2^-8 against a few 2^-24."""
    steps = lora_steps.Lora(hidden=lambda h, own: product_steps.in_bfloat16(h))
    narrow = largest(50, steps=steps)
    assert narrow[name] > 1000


# ---- zero bounds, and what only whole numbers see ------------------------------------------------


def judged(judgement, case, values):
    return judgement(case, values, view(case.function))


def test_a_bound_of_zero_demands_zero():
    """A row of x that is masked wholly gives nothing to dA, and no error is granted."""
    ones = np.ones((1, 2), np.float32)
    mask = np.array([[2, 0]], np.float32)
    _, backward = layers(ones, ones, ones, ones[:, :1], ones[:, :1], mask=mask)
    right = lora_lawful.ScalingOnTheBranch.lora_backward(
        *(backward.arrays[name] for name in ("dy", "x", "w", "a", "b")), scaling=1.0,
        dropout_mask=mask,
    )  # fmt: skip
    assert judged(s10.judge_layer, backward, right).wrong == 0
    dx, da, db = right
    wrong = da.copy()
    wrong[0, 1] = 2.0**-149
    assert judged(s10.judge_layer, backward, (dx, wrong, db)).wrong == 1


def test_every_result_of_a_backward_pass_is_judged():
    case = next(inputs.shapes(Plan(view("lora_backward"), "smoke", 0)))
    arrays = [case.arrays[name] for name in ("dy", "x", "w", "a", "b")]
    mask = case.arrays.get("dropout_mask")
    right = lora_lawful.ScalingOnTheBranch.lora_backward(*arrays, **case.options, dropout_mask=mask)
    assert judged(s10.judge_layer, case, right).wrong == 0
    for i, name in enumerate(("dx", "da", "db")):
        values = [part.copy() for part in right]
        values[i].reshape(-1)[-1] *= 1 + 2.0**-4
        outcome = judged(s10.judge_layer, case, tuple(values))
        assert (outcome.wrong, outcome.first.result) == (1, name)


def test_whole_numbers_see_hidden_numbers_in_bfloat16():
    """They have more than eight bits, and nothing else in the layer rounds."""
    plan = Plan(view("lora_forward"), "smoke", 0)
    wide = [case for case in inputs.integers(plan) if case.arrays["x"].dtype == np.float32]

    def layer(case):
        arrays = [case.arrays[name] for name in ("x", "w", "a", "b")]
        mask = case.arrays.get("dropout_mask")
        return lora.HiddenInBFloat16.lora_forward(*arrays, **case.options, dropout_mask=mask)

    assert any(judged(s10.judge_only_results, case, (layer(case),)).wrong for case in wide)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("step", ["hidden", "base"])
@pytest.mark.parametrize("function", ["lora_forward", "lora_backward"])
def test_what_a_rounded_step_leaves_is_zero_or_e_squared(function, step, dtype):
    case = inputs.leftover(view(function), dtype, step)
    names = ("dy", "x", "w", "a", "b") if function.endswith("backward") else ("x", "w", "a", "b")
    arrays = [case.arrays[name] for name in names]
    place = 2 if function.endswith("backward") and step == "hidden" else 0  # dB, else the first

    def left(mutant):
        result = getattr(mutant, function)(*arrays, **case.options)
        parts = result if isinstance(result, tuple) else (result,)
        return float(parts[place].reshape(-1)[0])

    e = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    assert left(lora_lawful.ScalingOnTheBranch) == e * e
    assert left(EVERY) == 0
    assert left(lora_lawful.HiddenInTypeOfX) == (0 if step == "hidden" else e * e)


# ---- the mutants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        lora_lawful.EveryStepInTypeOfX, lora_lawful.DeclaredMerge, lora.MaskNotInDx,
        lora.ScalingNotInA, lora.SidesSwapped, lora.MergedUndeclared,
    ],
    ids=lambda mutant: mutant.__name__,
)  # fmt: skip
def test_a_mutant_is_killed_or_accepted_as_it_says(mutant):
    row = judge(spec_of(mutant))
    assert row.as_expected
    assert (row.use <= 1) == row.lawful


def test_a_layer_that_refuses_a_rank_above_its_sides_is_found(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text(
        "import qloracle as q\n"
        "def lora_forward(x, w, a, b, **options):\n"
        "    if len(a) > min(w.shape):\n"
        "        raise ValueError('the rank is too large')\n"
        "    return q.lora_forward(x, w, a, b, **options)\n"
    )
    report = verify([str(path)], only="S10/lora_forward/shapes")
    (check,) = report.judgements[0].checks
    assert check.status == "ERROR"
    assert "the rank is too large" in check.message
