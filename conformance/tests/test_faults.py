"""Failing checks grouped by cause: made up ones, and those of kernels with one or two faults."""

import numpy as np
import pytest

import qloracle as q
from qloracle_conformance import verify
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.engine.faults import CAUSES, faults
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.families import RULES
from qloracle_conformance.judging.compare import Mismatch
from qloracle_conformance.judging.views import Finding, View

ONE = {"x": np.ones(1, np.float32)}


def check(
    name, arrays=ONE, got="1.0", expected="2.0", status="FAIL", message="", reason="", **more
):
    """A check that failed on an input; `arrays` None: without one."""
    rule, _, view = name.partition("/")
    function, _, table = view.partition("/")[0].rstrip("]").partition("[")
    run = CheckRun(name, rule, function, table, status, message)
    if arrays is not None:
        options = {"quant_type": table} if table else {}
        wrong = Mismatch("values", 0, got, expected, reason)
        run.failure = Failure(Case(function, arrays, options), (), wrong)
    return run


def grouped(*checks, views=()):
    found = faults(Judgement("kernel", checks=list(checks), views=list(views)))
    return [([c.id for c in f.checks], [c.id for c in f.consequences]) for f in found]


def test_every_rule_has_its_place():
    assert sorted(CAUSES) == sorted(RULES)


def test_what_passes_is_no_fault():
    assert grouped(CheckRun("S4/a", "S4", "quantize_4bit", "", "PASS")) == []


def test_one_smallest_input_is_one_fault_whatever_its_table():
    nf4, fp4 = check("S5/quantize_4bit[nf4]/full"), check("S5/quantize_4bit[fp4]/full", got="3")
    other = check("S5/quantize_4bit[nf4]/zeros", {"x": np.zeros(2, np.float32)}, got="0")
    assert grouped(nf4, other, fp4) == [([nf4.id, fp4.id], []), ([other.id], [])]


def test_the_cause_speaks_for_all():
    checks = [check(f"{rule}/quantize_4bit[nf4]/a") for rule in ("P1", "S5", "S4", "S3")]
    assert grouped(*checks) == [([c.id for c in checks[::-1]], [])]


def test_causes_come_before_what_they_cause_and_low_levels_before_high_ones():
    names = ("S9/matmul_4bit[nf4]/a", "S5/quantize_4bit[nf4]/a", "S4/quantize_4bit[nf4]/a")
    checks = [check(n, {"x": np.full(i + 1, 3.0)}, got=str(i)) for i, n in enumerate(names)]
    assert [ids for ids, _ in grouped(*checks)] == [[n] for n in names[::-1]]


def test_calls_that_are_refused_in_the_same_words_are_one_fault():
    first = check("S3/quantize_4bit[nf4]/a", None, status="ERROR", message="raised KeyError")
    later = check("S5/quantize_4bit[fp4]/a", None, status="ERROR", message="after: raised KeyError")
    other = check("S5/quantize_4bit[nf4]/a", None, status="ERROR", message="raised TypeError")
    assert grouped(first, other, later) == [([first.id, later.id], []), ([other.id], [])]


def test_a_finding_of_the_probe_is_one_fault_of_all_functions():
    checks = [
        check("S6/dequantize_4bit[nf4]/bytes", {"packed": np.uint8([1])}, message="nibble is low"),
        check("S6/quantize_4bit[nf4]/pairs", None, message="nibble is low (...)"),
    ]
    views = [
        View(c.function, c.table, {}, np.zeros(0), [Finding("nibble", "high", "low")])
        for c in checks
    ]
    assert len(grouped(*checks, views=views)) == 1
    assert len(grouped(*checks)) == 2


def test_one_element_for_one_reason_is_one_fault():
    inputs = [{"x": np.ones(n, np.float32)} for n in (1, 2, 3)]
    a, b, c = (check(f"S7/dequantize_4bit[nf4]/{i}", inputs[i], got=str(i)) for i in range(3))
    assert len(grouped(a, b, c)) == 3
    alike = [check(f"S7/dequantize_4bit[nf4]/{i}", inputs[i], reason="code 3") for i in range(3)]
    assert len(grouped(*alike)) == 1


