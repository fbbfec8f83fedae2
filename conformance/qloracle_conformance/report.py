"""From check results to verdicts: functions, levels, the exit code, and the report as plain data.

The dict that `Report.to_dict` returns is the one source of every output: report.json is it, and the
terminal, JUnit, Markdown and repro scripts are written from it.  Its form is published in
`reports/report.schema.json`.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance import programs
from qloracle_conformance.cases import Case
from qloracle_conformance.engine.maps import ErrorMap
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.judging import show
from qloracle_conformance.process.calling import keywords
from qloracle_conformance.process.frameworks import FORMS
from qloracle_conformance.protocol import FUNCTIONS, JUDGED_LEVELS, LEVELS
from qloracle_conformance.views import View

REPORT_VERSION = "1"
BAD = ("FAIL", "ERROR", "INCONCLUSIVE", "XPASS")
BROKEN = ("CRASH", "TIMEOUT")
GOOD = ("PASS", "XFAIL")
UNJUDGED = ("MISSING", "UNSUPPORTED", "NOT_RUN")
# A function whose verdict rests on fewer comparisons than this has not been judged in this profile.
FLOORS = {
    "smoke": {"L0": 50_000, "L1": 5_000, "L2": 20_000, "L3": 5_000, "L4": 2_000, "L5": 100_000},
    "standard": {
        "L0": 1_000_000, "L1": 50_000, "L2": 200_000, "L3": 100_000, "L4": 20_000, "L5": 1_000_000,
    },
    "exhaustive": {
        "L0": 10_000_000, "L1": 50_000, "L2": 200_000, "L3": 100_000, "L4": 20_000, "L5": 1_000_000,
    },
}  # fmt: skip
SHOWN = 64  # elements of an array that a report shows; the repro script holds them all


@dataclass
class Judgement:
    """All that is known of one implementation after its run."""

    name: str
    status: str = "OK"
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""  # on which its arrays lay; '' for NumPy's
    offers: list[str] = field(default_factory=list)
    scopes: Mapping[str, str] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    checks: list[CheckRun] = field(default_factory=list)
    partial: bool = False
    profile: str = ""  # '' for a run that was narrowed: it has no floor
    seconds: float = 0.0
    import_seconds: float = 0.0
    compile_seconds: float = 0.0


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
        """The report as a notebook shows it."""
        from qloracle_conformance.reports import html

        return html.fragment(self.to_dict())

    @property
    def ok(self) -> bool:
        """True when every function offered passed within its scope."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """4 crash or time-out, 1 failure, 3 nothing compared, 0 otherwise; never 0 for a skip.

        What cannot run on this machine is not counted, unless nothing else was asked for.
        """
        checks = [check for j in self.judgements for check in j.checks]
        if any(check.status in BROKEN for check in checks) or _any_status(self, BROKEN):
            return 4
        failed = any(check.status in BAD for check in checks) or _any_status(self, ("ERROR",))
        if failed or self.known_problems or self.unmet:
            return 1
        judged = [j for j in self.judgements if j.status != "NOT_RUN"]
        if not judged or any(_nothing(j) for j in judged):
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
            "implementations": [_implementation(j) for j in self.judgements],
        }


def _any_status(report: Report, statuses: tuple[str, ...]) -> bool:
    return any(judgement.status in statuses for judgement in report.judgements)


def _nothing(judgement: Judgement) -> bool:
    """No element was compared, or a function that is offered was not compared at all."""
    if not any(check.comparisons for check in judgement.checks if check.rule[0] == "S"):
        return True
    rows = [row for row in function_rows(judgement) if row["level"] in JUDGED_LEVELS]
    whole = bool(judgement.profile) and not judgement.partial
    return whole and any(row["status"] == "NOT_RUN" for row in rows)


def _implementation(judgement: Judgement) -> dict[str, Any]:
    return {
        "name": judgement.name,
        "status": judgement.status,
        "message": judgement.message,
        "partial": judgement.partial,
        "versions": dict(judgement.versions),
        "declared": dict(judgement.declared),
        "device": judgement.device,
        "offers": list(judgement.offers),
        "seconds": round(judgement.seconds, 3),
        "import_seconds": round(judgement.import_seconds, 3),
        "compile_seconds": round(judgement.compile_seconds, 3),
        "levels": level_rows(judgement),
        "functions": function_rows(judgement),
        "dialects": [_dialect(view) for view in judgement.views],
        "checks": [_check(check) for check in judgement.checks],
    }


def _dialect(view: View) -> dict[str, Any]:
    return {
        "view": view.name,
        "function": view.function,
        "table": view.table,
        "label": view.label,
        "unsupported": view.unsupported,
        "fields": dict(view.dialect),
        "findings": [asdict(finding) | {"declare": finding.declare} for finding in view.findings],
    }


def function_rows(judgement: Judgement) -> list[dict[str, Any]]:
    """One verdict a function of every judged level, and of others that are offered."""
    rows = []
    for function in FUNCTIONS.values():
        due = function.level in JUDGED_LEVELS and not function.optional
        if due or function.name in judgement.offers:
            rows.append(_function_row(judgement, function.name))
    return rows


def _function_row(judgement: Judgement, name: str) -> dict[str, Any]:
    checks = [check for check in judgement.checks if check.function == name]
    status = worst([check.status for check in checks])
    valued = [check for check in checks if check.rule[0] == "S"]  # P1 to P4 look at the same calls
    comparisons = sum(check.comparisons for check in valued)
    floor = FLOORS.get(judgement.profile, {}).get(FUNCTIONS[name].level, 0)
    if status == "PASS" and comparisons < max(floor, 1):  # P1 to P4 alone judge no value
        status = "NOT_RUN"
    if name not in judgement.offers:  # of what could not run, nobody knows what it offers
        status = "NOT_RUN" if judgement.status == "NOT_RUN" else "MISSING"
    labels = {view.name: view.label for view in judgement.views if view.function == name}
    return {
        "name": name,
        "level": FUNCTIONS[name].level,
        "status": status,
        "scope": judgement.scopes.get(name, "") or _all_but(valued),
        "dialect": {view: label for view, label in labels.items() if label},
        "comparisons": comparisons,
        "cases": sum(check.cases for check in valued),
        "unsupported": sum(check.unsupported for check in valued),
        "floor": floor,
        "failed_checks": [check.id for check in checks if check.status in BAD + BROKEN],
    }


def _all_but(checks: Sequence[CheckRun]) -> str:
    """The scope of a function that declares none: what compared nothing, of rules that did."""
    judged = {check.rule for check in checks if check.comparisons}
    idle = [c for c in checks if c.status == "UNSUPPORTED" and c.rule in judged and not c.table]
    return f"all but {', '.join(c.id.rpartition('/')[2] for c in idle)}" if idle else ""


def worst(statuses: Iterable[str]) -> str:
    """One status for many: trouble first, a pass only if something passed."""
    found = set(statuses)
    for status in ("CRASH", "TIMEOUT", "ERROR", "FAIL", "XPASS", "INCONCLUSIVE", "NOT_RUN"):
        if status in found:
            return status
    if found & set(GOOD):
        return "XFAIL" if "XFAIL" in found else "PASS"
    return "UNSUPPORTED" if "UNSUPPORTED" in found else "NOT_RUN"


def level_rows(judgement: Judgement) -> list[dict[str, Any]]:
    """One line a judged level, as in "L0 PASS within blocksize {64} (412 of 1,930 cases)"."""
    rows, every = [], function_rows(judgement)
    for level in JUDGED_LEVELS:
        functions = [row for row in every if row["level"] == level]
        offered = [row for row in functions if row["status"] != "MISSING"]
        status = worst(row["status"] for row in offered) if offered else "MISSING"
        missing = [row["name"] for row in functions if row["status"] == "MISSING"]
        rows.append(
            {"level": level, "status": status, "line": _line(level, status, offered, missing)}
        )
    return rows


def level_lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Give (line, status) for each level, those in a row of which nothing is offered in one line.

    >>> rows = [{"level": f"L{i}", "status": "MISSING", "line": f"L{i} MISSING"} for i in range(3)]
    >>> level_lines([rows[0] | {"status": "PASS", "line": "L0 PASS"}, *rows[1:]])
    [('L0 PASS', 'PASS'), ('L1 to L2 MISSING', 'MISSING')]
    """
    lines = []
    for status, group in itertools.groupby(rows, key=lambda row: row["status"]):
        same = list(group)
        if status == "MISSING" and len(same) > 1:
            lines.append((f"{same[0]['level']} to {same[-1]['level']} MISSING", status))
        else:
            lines += [(str(row["line"]), status) for row in same]
    return lines


