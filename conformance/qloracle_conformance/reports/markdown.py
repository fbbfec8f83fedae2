"""summary.md: the verdict for a pull request or a CI step's summary page."""

import html
import re

from qloracle_conformance.engine.verdicts import level_lines
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.files import printable

SHOWN_FAILURES = 5  # entries of one implementation


def text(report: Data) -> str:
    """The report as Markdown."""
    lines = [f"## qloracle: {_inline(failures.outcome(report))}", ""]
    for note in failures.notes(report):
        lines += [f"**{_inline(note)}**", ""]
    for implementation in report["implementations"]:
        lines += _implementation(implementation)
    return printable("\n".join([*lines, f"{failures.run(report)}.", ""]))


def _implementation(implementation: Data) -> list[str]:
    versions = ", ".join(failures.versions(implementation))
    lines = [f"### {_inline(implementation['name'])}", ""]
    lines += [_inline(versions), ""] if versions else []
    if implementation["message"]:
        lines += [f"**{implementation['status']}** {_inline(implementation['message'])}", ""]
    if implementation["status"] == "NOT_RUN" and not implementation["checks"]:
        return lines
    lines += [f"- {_inline(line)}" for line, _ in level_lines(implementation["levels"])]
    lines += ["", *_table(implementation), ""]
    found = failures.entries(implementation)
    for entry in found[:SHOWN_FAILURES]:
        lines += _failure(entry)
    if len(found) > SHOWN_FAILURES:
        lines += [f"{len(found) - SHOWN_FAILURES} failures more are in report.json.", ""]
    return lines


def _table(implementation: Data) -> list[str]:
    """One row a function: verdict, what was compared, and the dialect it was judged under."""
    lines = ["| function | level | verdict | comparisons | dialect |", "|---|---|---|---:|---|"]
    for row in implementation["functions"]:
        labels = [_inline(f"{view}: {label}") for view, label in row["dialect"].items()]
        cells = [f"`{row['name']}`", row["level"], row["status"], f"{row['comparisons']:,}"]
        lines.append(f"| {' | '.join([*cells, '<br>'.join(labels)])} |")
    return lines


def _failure(entry: Entry) -> list[str]:
    body = entry.body
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", body)), default=0))
    rule = _inline(failures.statement(entry.first["rule"]))
    head = f"**{entry.first['status']} {_inline(entry.title)}**: {rule}"
    return [head, "", f"{fence}text", body, fence, ""]


def _inline(text: str) -> str:
    r"""A text that Markdown shows as it is, in a line or in a table's cell.

    >>> _inline("max |x| of <b>\n*all*")
    'max \\|x\\| of &lt;b&gt; \\*all\\*'
    """
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", line)
