"""The README and the pages behind it show what is printed, and nothing that is not so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qloracle import memory

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
KERNELS = ROOT / "conformance" / "docs" / "kernels.md"
PAGING = ROOT / "reference" / "docs" / "paging.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="no README beside an installed package")


def block(page, mark, language):
    found = re.search(
        rf"<!-- ci:{mark} -->\n```{language}\n(.*?)```\n", page.read_text(), re.DOTALL
    )
    assert found, f"{page.name} has no block marked {mark}"
    return found[1]


def test_the_readme_is_a_page():
    assert README.read_text().count("\n") <= 130


@pytest.mark.filterwarnings("ignore:state lies in ordinary memory:UserWarning")
def test_the_paged_optimizer_is_made_as_the_readme_says():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, names = torch.nn.Linear(3, 2), {}
    exec(
        compile(block(PAGING, "paged", "python"), "README.md", "exec"),
        names | {"model": model},
        names,
    )
    model(torch.ones(3)).sum().backward()
    before = model.weight.detach().clone()
    names["optimizer"].step()
    assert torch.allclose(model.weight, before - 2e-4, rtol=0, atol=1e-7)


def test_the_bytes_that_the_readme_tells_are_those_of_the_account():
    text = " ".join(PAGING.read_text().split())
    claims = {claim.what: claim for claim in memory.claims()}
    full, base = claims["full fine-tuning of a 65B model"], claims["base of a 7B model, QLoRA"]
    told = f"Full fine-tuning of a 65B model takes {full.ours} at 12 bytes a weight, QLoRA "
    assert told + claims["QLoRA of a 65B model"].ours in text
    assert f"one published number, {base.published} for" in text
    assert not base.reproduced


def printed(spec, folder):
    """What `verify` prints, without what differs from machine to machine and from run to run."""
    command = [sys.executable, "-m", "qloracle_conformance.commands.main", "verify", spec]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return plain(run.stdout), run.returncode


def plain(text):
    """A screen without times, versions, cores and counts of cases that Hypothesis may change."""
    text = re.sub(r"\d+ cores", "n cores", text)
    text = re.sub(r"\d+\.\d s\b", "n s", text)
    text = re.sub(r"(?i)(numpy|torch|qloracle) [\d.]+\S*", r"\1 n", text)
    text = re.sub(r"[\d,]+ of [\d,]+ (cases|values)", r"n of n \1", text)
    return " ".join(text.split())


def test_the_fault_of_the_example_is_reported_as_the_readme_shows(tmp_path):
    shown, code = printed("example", tmp_path)
    assert shown == plain(block(README, "fault-shown", "text"))
    assert code == 1


def test_the_kernel_of_eight_lines_passes_as_its_page_shows(tmp_path):
    text = block(KERNELS, "kernel", "python")
    assert text.count("\n") == 8
    (tmp_path / "my_kernels.py").write_text(text)
    shown, code = printed("my_kernels.py", tmp_path)
    assert shown == plain(block(KERNELS, "kernel-shown", "text"))
    assert code == 0


def test_the_fault_in_the_torch_kernel_is_reported_as_its_page_shows(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    text = block(KERNELS, "torch-kernel", "python")
    assert text == (Path(__file__).with_name("data") / "torch_kernel_partial.py").read_text()
    (tmp_path / "kernel.py").write_text(text)
    shown, code = printed("kernel.py", tmp_path)
    assert shown == plain(block(KERNELS, "torch-kernel-shown", "text"))
    assert code == 1


def test_another_verdict_is_noticed():
    shown = block(README, "fault-shown", "text")
    assert plain(shown.replace("expected 2.0", "expected 3.0")) != plain(shown)
    assert plain(shown.replace("100 of", "80 of")) == plain(shown)


def test_pictures_and_pages_are_there():
    for page in (README, KERNELS, PAGING, ROOT / "CONTRIBUTING.md"):
        words = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", words):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
