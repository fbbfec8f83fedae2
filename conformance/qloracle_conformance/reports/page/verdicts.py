"""One implementation's tables: functions with verdict, scope and rules; bounds; known failures."""

from collections.abc import Sequence

from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page.drawings import bound_use
from qloracle_conformance.reports.page.markup import (
    Markup,
    counted,
    group,
    join,
    link,
    number,
    row,
    status,
    table,
    tag,
)
from qloracle_conformance.reports.page.subject import Subject


def functions(subject: Subject) -> Markup:
    """Each function with its verdict, its scope, what was compared, and its dialect."""
    head = (
        "function",
        "verdict",
        counted("comparisons"),
        counted("cases"),
        "scope",
        "rules",
        "dialect",
    )
    bodies = []
    offered = [f for f in subject.data["functions"] if f["status"] != "MISSING"]
    for level in LEVELS:
        rows = [_function(subject, f) for f in offered if f["level"] == level]
        if rows:
            bodies.append([group(level, len(head)), *rows])
    return join(table("Functions by level", head, bodies), missing(subject.missing))


def side_by_side(subjects: Sequence[Subject]) -> Markup:
    """Two or more implementations beside each other: verdict and dialect of each function."""
    if len(subjects) < 2:
        return Markup()
    rows, absent = [], []
    for name in FUNCTIONS:
        found = [subject.function(name) for subject in subjects]
        if any(f and f["status"] != "MISSING" for f in found):
            pairs = zip(subjects, found, strict=True)
            rows.append(row(name, *(_beside(subject, function) for subject, function in pairs)))
        elif any(found):
            absent.append(name)
    head = ("function", *(subject.name for subject in subjects))
    both = join(table("Functions: verdict and dialect", head, [rows]), missing(absent))
    return tag("section", tag("h2", "Side by side"), both, aria_label="Side by side")


def _beside(subject: Subject, function: Data | None) -> Markup:
    """A verdict and the dialect it was given under; what did not load has no function to judge."""
    if not subject.judged:
        return status(subject.data["status"])
    return join(status(function["status"]), dialect(function)) if function else Markup()


def missing(names: Sequence[str]) -> Markup:
    """What is not offered, in one line."""
    return tag("p.level", f"Missing: {', '.join(names)}") if names else Markup()


def _function(subject: Subject, function: Data) -> Markup:
    cases, total = function["cases"], function["cases"] + function["unsupported"]
    few = 0 < function["comparisons"] < function["floor"]
    note = f" (fewer than {function['floor']:,}: too few for a verdict)" if few else ""
    return row(
        function["name"],
        join(status(function["status"]), note),
        number(function["comparisons"]),
        tag("td.number", f"{cases:,}" if cases == total else f"{cases:,} of {total:,}"),
        tag("p", function["scope"]) if function["scope"] else "",
        join(*(tag("p", line) for line in failures.by_rule(subject.data, function["name"]))),
        join(dialect(function), *_counts(subject, function["name"])),
    )


def dialect(function: Data) -> Markup:
    """How a function differs from the specification, by table."""
    name = function["name"]
    labels = [(view.removeprefix(name), label) for view, label in function["dialect"].items()]
    return join(*(tag("p", f"{table} {label}".strip()) for table, label in labels))


def _counts(subject: Subject, function: str) -> list[Markup]:
    checks = [check for check in subject.data["checks"] if check["function"] == function]
    return [tag("p", text) for text in failures.counts(checks)]


def bounds(subject: Subject) -> Markup:
    """The share of its bound that each check needed, passing ones too."""
    rows = [
        row(check["id"], status(check["status"]), *bound_use(float(check["bound_use"])))
        for check in subject.data["checks"]
        if float(check["bound_use"]) > 0
    ]
    head = ("check", "status", counted("share used"), "0 to 125 %")
    return table("How much of a bound the worst element needed", head, [rows])


def known(subject: Subject) -> Markup:
    """Failures that are tracked somewhere: they are no news."""
    rows = [
        row(c["id"], status("XFAIL"), c["message"], link(c["known"], c["known"]))
        for c in failures.known(subject.data)
    ]
    return table("Known failures", ("check", "status", "message", "tracked at"), [rows])
