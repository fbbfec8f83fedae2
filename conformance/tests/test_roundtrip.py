"""The round trip of opaque states: torchao and bitsandbytes for real, the bounds, the probe."""

import numpy as np
import pytest

import qloracle
from qloracle_conformance import dialects, roundtrip
from qloracle_conformance.mutants import nested
from qloracle_conformance.mutants.matrix import own_part
from qloracle_conformance.process.callers import LocalCaller
from qloracle_conformance.report import Judgement
from qloracle_conformance.reports import json_file
from qloracle_conformance.verification import judge, verify

FOUR_DECIMALS = '{"codebook": "four_decimals"}'


def judged(target, only="", dialect=None):
    judgement = Judgement("target", profile="" if only else "smoke")
    judge(LocalCaller(target), judgement, "smoke", 0, dialect or {}, only)
    return {check.id.replace("quantize_nested[nf4]/", ""): check for check in judgement.checks}


def failing(checks):
    return {name for name, check in checks.items() if check.status not in ("PASS", "UNSUPPORTED")}


@pytest.fixture(scope="module")
def torchao():
    pytest.importorskip("torchao", reason="torchao is not installed")
    report = verify(["torchao"])
    json_file.validate(report.to_dict())
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


def test_under_its_preset_only_the_fault_of_torchao_is_left(torchao):
    judgement = verify(["torchao"], dialect=dialects.preset("torchao")).judgements[0]
    wrong = [check.id for check in judgement.checks if check.status not in ("PASS", "UNSUPPORTED")]
    assert wrong == ["S5/quantize_nested[nf4]/zeros"]
    assert judgement.views[0].label == (
        "codebook: four_decimals; nested_scale: linear; thresholds: nearest; input_type: own; "
        "decode: output_type"
    )


def test_a_declaration_that_the_probe_contradicts_fails(torchao):
    wrong = dialects.preset("torchao") | {"thresholds": "midpoint"}
    (judgement,) = verify(["torchao"], dialect=wrong, only="S8").judgements
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
    (judgement,) = verify([str(path)]).judgements
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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("scheme", "coded"), [("dynamic", nested.dynamic), ("linear", nested.linear)]
)
def test_the_bound_holds_for_its_scheme_and_not_for_a_coarser_one(scheme, coded, dtype):
    rng = np.random.default_rng(5)
    dialect = {"input_type": "float32", "nested_scale": scheme}
    worst, coarse = 0.0, 0.0
    for _ in range(40):
        absmax = np.exp(rng.normal(0, rng.uniform(0.1, 2), 512)).astype(np.float32)
        bound = roundtrip.scale_bound(absmax, dtype, dialect)
        worst = max(worst, float((np.abs(coded(absmax) - absmax) / bound).max()))
        residual = absmax - absmax.mean()
        steps = np.abs(residual).max() / 16
        five_bits = np.rint(residual / steps) * steps + absmax.mean()
        coarse = max(coarse, float((np.abs(five_bits - absmax) / bound).max()))
    assert worst <= 1
    assert dtype != "float32" or worst > 0.9
    assert coarse > 1


def test_the_half_gap_is_that_of_the_dynamic_map():
    levels = qloracle.dynamic_codebook().astype(np.float64)
    farthest = max(np.diff(levels).max() / 2, 1 + levels[0])
    assert farthest * (1 - 1e-6) <= roundtrip.HALF_GAP <= farthest * (1 + 1e-6)


def test_the_largest_of_each_block_is_found_in_short_blocks_too():
    from qloracle_conformance import oracle

    x = np.float32([1, -3, 2, 0, 5, -5, 1])
    blocks = oracle.blocks_of(x.shape, 3)
    lead = roundtrip.leads(x, blocks)
    assert lead.tolist() == [1, 4, 6]
    assert roundtrip.shown_scales(x, np.float32([9, -2, 9, 9, 7, 9, 8]), lead).tolist() == [2, 7, 8]
