"""report.html: the whole report as one page, which needs nothing else.

The page may load nothing and run nothing but its own script: its policy names the digests of its
one style sheet and its one script.  It is complete without the script, which only copies.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page import failure, overview, verdicts
from qloracle_conformance.reports.page.markup import Markup, status, tag
from qloracle_conformance.reports.page.subject import Subject


def text(report: Data, scripts: Mapping[str, str] = {}) -> str:
    """The report as one HTML file; `scripts` are the repro scripts by their path."""
    subjects = [Subject(data, n) for n, data in enumerate(report["implementations"])]
    body = tag(
        "body",
        overview.head(report),
        tag(
            "main",
            overview.summary(subjects),
            verdicts.side_by_side(subjects),
            *(_implementation(subject, scripts) for subject in subjects),
        ),
        overview.foot(report),
        tag("script", _part("page.js")),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(report, subjects), body, lang='en')}\n"


def _part(name: str) -> Markup:
    resource = files("qloracle_conformance.reports.page") / name
    return Markup(resource.read_text(encoding="utf-8"))


def _head(report: Data, subjects: list[Subject]) -> Markup:
    names = ", ".join(subject.name for subject in subjects)
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{failures.outcome(report)} ({names}; qloracle)"),
        tag("style", _part("page.css")),
    )


def _policy() -> str:
    """Nothing may be loaded; one style sheet and one script may act, known by their digests."""
    return (
        f"default-src 'none'; style-src {_digest('page.css')}; script-src {_digest('page.js')}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(name: str) -> str:
    digest = hashlib.sha256(_part(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _implementation(subject: Subject, scripts: Mapping[str, str]) -> Markup:
    data = subject.data
    versions = ", ".join(failures.versions(data))
    parts = [tag("h2", subject.name), tag("p.level", versions) if versions else ""]
    if data["message"]:
        parts.append(tag("p.message", status(data["status"]), f" {data['message']}"))
    if subject.judged:
        parts.append(verdicts.functions(subject))
    parts += [verdicts.bounds(subject), verdicts.known(subject)]
    if subject.entries:
        count = len(subject.entries)
        parts.append(tag("h3", f"{count} failure{'s' if count > 1 else ''}"))
    parts += [failure.article(subject, n, scripts) for n in range(len(subject.entries))]
    parts.append(tag("p.level", failures.times(data)))
    return tag("section", *parts, id=subject.anchor, aria_label=subject.name)
