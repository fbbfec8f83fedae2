"""S11 and S11b: bounds that lawful steps come near and faulty ones exceed; what libraries do."""

from decimal import Decimal, localcontext
from fractions import Fraction
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

import qloracle
from qloracle_conformance.calling.callers import LocalCaller
from qloracle_conformance.calling.calls import declarations
from qloracle_conformance.calling.loading import load
from qloracle_conformance.contract import dialects, protocol
from qloracle_conformance.engine import Engine, reduce
from qloracle_conformance.families.adam import bounds, inputs
from qloracle_conformance.families.adam import s11_adam as s11
from qloracle_conformance.families.adam import s11b_adam_8bit as s11b
from qloracle_conformance.judging.bounds import within
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.views import View, specified_levels
from qloracle_conformance.mutants import story
from qloracle_conformance.mutants.adam import faulty as adam
from qloracle_conformance.mutants.adam import faulty_8bit as adam_8bit
from qloracle_conformance.mutants.adam import lawful as adam_lawful
from qloracle_conformance.mutants.adam import steps as adam_steps
from qloracle_conformance.mutants.matrix import judge, spec_of

N = 4000
EPS = 1e-8
FORMS = {
    "as the reference": adam_steps.Adam().step,
    "fused": adam_lawful.FusedMoments.adam_step,
    "lerp": adam_lawful.MeanByLerp.adam_step,
    "bitsandbytes": adam_lawful.CorrectedRate.adam_step,
    "torch": adam_lawful.RateRoundedOnce.adam_step,
    "optax": adam_lawful.DecayBesideDirection.adam_step,
}


def view(function="adam_step", **dialect):
    spec = dialects.specification(function)
    return View(function, "", spec | dialect, specified_levels(""))


def answer(step, case):
    return step(*(case.arrays[name] for name in ("param", "grad", "m", "v")), **case.options)


def answer_8bit(step, case):
    maps = {name: case.arrays[name] for name in case.arrays if "codebook" in name}
    names = ("param", "grad", *s11b.STATE)
    return step(*(case.arrays[name] for name in names), **maps, **case.options)


def random_cases(seed=0):
    """Steps from a state, at p = 0 and beside parameters, with a decay and without."""
    rng = np.random.default_rng(seed)
    for beta1, beta2 in inputs.BETAS:
        for step, wd in ((1, 0.0), (2, 0.5), (1000, 0.0), (2**24, 0.5)):
            case = inputs.ordinary(rng, (N,), "", step=step, lr=0.3, beta1=beta1, beta2=beta2)
            case = case.with_options(weight_decay=wd)
            yield case
            yield case.with_arrays(param=np.zeros(N, np.float32))


def uses(form, case):
    """The share of its bound that each result needs: m', v', p'."""
    _, m, v = values = answer(form, case)
    due = bounds.moments(case, view().dialect)
    step = s11.judge_step(case, values, view())
    return within("m", m, due["m"]).use, within("v", v, due["v"]).use, step.use


# ---- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_keeps_within_its_bounds(form):
    for case in random_cases():
        outcome = s11.judge_all(case, answer(FORMS[form], case), view())
        assert outcome.wrong == 0, outcome.first
        assert outcome.compared == 3 * N


def test_lawful_steps_come_within_a_factor_of_four_of_each_bound():
    """At p = 0, where the step is all there is."""
    at_zero = [case for case in random_cases(1) if not case.arrays["param"].any()]
    reached = np.max([uses(FORMS["as the reference"], case) for case in at_zero], axis=0)
    assert (reached > 0.5).all(), reached
    assert (reached < 1).all()


