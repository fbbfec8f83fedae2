"""Compile the kernel text with g++ into a library, once for each text and flavour.

The text lies in a file of its own, as it is, behind the shim and before a list of its kernels:

    whole.cpp       #include "cuda_on_cpu.h"    CUDA's words for g++
                    #include "kernels.cu"       the text, byte for byte
                    ShimKernel ... = {...}      its kernels, by name
    scheduler.cpp   runs the threads of a block; never under a sanitizer, which it informs of them

Libraries are kept in the user's cache (`qloracle_gpu.compiling.store`), under the digest of all
that went into them.

    plain    -fsanitize=alignment,null,bounds, and a finding ends the launch and not the process
    address  AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own: `sanitized`
    thread   ThreadSanitizer, likewise
"""

import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, get_args

from qloracle_gpu.compiling import store

Flavour = Literal["plain", "address", "thread"]

SHIM = ("build.py", "cuda_on_cpu.h", "switch.h", "scheduler.cpp")

# Every operation rounds once, as on the GPU: nothing is contracted or reordered. Bits are read as
# another type through pointers, which CUDA allows. No symbol is shared with another such library.
COMMON = (
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-fno-fast-math", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-omit-frame-pointer"),
)
UNDEFINED = "undefined,float-cast-overflow"  # alignment, bounds, shift, signed overflow and more

# Of each flavour, the options for the text, for the scheduler and for the linker. Under a sanitizer
# -O1 compiles the text in half the time.
OPTIONS: Mapping[Flavour, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "plain": (("-fsanitize=alignment,null,bounds", "-fno-sanitize-recover=all"), ("-DCHECKS",), ()),
    "address": (
        ("-O1", f"-fsanitize=address,{UNDEFINED}", f"-fno-sanitize-recover={UNDEFINED}"),
        ("-DASAN",),
        ("-fsanitize=address,undefined",),
    ),
    "thread": (("-O1", "-fsanitize=thread"), ("-DTSAN",), ("-fsanitize=thread",)),
}

SHOWN_LINES = 12  # of what g++ says
KERNEL = re.compile(r"QLORACLE_KERNEL\b[^;{}()]*?\b(\w+)\s*\(([^()]*)\)\s*\{")


class CompileError(RuntimeError):
    """g++ refused the text. The message has what it said first."""


def unavailable() -> str:
    """Return in one line why nothing can be compiled here, or ''."""
    if shutil.which("g++") is None:
        return "the host runner needs g++, which was not found on PATH"
    return ""


def shared_object(source: str, flavour: Flavour = "plain") -> Path:
    """Return the compiled library of a kernel text, from the cache where it is there.

    Raises CompileError with the first lines of g++, and RuntimeError where there is none.
    """
    if flavour not in get_args(Flavour):
        allowed = ", ".join(get_args(Flavour))
        raise ValueError(f"flavour must be one of {allowed}, got {flavour!r}")
    reason = unavailable()
    if reason:
        raise RuntimeError(reason)

    def compile_it(folder: Path) -> None:
        compile_into(folder, source, flavour)

    return kept(compile_it, source, flavour, *OPTIONS[flavour]) / "kernels.so"


def compile_into(folder: Path, source: str, flavour: Flavour) -> None:
    """Write the sources to a folder and compile kernels.so there."""
    text, scheduler, link = OPTIONS[flavour]
    (folder / "kernels.cu").write_bytes(source.encode())
    (folder / "whole.cpp").write_text(
        '#include "cuda_on_cpu.h"\n#include "kernels.cu"\n'
        f'extern "C" SHIM_EXPORT const ShimKernel shim_kernels[] = {{{_kernels(folder)}{{}}}};\n'
    )
    with as_file(files(__package__)) as shim:
        include = ("-I", str(shim))
        run(folder, *COMMON, *_half_precision(), *text, *include, "-c", "whole.cpp")
    other = str(_scheduler(scheduler) / "scheduler.o")
    run(folder, "-shared", *link, "whole.o", other, "-o", "kernels.so")
    (folder / "whole.o").unlink()


def _scheduler(options: Sequence[str]) -> Path:
    """Return the folder of scheduler.o, which does not depend on the text."""

    def compile_it(folder: Path) -> None:
        with as_file(files(__package__)) as shim:
            source = str(shim / "scheduler.cpp")
            run(folder, *COMMON, *options, "-c", source, "-o", "scheduler.o")

    return kept(compile_it, "", "scheduler", options)


def _kernels(folder: Path) -> str:
    """Return the list of the text's kernels in C++. They are read after macros are expanded.

    >>> KERNEL.findall("QLORACLE_KERNEL void copy(const float *from, float *to) {")
    [('copy', 'const float *from, float *to')]
    """
    words = ("-D__global__=QLORACLE_KERNEL", "-D__launch_bounds__(...)=")
    text = run(folder, "-E", "-P", *words, "-x", "c++", "kernels.cu")
    found = KERNEL.findall(text)
    if not found:
        raise CompileError("the kernel text defines no __global__ function")
    return "".join(f'SHIM_KERNEL({name}, "{_names(parameters)}"), ' for name, parameters in found)


def _names(parameters: str) -> str:
    """Return the names of a parameter list, apart by commas.

    >>> _names("const float *__restrict__ from, long long n")
    'from,n'
    """
    return ",".join(part.split()[-1].lstrip("*&") for part in parameters.split(",") if part.strip())


def kept(compile_it: Callable[[Path], None], source: str, *what: object) -> Path:
    """Return a folder of the cache, compiled if it is not there; named by all that goes into it."""
    beside = _compiler(), _shim(), *COMMON, *_half_precision()
    digest = store.digest_of(*beside, *map(str, what), source)
    return store.kept("host", digest, compile_it)


def run(folder: Path, *arguments: str) -> str:
    """Run g++ in a folder and return its output."""
    done = subprocess.run(
        ["g++", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        first = "\n".join((lines or done.stderr.splitlines())[:SHOWN_LINES])
        raise CompileError(f"g++ refused the text:\n{first}")
    return done.stdout


@cache
def _half_precision() -> tuple[str, ...]:
    """Return the option for float16 in one instruction where the processor has it."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return ()
    return ("-mf16c",) if " f16c " in Path("/proc/cpuinfo").read_text() else ()


@cache
def _compiler() -> str:
    """Return the first line of what g++ says about itself."""
    done = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


@cache
def _shim() -> str:
    """Return all that is compiled beside the text, and how: this file."""
    return "".join((files(__package__) / name).read_text("utf-8") for name in SHIM)
