"""The loop of edit and run: stop early, narrow, wait no longer than asked, watch the file."""

import contextlib
import functools
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import qloracle
from qloracle_conformance import verify as verify_object
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports import failures, github, html, markdown, screen
from qloracle_conformance.running import run as running
from qloracle_conformance.running import watching
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.run import Listener
from qloracle_conformance.running.verify import verify as verify_with_causes

verify = functools.partial(verify_with_causes, causes=False)  # quicker

NESTED = """\
import qloracle as q
def quantize_absmax(absmax):
    return q.quantize_absmax(absmax)
def dequantize_absmax(codes, nested_absmax, offset):
    return {factor} * q.dequantize_absmax(codes, nested_absmax, offset)
"""
RIGHT, WRONG = NESTED.format(factor=1), NESTED.format(factor=2)


@pytest.fixture
def kernel(tmp_path):
    def write(text, name="kernel.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


# ---- stop at the first failure -------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_failure_ends_the_run(kernel, processes):
    path = kernel(WRONG)
    report = verify([path, "numpy"], only="S8", stop_early=True, processes=processes)
    judgement, *others = report.judgements
    assert sum(check.status == "FAIL" for check in judgement.checks) == 1
    assert judgement.stopped
    assert not any(one.partial for one in report.judgements)
    assert len(others) < processes  # it was judged meanwhile
    assert report.exit_code == 1
    whole = verify([path], only="S8")
    assert len(whole.judgements[0].checks) > len(judgement.checks)


def test_an_expected_failure_does_not_end_it(kernel):
    path = kernel(WRONG)
    failing = verify([path], only="S8").judgements[0].checks
    known = [Known(check.id, "", "https://x.org") for check in failing if check.status == "FAIL"]
    report = verify([path], only="S8", known=known, stop_early=True)
    assert len(report.judgements[0].checks) == len(failing)
    assert (report.exit_code, report.judgements[0].stopped) == (0, False)


def test_the_command_says_that_it_stopped(command, kernel):
    code, out, _ = command("verify", kernel(WRONG), "--only", "S8", "-x")
    assert code == 1
    assert "stopped at the first failure; what was not run is not judged" in out
    code, out, _ = command("verify", kernel(RIGHT), "--only", "S8", "-x")
    assert code == 0
    assert "stopped" not in out


# ---- narrow --------------------------------------------------------------------------------------


def test_only_the_functions_that_are_needed_are_judged(kernel):
    report = verify([kernel(RIGHT)], only="Dequantize_Absmax")
    assert {check.function for check in report.judgements[0].checks} == {"dequantize_absmax"}
    assert {"S8", "P1", "P3"} <= {check.rule for check in report.judgements[0].checks}


def test_only_and_ops_and_limit_from_python():
    report = verify_object(qloracle, only="l1,S1", limit=60)
    judged = {check.function for check in report.judgements[0].checks}
    assert {"quantize_absmax", "dequantize_absmax", "dequantize_4bit"} <= judged
    assert not {"matmul_4bit", "adam_step", "make_pager"} & judged
    assert report.ok
    report = verify_object(qloracle, ops=["dequantize_absmax"], only="S8")
    assert {check.id.partition("/")[0] for check in report.judgements[0].checks} == {"S8"}
    assert {check.function for check in report.judgements[0].checks} == {"dequantize_absmax"}
    for wrong in ({"only": "S99"}, {"limit": 0}, {"limit": float("nan")}):
        with pytest.raises(UsageError, match=r"only .S99. matches nothing|limit is"):
            verify_object(qloracle, **wrong)


def test_a_selection_that_matches_nothing_is_a_usage_error(command):
    code, out, err = command("verify", "numpy", "--only", "S5,quantise_4bit")
    assert (code, out) == (2, "")
    assert "only 'quantise_4bit' matches nothing (quantize_4bit?); allowed" in err


# ---- a slow call ---------------------------------------------------------------------------------

SLOW = """\
import time
import qloracle as q
def dequantize_absmax(codes, nested_absmax, offset):
    time.sleep(60 * (codes.size > 256))
    return q.dequantize_absmax(codes, nested_absmax, offset)
"""


def test_a_slow_call_fails_and_names_its_size_and_the_limit(kernel):
    report = verify([kernel(SLOW)], only="S8", limit=1)
    late = [check for check in report.judgements[0].checks if check.status == "TIMEOUT"]
    assert late
    said = r"no answer within 1 s for codes uint8\[\d+\]; --limit 3 waits longer"
    assert re.fullmatch(said, late[0].message)
    assert report.exit_code == 1


def test_a_slow_call_of_an_object_fails_when_it_returns():
    def dequantize_absmax(codes, nested_absmax, offset):
        time.sleep(0.3 * (codes.size > 256))
        return qloracle.dequantize_absmax(codes, nested_absmax, offset)

    report = verify_object(dequantize_absmax, only="S8", limit=0.2)
    assert {"TIMEOUT"} <= {check.status for check in report.judgements[0].checks}
    assert report.exit_code == 1


# ---- nothing judged, and what was expected to fail -----------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("text", "only", "said"),
    [
        ("x = 1", "", "offers none of the protocol's functions"),
        (RIGHT, "L5", "offers nothing of what was asked for: make_pager"),
        (RIGHT, "P1", "P1 to P5 alone judge no value"),
        ("def quantize_absmax(absmax): raise NotImplementedError('later')", "S8", "later"),
    ],
)
def test_a_run_that_compared_nothing_says_why_and_never_ok(kernel, text, only, said, processes):
    report = verify([kernel(text)], only=only, processes=processes)
    (judgement,) = report.judgements
    assert (judgement.status, report.exit_code) == ("NOT_RUN", 3)
    assert said in judgement.message
    assert '"OK"' not in str(report.to_dict())