@pytest.mark.parametrize(
    ("fault", "least"),
    [
        (adam.MeanInBFloat16, 1e3),
        (adam.SquaresInBFloat16, 1e3),
        (adam.GradientInBFloat16, 1e3),
        (adam.RoughRoot, 10),
        (adam.StepAhead, 100),
        (adam.EpsInsideRoot, 1e3),
        (adam.SquareOfEpsInsideRoot, 1e3),
        (adam.EpsBeforeCorrection, 1e3),
    ],
)
def test_faults_exceed_the_bounds_by_far(fault, least):
    rng = np.random.default_rng(2)
    grad, zero = inputs.sized(rng, (N,)), np.zeros(N, np.float32)
    case = inputs.stepped(zero, grad, zero, zero)
    outcome = s11.judge_all(case, answer(fault.adam_step, case), view())
    assert outcome.first.ratio > least


def test_the_kits_own_float64_stays_within_the_room_that_it_has():
    """Against exact fractions, and square roots of fifty digits."""
    rng = np.random.default_rng(3)
    for beta1, beta2 in (*inputs.BETAS, (0.99, 0.9999)):
        for step in (1, 2, 1000):
            case = inputs.ordinary(rng, (8,), "", step=step, beta1=beta1, beta2=beta2)
            case = case.with_arrays(param=np.zeros(8, np.float32))
            due = bounds.moments(case, view().dialect)
            own = {name: bounds.known(due[name].exact.astype(np.float32)) for name in ("m", "v")}
            param = bounds.parameter(case, own["m"], own["v"], view().dialect)
            for i in range(8):
                m, v = exact_moments(case, i)
                assert abs(Fraction(due["m"].exact[i]) - m) < bounds.KIT * due["m"].bound[i]
                assert abs(Fraction(due["v"].exact[i]) - v) < bounds.KIT * due["v"].bound[i]
                p = -exact_step(case, own["m"].exact[i], own["v"].exact[i])
                assert abs(Fraction(param.exact[i]) - p) < bounds.KIT * param.bound[i]


def exact_moments(case, i):
    m, v, g = (Fraction(float(case.arrays[name][i])) for name in ("m", "v", "grad"))
    b1, b2 = Fraction(case.options["beta1"]), Fraction(case.options["beta2"])
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2


def exact_step(case, m, v):
    with localcontext(prec=50):
        b1, b2, t = (Decimal(case.options[name]) for name in ("beta1", "beta2", "step"))
        c1, c2 = 1 - b1**t, 1 - b2**t
        root = (Decimal(float(v)) / c2).sqrt() + Decimal(EPS)
        return Fraction(Decimal(case.options["lr"]) * Decimal(float(m)) / c1 / root)


def test_float32_corrections_have_room_at_step_2_and_none_at_2_to_the_24():
    case = inputs.stepped(*np.zeros((4, 1), np.float32))
    loose = {
        t: bounds.numbers(case.with_options(step=t), view(bias_correction="float32").dialect).loose
        for t in (2, 2**24)
    }
    assert loose[2] / 2.0**-24 == pytest.approx(1015, rel=0.01)
    assert loose[2**24] == 0


# ---- nothing may move ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("grad", "lr"), [(0.0, 0.1), (1.0, 0.0)])
def test_a_parameter_without_a_step_keeps_its_bits(dtype, grad, lr):
    param = np.array([1.5, -0.3, 100, 0], np.float32)
    case = inputs.stepped(param, np.full(4, grad, "f4"), *np.zeros((2, 4), "f4"), lr=lr)
    case = inputs.typed(case, dtype, dtype)
    p, m, v = answer(qloracle.adam_step, case)
    assert s11.judge_all(case, (p, m, v), view()).wrong == 0
    bits = p.view(np.uint32 if dtype == "float32" else np.uint16)
    bits += 1
    assert s11.judge_step(case, (p, m, v), view()).wrong == 4


def test_half_an_ulp_below_a_power_of_two_is_a_move():
    """Where u |p| is the distance to the next number: a bound of that would let it pass."""
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    case = inputs.stepped(one, zero, zero, zero)
    below = np.nextafter(one, zero)
    assert s11.judge_step(case, (one, zero, zero), view()).wrong == 0
    assert s11.judge_step(case, (below, zero, zero), view()).wrong == 1


