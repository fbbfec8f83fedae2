"""The verdict on one or more implementations: the exit code, and the report as plain data.

The dict that `Report.to_dict` returns is the one source of every output: report.json is it, and the
terminal, JUnit, Markdown and repro scripts are written from it.  Its form is published in
`reports/report.schema.json`.
"""

import html
import os
import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.engine.verdicts import (
    UNJUDGED,
    Judgement,
    function_rows,
    level_lines,
    level_rows,
    nothing_compared,
)
from qloracle_conformance.reports.data import REPORT_VERSION, implementation


@dataclass(repr=False)
class Report:
    """The verdict on one or more implementations."""

    profile: str
    seed: int
    judgements: list[Judgement] = field(default_factory=list)
    require: str = ""
    only: str = ""
    started: str = ""
    known_problems: list[str] = field(default_factory=list)
    ops: tuple[str, ...] = ()  # functions that were asked for by name: each must have been judged

    def __repr__(self) -> str:
        lines = []
        for judgement in self.judgements:
            rows = level_rows(judgement)
            brief = [row | {"line": f"{row['level']} {row['status']}"} for row in rows]
            levels = ", ".join(line for line, _ in level_lines(brief))
            lines.append(f"{judgement.name}: {judgement.message or levels}")
        return f"<Report: exit code {self.exit_code}; {'; '.join(lines)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: all that `-v` prints, and nothing that acts or has a style."""
        from qloracle_conformance.reports import screen

        return f"<pre>{html.escape(screen.text(self.to_dict()), quote=False)}</pre>"

    @property
    def ok(self) -> bool:
        """True when every function offered passed within its scope."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """4 a crash, 1 a failure, 3 nothing compared, 0 otherwise; never 0 for a skip.

        A call that takes too long is a failure: a larger limit may let it pass.

        What cannot run on this machine is not counted, unless nothing else was asked for.
        """
        statuses = {check.status for j in self.judgements for check in j.checks}
        if "CRASH" in statuses | {j.status for j in self.judgements}:
            return 4
        failed = any(judgement.failed for judgement in self.judgements)
        if failed or self.known_problems or self.unmet:
            return 1
        judged = [j for j in self.judgements if not j.away]
        if not judged or any(nothing_compared(j) for j in judged):
            return 3
        return 0

    @property
    def unmet(self) -> list[str]:
        """Functions asked for, by level or by name, that are missing or were not judged."""
        wanted = LEVELS[: LEVELS.index(self.require) + 1] if self.require else ()
        return [
            f"{judgement.name}: {row['name']} ({row['level']}) {row['status']}"
            for judgement in self.judgements
            for row in function_rows(judgement)
            if (row["level"] in wanted or row["name"] in self.ops) and row["status"] in UNJUDGED
        ]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON-able data."""
        return {
            "report_version": REPORT_VERSION,
            "spec_version": qloracle.SPEC_VERSION,
            "qloracle_version": qloracle.__version__,
            "profile": self.profile,
            "seed": self.seed,
            "started": self.started,
            "partial": any(j.partial for j in self.judgements),
            "stopped": any(j.stopped for j in self.judgements),
            "require": self.require,
            "only": self.only,
            "unmet": self.unmet,
            "known_problems": self.known_problems,
            "exit_code": self.exit_code,
            "machine": {
                "platform": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count() or 1,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "implementations": [implementation(j) for j in self.judgements],
        }
