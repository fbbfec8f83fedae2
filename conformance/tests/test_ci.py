"""The jobs that `docs/ci.md` shows, and what they lean on; the CPU job's commands are run here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports import failures
from qloracle_conformance.running.known import Known, failing, read, text
from qloracle_conformance.running.verify import verify

DOCS = Path(__file__).parents[1] / "docs"
JOBS = ("github-cpu.yml", "github-gpu.yml", "gitlab.yml")

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="no docs beside an installed package")


def job(name):
    return yaml.safe_load((DOCS / "ci" / name).read_text())


def steps(name):
    return job(name)["jobs"]["verify"]["steps"]


# ---- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_the_page_shows_the_file(name):
    page = (DOCS / "ci.md").read_text()
    shown = re.search(rf"<!-- file: ci/{re.escape(name)} -->\n```yaml\n(.*?)```\n", page, re.DOTALL)
    assert shown[1] == (DOCS / "ci" / name).read_text()


def test_the_page_has_the_exit_codes():
    page = (DOCS / "ci.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert told == {*failures.MEANINGS, 2}
    assert f"| 0 | {failures.MEANINGS[0]} |" in page


def test_every_option_on_the_page_exists(command, monkeypatch):
    page = (DOCS / "ci.md").read_text()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = command("verify", "--help")
    for option in set(re.findall(r"--[a-z][a-z-]+", page)):
        assert option in out, option
    assert set(re.findall(r"--require (L\d)", page)) <= set(LEVELS)


@pytest.mark.parametrize("name", JOBS[:2])
def test_the_jobs_are_well_formed(name):
    verify_job = job(name)["jobs"]["verify"]
    assert job(name)["permissions"] == {"contents": "read"}
    assert 0 < verify_job["timeout-minutes"] <= 60
    for step in verify_job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
    assert steps(name)[-1]["if"] == "always()"
    (install,) = [step for step in steps(name) if step.get("name") == "Install"]
    assert '"qloracle[verify,torch] @ git+https://github.com/OWNER/qloracle"' in install["run"]


def test_no_pull_request_reaches_the_gpu():
    gpu = job("github-gpu.yml")
    triggers = gpu[True]  # YAML 1.1 reads `on` as a truth value, and so does the parser here
    assert set(triggers) == {"push", "workflow_dispatch"}
    assert "github.repository == 'OWNER/REPOSITORY'" in gpu["jobs"]["verify"]["if"]
    assert "self-hosted" in gpu["jobs"]["verify"]["runs-on"]
    assert gpu["jobs"]["verify"]["concurrency"]["group"] == "conformance-gpu"


def test_gitlab_reads_the_junit_file():
    for name in ("conformance", "conformance-gpu"):
        assert any("--report out" in line for line in job("gitlab.yml")[name]["script"])
    assert job("gitlab.yml")["conformance"]["artifacts"]["reports"] == {"junit": "out/junit.xml"}
    assert job("gitlab.yml")["conformance"]["artifacts"]["when"] == "always"


# ---- the CPU job ---------------------------------------------------------------------------------

KERNEL = """\
import qloracle as q


def quantize_absmax(absmax, *, blocksize=256):
    return q.quantize_absmax(absmax, blocksize=blocksize)


def dequantize_absmax(codes, nested_absmax, offset, *, blocksize=256):
    return q.dequantize_absmax(codes, nested_absmax, offset, blocksize=blocksize)
