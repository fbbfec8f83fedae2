"""The first screen: what is wrong, an implementation at a time, and one table at the end.

Bad news first, a cause before what follows from it, one counterexample for each fault, and never
more than `MOST` lines of them in a run.  What is left out is named, and where to find it.
"""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from qloracle_conformance import adapters
from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.engine.verdicts import BAD, BROKEN
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry, Fault
from qloracle_conformance.reports.files import printable

MOST = 40  # lines of failures in a run
EACH = 10  # lines that an implementation with a fault may have, whatever comes after it
TALL = 3  # lines of one call, or of one reason
INDENT = 8
WIDE = 20  # columns of a name in the table

Likely = Callable[[str], Sequence[str]]  # a check id: stories of faults that give the same results


class Screen:
    """Prints implementations as they are judged, within the lines that a run may have.

    `folder` is where the report is written; with `whole`, everything is printed, at any length.
    """

    def __init__(
        self, console: Console, implementations: int = 1, folder: Path | None = None, *,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self._console, self._width = console, console.width
        self._to_come, self._left = implementations, MOST
        self._folder, self._is_whole = folder, whole

    def opening(self, report: Data) -> None:
        """What is run, and on what."""
        machine = report["machine"]
        parts = [f"qloracle {report['qloracle_version']}", report["profile"]]
        parts += [f"seed {report['seed']}"] if report["seed"] else []
        parts += [f"{machine['cores']} cores", f"NumPy {machine['numpy']}"]
        self._line("   ".join(parts), "dim")
        for text in failures.limits(report):
            self._line(text, "bold red")

    def implementation(self, data: Data, likely: Likely = lambda check: ()) -> None:
        """The verdict on one implementation, its faults and its scope."""
        self._line()
        adapter = adapters.find(data["name"])
        parts = [data["name"], adapter.note if adapter else "", ", ".join(failures.versions(data))]
        parts += [] if data["status"] == "NOT_RUN" else [f"{data['seconds']:.1f} s"]
        self._line("   ".join(filter(None, parts)), "bold", hang=2)
        if data["message"]:
            text = f"{data['status']} {data['message']}"
            self._line(text, style_of(data["status"]), indent=2, hang=2)
        if self._is_whole:
            self._whole(data)
        else:
            budget = max(self._left // max(self._to_come, 1), min(EACH, self._left))
            self._to_come -= 1
            self._left -= self._faults(failures.faults(data), budget, likely)
        passed = [row["line"] for row in data["levels"] if row["status"] in ("PASS", "XFAIL")]
        scopes = [line for line in passed if " within " in line or "missing: " in line]
        for text in (*scopes, *_dialects(data), *_expected(data)):
            self._line(text, indent=2, hang=2)

    def _faults(self, found: list[Fault], budget: int, likely: Likely) -> int:
        """Print faults while there are lines: whole, then by their first line, then by number."""
        used, shown = 0, 0
        for fault in found:
            first, *rest = self._rows(fault)
            height, space = self._height(first, 2), budget - used - (len(found) - shown > 1)
            if height + sum(map(self._height, rest)) + 1 > space:
                rest = []
            if height > space:
                break
            used += self._print(first, "bold red", 2) + sum(map(self._print, rest))
            for story in likely(fault.first.first["id"])[:1] if rest else ():
                used += self._print(f"looks like: {story}")
            shown += 1
        if found[shown:] and used < budget:
            used += self._print(_left_out(found[shown:], bool(self._folder)), "red", 2)
        return used

    def _rows(self, fault: Fault) -> Iterator[str]:
        """A fault in lines: what is wrong, the call, why, how far it goes, how to reproduce it."""
        entry, check = fault.first, fault.first.first
        title = f"{failures.view(fault.checks)}: {_decimal(entry.brief)}"
        rules = " ".join(failures.rules(fault.checks))
        yield f"{check['status']:<5} {title}   {rules}"
        failure = check["failure"]
        if failure is not None:
            yield _short(failure["call"])
            if failure["reason"]:
                yield f"because {_short(_decimal(failure['reason']))}"
            if failure["bound"]:
                observed, ratio = (failures.number(failure[name]) for name in ("observed", "ratio"))
                yield f"off by {observed}, {ratio} of the bound"
        for finding in entry.findings:
            if finding["declare"]:
                yield f"if intended, declare: {finding['declare']}"
        if wrong := failures.wrong(fault.checks):
            yield f"{wrong} values are wrong"
        if fault.consequences:
            later = (check for entry in fault.consequences for check in entry.checks)
            names = dict.fromkeys(f"{c['rule']} {c['function']}" for c in later)
            yield f"because of it: {', '.join(names)}"
        if fault.after:
            yield f"it builds on {fault.after}, which fails too"
        for path in self._paths(entry)[:1]:
            yield f"reproduce with NumPy alone: {path}"

    def _paths(self, entry: Entry) -> list[Path]:
        """The scripts of an entry, seen from the current folder if they lie in it."""
        paths = [(self._folder or Path()) / name for name in entry.scripts]
        here = Path.cwd()
        return [p.relative_to(here) if p.is_relative_to(here) else p for p in paths]

    def _height(self, text: str, indent: int = INDENT) -> int:
        return len(textwrap.wrap(text, self._width - indent, break_on_hyphens=False)) or 1

    def _print(self, text: str, style: str = "", indent: int = INDENT) -> int:
        self._line(text, style, indent=indent, hang=2)
        return self._height(text, indent)

    # ---- everything (`-v`) ---------------------------------------------------------------------

    def _whole(self, data: Data) -> None:
        """Each function with its rules, then each failure, then those that were expected."""
        for function in data["functions"]:
            if function["status"] != "MISSING":
                self._function(data, function)
        for entry in failures.entries(data):
            self._entry(entry)
        self._line()
        for check in failures.known(data):
            text = f"XFAIL {check['id']}: {check['message']} ({check['known']})"
            self._line(text, "dim", hang=6)
        self._line(failures.times(data), "dim", indent=2)

    def _function(self, data: Data, function: Data) -> None:
        """A function: its verdict and what was compared; below it the rules by table and status."""
        name, floor = function["name"], function["floor"]
        own = [check for check in data["checks"] if check["function"] == name]
        parts = [f"{name} {function['status']}", f"{function['comparisons']:,} comparisons"]
        if 0 < function["comparisons"] < floor:
            parts.append(f"fewer than {floor:,}: too few for a verdict")
        text = ", ".join([*parts, *failures.counts(own)])
        self._line(text, style_of(function["status"]), indent=2, hang=2)
        for line in failures.by_rule(data, name):
            self._line(line, indent=4, hang=2)

    def _entry(self, entry: Entry) -> None:
        """A failure with all its numbers."""
        self._line()
        self._line(f"{entry.first['status']} {entry.title}", "bold red", hang=5)
        self._line(failures.statement(entry.first["rule"]), indent=2)
        for name, text in entry.rows:
            if name != "repro":
                self._line(f"{name:<12}{text}", indent=2, hang=12)
        for path in self._paths(entry):
            self._copied(f"  {'repro':<12}{path}")

    # ---- the end -------------------------------------------------------------------------------

    def table(self, report: Data) -> None:
        """One line an implementation: the verdict on each level."""
        names = [data["name"] for data in report["implementations"]]
        names = [name if len(name) <= WIDE else f"...{name[-WIDE + 3 :]}" for name in names]
        width = max(map(len, names), default=0) + 2
        self._line()
        self._cells(" " * width, LEVELS, 8)
        for name, data in zip(names, report["implementations"], strict=True):
            words = {row["level"]: row["status"] for row in data["levels"]}
            cells = [words.get(level, "-") for level in LEVELS]
            cells = ["-" if word == "MISSING" else word for word in cells]
            self._cells(f"{name:<{width}}", cells, 8, _count(data))

    def ending(self, report: Data) -> None:
        """What was asked for and is not there, and one sentence with the exit code."""
        self._line()
        for text in failures.notes(report):
            self._line(text, "bold red", hang=2)
        code = failures.exit_code(report)
        self._line(failures.outcome(report), "bold red" if code else "bold green", hang=2)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._line(text, hang=2)

    # ---- lines ---------------------------------------------------------------------------------

    def _line(self, text: str = "", style: str = "", indent: int = 0, hang: int = 0) -> None:
        """Print a line; what does not fit goes on below, `hang` columns further in.

        It is not rich that wraps, so that a pipe of 80 columns shows the same as a screen.
        """
        lines = textwrap.wrap(
            printable(text), self._width, initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hang), break_on_hyphens=False,
        )  # fmt: skip
        for part in lines or [""]:
            self._console.print(Text(part, style), soft_wrap=True)

    def _copied(self, text: str) -> None:
        """Print what a reader may want to copy, in one line however long."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def _cells(self, name: str, words: Sequence[str], width: int, end: str = "") -> None:
        """Print a row of words, each in its colour, and a text at its end."""
        row = Text(name)
        for word in words:
            row.append(f"{word:<{width}}", style_of(word))
        row.append(end)
        row.rstrip()  # in place
        self._console.print(row, soft_wrap=True)


def text(report: Data, width: int = 100) -> str:
    """All of a report, as `-v` prints it."""
    page = io.StringIO()
    screen = Screen(
        Console(file=page, width=width, color_system=None, force_jupyter=False), whole=True
    )
    screen.opening(report)
    for implementation in report["implementations"]:
        screen.implementation(implementation)
    screen.table(report)
    screen.ending(report)
    return page.getvalue()


def style_of(status: str) -> str:
    """The colour of a status, which only repeats the word; none for other texts."""
    if status == "PASS":
        return "green"
    if status in BAD + BROKEN:
        return "bold red"
    return "dim" if status in ("XFAIL", "-", "UNSUPPORTED", "MISSING") else ""


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
    where = "see the report" if written else "-v prints all, --report DIR writes all"
    return f"and {' and '.join(words)}: {where}"


def _dialects(data: Data) -> list[str]:
    """Lawful differences that were found and adopted."""
    labels: dict[str, list[str]] = {}
    for view in data["dialects"]:
        if view["label"] and not view["findings"]:
            labels.setdefault(view["label"], []).append(view["function"])
    parts = [f"{', '.join(dict.fromkeys(names))} [{label}]" for label, names in labels.items()]
    return [f"lawful differences: {'; '.join(parts)}"] if parts else []


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
