"""S9: legal sums that reach each bound, faults that the sharper probes see, and the mutants."""

from functools import partial

import numpy as np
import pytest

from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.products import bounds, inputs
from qloracle_conformance.families.products import s09_products as s9
from qloracle_conformance.judging.bounds import U
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import full_mantissa
from qloracle_conformance.judging.views import View, specified_levels
from qloracle_conformance.mutants.matrix import judge, spec_of
from qloracle_conformance.mutants.products import faulty as products
from qloracle_conformance.mutants.products import lawful as products_lawful
from qloracle_conformance.mutants.products import steps as product_steps
from qloracle_conformance.mutants.products import sums

HALF_ULP = 2.0**-24  # added to 1 it is a tie, and rounded away
ALMOST_AN_ULP = float(np.nextafter(np.float32(2.0**-23), np.float32(0)))


def view(function="matmul_4bit", **fields):
    dialect = dialects.specification(function, "nf4") | fields
    return View(function, "nf4", dialect, specified_levels("nf4"))


def ones(view, rows, outputs=1, scale=1.0, bias=None):
    """A call on rows that meet a weight whose elements are all `scale`."""
    shape = (outputs, rows.shape[1])
    codes = np.full(outputs * rows.shape[1], 15, np.uint8)
    weight = inputs.layer(view, codes, np.float32([scale]), shape, 64)
    return inputs.call(view, rows, weight, "a witness", bias)


def called(function, case):
    options = case.options | {name: case.arrays[name] for name in ("bias",) if name in case.arrays}
    return function(*(case.arrays[name] for name in ("x", "packed", "absmax")), **options)


def accumulated(case, total=sums.in_order):
    """What a legal sum holds before it is rounded to the type of the result."""
    function = product_steps.Linear(total=total, end=lambda y, x: y).product
    return called(function, case).astype(np.float64)


def share(case, view, got):
    """The largest error of a float32 accumulator, in units of E: the last rounding set apart."""
    exact, error = bounds.linear(*bounds.operands(case, view), view.dialect)
    return float((np.abs(got.reshape(exact.shape) - exact) / error).max())


def stagnating(columns, lost=HALF_ULP, dtype="float32"):
    """1, and then numbers that are lost beside it."""
    x = np.full((1, columns), lost, np.float64)
    x[0, 0] = 1
    return x.astype(FLOAT_TYPES[dtype])


# ---- witnesses: the accumulation, apart from the last rounding -----------------------------------


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_a_sum_in_order_at_stagnation_reaches_the_bound(dtype):
    case = ones(view(), stagnating(4096, dtype=dtype))
    assert 0.999 < share(case, view(), accumulated(case)) < 1


def test_the_bias_is_one_more_term_of_the_same_sum():
    bias = np.ones(1, np.float32)
    case = ones(view(), np.full((1, 1024), HALF_ULP, np.float32), bias=bias)
    exact, error = bounds.linear(*bounds.operands(case, view()), view().dialect)
    started_with_it = np.float32(1)
    for term in case.arrays["x"][0]:
        started_with_it = np.float32(started_with_it + term)
    assert 0.99 < abs(started_with_it - exact.item()) / error.item() < 1


@pytest.mark.parametrize(("columns", "least"), [(1, 0.99), (2, 0.9)])
def test_a_few_products_with_full_mantissas_come_near_the_bound(columns, least):
    rng = np.random.default_rng(columns)
    x = full_mantissa(rng, 4000 * columns, 0, 1).reshape(4000, columns)
    shares = [
        share(case, view(), accumulated(case))
        for scale in full_mantissa(rng, 20, 0, 1)
        for case in [ones(view(), x, scale=scale)]
    ]
    assert least < max(shares) < 1


@pytest.mark.parametrize("total", [sums.tensor_core, sums.cut_at_the_end])
def test_sums_that_cut_off_reach_their_own_bound_and_exceed_that_of_rounding(total):
    case = ones(view(), stagnating(1024, ALMOST_AN_ULP))
    got = accumulated(case, partial(total, step=1))
    assert 0.99 < share(case, view(accumulate="truncated"), got) < 1
    assert share(case, view(), got) > 1.9


def test_a_declared_tree_reaches_its_bound():
    """On each level of the tree the left half is 1, and the right half what is lost beside it."""
    x = np.full((1, 1024), HALF_ULP)
    for level in range(10):
        x[0, 2**level : 2 ** (level + 1)] = HALF_ULP / 2**level
    x[0, 0] = 1
    case = ones(view(), x.astype(np.float32))
    declared = view(order="pairwise")
    assert 0.9 < share(case, declared, accumulated(case, sums.tree)) < 1  # 10 of 11 roundings
    in_order = ones(view(), stagnating(1024))
    assert share(in_order, declared, accumulated(in_order)) > 50


def test_declared_chunks_reach_their_bound():
    """The first chunk loses all but its 1, and then every other chunk is lost as a whole."""
    x = np.full((1, 4096), HALF_ULP / 64)
    x[0, :64] = HALF_ULP
    x[0, 0] = 1
    case = ones(view(), x.astype(np.float32))
    declared = view(order="chunk(64)")
    assert 0.98 < share(case, declared, accumulated(case, sums.chunks)) < 1
    in_order = ones(view(), stagnating(4096))
    assert share(in_order, declared, accumulated(in_order)) > 30


