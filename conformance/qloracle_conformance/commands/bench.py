"""The `bench` command: times on a GPU, written to one JSON; one line and exit code 3 without."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports import files

DEVICES = ("cuda",)


def run(device: str, only: str, path: Path) -> int:
    """Measure, print and write; the exit code: 1 if a check failed, 3 if nothing was measured.

    A goal that is missed is no failure: what a card can do is a finding.
    """
    if device not in DEVICES:
        raise UsageError(f"--device is {device!r}; allowed: {', '.join(DEVICES)}")
    bench = importlib.import_module("qloracle_gpu.bench")
    reason = bench.unavailable()
    if reason:
        typer.echo(f"NOT_RUN bench: {reason}")
        return 3
    found = bench.run(only, typer.echo)
    files.write(path, json.dumps(found, indent=2) + "\n")
    for text in lines(found):
        typer.echo(text)
    typer.echo(f"{path}: {found['machine']['card']}, commit {found['machine']['commit']}")
    return exit_code(found)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The roofs, the goals and the checks, a line each."""
    roofs = found["roofs_bytes_per_second"]
    speeds = ", ".join(f"{name} {speed / 1e9:.0f}" for name, speed in roofs.items())
    goals = [
        f"{goal['verdict'].upper()}: {goal['case']}: {goal['figure']} {goal['sense']} "
        f"{goal['limit']:g}"
        for goal in found["goals"]
    ]
    checks = [
        ": ".join(filter(None, (check["status"].upper(), check["name"], check["reason"])))
        for check in found["checks"]
    ]
    return [f"roofs in GB/s: {speeds}", *goals, *checks]


def exit_code(found: Mapping[str, Any]) -> int:
    """Return 1 if a check failed, 3 if no case was timed and no check was run, 0 otherwise."""
    ended = [check["status"] for check in found["checks"]]
    if "failed" in ended:
        return 1
    timed = any("figures" in timing for timing in found["timings"])
    return 0 if timed or "passed" in ended else 3
