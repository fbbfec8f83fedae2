"""NVRTC from its wheel, by ctypes: no CuPy, no driver."""

import ctypes
import sys
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path

from qloracle_gpu.compiling.errors import CompileError, NoCompiler

WINDOWS = sys.platform == "win32"
MISSING = "no NVRTC (pip install 'nvidia-cuda-nvrtc==13.0.*')"


class Nvrtc:
    """The compiler as a library."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self._library.nvrtcGetErrorString.restype = c_char_p
        major, minor = c_int(), c_int()
        self._call("nvrtcVersion", byref(major), byref(minor))
        self.name = f"NVRTC {major.value}.{minor.value}"

    def made(self, what: str, source: str, options: Sequence[str]) -> str:
        """Return the "ptx" of a text, or ptxas's "log" of its machine code; CompileError."""
        if what == "log":
            options = [*options, "--ptxas-options=-v"]
        program = c_void_p()
        arguments = (source.encode(), b"kernels.cu", 0, None, None)
        self._call("nvrtcCreateProgram", byref(program), *arguments)
        flags = (c_char_p * len(options))(*(option.encode() for option in options))
        try:
            if code := self._library.nvrtcCompileProgram(program, len(options), flags):
                raise CompileError(self._text("ProgramLog", program) or self._word(code))
            return self._text("PTX" if what == "ptx" else "ProgramLog", program)
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _text(self, what: str, program: c_void_p) -> str:
        size = c_size_t()
        self._call(f"nvrtcGet{what}Size", program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.value.decode()

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise CompileError(f"{function}: {self._word(code)}")

    def _word(self, code: int) -> str:
        word: bytes = self._library.nvrtcGetErrorString(code)
        return word.decode()


def find() -> Nvrtc:
    """Load NVRTC; NoCompiler if the wheel is not installed, or cannot be loaded."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    pattern = "bin/**/nvrtc64_*.dll" if WINDOWS else "lib/libnvrtc.so.*"
    found = sorted(path for place in places for path in Path(place).glob(f"*/{pattern}"))
    found = [path for path in found if ".alt" not in path.name]
    if not found:
        raise NoCompiler(MISSING)
    try:
        return Nvrtc(_load(found[-1]))
    except OSError as error:
        raise NoCompiler(f"{MISSING}: {error}") from error


def _load(path: Path) -> ctypes.CDLL:
    """Load the library, and before it the builtins that it would look for on the loader's path."""
    pattern = "nvrtc-builtins64_*.dll" if WINDOWS else "libnvrtc-builtins.so.*"
    for builtins in path.parent.glob(pattern):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))
