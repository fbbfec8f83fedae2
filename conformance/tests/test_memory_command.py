"""`qloracle memory`: the published numbers, the timeline of a spike, two pictures, bad input."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from qloracle import memory
from qloracle_conformance.commands import memory as memory_command
from qloracle_conformance.commands.main import app
from qloracle_conformance.contract.errors import UsageError

PICTURES = ("memory.png", "timeline.png")


def command(*arguments):
    """Run the command; return its lines with every space between words made one."""
    done = CliRunner().invoke(app, ["memory", *arguments], catch_exceptions=False)
    return done.exit_code, [" ".join(line.split()) for line in done.output.splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_user_s_run_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qloracle_conformance.commands.main", "memory",
         "--model", "llama-65b", "--seq", "512"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Longest micro-batch: ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not list(tmp_path.iterdir())  # nobody asked for pictures


def test_the_published_numbers(here):
    code, lines = command("--model", "llama-65b", "--seq", "512")
    assert code == 0
    for line in (
        "full fine-tuning of a 65B model over 780 GB 783.4 GB reproduced",
        "QLoRA of a 65B model under 48 GB 44.1 GB reproduced",
        "bits a weight 4.127 4.126953 reproduced",
        "saved by nested scales, bits 0.373 0.373047 reproduced",
        "base of a 7B model, QLoRA 5,048 MB 3,866 MB NOT reproduced",
        "parameters, GPT-3, q and v, r = 4 18 M 18.87 M reproduced",
    ):
        assert lines.count(line) == 1, line


def test_bytes_by_part_with_checkpoints_and_without(here):
    _, lines = command("--model", "llama-65b", "--seq", "512")
    for line in (
        "full LoRA QLoRA",
        "weights 130.57 130.57 34.46",
        "adapters - 1.60 1.60",
        "gradients 130.57 1.60 1.60",
        "optimizer state 522.29 6.40 6.40",
        "all the time 783.43 140.17 44.05",
        "activations, checkpointed 0.81 0.81 0.81",
        "logits 0.13 0.13 0.13",
        "decoded weights - - 0.36",
        "at the peak 784.23 140.97 45.22",
        "activations, if all are kept 10.78 10.78 10.78",
    ):
        assert lines.count(line) == 1, line


def test_the_peak_is_a_phase_and_not_the_sum_of_what_is_never_there_together():
    """65B: the backward pass holds what was stored, one block and the decoded layer; no logits."""
    llama = memory.MODELS["llama-65b"]
    parts = memory.memory_parts(llama, "qlora", tokens=512)
    peak = memory_command._peak(llama, "qlora", 512)
    assert peak == parts.static + parts.activations + parts.decode < sum(parts)


def test_33b_on_24_gb_is_out_of_memory_without_paging_and_through_with_it(here):
    code, lines = command("--model", "llama-33b", "--seq", "512", "--capacity", "24")
    assert code == 0
    assert "QLoRA, products fused, micro-batches of 512, 512, 1024, 512 tokens on 24 GB" in lines
    for line in (
        "backward 2 23.78 23.78",
        "forward 3 24.08 out of memory 24.00 0.08 0.010",
        "loss 3 24.00 0.26 0.033",
        "step 23.27 0.35 0.043",
        "Without paging: out of memory, forward 3.",
        "With paging: it fits; 0.35 GB leave, 0.35 GB come back, 0.087 s.",
        "Longest micro-batch: 696 tokens without paging, 4,395 with it.",
    ):
        assert lines.count(line) == 1, line


def test_where_not_even_the_weights_fit(here):
    code, lines = command("--model", "llama-65b", "--capacity", "24")
    assert code == 0
    assert "With paging: out of memory, forward 1." in lines
    assert "Longest micro-batch: 0 tokens without paging, 0 with it." in lines


@pytest.mark.parametrize(
    ("model", "card"),
    [("llama-7b", "8"), ("llama-33b", "24"), ("llama-65b", "48"), ("gpt-3", "141")],
)
def test_without_a_capacity_the_card_is_the_smallest_that_holds_the_state(here, model, card):
    _, lines = command("--model", model)
    assert any(line.endswith(f"tokens on {card} GB") for line in lines)


def test_every_model_is_drawn_in_the_folder_asked_for(here):
    for model in memory.MODELS:
        code, lines = command("--model", model, "--out", f"new/{model}")
        assert code == 0
        assert lines[-2:] == [f"new/{model}/{name}" for name in PICTURES]
        for name in PICTURES:
            picture = (here / "new" / model / name).read_bytes()
            assert picture.startswith(b"\x89PNG")
            assert len(picture) > 15_000
    assert not (here / PICTURES[0]).exists()


def test_without_matplotlib_the_tables_come_and_a_line_says_what_to_install(here, monkeypatch):
    monkeypatch.setattr(memory_command, "find_spec", lambda name: None)
    code, lines = command("--model", "llama-7b", "--out", "pictures")
    assert code == 0
    assert "logits 0.13 0.13 0.13" in lines
    line = "No pictures: matplotlib is not installed; pip install 'qloracle[examples]'"
    assert lines[-1] == line
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama-8b"], "--model is 'llama-8b'; allowed: llama-7b, llama-13b, "),
        (["--seq", "0"], "--seq is 0; allowed: a whole number of tokens from 1 to 999999999"),
        (["--seq", "-5"], "--seq is -5; allowed: "),
        (["--seq", "1000000000"], "--seq is 1000000000; allowed: "),
        (["--capacity", "0"], "--capacity is 0; allowed: GB from 0.001 to 1000000"),
        (["--capacity", "-24"], "--capacity is -24; allowed: "),
        (["--capacity", "nan"], "--capacity is nan; allowed: "),
        (["--capacity", "inf"], "--capacity is inf; allowed: "),
        (["--out", "file"], "--out is 'file': File exists; allowed: a folder to write to"),
        (["--out", "file/below"], "--out is 'file/below': Not a directory; allowed: a folder"),
    ],
)
def test_bad_input_is_one_line_and_prints_no_table(here, capsys, arguments, message):
    (here / "file").write_text("")
    with pytest.raises(UsageError) as raised:
        command(*arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_picture_that_cannot_be_written_is_bad_input(here):
    (here / PICTURES[0]).mkdir()
    with pytest.raises(UsageError, match=r"^--out is '\.': Is a directory; allowed: a folder to"):
        command("--model", "llama-7b", "--out", ".")


@pytest.mark.parametrize("arguments", [["--model", "x"], ["--seq", "many"], ["--capacity", "big"]])
def test_bad_input_exits_with_2(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "qloracle_conformance.commands.main", "memory", *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in done.stderr
    assert not list(tmp_path.iterdir())
