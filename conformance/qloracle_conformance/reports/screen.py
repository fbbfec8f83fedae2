"""The first screen: what is wrong, an implementation at a time, and one table at the end.

Bad news first, a cause before what follows from it, one counterexample for each fault, and never
more than `MOST` lines of them in a run.  What is left out is named, and where to find it.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from qloracle_conformance import adapters
from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Fault
from qloracle_conformance.reports.lines import Lines, style_of

MOST = 40  # lines of failures in a run
EACH = 10  # lines that an implementation with a fault may have, whatever comes after it
TALL = 3  # lines of one call, or of one reason
INDENT = 8
WIDE = 20  # columns of a name in the table

Likely = Callable[[str], Sequence[str]]  # a check id: stories of faults that give the same results


class Row(NamedTuple):
    """A line of a fault, before it is wrapped."""

    text: str
    style: str = ""
    indent: int = INDENT


class Screen:
    """Prints implementations as they are judged, within the lines that a run may have."""

    def __init__(self, console: Console, implementations: int = 1) -> None:
        self._lines, self._width = Lines(console), console.width
        self._to_come, self._left = implementations, MOST

    def opening(self, report: Data) -> None:
        """What is run, and on what."""
        machine = report["machine"]
        parts = [f"qloracle {report['qloracle_version']}", report["profile"]]
        parts += [f"seed {report['seed']}"] if report["seed"] else []
        parts += [f"{machine['cores']} cores", f"NumPy {machine['numpy']}"]
        self._lines.line("   ".join(parts), "dim")
        for text in failures.limits(report):
            self._lines.line(text, "bold red")

    def implementation(
        self, data: Data, files: Mapping[str, Path] = {}, likely: Likely = lambda check: ()
    ) -> None:
        """The verdict on one implementation, its faults and its scope."""
        self._lines.line()
        self._title(data)
        found = failures.faults(data)
        if data["message"]:
            text = f"{data['status']} {data['message']}"
            self._lines.line(text, style_of(data["status"]), indent=2, hang=2)
        budget = max(self._left // max(self._to_come, 1), min(EACH, self._left))
        self._to_come -= 1
        self._left -= self._faults(data, found, budget, files, likely)
        for text in (*_scopes(data), *_dialects(data), *_expected(data)):
            self._lines.line(text, indent=2, hang=2)

    def _title(self, data: Data) -> None:
        """Its name, what it runs on, and how long it took."""
        versions = ", ".join(failures.versions(data))
        adapter = adapters.find(data["name"])
        note = f"{adapter.note}   " if adapter and adapter.note else ""
        left = f"{data['name']}   {note}{versions}".rstrip()
        right = f"{data['seconds']:.1f} s"
        gap = self._width - len(left) - len(right)
        if data["status"] == "NOT_RUN" or gap < 2:
            self._lines.line(left, "bold", hang=2)
        else:
            self._lines.line(f"{left}{' ' * gap}{right}", "bold")

    def _faults(
        self, data: Data, found: list[Fault], budget: int, files: Mapping[str, Path], likely: Likely
    ) -> int:
        """Print faults while there are lines: whole, then by their first line, then by number."""
        used, shown = 0, 0
        for fault in found:
            rows = list(_rows(fault, data["name"], files))
            space = budget - used - (len(found) - shown > 1)
            if sum(map(self._height, rows)) + 1 > space:
                rows = rows[:1]
            if self._height(rows[0]) > space:
                break
            used += sum(map(self._print, rows))
            for story in likely(fault.first.first["id"])[:1] if rows[1:] else ():
                used += self._print(Row(f"looks like: {story}"))
            shown += 1
        if found[shown:] and used < budget:
            used += self._print(Row(_left_out(found[shown:], bool(files)), "red", 2))
        return used

    def _height(self, row: Row) -> int:
        return len(textwrap.wrap(row.text, self._width - row.indent, break_on_hyphens=False)) or 1

    def _print(self, row: Row) -> int:
        self._lines.line(row.text, row.style, indent=row.indent, hang=2)
        return self._height(row)

    # ---- the end -------------------------------------------------------------------------------

    def table(self, report: Data) -> None:
        """One line an implementation: the verdict on each level."""
        names = [_short_name(data["name"]) for data in report["implementations"]]
        width = max(map(len, names), default=0) + 2
        self._lines.line()
        self._lines.cells(" " * width, LEVELS, 8)
        for name, data in zip(names, report["implementations"], strict=True):
            words = {row["level"]: row["status"] for row in data["levels"]}
            cells = [words.get(level, "-") for level in LEVELS]
            cells = ["-" if word == "MISSING" else word for word in cells]
            self._lines.cells(f"{name:<{width}}", cells, 8, _count(data))

    def ending(self, report: Data) -> None:
        """What was asked for and is not there, and one sentence with the exit code."""
        self._lines.line()
        for text in failures.notes(report):
            self._lines.line(text, "bold red", hang=2)
        code = failures.exit_code(report)
        self._lines.line(failures.outcome(report), "bold red" if code else "bold green", hang=2)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._lines.line(text, hang=2)


def _rows(fault: Fault, name: str, files: Mapping[str, Path]) -> Iterator[Row]:
    """A fault in lines: what is wrong, the call, why, how far it goes, how to reproduce it."""
    entry, check = fault.first, fault.first.first
    title = f"{failures.view(fault.checks)}: {_decimal(entry.brief)}"
    rules = " ".join(failures.rules(fault.checks))
    yield Row(f"{check['status']:<6}{title}   {rules}", "bold red", 2)
    failure = check["failure"]
    if failure is not None:
        yield Row(_short(failure["call"]))
        if failure["reason"]:
            yield Row(f"because {_short(_decimal(failure['reason']))}")
        if failure["bound"]:
            observed, ratio = (failures.number(failure[name]) for name in ("observed", "ratio"))
            yield Row(f"off by {observed}, {ratio} of the bound")
    for finding in entry.findings:
        if finding["declare"]:
            yield Row(f"if that is meant: {finding['declare']}")
    if wrong := failures.wrong(fault.checks):
        yield Row(f"{wrong} values are wrong")
    if fault.consequences:
        names = dict.fromkeys(f"{c['rule']} {c['function']}" for c in fault.consequences)
        yield Row(f"because of it: {', '.join(names)}")
    if fault.after:
        yield Row(f"it builds on {fault.after}, which fails too")
    for path in failures.scripts(name, entry, files)[:1]:
        yield Row(f"reproduce with NumPy alone: {path}")


def _short_name(name: str) -> str:
    """A name short enough for the table: of a long one its end."""
    return name if len(name) <= WIDE else f"...{name[-WIDE + 3 :]}"


def _short(text: str) -> str:
    """A text of a few lines; the report has it whole."""
    return textwrap.shorten(text, TALL * 90, placeholder=" ...")


def _decimal(text: str) -> str:
    """A text without its hex floats: the call below it has them.

    >>> _decimal("y[0] is 0.1 (0x1.99999a0000000p-4)")
    'y[0] is 0.1'
    """
    return re.sub(r" \(-?0x[0-9a-f.]+p[+-]\d+\)", "", text)


def _left_out(rest: Sequence[Fault], written: bool) -> str:
    """How many faults are not shown, of which functions, and where they are."""
    own = [fault for fault in rest if not fault.after]
    words = [f"{len(own)} more fault{'s' if len(own) > 1 else ''}"] if own else []
    later = dict.fromkeys(fault.first.first["function"] for fault in rest if fault.after)
    words += [f"what builds on them ({', '.join(later)})"] if later else []
    where = "the report has them all" if written else "-v, or --report DIR"
    return f"and {' and '.join(words)}: {where}"


def _scopes(data: Data) -> list[str]:
    """Levels that passed within a scope, with the cases that were in it."""
    passed = [row["line"] for row in data["levels"] if row["status"] in ("PASS", "XFAIL")]
    return [line for line in passed if " within " in line or "missing: " in line]


def _dialects(data: Data) -> list[str]:
    """Lawful differences that were found and adopted."""
    labels: dict[str, list[str]] = {}
    for view in data["dialects"]:
        if view["label"] and not view["findings"]:
            labels.setdefault(view["label"], []).append(view["function"])
    parts = [f"{', '.join(dict.fromkeys(names))} [{label}]" for label, names in labels.items()]
    return [f"found and lawful: {'; '.join(parts)}"] if parts else []


def _expected(data: Data) -> list[str]:
    """Known failures are no news: one line."""
    known = failures.known(data)
    if not known:
        return []
    more = f" and {len(known) - 1} more" if len(known) > 1 else ""
    return [f"failed as expected: {known[0]['id']}{more}"]


def _count(data: Data) -> str:
    """How many faults an implementation has, or why it was not judged."""
    if data["status"] != "OK":
        return str(data["status"])
    number = sum(not fault.after for fault in failures.faults(data))
    return f"{number} fault{'s' if number > 1 else ''}" if number else ""
