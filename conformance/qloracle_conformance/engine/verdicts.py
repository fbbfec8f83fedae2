"""From check results to verdicts: one for each function, one for each level."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.judging.views import View

BAD = ("FAIL", "ERROR", "INCONCLUSIVE", "XPASS")
BROKEN = ("CRASH", "TIMEOUT")
GOOD = ("PASS", "XFAIL")
UNJUDGED = ("MISSING", "UNSUPPORTED", "NOT_RUN")
# A function whose verdict rests on fewer comparisons than this has not been judged in this profile.
STANDARD = {
    "L0": 1_000_000, "L1": 50_000, "L2": 200_000, "L3": 100_000, "L4": 20_000, "L5": 1_000_000,
}  # fmt: skip
FLOORS = {
    "smoke": {"L0": 50_000, "L1": 5_000, "L2": 20_000, "L3": 5_000, "L4": 2_000, "L5": 100_000},
    "standard": STANDARD,
    "exhaustive": STANDARD | {"L0": 10_000_000},
}


@dataclass
class Judgement:
    """All that is known of one implementation after its run.

    `away`: this machine cannot run it, so that it is not counted beside others.  `partial`: Ctrl-C
    came before the end; `stopped`: it was left at its first failure, as asked for.
    """

    name: str
    status: str = "OK"
    message: str = ""
    away: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""  # on which its arrays lay; '' for NumPy's
    offers: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # from which it was loaded
    scopes: Mapping[str, str] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    checks: list[CheckRun] = field(default_factory=list)
    partial: bool = False
    stopped: bool = False
    profile: str = ""  # '' for a run that was narrowed: it has no floor
    seconds: float = 0.0
    import_seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """True if everything that was asked for was run."""
        return not (self.partial or self.stopped)

    @property
    def failed(self) -> bool:
        """True if a check failed, or it could not be judged for a reason of its own."""
        wrong = any(check.status in BAD + BROKEN for check in self.checks)
        return wrong or self.status in BAD + BROKEN


def nothing_compared(judgement: Judgement) -> bool:
    """No element was compared, or a function that is offered was not compared at all."""
    if not any_compared(judgement):
        return True
    whole = bool(judgement.profile) and judgement.whole
    return whole and any(row["status"] == "NOT_RUN" for row in function_rows(judgement))


def any_compared(judgement: Judgement) -> bool:
    """Whether a value was compared: P1 to P4 look at calls that were made for other checks."""
    return any(check.comparisons for check in judgement.checks if check.rule[0] == "S")


def function_rows(judgement: Judgement) -> list[dict[str, Any]]:
    """One verdict a function; of an optional one, if it is offered."""
    return [
        _function_row(judgement, function.name)
        for function in FUNCTIONS.values()
        if not function.optional or function.name in judgement.offers
    ]


def _function_row(judgement: Judgement, name: str) -> dict[str, Any]:
    checks = [check for check in judgement.checks if check.function == name]
    status = worst([check.status for check in checks])
    valued = [check for check in checks if check.rule[0] == "S"]  # P1 to P4 look at the same calls
    comparisons = sum(check.comparisons for check in valued)
    floor = FLOORS.get(judgement.profile, {}).get(FUNCTIONS[name].level, 0)
    if status == "PASS" and comparisons < max(floor, 1):  # P1 to P4 alone judge no value
        status = "NOT_RUN"
    if name not in judgement.offers:  # of what could not run, nobody knows what it offers
        status = "NOT_RUN" if judgement.away else "MISSING"
    labels = {view.name: view.label for view in judgement.views if view.function == name}
    judged = {check.rule for check in valued if check.comparisons}
    idle = [c for c in valued if c.status == "UNSUPPORTED" and c.rule in judged and not c.table]
    # Where none is declared: what compared nothing, of rules that did.
    scope = f"all but {', '.join(c.id.rpartition('/')[2] for c in idle)}" if idle else ""
    return {
        "name": name,
        "level": FUNCTIONS[name].level,
        "status": status,
        "scope": judgement.scopes.get(name, "") or scope,
        "dialect": {view: label for view, label in labels.items() if label},
        "comparisons": comparisons,
        "cases": sum(check.cases for check in valued),
        "unsupported": sum(check.unsupported for check in valued),
        "floor": floor,
        "failed_checks": [check.id for check in checks if check.status in BAD + BROKEN],
    }


def verdict(judgement: Judgement) -> str:
    """One word for an implementation: what kept it from being judged, or the worst it offers."""
    if judgement.status != "OK":
        return judgement.status
    seen = {check.function for check in judgement.checks}
    narrowed = not (judgement.profile and judgement.whole)
    offered = [row for row in function_rows(judgement) if row["status"] != "MISSING"]
    return worst(row["status"] for row in offered if row["name"] in seen or not narrowed)


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
    """One line a level, as in "L0 PASS within blocksize {64} (412 of 1,930 cases)"."""
    rows, every = [], function_rows(judgement)
    for level in LEVELS:
        functions = [row for row in every if row["level"] == level]
        offered = [row for row in functions if row["status"] != "MISSING"]
        status = worst(row["status"] for row in offered) if offered else "MISSING"
        missing = [row["name"] for row in functions if row["status"] == "MISSING"]
        line = _line(level, status, offered, missing)
        rows.append({"level": level, "status": status, "line": line})
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
