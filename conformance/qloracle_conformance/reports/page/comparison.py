"""Two or more implementations side by side: functions with verdict and dialect."""

from collections.abc import Sequence

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page.markup import (
    Markup,
    join,
    row,
    status,
    table,
    tag,
)
from qloracle_conformance.reports.page.subject import Subject
from qloracle_conformance.reports.page.verdicts import dialect, missing


def side_by_side(subjects: Sequence[Subject]) -> Markup:
    """A table; nothing for one implementation, which has nobody beside it."""
    if len(subjects) < 2:
        return Markup()
    return tag(
        "section",
        tag("h2", "Side by side"),
        _functions(subjects),
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
    head = ("function", *(subject.name for subject in subjects))
    return join(table("Functions: verdict and dialect", head, [rows]), missing(nobody))


def _row_of(subject: Subject, name: str) -> Data | None:
    return next((f for f in subject.data["functions"] if f["name"] == name), None)


def _function(subject: Subject, function: Data | None) -> Markup:
    """A verdict and the dialect it was given under; what did not load has no function to judge."""
    if not subject.judged:
        return status(subject.data["status"])
    return join(status(function["status"]), dialect(function)) if function else Markup()