def test_a_smallest_moment_from_nothing_is_wrong():
    case = inputs.stepped(*np.zeros((4, 2), np.float32))
    zero, tiny = np.zeros(2, np.float32), np.array([0, 1e-45], np.float32)
    assert s11.judge_moments(case, (zero, zero, zero), view()).wrong == 0
    assert s11.judge_moments(case, (zero, tiny, tiny), view()).wrong == 2


def test_moments_that_are_no_numbers_are_wrong_and_so_is_what_follows():
    rng = np.random.default_rng(4)
    case = inputs.ordinary(rng, (5,), "")
    nan = np.full(5, np.nan, np.float32)
    outcome = s11.judge_all(case, (nan, nan, nan), view())
    assert (outcome.compared, outcome.wrong) == (15, 15)


# ---- 8 bits --------------------------------------------------------------------------------------


@pytest.fixture
def case_8bit():
    return inputs.ordinary_8bit(np.random.default_rng(6), (600,), "", step=3)


def test_the_right_states_are_within_their_intervals(case_8bit):
    values = answer_8bit(qloracle.adam_step_8bit, case_8bit)
    outcome = s11b.judge_all(case_8bit, values, view("adam_step_8bit"))
    assert (outcome.wrong, outcome.compared) == (0, 600 * 3 + 3 * 2)


@pytest.mark.parametrize("place", [1, 3])
def test_nearly_every_code_is_the_only_right_one(case_8bit, place):
    values = list(answer_8bit(qloracle.adam_step_8bit, case_8bit))
    values[place] = values[place] ^ 1
    outcome = s11b.judge_states(case_8bit, values, view("adam_step_8bit"))
    assert outcome.wrong >= 599


@pytest.mark.parametrize("place", [2, 4])
@pytest.mark.parametrize("off", [2.0**-20, -(2.0**-20)])
def test_a_scale_16_u_off_is_wrong(case_8bit, place, off):
    values = list(answer_8bit(qloracle.adam_step_8bit, case_8bit))
    values[place] = values[place] * np.float32(1 + off)
    assert s11b.judge_states(case_8bit, values, view("adam_step_8bit")).wrong >= 3


def test_the_step_is_judged_as_sharply_as_in_32_bits(case_8bit):
    case = case_8bit.with_arrays(param=np.zeros(600, np.float32))
    values = list(answer_8bit(qloracle.adam_step_8bit, case))
    right = s11b.judge_step(case, values, view("adam_step_8bit"))
    assert 0.25 < right.use < 1
    values[0] = values[0] * np.float32(1 + 2.0**-18)
    assert s11b.judge_step(case, values, view("adam_step_8bit")).wrong > 580  # m' cancels in some


def test_codes_of_a_block_whose_scale_is_zero_are_recorded_not_judged():
    case = inputs.coded(np.ones(4, "f4"), np.zeros(4, "f4"), inputs.fresh(4))
    values = list(answer_8bit(qloracle.adam_step_8bit, case))
    values[1] = np.zeros(4, np.uint8)
    outcome = s11b.judge_all(case, values, view("adam_step_8bit"))
    assert (outcome.wrong, outcome.recorded) == (0, 4)


def test_zero_as_131_is_told_with_its_reason():
    case = inputs.coded(np.zeros(2, "f4"), np.array([1, 0], "f4"), inputs.fresh(2))
    values = answer_8bit(adam_8bit.ZeroAs131.adam_step_8bit, case)
    first = s11b.judge_states(case, values, view("adam_step_8bit")).first
    assert (first.result, first.index, first.got, first.expected) == ("m_codes", 1, "131", "127")
    assert "state and gradient are zero" in first.reason


def test_a_first_gradient_16_u_from_each_threshold_has_one_right_code():
    plan_view = view("adam_step_8bit")
    near = [c for c in s11b.codes(Plan(plan_view, "smoke", 0)) if "near" in c.note]
    assert len(near) == 4
    for case in near:
        values = answer_8bit(qloracle.adam_step_8bit, case)
        kind = case.note[0]
        due = bounds.moments(case, plan_view.dialect)[kind]
        low, high = bounds.ranks(case, kind, due, values[s11b.RESULTS[kind][1]], plan_view.dialect)
        assert (low == high).all()


