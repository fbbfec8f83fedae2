"""One fault, found by four roads: command line, notebook cell, pytest, one's own test file.

The kernel is eight lines of torch with the wrong scale in the partial block.  Each road must end at
the same smallest input, to the letter.
"""

import json
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

KERNEL = Path(__file__).with_name("data") / "torch_kernel_partial.py"
OWN_FILE = """\
from qloracle_conformance import conformance_tests

test_conformance = conformance_tests("kernel.py")
"""
CELL = """\
from qloracle_conformance import verify

verify(dequantize_4bit)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("roads")
    (path / "kernel.py").write_text(KERNEL.read_text())
    (path / "test_mine.py").write_text(OWN_FILE)
    return path


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, check=False, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def calls(folder):
    """The smallest input of each failing check, as the command line reports it."""
    run(folder, "qloracle_conformance.commands.main", "verify", "kernel.py", "--report", "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    checks = report["implementations"][0]["checks"]
    return {c["id"]: c["failure"]["call"] for c in checks if c["failure"]}


def test_the_command_line_finds_it_at_one_element_beyond_a_block(calls):
    assert list(calls) == [
        "S3/dequantize_4bit[nf4]/shapes", "S3/dequantize_4bit[nf4]/many",
        "S6/dequantize_4bit[nf4]/spare",
    ]  # fmt: skip
    (call,) = set(calls.values())
    assert call == (
        "dequantize_4bit(packed=240 everywhere, uint8[17], absmax=[1.0, 2.0] float32[2], "
        "shape=(33,), blocksize=32, dtype=float32)"
    )


def test_pytest_finds_the_same(folder, calls):
    text = run(folder, "pytest", "-p", "no:cacheprovider", "--pyargs", "qloracle_conformance",
               "--qloracle-impl", "kernel.py", "-k", "not edits")  # fmt: skip
    text, _ = text.split("short test summary info")  # which repeats them where CI is set
    assert [text.count(call) for call in set(calls.values())] == [len(calls)]


def test_ones_own_test_file_finds_the_same(folder, calls):
    text = run(folder, "pytest", "-p", "no:cacheprovider", "test_mine.py")
    assert all(text.count(call) >= len(calls) for call in calls.values())


def test_a_notebook_cell_finds_the_same(folder, calls):
    cells = [nbformat.v4.new_code_cell(source) for source in (KERNEL.read_text(), CELL)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=200).execute(cwd=str(folder))
    (output,) = [o for o in notebook.cells[1].outputs if o.output_type == "execute_result"]
    assert "exit code 1" in output.data["text/plain"]
    page = " ".join(output.data["text/html"].split())
    assert set(calls.values()) <= {call for call in calls.values() if call in page}


ON_NUMPY = """
import math, qloracle, numpy as np
def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=np.float32):
    last = np.arange(len(absmax)) % max(math.prod(shape) // blocksize, 1)
    return qloracle.dequantize_4bit(
        packed, absmax[last], shape=shape, blocksize=blocksize, dtype=dtype
    )
"""


def test_the_same_cases_are_drawn_under_pytest_and_on_the_command_line(folder):
    """Hypothesis draws what the seed says, whatever modules are loaded."""
    (folder / "on_numpy.py").write_text(ON_NUMPY)
    failing = "S7/dequantize_4bit[nf4]/edits"
    run(folder, "qloracle_conformance.commands.main", "verify", "on_numpy.py", "--profile",
        "standard", "--only", failing, "--report", "drawn")  # fmt: skip
    report = json.loads((folder / "drawn" / "report.json").read_text())
    (check,) = report["implementations"][0]["checks"]
    text = run(folder, "pytest", "-p", "no:cacheprovider", "--pyargs", "qloracle_conformance",
               "--qloracle-impl", "on_numpy.py", "--qloracle-profile", "standard", "-k",
               "S7 and edits")  # fmt: skip
    assert f"of {check['comparisons']:,} compared checks {failing}" in text
    assert check["failure"]["call"] in text
