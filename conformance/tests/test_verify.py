"""Verdicts from end to end: scope, dialects, known failures, differences, interruption."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from qloracle_conformance.commands import main
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports import differences
from qloracle_conformance.running import known
from qloracle_conformance.running.verify import verify

# Eight lines, one function, no import of ours.
MY_KERNELS = """\
import math, numpy as np
NF4 = np.array([0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F,
    0xBDBA7871, 0, 0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB,
    0x3F3913B3, 0x3F800000], np.uint32).view(np.float32)
def dequantize_4bit(packed, absmax, *, shape):
    n = math.prod(shape)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    return (NF4[codes] * np.repeat(absmax, 64)[:n]).reshape(shape)
"""

SWAPPED = """
import qloracle as q
import numpy as np
def swap(packed):
    return packed >> 4 | packed << 4
def quantize_4bit(x, **options):
    packed, absmax = q.quantize_4bit(x, **options)
    return swap(packed), absmax
def dequantize_4bit(packed, absmax, **options):
    return q.dequantize_4bit(swap(packed), absmax, **options)
"""


@pytest.fixture
def kernel(tmp_path):
    def write(text, name="my_kernels.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def rows(report):
    return {row["name"]: row for row in report.to_dict()["implementations"][0]["functions"]}


def failing(report):
    return {check.id for j in report.judgements for check in j.checks if check.status == "FAIL"}


def test_eight_lines_get_a_verdict_within_their_scope(kernel):
    path = kernel(MY_KERNELS)
    assert MY_KERNELS.count("\n") == 8
    report = verify([path])
    found = rows(report)
    assert found["dequantize_4bit"]["status"] == "PASS"
    assert found["dequantize_4bit"]["scope"] == "blocksize 64, quant_type nf4, dtype float32"
    assert found["dequantize_4bit"]["unsupported"] > 0
    assert {row["status"] for name, row in found.items() if name != "dequantize_4bit"} == {
        "MISSING"
    }
    assert report.exit_code == 0


def test_a_required_level_that_is_missing_fails(kernel):
    path = kernel(MY_KERNELS)
    report = verify([path], require="L1", only="S6")
    assert report.exit_code == 1
    assert any("quantize_absmax (L1) MISSING" in line for line in report.unmet)


def test_swapped_nibbles_fail_with_the_line_that_declares_them(kernel):
    report = verify([kernel(SWAPPED)], only="S*")
    assert failing(report) == {
        f"S6/{function}[{table}]/{layer}"
        for table in ("nf4", "fp4")
        for function, layer in (("quantize_4bit", "pairs"), ("dequantize_4bit", "bytes"))
    }
    message = next(c.message for c in report.judgements[0].checks if c.status == "FAIL")
    assert 'dialect = {"nibble_order": "low_first"}' in message


def test_declared_nibble_order_passes_under_that_dialect(kernel):
    report = verify([kernel(SWAPPED + '\ndialect = {"nibble_order": "low_first"}\n')])
    assert failing(report) == set()
    assert report.exit_code == 0
    labels = rows(report)["quantize_4bit"]["dialect"]
    assert labels["quantize_4bit[nf4]"] == "nibble_order: low_first"


def test_a_preset_is_a_declaration(kernel):
    report = verify([kernel(SWAPPED)], dialect={"nibble_order": "low_first"}, only="S6")
    assert report.exit_code == 0


class TestKnownFailures:
    CHECK = "S6/quantize_4bit[nf4]/pairs"

    def run(self, kernel, tmp_path, *entries):
        path = tmp_path / "known.toml"
        path.write_text("".join(
            f'[[known]]\ncheck = "{check}"\nmessage = "{message}"\nlink = "https://example.org/1"\n'
            for check, message in entries
        ))  # fmt: skip
        report = verify([kernel(SWAPPED)], only="S6/quantize_4bit[nf4]/*", known=known.read(path))
        return report, report.judgements[0].checks[0]

    def test_the_listed_message_is_xfail(self, kernel, tmp_path):
        report, check = self.run(kernel, tmp_path, (self.CHECK, "packed[0] is 0x"))
        assert (check.status, check.known) == ("XFAIL", "https://example.org/1")
        assert report.exit_code == 0

    def test_another_message_stays_a_failure(self, kernel, tmp_path):
        report, check = self.run(kernel, tmp_path, (self.CHECK, "absmax"))
        assert check.status == "FAIL"
        assert report.exit_code == 1

    def test_an_entry_that_matches_nothing_is_a_failure(self, kernel, tmp_path):
        report, _ = self.run(
            kernel, tmp_path, (self.CHECK, "packed"), ("S6/quantize_4bit[nf4]/gone", "x")
        )
        assert report.known_problems == [
            "known failure S6/quantize_4bit[nf4]/gone matches no check of this run"
        ]
        assert report.exit_code == 1

    def test_a_pass_is_a_failure(self, tmp_path):
        path = tmp_path / "known.toml"
        path.write_text(f'[[known]]\ncheck = "{self.CHECK}"\nmessage = "x"\nlink = "y"\n')
        report = verify(["numpy"], only="S6/quantize_4bit[nf4]/*", known=known.read(path))
        assert report.judgements[0].checks[0].status == "XPASS"
        assert report.exit_code == 1

    @pytest.mark.parametrize(
        "text",
        ["[[known]]\ncheck = 'a'\n", "known = 3", "[other]\n", "[[known]]\ncheck=1\n", "x ="],
    )
    def test_a_damaged_file_is_a_usage_error(self, tmp_path, text):
        path = tmp_path / "known.toml"
        path.write_text(text)
        with pytest.raises(UsageError, match=r"known\.toml"):
            known.read(path)


def test_the_difference_to_an_older_report(kernel, tmp_path):
    old = verify([kernel(SWAPPED)], only="S6/quantize_4bit[nf4]/*").to_dict()
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    new = verify([kernel("from qloracle import *")], only="S6/quantize_4bit[nf4]/*").to_dict()
    (line,) = differences.lines(differences.read(path), new)
    assert line.endswith("S6/quantize_4bit[nf4]/pairs: was FAIL, is PASS")
    assert differences.lines(new, new) == []


@pytest.mark.parametrize("text", ["[]", "{}", "no json"])
def test_a_file_that_is_no_report_is_a_usage_error(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a report"):
        differences.read(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["verify", "no_such_thing"], "is no implementation"),
        (["verify", "numpy", "--profile", "quick"], "allowed: smoke, standard, exhaustive"),
        (["verify", "numpy", "--require", "L9"], "allowed: L0"),
        (["verify", "numpy", "--dialect", "bnb"], "no dialect preset"),
        (["verify", "numpy", "--seed", "-1"], "--seed"),
        (["verify", "numpy", "--known", "missing.toml"], "missing.toml"),
        (["verify", "numpy", "--diff", "missing.json"], "missing.json"),
        (["explain", "S99"], "no rule"),
        (["probe", "nothing"], "is no implementation"),
    ],
)
def test_usage_errors_exit_with_2(command, arguments, expected):
    code, _, err = command(*arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("library", "said"), [("hypothesis", "verify needs Hypothesis"), ("jinja2", "--report needs")]
)
def test_a_library_that_is_missing_is_asked_for_before_anything_runs(
    command, library, said, monkeypatch, tmp_path
):
    monkeypatch.setattr(main, "find_spec", lambda name: None if name == library else name)
    code, _, err = command("verify", "example", "--report", str(tmp_path))
    assert code == 2
    assert said in err
    assert "pip install 'qloracle[verify]'" in err
    assert not [*tmp_path.iterdir()]


def test_explain_prints_the_rule_and_its_checks(command):
    code, out, _ = command("explain", "s5")
    assert code == 0
    assert "A tie takes the lower code" in out
    assert "S5/quantize_4bit" in out


def test_probe_prints_the_fields(command, kernel):
    code, out, _ = command("probe", kernel(SWAPPED))
    assert code == 1
    assert "FINDING nibble_order: low_first, expected high_first" in out


def test_ctrl_c_leaves_a_report_marked_partial(kernel, tmp_path):
    begun, out = tmp_path / "begun", tmp_path / "report"
    path = kernel(f"""
        import pathlib, time
        import qloracle as q
        def dequantize_4bit(*a, **k):
            if len(k["shape"]) == 3:  # the probe has none
                pathlib.Path({str(begun)!r}).touch()
            time.sleep(0.05)
            return q.dequantize_4bit(*a, **k)
    """)
    command = [
        sys.executable,
        "-m",
        "qloracle_conformance.commands.main",
        "verify",
        path,
        "--report",
        str(out),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    report = json.loads((out / "report.json").read_text())
    assert report["partial"] is True
    assert report["implementations"][0]["checks"]


@pytest.mark.parametrize("only", ["P1", "P2", "P1,P2,P3,P4"])
def test_the_probe_alone_judges_nothing(only):
    """Calls that found the dialect are no comparisons: no path leads from skipped to passed."""
    report = verify(["numpy"], only=only)
    assert report.exit_code == 3
    assert {row["status"] for row in rows(report).values()} == {"NOT_RUN"}


def test_a_narrowed_run_says_so(command, kernel):
    _, out, _ = command("verify", kernel(MY_KERNELS), "--only", "S6")
    assert "PARTIAL: only S6 was run" in out


def test_a_refusal_is_shown_with_the_call_as_it_was_made(kernel):
    report = verify([kernel("def quantize_4bit(x):\n    raise ValueError('no')\n")], only="S6")
    failed = next(c for c in report.judgements[0].checks if c.status == "ERROR")
    assert dict(failed.failure.case.options) == {}
