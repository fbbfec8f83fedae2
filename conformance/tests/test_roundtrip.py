"""The round trip of opaque states: torchao and bitsandbytes for real, the bounds, the probe."""

import itertools

import numpy as np
import pytest

import qloracle
from qloracle_conformance.calling.loading import load
from qloracle_conformance.contract import dialects, presets
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.engine import reduce
from qloracle_conformance.families.nested import inputs, roundtrip
from qloracle_conformance.families.nested.smaller import smaller_state
from qloracle_conformance.judging.views import View
from qloracle_conformance.mutants.matrix import own_part
from qloracle_conformance.mutants.nested import opaque as nested
from qloracle_conformance.running.verify import verify

SCHEMES = [("dynamic", nested.dynamic), ("linear", nested.linear)]
FOUR_DECIMALS = '{"codebook": "four_decimals"}'


def judged(target, only="", dialect=None):
    (judgement,) = verify([target], dialect=dialect, only=only).judgements
    return {check.id.replace("quantize_nested[nf4]/", ""): check for check in judgement.checks}


def failing(checks):
    return {name for name, check in checks.items() if check.status not in ("PASS", "UNSUPPORTED")}


@pytest.fixture(scope="module")
def torchao(validate):
    pytest.importorskip("torchao", reason="torchao is not installed")
    report = verify(["torchao"])
    validate(report.to_dict())
    return report.judgements[0]


def test_torchao_has_a_table_of_four_decimals_and_judging_goes_on_under_it(torchao):
    checks = {check.id: check for check in torchao.checks}
    levels = checks["S1/quantize_nested[nf4]/levels"]
    assert levels.status == "FAIL"
    assert "codebook is four_decimals, specified: pinned (13 of 16 levels differ" in levels.message
    assert f"to declare it: dialect = {FOUR_DECIMALS}" in levels.message
    for layer in ("S3/{}/shapes", "S5/{}/full", "S5/{}/16bit", "S5/{}/volume"):
        check = checks[layer.format("quantize_nested[nf4]")]
        assert (check.status, check.comparisons > 10_000) == ("PASS", True)


def test_torchao_makes_numbers_of_blocks_of_zeros(torchao):
    zeros = next(check for check in torchao.checks if check.id.endswith("/zeros"))
    assert zeros.status == "FAIL"
    x, (got,) = zeros.failure.case.arrays["x"].reshape(-1), zeros.failure.values
    index = zeros.failure.mismatch.index
    assert x[index] == 0
    assert got.reshape(-1)[index] != 0


@pytest.fixture(scope="module")
def declared():
    pytest.importorskip("torchao", reason="torchao is not installed")
    return verify(["torchao"], dialect=presets.preset("torchao")).judgements[0]


def test_under_its_preset_only_the_faults_of_torchao_are_left(declared):
    wrong = {check.id: check for check in declared.checks if check.failure or check.message}
    assert set(wrong) == {"S5/quantize_nested[nf4]/zeros", "S8/quantize_nested[nf4]/scales"}
    assert all(check.status == "FAIL" for check in wrong.values())
    assert not any(view.findings for view in declared.views)
    assert declared.views[0].label == (
        "codebook: four_decimals; nested_scale: linear; thresholds: nearest; input_type: own; "
        "decode: output_type"
    )


def test_the_smallest_inputs_have_one_element_that_is_not_zero(declared):
    for check in declared.checks:
        if check.failure is not None:
            x = check.failure.case.arrays["x"]
            assert (x.size, np.count_nonzero(x)) == (64 * 256, 1)
            assert x.dtype == (np.float16 if check.rule == "S8" else np.float32)


def test_torchaos_faults_are_its_own():
    """The smallest inputs, called by hand, without the kit."""
    ao = pytest.importorskip("qloracle_conformance.adapters.ao", reason="torchao is not installed")
    torch = pytest.importorskip("torch")
    x = torch.zeros(64 * 256)
    x[0] = 1.0
    back = ao.to_nf4(x, 64, 256).to(torch.float32)
    assert (back[64:] != 0).all()  # due: 0
    tiny = (x * 2**-10).to(torch.float16)
    state = ao.to_nf4(tiny, 64, 256)
    assert state.quantization_factor.isinf().all()  # 128 / 0.00097 is more than float16 holds
    assert state.to(torch.float16)[0] == 2**-18  # due: 2**-10, as in float32
    assert abs(ao.to_nf4(tiny.float(), 64, 256).to(torch.float32)[0] - 2**-10) < 2**-16