def _line(level: str, status: str, offered: list[dict[str, Any]], missing: list[str]) -> str:
    cases = sum(row["cases"] for row in offered)
    total = cases + sum(row["unsupported"] for row in offered)
    scopes = list(dict.fromkeys(row["scope"] for row in offered if row["scope"]))
    line = f"{level} {status}"
    if offered and scopes:
        line += f" within {'; '.join(scopes)}"
    if offered:
        line += f" ({cases:,} of {total:,} cases)"
    return f"{line}, missing: {', '.join(missing)}" if missing and offered else line


def _check(check: CheckRun) -> dict[str, Any]:
    return {
        "id": check.id,
        "rule": check.rule,
        "function": check.function,
        "table": check.table,
        "status": check.status,
        "message": check.message,
        "cases": check.cases,
        "unsupported": check.unsupported,
        "comparisons": check.comparisons,
        "wrong": check.wrong,
        "band": check.band,
        "recorded": check.recorded,
        "bound_use": check.use,
        "seconds": round(check.seconds, 3),
        "known": check.known,
        "looks_like": list(check.looks_like),
        "failure": failure_dict(check.failure) if check.failure is not None else None,
    }


def failure_dict(failure: Failure) -> dict[str, Any]:
    """A failing input with its numbers, whole where it is small."""
    mismatch = failure.mismatch
    ratio = mismatch.ratio
    return {
        "input": case_dict(failure.case),
        "call": call_text(failure.case),
        "result": mismatch.result,
        "index": mismatch.index,
        "got": mismatch.got,
        "expected": mismatch.expected,
        "reason": mismatch.reason,
        "bound": mismatch.bound,
        "observed": mismatch.observed if np.isfinite(mismatch.observed) else str(mismatch.observed),
        "ratio": ratio if np.isfinite(ratio) else "inf",
        "map": _map(failure.map) if failure.map is not None else None,
    }


