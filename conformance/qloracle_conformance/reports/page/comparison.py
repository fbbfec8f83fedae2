"""Two or more implementations side by side: functions with verdict and dialect, then the rules."""

from collections.abc import Sequence

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.families import RULES
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page.markup import (
    Markup,
    group,
    join,
    more,
    row,
    status,
    table,
    tag,
)
from qloracle_conformance.reports.page.subject import Subject, View
from qloracle_conformance.reports.page.verdicts import dialect, missing

CALM = {"PASS", "MISSING", "UNSUPPORTED", ""}


def side_by_side(subjects: Sequence[Subject]) -> Markup:
    """Both tables; nothing for one implementation, which has nobody beside it."""
    if len(subjects) < 2:
        return Markup()
    return tag(
        "section",
        tag("h2", "Side by side"),
        _functions(subjects),
        *_rules(subjects),
        aria_label="Side by side",
    )


def _functions(subjects: Sequence[Subject]) -> Markup:
    rows, nobody = [], []
    for name in FUNCTIONS:
        found = [_row_of(subject, name) for subject in subjects]
        if all(f is None or f["status"] == "MISSING" for f in found):
            nobody += [name] if any(found) else []
            continue
        cells = [_function(subject, f) for subject, f in zip(subjects, found, strict=True)]
        rows.append(row(name, *cells))
    head = ("function", *_names(subjects))
    return join(table("Functions: verdict and dialect", head, [rows]), missing(nobody))


def _row_of(subject: Subject, name: str) -> Data | None:
    return next((f for f in subject.data["functions"] if f["name"] == name), None)


def _function(subject: Subject, function: Data | None) -> Markup:
    """A verdict and the dialect it was given under; what did not load has no function to judge."""
    if not subject.judged:
        return status(subject.data["status"])
    return join(status(function["status"]), dialect(function)) if function else Markup()


def _names(subjects: Sequence[Subject]) -> list[str]:
    return [subject.name for subject in subjects]


def _rules(subjects: Sequence[Subject]) -> list[Markup]:
    """What does not pass everywhere; what does, on demand."""
    subjects = [subject for subject in subjects if subject.data["checks"]]
    trouble: dict[View, list[Markup]] = {}
    calm: dict[View, list[Markup]] = {}
    for view in dict.fromkeys(view for subject in subjects for view in subject.views):
        for rule in RULES:
            words = {subject.word(view, rule) for subject in subjects}
            if words <= {"", "MISSING", "UNSUPPORTED"}:
                continue
            cells = [subject.cell(view, rule) for subject in subjects]
            (calm if words <= CALM else trouble).setdefault(view, []).append(row(rule, *cells))
    parts = [_table("Rules that do not pass everywhere", subjects, trouble)]
    if calm:
        title = "Rules that pass wherever they were judged"
        parts.append(more(title, _table(title, subjects, calm)))
    return parts


def _table(title: str, subjects: Sequence[Subject], views: dict[View, list[Markup]]) -> Markup:
    bodies = [
        [group(f"{function}[{of}]" if of else function, len(subjects) + 1), *rows]
        for (function, of), rows in views.items()
    ]
    return table(title, ("rule", *_names(subjects)), bodies)