# ---- planted faults and lawful variants ----------------------------------------------------------

QUICK = (
    (adam.StepIn16Bits, "order"),  # 2^24 is tried
    (adam.RateInDenominator, "rates"),  # lr 0 on zeros
    (adam.RoughRoot, "step"),  # which the probe took for float32 corrections
    (adam.TailLeft, "shapes"),
    (adam.ParameterRoundedTwice, "types"),
    (adam.DecayInMeanOnly, "decay"),
    (adam_8bit.OldStateCodedAgain, "states"),
    (adam_8bit.ThresholdsMoved, "codes"),
    (adam_8bit.ZeroAs131, "zeros"),
    (adam_8bit.MapsIgnored, "maps"),
    (adam_8bit.ShortBlockLeft, "blocks"),
)


@pytest.mark.parametrize(("fault", "layer"), QUICK)
def test_the_layer_that_was_made_for_a_fault_finds_it(fault, layer):
    row = judge(spec_of(fault))
    assert row.verdict == f"killed by {fault.kills}"
    assert layer in {check.rpartition("/")[2] for check in row.failing}


@pytest.mark.parametrize(
    "fault",
    [
        (adam.DecayAfterUndeclared, "S11/adam_step/decay"),
        (adam.CoupledForDecoupled, "S11/adam_step/decay"),
        (adam_8bit.DecayAfterUndeclared8Bit, "S11b/adam_step_8bit/decay"),
        (adam_8bit.Float32BetasUndeclared8Bit, "S11b/adam_step_8bit/states"),
    ],
    ids=lambda pair: pair[0].__name__,
)
def test_a_field_that_contradicts_its_declaration_fails_in_its_layer(fault):
    mutant, check = fault
    assert judge(spec_of(mutant)).failing == [check]


@pytest.mark.parametrize(
    "variant",
    [
        adam_lawful.Float32Betas,
        adam_lawful.Float32Corrections,
        adam_lawful.DecayAfterDeclared,
        adam_lawful.SignNudged,
        adam_lawful.RoundedStateUsed,
        adam_lawful.CodedByReciprocal,
        adam_lawful.FusedMoments,
    ],
)
def test_a_lawful_variant_is_accepted_and_its_dialect_named(variant):
    row = judge(spec_of(variant))
    assert row.verdict == "accepted", row.messages
    assert all(variant.adopts in label for label in row.labels)
    assert bool(row.labels) == bool(variant.adopts)


def test_every_story_of_the_catalogue_is_one_line():
    for module in (adam, adam_8bit, adam_lawful):
        for mutant in vars(module).values():
            if getattr(mutant, "__module__", "") == module.__name__ and isinstance(mutant, type):
                assert 20 < len(story(mutant)) <= 100


# ---- an engine's run -----------------------------------------------------------------------------


def failures(target, **options):
    engine = Engine(LocalCaller(target), searching=False, **options)
    engine.probe()
    return {run.id: run for run in engine.run() if run.status == "FAIL"}


def test_a_failing_step_is_reduced_to_one_element_and_plain_options():
    run = next(iter(failures(adam.EpsInsideRoot, functions=("adam_step",)).values()))
    case = run.failure.case
    assert case.arrays["param"].shape == (1,)
    assert case.arrays["m"].tolist() == case.arrays["v"].tolist() == [0]
    assert set(case.options) == {"step", "lr"}


def test_a_failing_code_is_reduced_to_two_elements():
    found = failures(adam_8bit.ZeroAs131, functions=("adam_step_8bit",))
    case = next(iter(found.values())).failure.case
    assert case.arrays["grad"].tolist() == [1, 0]