"""
FAULTY = KERNEL.replace("offset, blocksize", "0 * offset, blocksize")
WORSE = FAULTY.replace(
    "return q.quantize_absmax(absmax, blocksize=blocksize)",
    "codes, nested, offset = q.quantize_absmax(absmax, blocksize=blocksize)\n"
    "    return codes, nested * 2, offset",
)


class Runner:
    """Runs the CPU job's steps in a folder, in the environment of this test instead of Install's.

    Steps that use an action are left out: the folder is the checkout.
    """

    def __init__(self, folder):
        self.folder, self.summary = folder, folder / "step_summary"
        (folder / "known.toml").write_text("")

    def __call__(self, kernel, event="push"):
        (self.folder / "my_kernels.py").write_text(kernel)
        self.summary.write_text("")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {
            "PATH": path, "GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(self.folder),
            "GITHUB_STEP_SUMMARY": str(self.summary), "COLUMNS": "100",
        }  # fmt: skip
        for step in steps("github-cpu.yml"):
            if "run" not in step or step["name"] == "Install" or not _wanted(step, event):
                continue
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]],
                check=False, capture_output=True, text=True, timeout=300, cwd=self.folder, env=env,
            )  # fmt: skip
        return done


def _wanted(step, event):
    """The two conditions that the file has, as GitHub reads them."""
    return {
        "github.event_name != 'schedule'": event != "schedule",
        "github.event_name == 'schedule'": event == "schedule",
    }[step["if"]]


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def annotated(done, kind):
    return re.findall(rf"^::{kind} (.*?)::(.*)$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_good_kernel_is_green(runner):
    done = runner(KERNEL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert annotated(done, "error") == annotated(done, "warning") == []
    (notice,) = annotated(done, "notice")
    assert notice[1] == "every function offered passed within its printed scope: exit code 0"
    assert runner.summary.read_text().startswith(f"## qloracle: {notice[1]}")
    written = {path.name for path in (runner.folder / "out").iterdir()}
    assert {"report.json", "junit.xml", "summary.md"} <= written


@pytest.mark.slow
def test_the_nightly_job_draws_another_seed(runner):
    assert runner(KERNEL, "schedule").returncode == 0
    assert json.loads((runner.folder / "out" / "report.json").read_text())["seed"] > 0


@pytest.mark.slow
def test_a_known_fault_is_green_a_new_one_red_and_a_mended_one_red(command, monkeypatch, runner):
    done = runner(FAULTY)
    assert done.returncode == 1
    line = FAULTY.splitlines().index(
        "def dequantize_absmax(codes, nested_absmax, offset, *, blocksize=256):"
    )
    assert all(
        f"file=my_kernels.py,line={line + 1}," in place for place, _ in annotated(done, "error")
    )
    assert "exit code 1" in runner.summary.read_text()

    known = runner.folder / "known.toml"
    monkeypatch.chdir(runner.folder)
    code, out, _ = command(
        "verify", "my_kernels.py", "--profile", "standard", "--write-known", "known.toml"
    )
    assert code == 1
    assert re.search(r"known.toml: (\d+) known failures, \1 of them without a link", out)
    refused = runner(FAULTY)
    assert refused.returncode == 2
    assert "has the link ''; say where the failure is tracked" in refused.stderr

    known.write_text(known.read_text().replace('link = ""', 'link = "https://tracker/1"'))
    done = runner(FAULTY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert annotated(done, "error") == []
    assert all("title=XFAIL S8/" in place for place, _ in annotated(done, "warning"))
    assert "https://tracker/1" in done.stdout

    done = runner(WORSE)
    assert done.returncode == 1
    assert any("FAIL S8 quantize_absmax" in place for place, _ in annotated(done, "error"))

    done = runner(KERNEL)
    assert done.returncode == 1
    assert any("XPASS" in place for place, _ in annotated(done, "error"))


def test_a_summary_that_cannot_be_written_changes_no_exit_code(command, tmp_path, monkeypatch):
    path = tmp_path / "my_kernels.py"
    path.write_text(KERNEL)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    code, _, err = command("verify", str(path), "--only", "S8")
    assert code == 0
    assert f"qloracle: no step summary: {tmp_path}: Is a directory" in " ".join(err.split("\n"))


# ---- known failures that are written -------------------------------------------------------------


def test_what_is_written_is_read_and_matches(tmp_path):
    path, known = tmp_path / "my_kernels.py", tmp_path / "known.toml"
    wild = r'raise ValueError("a \"b\" \\ \x7f \x1b µ 💥 \ud800 and more")'
    path.write_text(f"def dequantize_absmax(codes, nested_absmax, offset):\n    {wild}\n")
    report = verify([str(path)], only="S8")
    entries = [entry._replace(link="https://tracker/1") for entry in failing(report.judgements)]
    assert entries
    assert len({entry.check for entry in entries}) == len(entries)
    known.write_text(text(entries), encoding="utf-8")
    assert read(known) == entries
    again = verify([str(path)], only="S8", known=read(known))
    assert {check.status for check in again.judgements[0].checks} == {"XFAIL"}


def test_another_message_is_written_without_its_note(tmp_path):
    path = tmp_path / "my_kernels.py"
    path.write_text("def dequantize_absmax(codes, nested_absmax, offset): raise ValueError('new')")
    (first, *_) = failing(verify([str(path)], only="S8").judgements)
    old = [Known(first.check, "raised KeyError", "https://tracker/1")]
    (entry, *_) = failing(verify([str(path)], only="S8", known=old).judgements)
    assert (entry.message, entry.link) == ("raised ValueError: new", "")


def test_what_was_known_keeps_its_link_and_what_passes_is_left_out():
    from qloracle_conformance.engine.runs import CheckRun

    runs = [
        CheckRun(status, "S4", "quantize_4bit", "nf4", status, "m", known="link")
        for status in ("PASS", "XFAIL", "XPASS", "FAIL", "CRASH", "UNSUPPORTED")
    ]
    found = failing([Judgement("kernel", checks=runs)])
    assert [entry.check for entry in found] == ["XFAIL", "FAIL", "CRASH"]
    assert found[0].link == "link"


def test_a_narrowed_run_writes_no_known_failures(command, tmp_path):
    known = str(tmp_path / "known.toml")
    code, _, err = command("verify", "numpy", "--only", "S6", "--write-known", known)
    assert code == 2
    assert "--write-known needs a whole run; --only is 'S6'" in err
    assert not (tmp_path / "known.toml").exists()


# ---- a second run --------------------------------------------------------------------------------

TIMES = """\
def dequantize_absmax(codes, nested_absmax, offset):
    return {} * q.dequantize_absmax(codes, nested_absmax, offset)
