"""The short name `managed`, and what an implementation says that it runs on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

import qloracle
import qloracle_conformance
from qloracle_conformance.adapters import found_here
from qloracle_conformance.calling.callers import ChildCaller, LocalCaller
from qloracle_conformance.calling.loading import parse
from qloracle_conformance.calling.worker import own_versions
from qloracle_conformance.running.verify import verify
from qloracle_gpu.managed import capability, standin

SCHEMA = Path(qloracle_conformance.__file__).parent / "reports" / "report.schema.json"

reason = standin.unavailable()
on_standin = pytest.mark.skipif(bool(reason), reason=reason or "the stand-in is there")
no_gpu = pytest.mark.skipif(not capability.query().reason, reason="there is a GPU")


def command(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "qloracle_conformance.commands.main", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout


def test_it_is_judged_only_by_name():
    assert "managed" not in found_here()
    assert parse("managed").member == "implementation"


@on_standin
@no_gpu
def test_a_report_says_that_it_is_a_stand_in():
    report = verify(["managed"], only="S11b")
    (found,) = report.to_dict()["implementations"]
    assert found["versions"]["managed memory"].startswith("a stand-in for CUDA 13, not a GPU: ")
    assert {"make_pager", "adam_step", "adam_step_8bit"} <= set(found["offers"])
    assert report.exit_code == 0
    jsonschema.validate(report.to_dict(), json.loads(SCHEMA.read_text()))


@on_standin
@no_gpu
def test_probe_tells_what_there_is_of_managed_memory_in_a_line_of_its_own():
    code, out = command("probe", "managed")
    assert code == 0
    line = f"  managed memory: a stand-in for CUDA 13, not a GPU: {capability.query()}"
    assert out.splitlines()[0] == "managed"
    assert line in out.splitlines()


def test_without_a_compiler_and_a_gpu_it_names_both(monkeypatch, tmp_path):
    if not capability.query().reason:
        pytest.skip("there is a GPU")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out = command("verify", "managed")
    said = " ".join(out.split())
    assert code == 3
    assert "NOT_RUN the stand-in needs g++, which was not found on PATH; nor is there a GPU" in said
    assert str(capability.query()) in said


# ---- `versions` of anybody -----------------------------------------------------------------------

KERNEL = """
import qloracle
versions = {"driver": 580}
def dequantize_absmax(codes, nested_absmax, offset):
    return qloracle.dequantize_absmax(codes, nested_absmax, offset)
"""


def test_both_callers_tell_the_declared_versions(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    caller = ChildCaller(str(tmp_path / "kernel.py"))
    try:
        assert caller.versions["driver"] == "580"
        assert "numpy" in caller.versions
    finally:
        caller.close()
    target = SimpleNamespace(dequantize_absmax=qloracle.dequantize_absmax, versions={"driver": 580})
    assert LocalCaller(target).versions["driver"] == "580"


@pytest.mark.parametrize("versions", [None, lambda: {"a": 1}, ["a"], "1.0"])
def test_a_name_that_means_something_else_is_left_alone(versions):
    assert own_versions(SimpleNamespace(versions=versions)) == {}
    target = SimpleNamespace(dequantize_absmax=qloracle.dequantize_absmax, versions=versions)
    assert list(LocalCaller(target).versions) == ["numpy"]


def test_names_and_values_become_text_of_one_line():
    class Odd:
        def __str__(self):
            return "two\nlines"

    assert own_versions(SimpleNamespace(versions={Odd(): Odd(), 1: 2})) == {
        "two lines": "two lines",
        "1": "2",
    }
