"""The head of the page: how the run ended, and what failed where, each failure in one line."""

from collections.abc import Sequence

from qloracle_conformance.engine.verdicts import level_lines
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.page import failure
from qloracle_conformance.reports.page.markup import Markup, join, link, status, tag
from qloracle_conformance.reports.page.subject import Subject


def head(report: Data) -> Markup:
    """The verdict in words, and what belongs to the run as a whole."""
    words, _, code = failures.outcome(report).rpartition(": ")
    title = tag("h1", tag("span.code" if code != "exit code 0" else "span", words))
    noted = [tag("li", note) for note in failures.notes(report)]
    listed = tag("ul.notes", *noted) if noted else ""
    return tag("header", tag("p.run", failures.run(report)), title, tag("p.meaning", code), listed)


def summary(subjects: Sequence[Subject]) -> Markup:
    """Each implementation with its verdict, and a line for each of its failures."""
    parts = [_subject(subject) for subject in subjects]
    return tag("section.summary", tag("h2", "Verdict"), *parts, aria_label="Verdict")


def _subject(subject: Subject) -> Markup:
    name = link(subject.name, f"#{subject.anchor}")
    title = tag("h3", status(subject.verdict), " ", name)
    lines = [tag("p.level", line) for line, _ in level_lines(subject.data["levels"])]
    if subject.data["message"]:
        lines = [tag("p.message", subject.data["message"]), *(lines if subject.judged else [])]
    found = [_line(subject, n, entry) for n, entry in enumerate(subject.entries)]
    return tag("div.subject", title, *lines, tag("ol.found", *found) if found else "")


def _counterexample(entry: Entry) -> Markup:
    """The input that shows a fault: the call, what came, what was expected."""
    if entry.first["failure"] is None:
        return Markup()
    rows = (row for row in entry.rows if row[0] in ("call", "got", "expected", "because"))
    return tag("dl.counterexample", *(failure.fact(name, text) for name, text in rows))


def _line(subject: Subject, n: int, entry: Entry) -> Markup:
    title = link(entry.title, f"#{subject.place(n)}")
    words = join(status(entry.first["status"]), " ", title)
    shown = _counterexample(entry) if n == 0 else ""  # the first fault is shown at once
    return tag("li", words, " ", tag("span.brief", entry.brief), shown)


def foot(report: Data) -> Markup:
    """The machine and the times."""
    machine = report["machine"]
    where = (
        f"{machine['platform']}, {machine['cores']} cores, Python {machine['python']}, "
        f"NumPy {machine['numpy']}"
    )
    when = f" Begun {report['started']}." if report["started"] else ""
    return tag("footer", tag("p", f"{failures.run(report)}. {where}.{when}"))