def test_all_forms_of_arrays_are_one_fault_of_a_function():
    names = ("P5/dequantize_4bit[nf4]/strided", "P5/dequantize_4bit[nf4]/expanded")
    checks = [check(n, {"x": np.ones(i + 1)}, got=str(i)) for i, n in enumerate(names)]
    other = check("P5/quantize_4bit[nf4]/strided", {"x": np.ones(7)}, got="7")
    assert len(grouped(*checks)) == 1
    assert len(grouped(*checks, other)) == 2


def test_a_check_that_two_faults_share_makes_them_one():
    inputs = [{"x": np.ones(n, np.float32)} for n in (1, 2)]
    a = check("S3/dequantize_4bit[nf4]/a", inputs[0], got="7")
    b = check("S4/dequantize_4bit[nf4]/b", inputs[1], got="8", reason="code 3")
    both = check("S7/dequantize_4bit[nf4]/c", inputs[0], got="8", reason="code 3")
    assert grouped(a, b, both) == [([a.id, b.id, both.id], [])]


def test_levels_read_from_wrong_products_are_a_consequence():
    decoded = check("S7/dequantize_4bit[nf4]/powers", {"packed": np.uint8([1])}, got="5.0")
    levels = check("S1/dequantize_4bit[nf4]/levels", {"packed": np.uint8([2])}, got="6.0")
    elsewhere = check("S1/dequantize_4bit[fp4]/levels", {"packed": np.uint8([3])}, got="7.0")
    assert grouped(levels, elsewhere, decoded) == [
        ([decoded.id], [levels.id]), ([elsewhere.id], []),
    ]  # fmt: skip
    assert grouped(levels) == [([levels.id], [])]


def test_the_same_value_in_what_is_built_on_it_is_a_consequence():
    cause = check("S5/quantize_blockwise[signed]/zeros", got="131", expected="127")
    nested = check("S8/quantize_absmax/residuals", {"absmax": ONE["x"]}, got="131", expected="127")
    other = check("S8/quantize_absmax/offset", {"absmax": np.zeros(0)}, got="nan", expected="0.0")
    apart = check("S11/adam_step/plain", {"param": ONE["x"]}, got="131", expected="127")
    assert grouped(cause, nested, other, apart) == [
        ([cause.id], [nested.id]), ([other.id], []), ([apart.id], []),
    ]  # fmt: skip


# ---- of kernels ----------------------------------------------------------------------------------


def one_fault(packed, absmax, *, shape, blocksize=64):
    """The last, short block has another one's scale."""
    absmax = absmax.copy()
    if absmax.size > 1 and np.prod(shape) % blocksize:
        absmax[-1] = absmax[-2]
    return q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)


def two_faults(packed, absmax, *, shape, blocksize=64):
    """And a level in the table is another one: S1 is no consequence of it."""
    values = one_fault(packed, np.ones_like(absmax), shape=shape, blocksize=blocksize)
    values = np.where(values == q.nf4_codebook()[3], np.float32(-0.4), values)
    scales = one_fault(np.full_like(packed, 255), absmax, shape=shape, blocksize=blocksize)
    return values * scales


@pytest.mark.parametrize(
    ("kernel", "rules"), [(one_fault, [["S3"]]), (two_faults, [["S3"], ["S1"]])]
)
def test_of_a_kernel_each_fault_once(kernel, rules, validate):
    report = verify({"dequantize_4bit": kernel}, only="S3,S6,S7,S1")
    (found,) = report.to_dict()["implementations"]
    assert [[fault["checks"][0].partition("/")[0]] for fault in found["faults"]] == rules
    told = [name for fault in found["faults"] for name in fault["checks"] + fault["consequences"]]
    failing = [c["id"] for c in found["checks"] if c["status"] == "FAIL"]
    assert sorted(told) == sorted(failing)
    validate(report.to_dict())