"""


@pytest.mark.parametrize("spec", ["module:own_kernels", "module:own_package", "main.py"])
def test_an_edit_within_the_second_is_seen(command, tmp_path, monkeypatch, spec):
    """The same length, the same time: bytecode of the older text would pass for the new one's."""
    module, package = tmp_path / "own_kernels.py", tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from own_package.inner import dequantize_absmax\n")
    (tmp_path / "main.py").write_text("from own_kernels import dequantize_absmax\n")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    codes = []
    for factor in (1, 2, 1):
        for path in (module, package / "inner.py"):
            path.write_text("import qloracle as q\n" + TIMES.format(factor))
            os.utime(path, (1_700_000_000, 1_700_000_000))
        codes.append(command("verify", spec, "--only", "S8/dequantize_absmax/*")[0])
    assert codes == [0, 1, 0]
    assert list(tmp_path.rglob("*.pyc")) == []


def test_scripts_of_faults_that_are_gone_are_removed_and_nothing_else(command, tmp_path):
    kernel, out = tmp_path / "my_kernels.py", tmp_path / "out"
    kernel.write_text("import qloracle as q\n" + TIMES.format(2))
    command("verify", str(kernel), "--only", "S8", "--report", str(out))
    (script, *_) = (out / "repro").iterdir()
    mine, outside = out / "repro" / "mine.py", tmp_path / "outside.py"
    for path in (mine, outside, out / "repro" / "notes.txt"):
        path.write_text("keep me")
    report = json.loads((out / "report.json").read_text())
    check = next(c for c in report["implementations"][0]["checks"] if c["status"] == "FAIL")
    names = [str(outside), "../outside.py", "repro/../../outside.py", "repro/notes.txt", "repro", 3]
    report["others"] = [{"repro": name} for name in names]
    assert check["repro"] == f"repro/{script.name}"
    (out / "report.json").write_text(json.dumps(report))

    kernel.write_text("import qloracle as q\n" + TIMES.format(1))
    code, _, _ = command("verify", str(kernel), "--only", "S8", "--report", str(out))
    assert code == 0
    assert {p.name for p in (out / "repro").iterdir()} == {"mine.py", "notes.txt"}
    assert outside.exists()


@pytest.mark.parametrize("damage", ["{", "[1, {}]", '{"repro": "repro/mine.py\\u0000"}', ""])
def test_a_damaged_older_report_removes_nothing(tmp_path, damage):
    from qloracle_conformance.reports.files import remove_old_scripts

    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "mine.py").write_text("keep me")
    (tmp_path / "report.json").write_text(damage)
    remove_old_scripts(tmp_path)
    assert (tmp_path / "repro" / "mine.py").exists()
