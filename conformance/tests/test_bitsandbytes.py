"""The main job on the real library: what the kit finds on its own in bitsandbytes 0.50.2.

Nothing in the kit names these cases.  The first depends on the processor: it needs AVX-512.
"""

import numpy as np
import pytest

from qloracle_conformance.contract import presets
from qloracle_conformance.running.verify import verify

torch = pytest.importorskip("torch", reason="torch is not installed")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

pytestmark = pytest.mark.skipif(
    bitsandbytes.__version__ != "0.50.2", reason="the findings are those of bitsandbytes 0.50.2"
)
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
FUNCTIONS = (
    "quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise",
    "quantize_absmax", "dequantize_absmax",
)  # fmt: skip
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]


@pytest.fixture(scope="module", params=SEEDS)
def judgement(request):
    options = {"seed": request.param, "device": "cpu", "causes": False}
    return verify(["bitsandbytes"], only=",".join(FUNCTIONS), **options).judgements[0]


@pytest.fixture(scope="module")
def checks(judgement):
    return {check.id: check for check in judgement.checks}


def small(check):
    return check.failure.case, check.failure.mismatch


@pytest.mark.skipif(not AVX512, reason="the fault is in the AVX-512 path of the CPU library")
def test_wrong_scales_where_rows_are_no_multiple_of_the_block(checks):
    check = checks["S3/dequantize_4bit[nf4]/shapes"]
    assert check.status == "FAIL"
    case, mismatch = small(check)
    columns = case.options["shape"][-1]
    assert columns % case.options["blocksize"]
    assert columns % 16 == 0
    assert "block" in mismatch.reason
    assert case.size < 200


def test_shapes_that_the_fault_does_not_reach_pass(checks):
    assert checks["S7/dequantize_4bit[nf4]/mantissas"].status == "PASS"
    assert checks["S6/dequantize_4bit[nf4]/bytes"].status == "PASS"


def test_the_8bit_quantizer_cannot_represent_zero(checks):
    check = checks["S2/quantize_blockwise[signed]/powers"]
    assert check.status == "FAIL"
    case, mismatch = small(check)
    assert case.arrays["x"].tolist() == [1.0, 0.0]
    assert (mismatch.got, mismatch.expected) == ("131", "127")


def test_another_shape_than_asked_for_one_dimensional_even_n(checks):
    check = checks["P1/dequantize_4bit"]
    assert check.status == "FAIL"
    case, mismatch = small(check)
    (n,) = case.options["shape"]
    assert n % 2 == 0
    assert mismatch.expected == f"float32[{n}]"
    assert mismatch.got != mismatch.expected


def test_a_zero_partial_block_stores_a_scale(checks):
    check = checks["S4/quantize_4bit[nf4]/zeros"]
    assert check.status == "FAIL"
    case, mismatch = small(check)
    assert not case.arrays["x"].any()
    assert case.arrays["x"].size < case.options["blocksize"]
    assert mismatch.got.startswith("1e-38")


def test_4bit_codes_are_exact_under_the_dialect_that_was_found(judgement, checks):
    view = next(view for view in judgement.views if view.name == "quantize_4bit[nf4]")
    assert view.label == "full: reciprocal, partial: divide"
    codes = [c for name, c in checks.items() if name.startswith("S5/quantize_4bit[nf4]")]
    assert len(codes) >= 6
    assert {check.status for check in codes} == {"PASS"}


def test_decoding_is_exact_where_it_is(checks):
    for name in ("S7/dequantize_blockwise[signed]/volume", "S8/dequantize_absmax/groups"):
        assert checks[name].status == "PASS"


STRIDED = ("dequantize_4bit[nf4]", "quantize_blockwise[signed]", "dequantize_blockwise[signed]")


@pytest.mark.parametrize("name", [*STRIDED, "dequantize_absmax"])
def test_strided_tensors_are_read_as_if_they_were_dense(checks, name):
    assert checks[f"P5/{name}/strided"].status == "FAIL"
    assert small(checks[f"P5/{name}/strided"])[0].form == "strided"


def test_what_is_only_shifted_or_transposed_is_read_right(checks):
    for name in ("quantize_4bit[nf4]", *STRIDED, "quantize_absmax", "dequantize_absmax"):
        for form in ("offset", "unaligned"):
            assert checks[f"P5/{name}/{form}"].status == "PASS"
    assert checks["P5/quantize_4bit[nf4]/transposed"].status == "PASS"
    assert checks["P5/quantize_4bit[nf4]/strided"].status == "PASS"


def test_failures_are_those_of_the_library_itself(checks):
    """The smallest input of each finding, called by hand, without the kit."""
    functional = bitsandbytes.functional
    codes, _ = functional.quantize_blockwise(torch.tensor([1.0, 0.0]), blocksize=256)
    assert codes.tolist() == [255, 131]
    packed, state = functional.quantize_4bit(torch.zeros(1), quant_type="nf4")
    assert np.isclose(state.absmax.item(), 1e-38)
    assert functional.dequantize_4bit(packed, state).shape == (1,)
    every_second = torch.tensor([1.0, 9.0, 2.0, 9.0])[::2]
    state = functional.QuantState(
        absmax=every_second,
        shape=torch.Size([128]),
        code=functional.get_4bit_type("nf4", device="cpu"),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.float32,
    )
    ones = functional.dequantize_4bit(torch.full((64, 1), 0xFF, dtype=torch.uint8), state)
    assert ones.reshape(-1)[::64].tolist() == [1.0, 9.0]  # due: 1.0, 2.0


def test_its_preset_is_contradicted_by_nothing():
    """One field is made wrong: the others are right, and the probe finds this one's."""
    declared = presets.preset("bnb-default")
    assert declared["normalisation"] == ["reciprocal", "divide"]
    wrong = declared | {"normalisation": "divide"}
    (judgement,) = verify(["bitsandbytes"], dialect=wrong, only="S6").judgements
    found = [(v.name, f.field, f.found) for v in judgement.views for f in v.findings if f.declared]
    assert found == [
        (f"quantize_4bit[{table}]", "normalisation_full", "reciprocal") for table in ("nf4", "fp4")
    ]
