"""The README says nothing that is not so: its example prints what it shows, its kernel passes."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from qloracle import memory
from qloracle_conformance.reports import failures
from qloracle_conformance.running.verify import verify

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


@pytest.mark.filterwarnings("ignore:state lies in ordinary memory:UserWarning")
def test_the_paged_optimizer_is_made_as_the_readme_says():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, names = torch.nn.Linear(3, 2), {}
    exec(compile(block("paged", "python")[0], "README.md", "exec"), names | {"model": model}, names)
    model(torch.ones(3)).sum().backward()
    before = model.weight.detach().clone()
    names["optimizer"].step()
    assert torch.allclose(model.weight, before - 2e-4, rtol=0, atol=1e-7)


def test_the_bytes_that_the_readme_tells_are_those_of_the_account():
    text = README.read_text(encoding="utf-8")
    claims = {claim.what: claim for claim in memory.claims()}
    full, base = claims["full fine-tuning of a 65B model"], claims["base of a 7B model, QLoRA"]
    told = f"Full fine-tuning of a 65B model takes {full.ours} at 12 bytes a weight, QLoRA "
    assert told + claims["QLoRA of a 65B model"].ours in text
    assert f"one published number, {base.published} for" in text
    assert not base.reproduced


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
