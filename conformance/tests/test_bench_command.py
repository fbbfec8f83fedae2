"""`qloracle bench`: one line where there is no GPU, and exit codes that hide nothing."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from qloracle_conformance.commands import bench as bench_command
from qloracle_conformance.commands.main import app
from qloracle_conformance.contract.errors import UsageError

TIMED = {"case": "adam float32", "figures": {"share of roof": 0.9}}
UNTIMED = {"case": "adam float32", "not_measured": "out of memory"}


def found(timings=(TIMED,), checks=("passed",)):
    return {
        "machine": {"card": "stand-in", "commit": "0" * 40},
        "roofs_bytes_per_second": {"triad": 3e12},
        "timings": list(timings),
        "goals": [
            {"case": "c", "figure": "f", "sense": ">=", "limit": 0.9, "verdict": "not measured"}
        ],
        "checks": [
            {"name": status, "status": status, "reason": "why" * (status != "passed")}
            for status in checks
        ],
    }


def command(monkeypatch, tmp_path, capsys, reason="", result=None, device="cuda"):
    bench = SimpleNamespace(unavailable=lambda: reason, run=lambda only, tell: result)
    monkeypatch.setattr(bench_command.importlib, "import_module", lambda name: bench)
    path = tmp_path / "bench.json"
    code = bench_command.run(device, "", path)
    return code, capsys.readouterr().out.splitlines(), path


def test_without_a_gpu_it_prints_one_line_and_exits_3(monkeypatch, tmp_path, capsys):
    reason = "needs an NVIDIA GPU: this machine has no CUDA driver (libcuda.so.1)"
    code, lines, path = command(monkeypatch, tmp_path, capsys, reason)
    assert (code, lines) == (3, [f"NOT_RUN bench: {reason}"])
    assert not path.exists()


def test_what_was_measured_is_printed_and_written(monkeypatch, tmp_path, capsys):
    result = found(checks=("passed", "not run"))
    code, lines, path = command(monkeypatch, tmp_path, capsys, result=result)
    assert code == 0
    assert lines == [
        "roofs in GB/s: triad 3000",
        "NOT MEASURED: c: f >= 0.9",
        "PASSED: passed",
        "NOT RUN: not run: why",
        f"{path}: stand-in, commit {'0' * 40}",
    ]
    assert json.loads(path.read_text()) == result


@pytest.mark.parametrize(
    ("timings", "checks", "code"),
    [
        ([TIMED], ["passed", "failed"], 1),
        ([UNTIMED], ["failed"], 1),
        ([UNTIMED], ["not run"], 3),
        ([], [], 3),
        ([UNTIMED], ["passed"], 0),
        ([TIMED], ["not run"], 0),
    ],
)
def test_exit_codes(timings, checks, code):
    assert bench_command.exit_code(found(timings, checks)) == code


@pytest.mark.parametrize("device", ["cpu", "", "cuda:1"])
def test_other_devices_are_a_matter_of_usage(monkeypatch, tmp_path, capsys, device):
    with pytest.raises(UsageError, match=r"^--device is .*; allowed: cuda$"):
        command(monkeypatch, tmp_path, capsys, device=device)


def test_the_command_hands_its_options_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(bench_command, "run", lambda *given: seen.append(given[:3]) or 3)
    path = tmp_path / "b.json"
    run = CliRunner().invoke(
        app, ["bench", "--device", "cuda", "--only", "adam", "--out", str(path)]
    )
    assert (run.exit_code, seen) == (3, [("cuda", "adam", path)])
