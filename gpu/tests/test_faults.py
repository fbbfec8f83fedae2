"""Planted faults in the CUDA text: each applies, and is seen by those that it names."""

import re
from itertools import chain

import pytest

from qloracle_gpu import kernels
from qloracle_gpu.devices import ptx
from qloracle_gpu.proof.faults import __main__ as command
from qloracle_gpu.proof.faults import attempt, matrix
from qloracle_gpu.proof.faults.cases import CASES, RUNNERS, wrong
from qloracle_gpu.proof.faults.listed import FAULTS, UNCHANGED, named
from qloracle_gpu.proof.faults.matrix import Row, Verdict, look
from qloracle_gpu.proof.faults.planting import DoesNotApply, Edit, Fault, narrowed, place, planted

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def needs(runner):
    """A test that asks a runner, left out with the reason where it is not there."""
    reason = matrix.unavailable(runner)
    return pytest.mark.skipif(bool(reason), reason=reason)


# ---- the list ------------------------------------------------------------------------------------


@each_fault
def test_it_applies_to_the_text_as_it_is(fault):
    changed = planted(kernels.text(), fault)
    assert (changed != kernels.text()) == bool(fault.edits)
    assert fault.edits or fault.options != kernels.OPTIONS


@each_fault
def test_it_says_where_it_is(fault):
    assert re.fullmatch(r"\w+\.cuh?:\d+|--\S+", place(kernels.text(), fault))


def test_names_are_of_one_fault_each():
    names = [fault.name for fault in (*FAULTS, *UNCHANGED)]
    assert len(set(names)) == len(names) >= 24 + len(CASES)


def test_every_runner_and_every_case_is_needed():
    assert set(chain.from_iterable(fault.seen_by for fault in FAULTS)) == set(RUNNERS)
    assert {fault.case for fault in FAULTS} == set(CASES)


def test_each_runner_but_address_is_the_only_one_for_some_fault():
    alone = {fault.seen_by for fault in FAULTS if len(fault.seen_by) == 1}
    assert alone == {("host",), ("thread",), ("ptx",), ("gate",)}


@each_fault
def test_who_must_see_it_can_carry_its_case(fault):
    assert fault.seen_by
    assert set(fault.seen_by) <= set(CASES[fault.case].runners)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of unchanged|name must be one of barr"):
        named("nothing")


# ---- planting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "count"), [("q <= t", 0), ("q > t; q > t", 2)])
def test_a_fault_that_no_longer_applies_is_an_error(text, count):
    fault = Fault("tie", "", "quantize", ("host",), (Edit("q > t", "q >= t"),))
    with pytest.raises(DoesNotApply, match=rf"tie: 'q > t' must occur 1 time .* got {count}"):
        planted(text, fault)


def test_edits_are_made_one_after_another():
    fault = Fault("two", "", "quantize", (), (Edit("a", "b", 2), Edit("b", "c", 3)))
    assert planted("a a b", fault) == "c c c"


def test_narrowing_leaves_out_kernels_and_no_line():
    made = ("QUANTIZE_4BIT(float, float32)", "sum_absmax")
    text = narrowed(kernels.text(), made)
    assert text.splitlines()[-1] == made[0]
    assert len(text.splitlines()) == len(kernels.text().splitlines()) + 1
    assert re.findall(r'^extern "C" __global__ void (\w+)', text, re.MULTILINE) == ["sum_absmax"]


# ---- verdicts ------------------------------------------------------------------------------------


def row_of(seen_by, **verdicts):
    fault = Fault("f", "", "quantize", seen_by)
    return Row(fault, {runner: Verdict(kind) for runner, kind in verdicts.items()})


def test_a_row_as_promised_has_no_problem():
    assert not row_of(("host",), host="wrong value", thread="race", gate="not seen").problems
    assert not row_of(("host",), host="not counted").problems
    assert not row_of((), host="not seen", ptx="not tried").problems


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (row_of(("host",), host="not seen"), "f: not seen by host"),
        (row_of(("host",), host="not tried"), "f: not tried by host"),
        (row_of((), host="wrong value"), "f: host says wrong value: "),
        (row_of(("host",), host="error", ptx="does not compile"), "f: ptx: does not compile: "),
        (row_of(("host",), host="broken"), "f: host: broken: "),
    ],
)
def test_what_is_not_as_promised_is_told(row, problem):
    assert row.problems == [problem]


def test_a_fault_that_breaks_python_is_not_seen_by_it():
    said = matrix._said("Traceback ...\nKeyError: 'adam'", 1)
    assert said.kind == "broken"
    assert "KeyError" in said.detail


# ---- the command ---------------------------------------------------------------------------------


def test_a_runner_that_is_not_there_is_not_counted(monkeypatch, capsys):
    for module in (matrix, command):
        monkeypatch.setattr(module, "unavailable", {"host": "g++ was not found"}.get)
    assert command.main(["--only", "spare nibble", "--runner", "host"]) == 3
    shown = capsys.readouterr().out
    assert re.search(r"^spare nibble +not counted\*", shown, re.MULTILINE)
    assert shown.endswith("not counted: g++ was not found\n")


@pytest.mark.parametrize(("kind", "code"), [("wrong value", 0), ("not seen", 1), ("broken", 1)])
def test_the_exit_code_tells_whether_all_was_seen(monkeypatch, capsys, kind, code):
    monkeypatch.setattr(matrix, "unavailable", lambda runner: "")
    monkeypatch.setattr(command, "unavailable", lambda runner: "")
    monkeypatch.setattr(matrix, "look", lambda runner, fault: Verdict(kind, "as it was told"))
    assert command.main(["--only", "spare nibble", "--runner", "host", "--details"]) == code
    assert "host: as it was told" in capsys.readouterr().out


def test_a_word_that_names_nothing_is_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--only", "nothing"])
    assert ended.value.code == 2
    assert "no fault has one of nothing in its name" in capsys.readouterr().err


# ---- a handful, planted and seen -----------------------------------------------------------------


@needs("host")
@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("unchanged: quantize", "not seen", ""),
        ("nibbles swapped", "wrong value", "quantize_4bit, odd, result 0[0]"),
        ("early return before a shuffle", "error", "a shuffle has the mask 0xffffffff"),
        ("write past the end", "error", "values was written behind its"),
        ("fast math", "not seen", ""),
    ],
)
def test_host(name, kind, detail):
    verdict = look("host", named(name))
    assert verdict.kind == kind
    assert detail in verdict.detail


@needs("ptx")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("contraction left on", "wrong value"),
        ("fast math", "refused"),
        ("unchanged: adam", "not seen"),
    ],
)
def test_ptx(name, kind):
    assert look("ptx", named(name)).kind == kind


@needs("ptx")
def test_contraction_changes_nothing_while_each_rounding_is_named():
    """So the fault needs both: plain operators and the option."""
    case = CASES["adam"]
    source = narrowed(kernels.text(), case.kernels)
    assert wrong(ptx.Ptx(source, options=("-std=c++17", "--fmad=true")), case) is None
    fault = named("contraction left on")
    source = narrowed(planted(kernels.text(), fault), case.kernels)
    assert wrong(ptx.Ptx(source), case) is None


@needs("gate")
def test_gate():
    assert "has an array in local memory" in look("gate", named("array indexed at run time")).detail


@needs("host")
def test_a_text_that_does_not_compile_is_no_kill(monkeypatch, capsys):
    monkeypatch.setattr(attempt, "planted", lambda text, fault: text + "nonsense;\n")
    attempt.attempt("host", "spare nibble")
    assert f"{attempt.SIGN}does not compile: g++ refused the text" in capsys.readouterr().out