def test_products_that_underflow_reach_half_of_what_is_granted():
    """2^-150 is a tie between 0 and the smallest number: it is lost, 2^-149 is granted."""
    x = np.full((1, 64), 2.0**-75, np.float32)
    case = ones(view(), x, scale=2.0**-75)
    assert 0.49 < share(case, view(), accumulated(case)) < 0.51


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_last_rounding_reaches_its_part_of_the_bound(dtype):
    """A product just below the middle of two numbers beside 1: next to nothing but rounding."""
    rows = np.ones((1, 1), FLOAT_TYPES[dtype])
    case = ones(view(), rows, scale=1 + U[dtype] * (1 - 2.0**-10))
    outcome = s9.judge_product(case, (called(product_steps.Linear().product, case),), view())
    assert outcome.wrong == 0
    assert outcome.use > 0.95


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_a_result_beyond_the_bound_is_wrong(dtype):
    case = ones(view(), stagnating(700, dtype=dtype))
    due = bounds.product(case, view())
    beyond = np.array(due.exact + 3 * due.bound + U[dtype], FLOAT_TYPES[dtype])
    outcome = s9.judge_product(case, (beyond,), view())
    assert outcome.wrong == 1
    assert outcome.first.ratio > 1


def test_where_every_product_is_zero_only_zero_is_right():
    case = ones(view(), np.zeros((2, 64), np.float32))
    assert s9.judge_product(case, (np.zeros((2, 1), np.float32),), view()).wrong == 0
    tiny = np.full((2, 1), 2.0**-149, np.float32)
    assert s9.judge_product(case, (tiny,), view()).wrong == 2


# ---- the sharper probes that stand beside the bound ----------------------------------------------


def symmetric():
    return next(inputs.symmetric(Plan(view(), "smoke", 0)))


def outcome_of(judgement, case, total):
    return judgement(case, (called(product_steps.Linear(total=total).product, case),), view())


def test_tf32_hides_in_the_bound_on_ordinary_data_and_nowhere_else():
    tf32, rng = sums.narrowed(sums.tf32), np.random.default_rng(0)
    codes, x = rng.integers(0, 16, 8 * 4096), rng.standard_normal((8, 4096))
    weight = inputs.layer(view(), codes.astype(np.uint8), np.float32([0.7]), (8, 4096), 64)
    ordinary = inputs.call(view(), x.astype(np.float32), weight, "normal")
    outcome = outcome_of(s9.judge_product, ordinary, tf32)
    assert (outcome.wrong, outcome.use < 0.25) == (0, True)
    assert outcome_of(s9.judge_moment, ordinary, tf32).use > 1000
    assert outcome_of(s9.judge_moment, symmetric(), tf32).use > 1000
    plan = Plan(view(), "smoke", 0)
    for cases, judgement in (
        (inputs.one_hot, s9.judge_product), (inputs.integers, s9.judge_only_result),
        (inputs.weights, s9.judge_only_result),
    ):  # fmt: skip
        wide = [case for case in cases(plan) if case.arrays["x"].dtype == np.float32]
        assert any(outcome_of(judgement, case, tf32).wrong for case in wide)


@pytest.mark.parametrize(
    "total", [sums.blas, sums.in_order, sums.from_the_end, sums.tree, sums.chunks]
)
def test_the_second_moment_of_sums_that_round_stays_far_below_its_limit(total):
    """No legal sum comes near it: whole numbers and one-hot rows are the sharper probes."""
    outcome = outcome_of(s9.judge_moment, symmetric(), total)
    assert outcome.wrong == 0
    assert outcome.use < 0.25


def test_the_second_moment_of_sums_that_cut_off_grows_with_their_length():
    """So a limit that is right for rounding would refuse lawful matrix units."""
    declared = view(accumulate="truncated")
    every = partial(sums.cut_at_the_end, step=1)
    y = called(product_steps.Linear(total=every).product, symmetric())
    assert s9.judge_moment(symmetric(), (y,), view()).use > 100
    assert 0.01 < s9.judge_moment(symmetric(), (y,), declared).use < 0.25


def test_one_product_left_out_is_seen_by_the_second_moment():
    def dropped(rows, matrix):
        return sums.blas(rows[:, :-1], matrix[:, :-1])

    assert outcome_of(s9.judge_moment, symmetric(), dropped).use > 1e5


# ---- the sums that the mutants are made of -------------------------------------------------------


@pytest.mark.parametrize(
    "total",
    [
        sums.blas, sums.in_order, sums.from_the_end, sums.fused, sums.tree, sums.chunks,
        sums.tensor_core, sums.cut_at_the_end,
    ],
)  # fmt: skip
def test_every_order_gives_whole_numbers_exactly(total):
    rng = np.random.default_rng(1)
    for k in (1, 2, 7, 64, 129):
        rows = rng.integers(-4095, 4096, (3, k)).astype(np.float32)
        matrix = rng.integers(-1, 2, (5, k)).astype(np.float32)
        assert (total(rows, matrix) == rows.astype(int) @ matrix.astype(int).T).all()


def test_a_fused_step_keeps_what_a_rounded_product_loses():
    e = 2.0**-12
    rows, matrix = np.float32([[-1, 1 + e]]), np.float32([[1 + 2 * e, 1 + e]])
    assert sums.fused(rows, matrix).item() == e * e
    assert sums.in_order(rows, matrix).item() == 0


def test_tf32_keeps_ten_bits_and_rounds_ties_away():
    values = np.float32([1 + 2.0**-10, 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12])
    assert sums.tf32(values).tolist() == [1 + 2.0**-10, 1 + 2.0**-10, -1 - 2.0**-10, 1]


# ---- the mutants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        products_lawful.TensorCores, products_lawful.DeclaredTree, products_lawful.FactorsInTypeOfX,
        products.OtherWeightsForFewRows, products.RowsInBFloat16, products.TreeThatIsNone,
    ],
    ids=lambda mutant: mutant.__name__,
)  # fmt: skip
def test_a_mutant_is_killed_or_accepted_as_it_says(mutant):
    row = judge(spec_of(mutant))
    assert row.as_expected
    assert (row.use <= 1) == row.lawful
