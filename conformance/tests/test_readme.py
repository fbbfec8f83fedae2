"""The README says nothing that is not so: its example prints what it shows, its kernel passes."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from qloracle_conformance.reports import failures
from qloracle_conformance.verification import verify

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="no README beside an installed package")


def block(mark, language):
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"<!-- ci:{mark} -->\n```{language}\n(.*?)```\n", text, re.DOTALL)
    assert found, f"the README has no block marked {mark}"
    return found[1], text[found.end() :]


def test_the_example_prints_what_the_readme_shows():
    code, rest = block("example", "python")
    shown = re.match(r"```text\n(.*?)```", rest, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert len(code.strip().splitlines()) <= 11
    assert printed.getvalue() == shown[1]


def counts_as_n(text):
    return re.sub(r"\(\d+ of \d+ cases\)", "(n of n cases)", text)


def test_the_kernel_of_eight_lines_passes_within_its_scope(tmp_path):
    code, rest = block("kernel", "python")
    path = tmp_path / "my_kernels.py"
    path.write_text(code)
    assert code.count("\n") == 8
    report = verify([str(path)])
    line = report.to_dict()["implementations"][0]["levels"][0]["line"]
    # The verdict is shown as it is, wrapped; how many of Hypothesis' cases are in scope may vary.
    assert counts_as_n(line) in counts_as_n(" ".join(rest.split()))
    assert report.exit_code == 0


def test_the_planted_fault_in_the_torch_kernel_is_told_as_the_readme_shows(tmp_path):
    code, rest = block("torch-kernel", "python")
    assert code == (Path(__file__).with_name("data") / "torch_kernel_partial.py").read_text()
    shown = re.search(r"```text\n(.*?)```", rest, re.DOTALL)[1]
    path = tmp_path / "kernel.py"
    path.write_text(code)
    report = verify([str(path)])
    (entry,) = failures.entries(report.to_dict()["implementations"][0])
    told = [f"{entry.first['status']} {entry.title}", failures.statement("S3")]
    told += [f"{name} {text}" for name, text in entry.rows if name not in ("wrong", "checks")]
    assert shown.split() == " ".join(told).split()
