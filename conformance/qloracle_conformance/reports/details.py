"""All that a report holds, on a terminal (`-v`): functions, views, rules, each failure once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from qloracle_conformance import families
from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.engine.verdicts import level_lines, worst
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.lines import SHORT, Lines, style_of

SHOWN_FAILURES = 12  # entries of one implementation; the files hold them all
QUALIFIED = {"quantize": "S5", "dequantize": "S7"}  # the rules whose verdict a dialect qualifies
NAME, CELL = 31, 6  # columns of "dequantize_blockwise[unsigned] " and of a status
LABEL = 12  # columns of "looks like  "


def show(report: Data, console: Console, files: Mapping[str, Path] | None = None) -> None:
    """Print a report; `files` names the repro script of each failing check."""
    page = Lines(console)
    page.line(failures.run(report))
    for text in failures.limits(report):
        page.line(text, "bold red")
    for implementation in report["implementations"]:
        _implementation(page, implementation, files or {})
    _end(page, report)


# ---- one implementation ------------------------------------------------------------------------


def _implementation(page: Lines, implementation: Data, files: Mapping[str, Path]) -> None:
    page.line()
    versions = ", ".join(failures.versions(implementation))
    page.line(implementation["name"] + (f" ({versions})" if versions else ""), "bold", hang=2)
    if implementation["message"]:
        status = implementation["status"]
        page.line(f"{status} {implementation['message']}", style_of(status), hang=2)
    if implementation["status"] == "NOT_RUN" and not implementation["checks"]:
        return
    for line, status in level_lines(implementation["levels"]):
        page.line(line, style_of(status), hang=3)
    _functions(page, implementation)
    for level in LEVELS:
        _views(page, implementation, level)
    _failures(page, implementation, files)
    _known(page, implementation)
    page.line()
    page.line(failures.times(implementation), "dim")


def _functions(page: Lines, implementation: Data) -> None:
    """Verdict, the P rules and the count of comparisons of each function that is offered."""
    offered = [row for row in implementation["functions"] if row["status"] != "MISSING"]
    levels = {row["level"] for row in offered}  # a level that is missing whole has said so
    absent = [row for row in implementation["functions"] if row["status"] == "MISSING"]
    missing = [row["name"] for row in absent if row["level"] in levels]
    names = [rule for rule in families.RULES if rule[0] == "P"]
    if offered:
        page.line()
        _function(page, "function", "verdict", names, "comparisons")
    for row in offered:
        cells = [_cell(implementation, row["name"], None, rule) for rule in names]
        _function(page, row["name"], row["status"], cells, f"{row['comparisons']:,}")
        if 0 < row["comparisons"] < row["floor"]:
            text = f"fewer than {row['floor']:,} comparisons: too few for a verdict"
            page.line(text, "bold red", indent=4)
    if missing:
        page.line(f"MISSING {', '.join(missing)}", "dim", hang=8)


def _function(page: Lines, name: str, verdict: str, cells: Sequence[str], count: str) -> None:
    narrow = [(cell, CELL) for cell in cells]
    page.row(f"{name:<21}", [(verdict, 12), *narrow, (count, 14)])


def _views(page: Lines, implementation: Data, level: str) -> None:
    """The rules of one level by function and table."""
    views = [v for v in implementation["dialects"] if FUNCTIONS[v["function"]].level == level]
    functions = {view["function"] for view in views}
    seen = {c["rule"] for c in implementation["checks"] if c["function"] in functions}
    names = [rule for rule in families.RULES if rule[0] == "S" and rule in seen]
    if names:
        page.line()
        page.row(f"{level:<{NAME}}", [(rule, CELL) for rule in names])
    for view in views if names else ():
        _view(page, implementation, view, names)


def _view(page: Lines, implementation: Data, view: Data, names: Sequence[str]) -> None:
    """One row, and below it the dialect under which its codes or values were judged."""
    if view["unsupported"]:
        reason = view["unsupported"].removeprefix("NotImplementedError: ")
        page.line(f"{view['view']} UNSUPPORTED: {reason}", "dim", hang=4)
        return
    cells = {r: _cell(implementation, view["function"], view["table"], r) for r in names}
    page.row(f"{view['view']:<{NAME}}", [(status, CELL) for status in cells.values()])
    rule = _qualified(view["function"], names)
    own = (view["function"], view["table"])
    checks = [c for c in implementation["checks"] if (c["function"], c["table"]) == own]
    counts = failures.counts(checks)
    if view["label"] or counts:
        label = f"[{view['label']}]" if view["label"] else ""
        text = ", ".join([f"{rule} {cells[rule]}{label}", *counts])
        page.line(text, style_of(cells[rule]), indent=4, hang=3)


def _qualified(function: str, names: Sequence[str]) -> str:
    """The rule whose verdict a dialect qualifies: coding, decoding, or the level's own rule.

    >>> _qualified("quantize_4bit", ["S4", "S5", "S7"]), _qualified("quantize_absmax", ["S1", "S8"])
    ('S5', 'S8')
    """
    rule = QUALIFIED.get(function.partition("_")[0], "")
    return rule if rule in names else names[-1]


def _cell(implementation: Data, function: str, table: str | None, rule: str) -> str:
    """The status of one rule on one function (and table); "-" where there is no such check."""
    checks = [c for c in implementation["checks"] if (c["function"], c["rule"]) == (function, rule)]
    found = [check["status"] for check in checks if table in (None, check["table"])]
    status = worst(found) if found else "-"
    return SHORT.get(status, status)


# ---- failures and the rest ---------------------------------------------------------------------


def _failures(page: Lines, implementation: Data, files: Mapping[str, Path]) -> None:
    """The first failure of each rule on each function whole; what else failed, a line each."""
    shown: set[tuple[str, str]] = set()
    rest = []
    for entry in failures.entries(implementation):
        place = entry.first["rule"], entry.first["function"]
        if place in shown or len(shown) == SHOWN_FAILURES:
            rest.append(entry)
            continue
        shown.add(place)
        _failure(page, implementation, entry, files)
    if rest:
        page.line()
        page.line("and also:", "red")
    for entry in rest[:SHOWN_FAILURES]:
        page.line(f"{entry.first['status']} {_ids(entry)}: {entry.brief}", indent=2, hang=4)
        for path in failures.scripts(implementation["name"], entry, files):
            page.unbroken(f"    {'repro':<{LABEL}}{path}")
    if len(rest) > SHOWN_FAILURES:
        hidden = rest[SHOWN_FAILURES:]
        page.line(f"and {len(hidden)} more: {', '.join(_ids(entry) for entry in hidden)}", "red")


def _ids(entry: Entry) -> str:
    return ", ".join(check["id"] for check in entry.checks)


def _failure(page: Lines, implementation: Data, entry: Entry, files: Mapping[str, Path]) -> None:
    page.line()
    page.line(f"{entry.first['status']} {entry.title}", "bold red", hang=5)
    page.line(failures.statement(entry.first["rule"]), indent=2)
    for name, text in entry.rows:
        page.line(f"{name:<{LABEL}}{text}", indent=2, hang=LABEL)
    for path in failures.scripts(implementation["name"], entry, files):
        page.unbroken(f"  {'repro':<{LABEL}}{path}")


def _known(page: Lines, implementation: Data) -> None:
    """Known failures, dim: they are no news."""
    known = failures.known(implementation)
    if known:
        page.line()
    for check in known:
        page.line(f"XFAIL {check['id']}: {check['message']} ({check['known']})", "dim", hang=6)


def _end(page: Lines, report: Data) -> None:
    """Problems of the run as a whole, and the exit code with its meaning."""
    page.line()
    for text in failures.notes(report):
        page.line(text, "bold red", hang=2)
    code = failures.exit_code(report)
    style = "bold red" if code else "bold green"
    page.line(f"exit code {code}: {failures.meaning(report)}", style, hang=2)