def test_it_is_counted_beside_others(kernel):
    assert verify([kernel(RIGHT), kernel("x = 1", "empty.py")], only="S8").exit_code == 3


def test_failures_that_were_expected_are_no_passes(kernel):
    path = kernel(WRONG)
    failing = [c for c in verify([path], only="S8").judgements[0].checks if c.status == "FAIL"]
    known = [Known(check.id, "", "https://x.org") for check in failing]
    report = verify([path], only="S8", known=known).to_dict()
    assert report["exit_code"] == 0
    said = failures.outcome(report)
    assert said.startswith(f"{len(failing)} expected failures failed as expected: S8/")
    assert said.endswith("the rest passed within its printed scope: exit code 0")
    for text in (html.text(report), screen.text(report), github.commands(report, {})[-1]):
        assert "every function" not in text
        assert "failed as expected" in " ".join(text.split())
    assert "failed as expected: S8/" in markdown.text(report).splitlines()[0]


# ---- when what is told ---------------------------------------------------------------------------


def test_other_people_s_are_judged_before_our_own(kernel):
    report = verify(["numpy", kernel(RIGHT)], only="S8/dequantize_absmax/*")
    assert [judgement.name for judgement in report.judgements] == [kernel(RIGHT), "numpy"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_verdict_is_told_before_its_causes_are_sought(kernel, processes, monkeypatch):
    told = []
    monkeypatch.setattr(running, "likely", lambda check: told.append("cause") or ["a story"])

    def judged(judgement):
        failing = [check for check in judgement.checks if check.status == "FAIL"]
        told.append((judgement.name, bool(failing), any(c.looks_like for c in failing)))

    path = kernel(RIGHT.replace("offset)\n", "0 * offset)\n"))
    only = "S8/dequantize_absmax/*"
    report = verify_with_causes(
        ["numpy", path], only=only, processes=processes, listener=Listener(judged=judged)
    )
    verdicts = [entry for entry in told if entry != "cause"]
    assert told[0] == (path, True, False)
    assert verdicts == [(path, True, False), ("numpy", False, False)]
    failing = [check for check in report.judgements[0].checks if check.status == "FAIL"]
    assert any(check.looks_like for check in failing)


def test_what_mutants_warn_of_reaches_nobody(kernel, monkeypatch):
    def warns(check):
        warnings.warn("overflow encountered in multiply", RuntimeWarning, stacklevel=1)
        return []

    monkeypatch.setattr(running, "likely", warns)
    report = verify_with_causes([kernel(WRONG)], only="S8/dequantize_absmax/*")
    assert report.exit_code == 1  # here a warning would be an error


# ---- watch ---------------------------------------------------------------------------------------


class Watched:
    """A `verify --watch`, and the lines that it prints."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "qloracle_conformance.commands.main", "verify", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as stream:
            for text in stream:
                self.lines.put(text)

    def line(self):
        return self.lines.get(timeout=90)

    def quiet(self, seconds=1.5):
        with contextlib.suppress(queue.Empty):
            return self.lines.get(timeout=seconds)
        return ""

    def end(self):
        os.kill(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def let_go(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture
def watched():
    found = []

    def start(*arguments):
        found.append(Watched(*arguments))
        return found[-1]

    yield start
    for one in found:
        one.let_go()


def test_a_file_that_is_watched_is_judged_again_after_each_change(kernel, watched):
    path = kernel(WRONG)
    loop = watched(path, "--only", "S8/dequantize_absmax/*", "-x", "--watch")
    first = loop.line()
    assert " FAIL S8  dequantize_absmax: absmax[" in first
    assert ", expected " in first
    assert first.rstrip().endswith(" s")
    assert loop.quiet() == ""
    kernel(RIGHT)
    assert " PASS     dequantize_absmax, " in loop.line()
    kernel(RIGHT + "x = (\n")
    assert " ERROR    does not import: SyntaxError" in loop.line()
    kernel(WRONG)
    assert " FAIL S8 " in loop.line()
    assert loop.end() == 1


def test_a_file_that_it_imports_is_watched_too(kernel, tmp_path, watched, monkeypatch):
    (tmp_path / "lib").mkdir()
    kernel(WRONG, "lib/inner.py")
    path = kernel("from inner import dequantize_absmax\n", "outer.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)  # below it no bytecode is read: an edit within a second is seen
    loop = watched(path, "--only", "S8/dequantize_absmax/*", "-x", "--watch")
    assert " FAIL S8 " in loop.line()
    kernel(RIGHT, "lib/inner.py")
    assert " PASS " in loop.line()
    kernel("def f(:\n", "lib/inner.py")
    assert " ERROR " in loop.line()
    kernel(RIGHT, "lib/inner.py")
    assert " PASS " in loop.line()
    kernel("nothing of it", "lib/other.py")
    assert loop.quiet() == ""
    assert loop.end() == 0


def test_what_changes_as_soon_as_the_line_is_out_is_seen(kernel, tmp_path, monkeypatch):
    """An imported file is known by its state from before the line, not from after it."""
    (tmp_path / "lib").mkdir()
    inner = Path(kernel(WRONG, "lib/inner.py"))
    path = kernel("from inner import dequantize_absmax\n", "outer.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"), prepend=os.pathsep)
    waited = []
    monkeypatch.setattr(watching, "_wait", lambda files, before: waited.append(before))
    options = {"only": "S8/dequantize_absmax/*", "stop_early": True}
    lines = watching.verdicts(path, options)
    assert " FAIL " in next(lines)[0]
    old = inner.stat()
    inner.write_text(RIGHT + "# and more\n")
    assert " PASS " in next(lines)[0]
    lines.close()
    assert waited[0][inner] == (old.st_mtime_ns, old.st_size)


@pytest.mark.parametrize("more", [["numpy"], ["--report", "out"], ["--diff", "old.json"]])
def test_watch_takes_one_implementation_and_writes_nothing(command, kernel, more):
    code, _, err = command("verify", kernel(RIGHT), "--watch", *more)
    assert code == 2
    assert "--watch takes one IMPL" in err
