"""nvcc on PATH."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qloracle_gpu.compiling.errors import CompileError, NoCompiler


class Nvcc:
    """The compiler as a program."""

    def __init__(self, program: str, version: str):
        self._program = program
        self.name = f"nvcc {version}"

    def made(self, what: str, source: str, options: Sequence[str]) -> str:
        """Return the "ptx" of a text, or ptxas's "log" of its machine code; CompileError."""
        wanted = ("-ptx",) if what == "ptx" else ("-cubin", "--ptxas-options=-v")
        with TemporaryDirectory() as name:
            text, result = Path(name, "kernels.cu"), Path(name, "result")
            text.write_text(source, encoding="utf-8")
            command = [self._program, *options, *wanted, "-o", str(result), str(text)]
            run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=name)
            log = run.stdout + run.stderr
            if run.returncode:
                raise CompileError(log)
            return result.read_text() if what == "ptx" else log


def find() -> Nvcc:
    """Return nvcc; NoCompiler if PATH has none."""
    program = shutil.which("nvcc")
    if program is None:
        raise NoCompiler("no nvcc on PATH")
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    version = re.search(r"release ([\d.]+)", done.stdout)
    if version is None:
        raise NoCompiler(f"{program} tells no version")
    return Nvcc(program, version[1])
