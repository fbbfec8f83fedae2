"""`verify` from Python: what may be judged, what the report offers, and every refusal."""

import json
import types

import pytest

import qloracle
import qloracle_conformance
from qloracle_conformance import verify
from qloracle_conformance.contract.errors import UsageError


def dequantize_4bit(packed, absmax, *, shape, blocksize=64):
    return qloracle.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)


def upside_down(packed, absmax, *, shape):
    return -qloracle.dequantize_4bit(packed, absmax, shape=shape)


class Kernels:
    def dequantize_4bit(self, packed, absmax, *, shape):
        return qloracle.dequantize_4bit(packed, absmax, shape=shape)


def offers(report):
    return report.to_dict()["implementations"][0]["offers"]


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (dequantize_4bit, "dequantize_4bit"),
        ([dequantize_4bit], "dequantize_4bit"),
        ({"dequantize_4bit": dequantize_4bit}, "dequantize_4bit"),
        (types.SimpleNamespace(dequantize_4bit=dequantize_4bit), "dequantize_4bit"),
        (Kernels(), f"{__name__}.Kernels"),
    ],
    ids=["function", "list", "dict", "namespace", "instance"],
)
def test_what_may_be_judged(obj, name):
    report = verify(obj)
    assert report.ok
    assert offers(report) == ["dequantize_4bit"]
    assert report.judgements[0].name == name


def test_a_module_and_a_text_give_the_same_verdict():
    def checks(report):
        found = report.to_dict()["implementations"][0]["checks"]
        return [{k: v for k, v in check.items() if k != "seconds"} for check in found]

    ops = ["quantize_absmax", "dequantize_absmax"]
    assert checks(verify(qloracle, ops)) == checks(verify("numpy", ops)) != []


def test_a_fault_is_not_ok_and_the_report_shows_it(validate):
    report = verify({"dequantize_4bit": upside_down})
    assert not report.ok
    assert report.exit_code == 1
    assert repr(report) == "<Report: exit code 1; dequantize_4bit: L0 FAIL, L1 to L5 MISSING>"
    validate(report.to_dict())
    page = report._repr_html_()
    assert "FAIL" in page
    assert "dequantize_4bit(packed=" in page


def test_ops_narrow_and_are_demanded():
    report = verify(qloracle, ops=["dequantize_absmax"])
    assert report.ok
    judged = {check.function for check in report.judgements[0].checks}
    assert judged == {"dequantize_absmax"}
    missing = verify(dequantize_4bit, ops=["dequantize_4bit", "quantize_4bit"])
    assert not missing.ok
    assert missing.unmet == ["dequantize_4bit: quantize_4bit (L0) MISSING"]


def test_ops_that_begin_alike_are_told_apart():
    report = verify(qloracle, ops=["quantize_4bit"])
    assert {check.function for check in report.judgements[0].checks} == {"quantize_4bit"}


def test_require_is_that_of_the_command_line():
    assert not verify(dequantize_4bit, require="L0").ok


def test_a_declaration_of_the_module_holds_for_its_bare_functions():
    text = (
        'arrays = "torch"\ndef dequantize_absmax(codes, nested_absmax, offset):\n    return 1 / 0'
    )
    namespace = {"__name__": "cell"}
    exec(text, namespace)
    report = verify(namespace["dequantize_absmax"])
    assert report.judgements[0].declared == {"arrays": "torch"}
    assert report.judgements[0].device == "cpu"
    assert not report.ok


def test_a_preset_or_a_dict_is_a_declaration():
    for dialect in ("bnb-default", {"normalisation": "reciprocal"}):
        report = verify(qloracle, ops=["quantize_blockwise"], dialect=dialect)
        assert any("normalisation" in c.message for c in report.judgements[0].checks)
        assert not report.ok


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"obj": 3}, "obj is 3, which offers no function of the protocol"),
        ({"obj": json}, "offers no function of the protocol"),
        ({"obj": len}, "offers no function of the protocol"),
        ({"obj": upside_down}, "obj holds upside_down; allowed: functions named quantize_4bit"),
        ({"obj": []}, "obj is [], which offers no function of the protocol"),
        ({"obj": "nothing"}, "'nothing' is no implementation"),
        ({"obj": qloracle, "ops": ["quantise"]}, "ops is ['quantise']; allowed: a list of"),
        ({"obj": qloracle, "ops": "quantize_4bit"}, "ops is 'quantize_4bit'; allowed: a list of"),
        ({"obj": qloracle, "profile": "quick"}, "profile is 'quick'; allowed: smoke, standard"),
        ({"obj": qloracle, "require": "L7"}, "require is 'L7'; allowed: L0"),
        ({"obj": qloracle, "seed": -1}, "seed is -1; allowed: a whole number >= 0"),
        ({"obj": qloracle, "dialect": "mine"}, "no dialect preset 'mine'"),
        ({"obj": qloracle, "dialect": {"colour": "red"}}, "dialect has no field 'colour'"),
        ({"obj": qloracle, "known": "gone.toml"}, "gone.toml"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, said):
    with pytest.raises(UsageError) as caught:
        verify(**arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_offers_two_names_and_no_more():
    assert qloracle_conformance.__all__ == ["conformance_tests", "verify"]
    with pytest.raises(AttributeError, match="no attribute 'verfy'"):
        qloracle_conformance.verfy  # noqa: B018