def test_a_declaration_that_the_probe_contradicts_fails(torchao):
    wrong = presets.preset("torchao") | {"thresholds": "midpoint"}
    (judgement,) = verify([load("torchao")], dialect=wrong, only="S8", causes=False).judgements
    (scales,) = [check for check in judgement.checks if check.rule == "S8"]
    assert "thresholds is nearest, declared: midpoint" in scales.message


BITSANDBYTES = """
import bitsandbytes.functional as bnb
arrays, limits = "torch", {"ndim": [1, 2, 3, 4], "quant_type": ["nf4"]}
def quantize_nested(x, *, blocksize=64, quant_type="nf4"):
    return bnb.quantize_4bit(
        x, blocksize=blocksize, quant_type=quant_type, compress_statistics=True
    )
def dequantize_nested(state, dtype):
    assert state[1].dtype == dtype
    return bnb.dequantize_4bit(*state)
"""


def test_the_nested_scales_of_bitsandbytes_pass_the_same_checks(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    path = tmp_path / "nested_bnb.py"
    path.write_text(BITSANDBYTES)
    (judgement,) = verify([str(path)], only="S1,S5,S8", causes=False).judgements
    status = {check.id.removeprefix("S"): check.status for check in judgement.checks}
    for layer in (
        "1/{}/levels",
        "5/{}/full",
        "5/{}/16bit",
        "5/{}/volume",
        "5/{}/zeros",
        "8/{}/scales",
    ):
        assert status[layer.format("quantize_nested[nf4]")] == "PASS"


def test_what_is_specified_passes_without_a_label():
    checks = judged(own_part(nested.RoundTrip))
    assert failing(checks) == set()
    assert checks["S8/scales"].use > 0.25  # a lawful coding comes near the bound: it is not slack


def test_a_state_that_nothing_decodes_is_not_offered():
    class Half:
        quantize_nested = nested.RoundTrip.quantize_nested

    assert judged(Half) == {}


def coded_in(dtype, scheme, absmax):
    """One group of scales there and back, each step rounded to a type."""

    def fl(values):
        return values.astype(FLOAT_TYPES[dtype]).astype(np.float32)

    mean = fl(absmax.mean(dtype=np.float64))
    residual = fl(absmax - mean)
    largest = np.abs(residual).max()
    if scheme == "linear":
        factor = fl(128 / largest)
        return fl(fl(np.clip(np.rint(fl(residual * factor)), -128, 127) / factor) + mean)
    levels = qloracle.dynamic_codebook()
    codes = np.searchsorted(fl(qloracle.thresholds(levels)), fl(residual / largest))
    return fl(fl(fl(levels)[codes] * largest) + mean)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scheme", ["dynamic", "linear"])
def test_the_bound_holds_for_its_scheme_and_not_for_a_coarser_one(scheme, dtype, own):
    """A lawful coding comes near the bound; one of five bits (in bfloat16 four) is beyond it."""
    rng = np.random.default_rng(5)
    dialect = {"input_type": "own" if own else "float32", "nested_scale": scheme}
    worst, coarse = 0.0, 0.0
    for _ in range(60):
        absmax = np.exp(rng.normal(0, rng.uniform(0.1, 2), 256)).astype(FLOAT_TYPES[dtype])
        absmax = absmax.astype(np.float32)
        bound = roundtrip.scale_bound(absmax, dtype, dialect)
        coded = coded_in(dtype if own else "float32", scheme, absmax)
        worst = max(worst, float((np.abs(coded - absmax) / bound).max()))
        residual = absmax - absmax.mean()
        steps = np.abs(residual).max() / (8 if own and dtype == "bfloat16" else 16)
        few_bits = np.rint(residual / steps) * steps + absmax.mean()
        coarse = max(coarse, float((np.abs(few_bits - absmax) / bound).max()))
    assert 0.25 < worst <= 1
    assert dtype != "float32" or worst > 0.9
    assert coarse > 1


def test_the_bound_holds_where_results_underflow():
    """Multiples of the smallest number: what lies between two of them is rounded off."""
    absmax = np.ldexp(np.random.default_rng(5).integers(1, 256, 256), -149).astype(np.float32)
    dialect = {"input_type": "float32", "nested_scale": "dynamic"}
    bound = roundtrip.scale_bound(absmax, "float32", dialect)
    error = np.abs(coded_in("float32", "dynamic", absmax).astype(np.float64) - absmax)
    assert 0.1 < (error / bound).max() <= 1
    assert (error > bound - 9 * roundtrip.TINY["float32"]).any()


@pytest.mark.parametrize(("scheme", "coded"), SCHEMES)
def test_scales_far_from_their_blocks_may_come_back_below_zero(scheme, coded):
    """Beside an outlier S8 allows a negative scale; the values must follow from it all the same."""
    dialect = dialects.specification("quantize_nested", "nf4") | {"nested_scale": scheme}
    view = View("quantize_nested", "nf4", dialect, qloracle.nf4_codebook())
    case = inputs.case(inputs.outlier(), "scales that come back negative")
    state = nested.encoded(scales=coded)(case.arrays["x"])
    got = nested.decoded()(state, np.float32)
    assert (state[1] < 0).any()
    assert roundtrip.judge_values(case, (got,), view).wrong == 0
    assert roundtrip.judge_scales(case, (got,), view).wrong == 0
    got[5, 40] *= -1
    outcome = roundtrip.judge_values(case, (got,), view)
    assert (outcome.wrong, outcome.first.index) == (1, 5 * 64 + 40)
    assert roundtrip.judge_values(case, (np.zeros_like(got),), view).wrong > 0  # 1000 is no 0


class TestReduction:
    def test_a_library_that_takes_whole_groups_gets_its_size_and_one_element(self):
        x = inputs.case(np.full((512, 64), 0.7, np.float32), "")

        def fails(case):
            flat = case.arrays["x"].reshape(-1)
            return 64 if flat.size and flat.size % 16384 == 0 and flat.any() else None

        small = reduce.reduce(x, 64, fails, []).arrays["x"]
        assert small.shape == (16384,)
        assert np.flatnonzero(small).tolist() == [0]
        assert small[0] == 1

    def test_the_wrong_element_and_the_largest_of_its_block_stay(self):
        x = np.resize(np.float32([3, 0.5, -1, 0.25]), (256, 64)).copy()

        def fails(case):
            flat = case.arrays["x"].reshape(-1)
            return 130 if flat.size == 16384 and flat[130] and flat[128] == 3 else None

        small = reduce.reduce(inputs.case(x, ""), 130, fails, []).arrays["x"].reshape(-1)
        assert np.flatnonzero(small).tolist() == [128, 130]
        boldest = itertools.islice(smaller_state(inputs.case(x, ""), 130), 6)  # calls are dear
        assert [128, 130] in [np.flatnonzero(case.arrays["x"]).tolist() for case in boldest]

    @pytest.mark.parametrize("index", [0, 5, 64, 16383])
    def test_every_neighbour_is_another_case(self, index):
        case = inputs.case(np.arange(1, 16385, dtype=np.float32), "")
        for other in smaller_state(case, index):
            assert not np.array_equal(other.arrays["x"], case.arrays["x"])


def test_the_half_gap_is_that_of_the_dynamic_map():
    levels = qloracle.dynamic_codebook().astype(np.float64)
    farthest = max(np.diff(levels).max() / 2, 1 + levels[0])
    assert farthest * (1 - 1e-6) <= roundtrip.HALF_GAP <= farthest * (1 + 1e-6)


def test_the_largest_of_each_block_is_found_in_short_blocks_too():
    from qloracle_conformance.judging import expected

    x = np.float32([1, -3, 2, 0, 5, -5, 1])
    blocks = expected.blocks_of(x.shape, 3)
    lead = roundtrip.leads(x, blocks)
    assert lead.tolist() == [1, 4, 6]
    assert roundtrip.shown_scales(x, np.float32([9, -2, 9, 9, 7, 9, 8]), lead).tolist() == [2, 7, 8]
