"""Faults x runners: which runner sees which fault, and whether it keeps its promise."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from qloracle_gpu.devices import ptx
from qloracle_gpu.devices.gcc import build
from qloracle_gpu.proof import sanitized
from qloracle_gpu.proof.faults.attempt import SIGN
from qloracle_gpu.proof.faults.cases import CASES, RUNNERS
from qloracle_gpu.proof.faults.planting import Fault

SECONDS = 240  # of an attempt
SEEN = ("wrong value", "error", "race", "refused")  # what a runner says that sees a fault
UNSEEN = ("not seen", "not tried", "not counted")
# Beside these, "broken" and "does not compile" say that the fault itself is at fault.


class Verdict(NamedTuple):
    """What a runner said: one of SEEN or UNSEEN, "broken" or "does not compile", and its words."""

    kind: str
    detail: str = ""


class Row(NamedTuple):
    """A fault and the verdict of each runner."""

    fault: Fault
    verdicts: Mapping[str, Verdict]

    @property
    def problems(self) -> list[str]:
        """Broken promises: a runner misses a fault, or sees one where there is none."""
        found = []
        for runner, (kind, detail) in self.verdicts.items():
            if kind not in SEEN + UNSEEN:
                found.append(f"{self.fault.name}: {runner}: {kind}: {detail}")
            elif kind in ("not seen", "not tried") and runner in self.fault.seen_by:
                found.append(f"{self.fault.name}: {kind} by {runner}")
            elif kind in SEEN and not self.fault.seen_by:
                found.append(f"{self.fault.name}: {runner} says {kind}: {detail}")
        return found


def unavailable(runner: str) -> str:
    """Return in one line why a runner cannot be used here, or ''."""
    if runner == "host":
        return build.unavailable()
    if runner in sanitized.SANITIZERS:
        return sanitized.unavailable(runner)
    reason = ptx.unavailable()
    return f"the runner {runner!r} needs a compiler: {reason}" if reason else ""


def run_matrix(
    faults: Iterable[Fault], runners: Sequence[str] = RUNNERS, processes: int = 3
) -> Iterator[Row]:
    """Yield a row for each fault, in order; a runner that is not there is not counted."""
    there = [runner for runner in runners if not unavailable(runner)]
    with ThreadPoolExecutor(processes) as pool:
        rows = [(fault, [pool.submit(look, r, fault) for r in there]) for fault in faults]
        for fault, results in rows:
            seen = dict(zip(there, (each.result() for each in results), strict=True))
            yield Row(fault, {r: seen.get(r, Verdict("not counted")) for r in runners})


def look(runner: str, fault: Fault) -> Verdict:
    """Try a fault on a runner, in a process of its own.

    What a sanitizer reports goes before what the values say, and a race before all.
    """
    if runner not in CASES[fault.case].runners:
        return Verdict("not tried")
    command = "-m", "qloracle_gpu.proof.faults.attempt", runner, fault.name
    try:
        if runner in sanitized.SANITIZERS:
            result = sanitized.run(runner, *command, timeout=SECONDS)
            for finding in sorted(result.findings, key=lambda each: "race" not in each.kind):
                return Verdict("race" if "race" in finding.kind else "error", str(finding))
            return _said(result.text, result.exit_code)
        python = [sys.executable, *command]
        done = subprocess.run(python, check=False, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Verdict("error", f"no end after {SECONDS} seconds")
    return _said(done.stdout + done.stderr, done.returncode)


def _said(text: str, exit_code: int) -> Verdict:
    """Read the verdict of an attempt out of what it printed; one that was killed has none.

    >>> _said("verdict: error: quantize.cu:12: a shuffle has the mask 0x0000ffff", 0).kind
    'error'
    >>> _said("", -11)
    Verdict(kind='error', detail='the process ended by SIGSEGV')
    """
    found = re.search(rf"^{SIGN}([\w ]+): ?(.*)", text, re.MULTILINE)
    if found:
        return Verdict(found[1], found[2])
    if exit_code < 0:
        return Verdict("error", f"the process ended by {signal.Signals(-exit_code).name}")
    last = (text.strip().splitlines() or ["it printed nothing"])[-1]
    return Verdict("broken", f"exit code {exit_code}: {last}")
