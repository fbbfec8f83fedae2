"""What this machine cannot run says so in one line, counts for nothing, and never passes."""

import json
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

import qloracle_conformance
from qloracle_conformance import adapters
from qloracle_conformance import verify as verify_object
from qloracle_conformance.calling import frameworks
from qloracle_conformance.calling.loading import load, parse
from qloracle_conformance.contract.errors import CannotRun, UsageError
from qloracle_conformance.reports import github, html, junit, markdown
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.verify import verify

REASON = "needs a compiler: g++ is not on this machine"
AWAY = f"""
    def unavailable():
        return {REASON!r}
    def dequantize_4bit(packed, absmax, *, shape):
        raise SystemExit("was called all the same")
"""
HERE = """
    import qloracle
    def unavailable():
        return ""
    def dequantize_absmax(codes, nested_absmax, offset):
        return qloracle.dequantize_absmax(codes, nested_absmax, offset)
"""
SCHEMA = Path(qloracle_conformance.__file__).parent / "reports" / "report.schema.json"


@pytest.fixture
def kernel(tmp_path):
    def write(text, name="away.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def in_a_process(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "qloracle_conformance.commands.main", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout.splitlines()


def without_cupy(monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "cupy" else name)


# ---- one that cannot run ------------------------------------------------------------------------


def test_alone_it_is_not_run(kernel):
    report = verify([kernel(AWAY)])
    (judgement,) = report.judgements
    assert (judgement.status, judgement.message) == ("NOT_RUN", REASON)
    assert (report.exit_code, report.ok) == (3, False)


def test_beside_others_it_is_not_counted(kernel):
    report = verify([kernel(AWAY), kernel(HERE, "here.py")])
    assert [judgement.status for judgement in report.judgements] == ["NOT_RUN", "OK"]
    assert report.exit_code == 0


def test_it_hides_no_failure_of_another(kernel):
    wrong = HERE.replace("return qloracle.d", "return -qloracle.d")
    assert wrong != HERE
    assert verify([kernel(AWAY), kernel(wrong, "wrong.py")], only="S8").exit_code == 1


def test_one_that_says_nothing_is_judged(kernel):
    silent = AWAY.replace(f"return {REASON!r}", 'return ""')
    report = verify([kernel(silent)], only="S7")
    assert report.judgements[0].status != "NOT_RUN"
    assert report.exit_code == 4  # it is called, and ends its process


@pytest.mark.parametrize("unavailable", ["unavailable = None", "def unavailable(): return 3"])
def test_a_name_that_means_something_else_is_no_reason(kernel, unavailable):
    assert load(kernel(HERE + textwrap.indent(unavailable, "    "))).unavailable is not REASON


def test_an_object_is_asked_and_so_is_its_module(kernel):
    fast = """
        class fast:
            @staticmethod
            def unavailable():
                return "fast only on Sundays"
    """
    with pytest.raises(CannotRun, match="only on Sundays"):
        load(kernel(fast) + ":fast")
    with pytest.raises(CannotRun, match="needs a compiler"):
        load(kernel(AWAY) + ":no_such_object")


def test_what_is_required_must_have_been_judged(kernel):
    report = verify([kernel(AWAY), kernel(HERE, "here.py")], require="L0")
    assert report.exit_code == 1
    assert any("away.py: dequantize_4bit (L0) NOT_RUN" in line for line in report.unmet)


def test_its_known_failures_are_not_stale(kernel):
    path = kernel(AWAY)
    entry = Known("S7/dequantize_4bit[nf4]/pairs", "wrong", "https://x.org", path)
    assert verify([path], known=[entry]).exit_code == 3
    elsewhere = entry._replace(implementation="another")
    assert verify([path], known=[elsewhere]).exit_code == 1


def test_an_object_in_a_notebook_is_asked_too():
    class Away:
        @staticmethod
        def unavailable():
            return REASON

        @staticmethod
        def quantize_absmax(absmax):
            raise NotImplementedError

    report = verify_object(Away)
    assert (report.judgements[0].status, report.exit_code) == ("NOT_RUN", 3)


def test_several_processes_change_nothing(kernel):
    report = verify([kernel(AWAY), kernel(HERE, "here.py")], processes=2)
    assert [judgement.status for judgement in report.judgements] == ["NOT_RUN", "OK"]
    assert report.exit_code == 0


# ---- how it is told -----------------------------------------------------------------------------


def test_the_command_prints_one_line_and_exits_3(command, kernel):
    path = kernel(AWAY)
    code, out, _ = command("verify", path)
    lines = out.splitlines()
    assert code == 3
    assert lines[2:5] == [path, f"  NOT_RUN {REASON}", ""]
    assert lines[-1] == "nothing was compared: exit code 3"


def test_probe_prints_one_line_and_exits_3(command, kernel):
    path = kernel(AWAY)
    assert command("probe", path) == (3, f"NOT_RUN {path}: {REASON}\n", "")


def test_every_report_tells_it(kernel):
    path = kernel(AWAY)
    data = verify([path]).to_dict()
    jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    assert f"**NOT_RUN** {REASON}" in markdown.text(data)
    assert f"NOT_RUN: {REASON}" in junit.text(data)
    assert REASON in html.text(data)
    assert "MISSING" not in markdown.text(data)
    (warning, verdict) = github.commands(data, {})
    assert warning == f"::warning title=NOT_RUN {path}::{REASON}"
    assert verdict.startswith("::error title=qloracle verify::nothing was compared: exit code 3")


def test_pytest_fails_and_says_why(kernel, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--pyargs",
         "qloracle_conformance", "--qloracle-impl", kernel(AWAY)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 1
    assert f"NOT_RUN {kernel(AWAY)}: {REASON}" in run.stdout


# ---- the short names of our own -----------------------------------------------------------------


def test_slow_ones_are_judged_only_by_name():
    assert not {"host", "ptx"} & set(adapters.found_here())
    assert parse("host").member == parse("ptx").member == "implementation"


def test_cupy_is_judged_unnamed_only_where_there_is_a_driver(monkeypatch):
    cupy = adapters.find("cupy")
    monkeypatch.setattr(adapters, "find_spec", lambda name: name)
    monkeypatch.setattr(adapters, "_loads", lambda library: library == "libcuda.so.1")
    assert cupy.found
    monkeypatch.setattr(adapters, "_loads", lambda library: False)
    assert not cupy.found


def test_cupy_that_is_not_installed_is_a_matter_of_usage(monkeypatch):
    without_cupy(monkeypatch)
    with pytest.raises(UsageError, match=r"^cupy: not installed here \(needs cupy\)$"):
        parse("cupy")


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.skipif(adapters._loads("libcuda.so.1"), reason="there is a CUDA driver")
def test_cupy_without_a_driver_says_so_and_exits_3():
    code, lines = in_a_process("verify", "cupy")
    reason = "NOT_RUN needs an NVIDIA GPU: this machine has no CUDA driver (libcuda.so.1)"
    assert (code, lines[3].strip()) == (3, reason)


def test_cupy_s_device_is_made_the_current_one(monkeypatch):
    used = []
    device = SimpleNamespace(Device=lambda n: SimpleNamespace(use=lambda: used.append(n)))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=device))
    for framework, name in (("cupy", "cuda:1"), ("cupy", "cuda"), ("torch", "cuda:1")):
        frameworks.make_current(framework, name)
    assert used == [1, 0]


@pytest.mark.parametrize(
    ("name", "reason"), [("host", "needs g++, which was not found"), ("ptx", "no nvcc on PATH")]
)
def test_a_runner_without_its_compiler_says_so_and_exits_3(monkeypatch, tmp_path, name, reason):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QLORACLE_COMPILER", "nvcc")
    code, lines = in_a_process("verify", name)
    assert code == 3
    assert lines[3].startswith("  NOT_RUN ")
    assert reason in lines[3]
