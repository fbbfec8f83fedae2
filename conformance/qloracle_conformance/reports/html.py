"""report.html: the whole report as one page, which needs nothing else.

The page may load nothing and run nothing but its own script: its policy names the digests of its
one style sheet and its one script.  It is complete without the script, which only copies.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from qloracle_conformance.engine.verdicts import BAD, BROKEN, level_lines
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page import failure, tables
from qloracle_conformance.reports.page.markup import Markup, status, tag

SHOWN = 12  # failures of one implementation that are open from the start


def text(report: Data, scripts: Mapping[str, str] = {}) -> str:
    """The report as one HTML file; `scripts` are the repro scripts by their path."""
    found = sorted(report["implementations"], key=lambda data: data["verdict"] not in BAD + BROKEN)
    sections = [
        _implementation(data, f"implementation-{n}", scripts) for n, data in enumerate(found)
    ]
    main = tag("main", *sections, tables.side_by_side(found))
    body = tag("body", _opening(report), main, _foot(report), tag("script", _part("page.js")))
    return f"<!DOCTYPE html>\n{tag('html', _head(report), body, lang='en')}\n"


def _part(name: str) -> Markup:
    resource = files("qloracle_conformance.reports.page") / name
    return Markup(resource.read_text(encoding="utf-8"))


def _head(report: Data) -> Markup:
    names = ", ".join(data["name"] for data in report["implementations"])
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


def _opening(report: Data) -> Markup:
    """The verdict in words, and what belongs to the run as a whole."""
    words, _, code = failures.outcome(report).rpartition(": ")
    title = tag("h1", tag("span.code" if code != "exit code 0" else "span", words))
    noted = [tag("li", note) for note in failures.notes(report)]
    listed = tag("ul.notes", *noted) if noted else ""
    return tag("header", tag("p.run", failures.run(report)), title, tag("p.meaning", code), listed)


def _implementation(data: Data, place: str, scripts: Mapping[str, str]) -> Markup:
    """Its verdict, its failures, causes first, and its tables."""
    title = tag("h2", status(data["verdict"]), f" {data['name']}")
    lines = [", ".join(failures.versions(data)), failures.times(data)]
    if tables.judged(data):
        lines = [*(line for line, _ in level_lines(data["levels"])), *lines]
    parts = [title, tag("p.message", data["message"]) if data["message"] else ""]
    parts += [tag("p.level", line) for line in lines if line]
    entries = failures.entries(data)
    if entries:
        parts.append(tag("h3", f"{len(entries)} failure{'s' if len(entries) > 1 else ''}"))
    for n, entry in enumerate(entries):
        parts.append(failure.article(entry, f"{place}-{n}", scripts, shown=n < SHOWN))
    parts += [tables.functions(data)] if tables.judged(data) else []
    parts += [tables.bounds(data), tables.known(data)]
    return tag("section", *parts, id=place, aria_label=data["name"])


def _foot(report: Data) -> Markup:
    """The machine and the times."""
    machine = report["machine"]
    where = (
        f"{machine['platform']}, {machine['cores']} cores, Python {machine['python']}, "
        f"NumPy {machine['numpy']}"
    )
    when = f" Begun {report['started']}." if report["started"] else ""
    return tag("footer", tag("p", f"{failures.run(report)}. {where}.{when}"))
