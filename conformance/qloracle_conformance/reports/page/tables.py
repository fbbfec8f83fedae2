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


def judged(data: Data) -> bool:
    """False where it could not be loaded: there is only a message to show then."""
    return bool(data["checks"]) or data["status"] == "OK"


def functions(data: Data) -> Markup:
    """Each function with its verdict, its scope, what was compared, its rules and its dialect."""
    head = ("function", "verdict", counted("comparisons"), counted("cases"), "scope", "rules",
            "dialect")  # fmt: skip
    bodies = []
    offered = [f for f in data["functions"] if f["status"] != "MISSING"]
    for level in LEVELS:
        rows = [_function(data, f) for f in offered if f["level"] == level]
        if rows:
            bodies.append([group(level, len(head)), *rows])
    absent = [f["name"] for f in data["functions"] if f["status"] == "MISSING"]
    return join(table("Functions by level", head, bodies), missing(absent))


def side_by_side(implementations: Sequence[Data]) -> Markup:
    """Two or more implementations beside each other: verdict and dialect of each function."""
    if len(implementations) < 2:
        return Markup()
    rows, absent = [], []
    for name in FUNCTIONS:
        found = [[f for f in data["functions"] if f["name"] == name] for data in implementations]
        if any(f["status"] != "MISSING" for own in found for f in own):
            pairs = zip(implementations, found, strict=True)
            rows.append(row(name, *(_beside(data, own) for data, own in pairs)))
        elif any(found):
            absent.append(name)
    names = [link(data["name"], f"#implementation-{n}") for n, data in enumerate(implementations)]
    both = table("Functions: verdict and dialect", ("function", *names), [rows]), missing(absent)
    return tag("section", tag("h2", "Side by side"), *both, aria_label="Side by side")


def _beside(data: Data, own: Sequence[Data]) -> Markup:
    """A verdict and the dialect it was given under; what did not load has no function to judge."""
    if not judged(data):
        return status(data["status"])
    return join(*(join(status(function["status"]), dialect(function)) for function in own))


def missing(names: Sequence[str]) -> Markup:
    """What is not offered, in one line."""
    return tag("p.level", f"Missing: {', '.join(names)}") if names else Markup()


def _function(data: Data, function: Data) -> Markup:
    name, cases = function["name"], function["cases"]
    total = cases + function["unsupported"]
    few = 0 < function["comparisons"] < function["floor"]
    note = f" (fewer than {function['floor']:,}: too few for a verdict)" if few else ""
    own = [check for check in data["checks"] if check["function"] == name]
    return row(
        name,
        join(status(function["status"]), note),
        number(function["comparisons"]),
        tag("td.number", f"{cases:,}" if cases == total else f"{cases:,} of {total:,}"),
        tag("p", function["scope"]) if function["scope"] else "",
        join(*(tag("p", line) for line in failures.by_rule(data, name))),
        join(dialect(function), *(tag("p", text) for text in failures.counts(own))),
    )


def dialect(function: Data) -> Markup:
    """How a function differs from the specification, by table."""
    name = function["name"]
    labels = [(view.removeprefix(name), label) for view, label in function["dialect"].items()]
    return join(*(tag("p", f"{table} {label}".strip()) for table, label in labels))


def bounds(data: Data) -> Markup:
    """The share of its bound that each check needed, passing ones too."""
    rows = [
        row(check["id"], status(check["status"]), *bound_use(float(check["bound_use"])))
        for check in data["checks"]
        if float(check["bound_use"]) > 0
    ]
    head = ("check", "status", counted("share used"), "0 to 125 %")
    return table("How much of a bound the worst element needed", head, [rows])


def known(data: Data) -> Markup:
    """Failures that are tracked somewhere: they are no news."""
    rows = [
        row(c["id"], status("XFAIL"), c["message"], link(c["known"], c["known"]))
        for c in failures.known(data)
    ]
    return table("Known failures", ("check", "status", "message", "tracked at"), [rows])
