"""Kernels under AddressSanitizer and ThreadSanitizer, in a process of their own.

    python -m qloracle_gpu.proof.sanitized

runs every operation at small sizes under both, and prints `clean` or what was found: exit code 0 or
1, and 3 where a sanitizer is not there.  A sanitizer must be loaded before anything else, and
GCC 12's ThreadSanitizer wants addresses that are not randomized; hence the process.

    address   memory beyond an array, be it global or shared; and UndefinedBehaviorSanitizer:
              addresses that are not aligned, indices, shifts, signed overflow
    thread    two threads at one address, of which one writes, with no barrier between them: inside
              a block, and between blocks, which nothing orders
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from qloracle_gpu.devices.gcc import build

FOUND = 66  # exit code of a process in which a sanitizer found something
# The C++ runtime must be there when a sanitizer looks for what it replaces.
PRELOADED = {
    "address": ("libasan.so", "libubsan.so", "libstdc++.so"),
    "thread": ("libtsan.so", "libstdc++.so"),
}
SANITIZERS = tuple(PRELOADED)
SETTINGS = {
    "ASAN_OPTIONS": f"exitcode={FOUND}:detect_leaks=0",  # Python frees little at its end
    "UBSAN_OPTIONS": f"exitcode={FOUND}:print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode={FOUND}:atexit_sleep_ms=0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

_BEGIN = re.compile(
    r"(?:ERROR|WARNING): (?:Address|Thread)Sanitizer: ([\w -]+?)(?: on | \(|$)"
    r"|^(\S+?):(\d+):\d+: runtime error: (.*)"
    r"|^\S*KernelError: (?:(\S+?):(\d+): )?(.*)",
    re.MULTILINE,
)
_FRAME = re.compile(r"#\d+ .*?(\w+\.cuh?):(\d+)")


class Finding(NamedTuple):
    """What a sanitizer found, and the lines of the kernel text that it names: of a race, both."""

    kind: str
    places: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        places = " and ".join(f"{file}:{line}" for file, line in self.places)
        return f"{self.kind} at {places or 'an unknown line'}"


class Result(NamedTuple):
    """How a process ended, all that it printed, and what was found."""

    exit_code: int
    text: str
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """True when the process ran to its end and nothing was found."""
        return self.exit_code == 0 and not self.findings


def unavailable(flavour: str) -> str:
    """Return in one line why a sanitizer cannot be used here, or ''."""
    reason = build.unavailable()
    if reason:
        return reason
    for name in PRELOADED[flavour]:
        if not _beside_compiler(name).is_file():
            return f"the flavour {flavour!r} needs {name}, which g++ does not have"
    if flavour == "thread" and shutil.which("setarch") is None:
        return "the flavour 'thread' needs setarch, which was not found on PATH"
    return ""


def run(flavour: str, *command: str, timeout: float = 600) -> Result:
    """Run Python with a command, a script or `-m` and a module, in a process under a sanitizer.

    What it launches must run on Host(source, flavour). RuntimeError where the sanitizer is not
    there.
    """
    reason = unavailable(flavour)
    if reason:
        raise RuntimeError(reason)
    python = [sys.executable, *command]
    preload = " ".join(str(_beside_compiler(name)) for name in PRELOADED[flavour])
    done = subprocess.run(
        ["setarch", "-R", *python] if flavour == "thread" else python,
        env={**os.environ, **SETTINGS, "LD_PRELOAD": preload},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, tuple(findings(done.stdout)))


def findings(text: str) -> Iterator[Finding]:
    """Read the reports of sanitizers, and KernelErrors, out of what a process printed.

    >>> list(findings("adam.cu:7:3: runtime error: load of misaligned address"))
    [Finding(kind='load of misaligned address', places=(('adam.cu', 7),))]
    """
    begins = [*_BEGIN.finditer(text)]
    ends = [*(begin.start() for begin in begins[1:]), len(text)]
    for begin, end in zip(begins, ends, strict=False):  # no report has one end
        sanitizer, file, line, undefined, kernel_file, kernel_line, error = begin.groups()
        if sanitizer:
            report = text[begin.end() : end]
            yield Finding(sanitizer, tuple(dict.fromkeys(_places(report))))
        else:
            where = Path(file or kernel_file or "").name
            places = ((where, int(line or kernel_line)),) if where else ()
            yield Finding(undefined or error, places)


def _places(report: str) -> Iterator[tuple[str, int]]:
    """Yield the topmost line of the kernel text in each stack of a report."""
    for stack in report.split("\n\n"):
        frame = _FRAME.search(stack)
        if frame:
            yield frame[1], int(frame[2])


def _beside_compiler(name: str) -> Path:
    """Return where g++ has a library; a bare name where it has none."""
    command = ["g++", f"-print-file-name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every operation under the sanitizers that are asked for, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m qloracle_gpu.proof.sanitized",
        description="Run every operation of the CUDA text at small sizes under a sanitizer.",
    )
    parser.add_argument("--flavour", choices=SANITIZERS, help="default: both, one after another")
    chosen = parser.parse_args(arguments).flavour
    return max(_report(flavour) for flavour in ((chosen,) if chosen else SANITIZERS))


def _report(flavour: str) -> int:
    reason = unavailable(flavour)
    if reason:
        print(f"{flavour}: {reason}")
        return 3
    result = run(flavour, "-m", "qloracle_gpu.proof.exercise", flavour)
    if result.clean:
        print(f"{flavour}: clean, {result.text.count(chr(10))} calls")
        return 0
    print(result.text)
    for finding in dict.fromkeys(result.findings):
        print(f"{flavour}: {finding}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
