"""From the kernels' text to PTX and to machine code, without a GPU and without CUDA's headers.

    nvrtc  NVIDIA's compiler as a library: the wheel `nvidia-cuda-nvrtc`
    nvcc   the same compiler as a program on PATH

The first that is found compiles.  What it made is kept in a folder of the user's, under a digest of
everything that it depends on, so that a text is compiled once.

>>> log = '''ptxas info    : Compiling entry function 'half' for 'sm_90'
... ptxas info    : Function properties for half
...     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
... ptxas info    : Used 20 registers, used 1 barriers, 256 bytes smem
... '''
>>> read_log(log)["half"]
Resources(registers=20, spilled=12, stack=16, shared=256)
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from qloracle_gpu import kernels
from qloracle_gpu.compiling import nvcc, nvrtc, store
from qloracle_gpu.compiling.errors import CompileError, NoCompiler

__all__ = ["CompileError", "Compiler", "NoCompiler", "compiler", "ptx", "read_log", "resources"]

Made: TypeAlias = Literal["ptx", "log"]
TEXT = "text"  # the name of the one file in a folder of the cache


class Compiler(Protocol):
    """What compiles: NVRTC or nvcc."""

    @property
    def name(self) -> str:
        """The compiler and its version: "NVRTC 13.0"."""

    def made(self, what: Made, source: str, options: Sequence[str]) -> str:
        """Return the PTX of a text, or what ptxas said of its machine code; CompileError."""


class Resources(NamedTuple):
    """What a kernel takes on an architecture: registers a thread, the rest in bytes."""

    registers: int
    spilled: int  # stored to and loaded from local memory, for lack of registers
    stack: int
    shared: int


@cache
def compiler(wanted: str | None = None) -> Compiler:
    """Return the compiler of this machine; NoCompiler says why there is none.

    `wanted`, or the environment's QLORACLE_COMPILER, is "nvrtc" or "nvcc"; without either, the
    first that is found.
    """
    name = wanted or os.environ.get("QLORACLE_COMPILER", "")
    finders: dict[str, Callable[[], Compiler]] = {"nvrtc": nvrtc.find, "nvcc": nvcc.find}
    if name and name not in finders:
        raise NoCompiler(f"a compiler is 'nvrtc' or 'nvcc', got {name!r}")
    reasons = []
    for find in [finders[name]] if name else finders.values():
        try:
            return find()
        except NoCompiler as reason:
            reasons.append(str(reason))
    raise NoCompiler("; ".join(reasons))


def ptx(
    source: str,
    arch: int = 90,
    options: Sequence[str] = kernels.OPTIONS,
    by: Compiler | None = None,
) -> str:
    """Return the PTX of a CUDA text for compute_`arch`, with its lines (-lineinfo).

    Raises CompileError with file and line, and NoCompiler.
    """
    return _kept("ptx", source, [*options, "-lineinfo", f"-arch=compute_{arch}"], by)


def resources(
    source: str,
    arch: int = 90,
    options: Sequence[str] = kernels.OPTIONS,
    by: Compiler | None = None,
) -> dict[str, Resources]:
    """Return what each kernel takes on sm_`arch`, as ptxas reports it.

    Raises CompileError with file and line, and NoCompiler.
    """
    return read_log(_kept("log", source, [*options, "-lineinfo", f"-arch=sm_{arch}"], by))


def _kept(what: Made, source: str, flags: Sequence[str], by: Compiler | None) -> str:
    """Return the PTX or the log from the cache, made if it is not there."""
    compiler_ = by or compiler()

    def make(folder: Path) -> None:
        (folder / TEXT).write_text(compiler_.made(what, source, flags), "utf-8")

    digest = store.digest_of(what, compiler_.name, *flags, source)
    return (store.kept("compiled", digest, make) / TEXT).read_text("utf-8")


def read_log(log: str) -> dict[str, Resources]:
    """Return the figures of each entry function in the log of `ptxas -v`."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        found[name] = Resources(
            registers=_bytes(r"Used (\d+) registers", part, name),
            spilled=_bytes(r"(\d+) bytes spill stores", part, name)
            + _bytes(r"(\d+) bytes spill loads", part, name),
            stack=_bytes(r"(\d+) bytes stack frame", part, name),
            shared=_bytes(r"(\d+) bytes smem|$", part, name),
        )
    return found


def _bytes(pattern: str, log: str, name: str) -> int:
    match = re.search(pattern, log)
    if match is None:  # a log of another form must not read as zero
        raise ValueError(f"the log of {name} has no {pattern!r}: {log!r}")
    return int(match[1] or 0)