def _map(drawn: ErrorMap) -> dict[str, Any]:
    return {
        "result": drawn.wrong.result,
        "call": call_text(drawn.case),
        "wrong": int(drawn.wrong.at.size),
        "elements": drawn.wrong.size,
        "blocksize": drawn.blocks.blocksize,
        "blocks": int(drawn.blocks.sizes.size),
        "first": drawn.first,
        "lanes": drawn.lanes,
        "rows": drawn.rows,
        "flips": [list(flip) for flip in drawn.flips],
    }


def case_dict(case: Case) -> dict[str, Any]:
    """A case as data: floats as hex floats, whole numbers as they are, long arrays cut."""
    return {
        "function": case.function,
        "note": case.note,
        "form": case.form,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in case.options.items()},
        "arrays": {name: array_dict(array) for name, array in case.arrays.items()},
    }


def array_dict(array: np.ndarray) -> dict[str, Any]:
    """An array as data, its first elements in a form that loses nothing."""
    flat = array.reshape(-1)[:SHOWN]
    whole = np.issubdtype(array.dtype, np.integer)
    values = [int(v) for v in flat] if whole else [float(v).hex() for v in flat]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def call_text(case: Case) -> str:
    """The call in one readable line; of a pager the whole program.

    >>> call_text(Case("quantize_4bit", {"x": np.float32([1, 0])}, {"blocksize": 64}))
    'quantize_4bit(x=[1.0, 0.0] float32[2], blocksize=64)'
    """
    parts = [f"{name}={_array_text(array)}" for name, array in case.arrays.items()]
    if case.function == "make_pager":
        return programs.text_of_case(case) + (f"; {', '.join(parts)}" if parts else "")
    for name, value in keywords(case).items():
        parts.append(f"{name}={getattr(value, '__name__', None) or repr(value)}")
    form = f" with arrays {FORMS[case.form]}" if case.form else ""
    return f"{case.function}({', '.join(parts)}){form}"


def _array_text(array: np.ndarray) -> str:
    """A small array whole, a large one by what is the same or not zero in it, if that is little.

    >>> _array_text(np.eye(1, 70, 3, dtype=np.float32))
    '0 but 1.0 at 3, float32[1x70]'
    """
    shape = "x".join(str(n) for n in array.shape)
    text = f"{array.dtype.name}[{shape}]"
    flat = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
        equal = flat.size > 1 and bool((flat == flat[0]).all())
    if equal:
        return f"{show(flat[0])} everywhere, {text}"
    if flat.size > 8:
        used = np.flatnonzero(flat)
        few = ", ".join(f"{show(flat[i])} at {i}" for i in used[:4])
        return f"0 but {few}, {text}" if used.size <= 4 else text
    return f"[{', '.join(show(v) for v in flat)}] {text}"
