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

    def ptx(self, source: str, options: Sequence[str]) -> str:
        """Return the PTX of a text; CompileError if it does not compile."""
        return self._run(source, [*options, "-ptx"])[0].decode()

    def log(self, source: str, options: Sequence[str]) -> str:
        """Compile to machine code and return what ptxas said of it; CompileError."""
        return self._run(source, [*options, "-cubin", "--ptxas-options=-v"])[1]

    def _run(self, source: str, options: Sequence[str]) -> tuple[bytes, str]:
        with TemporaryDirectory() as name:
            text, result = Path(name, "kernels.cu"), Path(name, "result")
            text.write_text(source, encoding="utf-8")
            command = [self._program, *options, "-o", str(result), str(text)]
            run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=name)
            log = run.stdout + run.stderr
            if run.returncode:
                raise CompileError(log)
            return result.read_bytes(), log


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