@pytest.mark.parametrize("function", ["adam_step", "adam_step_8bit"])
def test_reducing_ends(function):
    """If everything fails, the smallest call of all is left: no neighbour leads back."""
    rng = np.random.default_rng(8)
    make = inputs.ordinary if function == "adam_step" else inputs.ordinary_8bit
    case = make(rng, (3, 100), "", step=7, lr=0.3, eps=1e-6, beta1=0.5, weight_decay=0.1)
    case = reduce.reduce(inputs.typed(case, "bfloat16", "float32"), 150, lambda _: 0, [])
    assert case.arrays["param"].shape == (1,)
    assert case.arrays["param"].dtype == np.float32
    assert case.options == {"step": 1, "lr": 1.0}
    moving = (case.arrays[name] for name in ("param", "grad"))
    assert not any(array.any() for array in moving)


def test_a_kernel_that_takes_only_what_it_must_is_judged_within_its_scope():
    class Least:
        @staticmethod
        def adam_step(param, grad, m, v, *, step, lr):
            return qloracle.adam_step(param, grad, m, v, step=step, lr=lr)

    engine = Engine(LocalCaller(Least), searching=False, reducing=False)
    engine.probe()
    runs = {run.id.rpartition("/")[2]: run for run in engine.run() if run.rule == "S11"}
    assert {run.status for name, run in runs.items() if name != "decay"} == {"PASS"}
    assert runs["decay"].status == "UNSUPPORTED"


# ---- libraries -----------------------------------------------------------------------------------

ADAPTERS = "qloracle_conformance.adapters"


def judged(spec, **options):
    """The optimizers of an adapter: what failed, and the views that were found."""
    adapter = load(spec)
    own = {name: getattr(adapter, name) for name in protocol.OPTIMIZERS if hasattr(adapter, name)}
    target = SimpleNamespace(**own, **declarations(adapter))
    engine = Engine(LocalCaller(target), searching=False, **options)
    views = {view.function: view for view in engine.probe()}
    runs = {run.id: run for run in engine.run()}
    assert all(run.comparisons > 0 for run in runs.values())
    return {name: run for name, run in runs.items() if run.status != "PASS"}, views


@pytest.mark.parametrize("road", ["for_loop", "foreach", "fused"])
def test_torchs_three_roads_pass_as_specified(road):
    failing, views = judged(f"{ADAPTERS}.torch_optim:{road}")
    assert failing == {}
    assert views["adam_step"].label == ""


@pytest.mark.slow  # it compiles a step for each set of numbers
@pytest.mark.skipif(find_spec("optax") is None, reason="optax is not installed")
def test_optax_passes_and_its_float32_corrections_are_named():
    failing, views = judged(f"module:{ADAPTERS}.optax_adam")
    assert failing == {}
    assert views["adam_step"].label == "bias_correction: float32"


# bitsandbytes' kernels take all threads: they are slow beside other tests


@pytest.fixture(scope="module")
def bitsandbytes():
    return judged(f"module:{ADAPTERS}.bnb", reducing=False)


@pytest.mark.slow
def test_bitsandbytes_adam_passes_but_for_a_decay_that_is_always_decoupled(bitsandbytes):
    failing, views = bitsandbytes
    (check,) = (name for name in failing if name.startswith("S11/"))
    assert check == "S11/adam_step/decay"
    assert "decay_mode is decoupled, specified: as_asked" in failing[check].message
    assert failing[check].wrong == 1  # the finding; under it all values are right
    assert views["adam_step"].findings[0].declare == 'dialect = {"decay_mode": "decoupled"}'


@pytest.mark.slow
def test_bitsandbytes_8_bit_adam_steps_as_specified(bitsandbytes):
    failing, _ = bitsandbytes
    assert "S11b/adam_step_8bit/states" in failing
    assert not any(name.endswith(("/step", "/eps", "/order")) for name in failing)


@pytest.mark.slow
def test_bitsandbytes_8_bit_adam_on_a_cpu_gives_zero_the_code_131():
    """So parameters that never had a gradient drift."""
    check = "S11b/adam_step_8bit/zeros"
    failing, _ = judged(f"module:{ADAPTERS}.bnb", only=lambda name: name == check)
    assert failing[check].message.startswith("m_codes[1] is 131, expected 127")
    assert failing[check].failure.case.arrays["grad"].tolist() == [1, 0]
