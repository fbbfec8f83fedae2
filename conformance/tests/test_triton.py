"""The Triton kernel of docs/kernels.md passes in the interpreter, and what the page says is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
BFLOAT16 = """
import torch, triton, triton.language as tl
@triton.jit
def convert(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))
@triton.jit
def square(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) * tl.load(x + i))
x, out = torch.tensor([1 + 2**-8 + 2**-20, 1.5]), torch.empty(2, dtype=torch.bfloat16)
convert[(1,)](x, out, 2)
print(out.tolist(), x.bfloat16().tolist())
square[(1,)](torch.full((2,), 2.0).bfloat16(), out, 2)
print(out.tolist())
"""

pytestmark = pytest.mark.slow


def run(*command):
    pytest.importorskip("triton", reason="triton is not installed (extra `triton`)")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def verify(text, tmp_path):
    path = tmp_path / "triton_kernel.py"
    path.write_text(text)
    return run("-m", "qloracle_conformance.commands.main", "verify", str(path))


def kernel():
    return re.search(r"<!-- ci:triton -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def test_the_kernel_of_the_page_passes(tmp_path):
    judged = verify(kernel(), tmp_path)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "PASS within" in judged.stdout


def test_a_fault_in_it_is_found(tmp_path):
    faulty = kernel().replace("i // BLOCK", "i // BLOCK * 0")
    assert faulty != kernel()
    judged = verify(faulty, tmp_path)
    assert judged.returncode == 1
    assert "S3" in judged.stdout


def test_the_interpreter_has_no_bfloat16_as_the_page_says(tmp_path):
    path = tmp_path / "bfloat16.py"
    path.write_text(BFLOAT16)
    cut, squared = run(str(path)).stdout.splitlines()
    assert cut == "[1.0, 1.5] [1.0078125, 1.5]"
    assert squared != "[4.0, 4.0]"
