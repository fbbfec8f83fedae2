"""Failures as a reader meets them: one entry for one wrong element, whichever checks ran into it.

Many checks of one function fail on the same smallest input.  They are one entry that lists them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qloracle_conformance import families
from qloracle_conformance.engine.verdicts import BAD, BROKEN, worst

Data = Mapping[str, Any]  # a report, or a part of one
Check = Data

RAISED = "NotImplementedError: "
MEANINGS = {
    0: "every function offered passed within its printed scope",
    1: "a failure, an unexpected pass or an unmet requirement",
    3: "nothing was compared",
    4: "a crash",
    130: "interrupted; what was judged until then passed",
}


def exit_code(report: Data) -> int:
    """The code with which the command ends: an interrupted run is neither 0 nor 3."""
    code = int(report["exit_code"])
    return 130 if report["partial"] and code in (0, 3) else code


def _meaning(report: Data) -> str:
    """The exit code in words; failures that were expected are no passes."""
    code = exit_code(report)
    names = [check["id"] for one in report["implementations"] for check in known(one)]
    if code or not names:
        return MEANINGS[code]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    head = "1 expected failure" if len(names) == 1 else f"{len(names)} expected failures"
    return f"{head} failed as expected: {some}; the rest passed within its printed scope"


def versions(implementation: Data) -> list[str]:
    """What was judged: the versions of its libraries, and the device of its arrays."""
    found = [f"{name} {text}" for name, text in implementation["versions"].items()]
    device = implementation.get("device", "")
    return [*found, f"on {device}"] if device else found


def times(implementation: Data) -> str:
    """How long an implementation took."""
    apart = {"import": "import_seconds", "first-call compilation": "compile_seconds"}
    spent = [f"{implementation[key]:.1f} s of {what}" for what, key in apart.items()]
    others = [text for text in spent if not text.startswith("0.0 ")]
    beside = f", not counting {' and '.join(others)}" if others else ""
    return f"judged in {implementation['seconds']:.1f} s{beside}"


def counts(checks: Iterable[Check]) -> list[str]:
    """How many elements passed only within a band, and how many were not judged."""
    words, checks = {"band": "within the band", "recorded": "recorded, not judged"}, list(checks)
    totals = {name: sum(check[name] for check in checks) for name in words}
    return [f"{totals[name]:,} {text}" for name, text in words.items() if totals[name]]


def known(implementation: Data) -> list[Check]:
    """The checks that failed as expected."""
    return [check for check in implementation["checks"] if check["status"] == "XFAIL"]


def outcome(report: Data) -> str:
    """How a run ended, in one sentence with its exit code."""
    code, implementations = exit_code(report), report["implementations"]
    judged = [one for one in implementations if one["status"] != "NOT_RUN"]
    failing = [one for one in judged if one["status"] != "OK" or one["faults"]]
    if code == 1 and failing and not report["unmet"] and not report["known_problems"]:
        of = f"{len(failing)} of {len(judged)} " if len(judged) > 1 else ""
        names = "" if of else f"{failing[0]['name']} "
        has = "have faults" if len(failing) > 1 else "has a fault"
        return f"{of}{names}{has}: exit code 1"
    return f"{_meaning(report)}: exit code {code}"


def rules(checks: Iterable[Check]) -> list[str]:
    """The rules of checks, each once."""
    return list(dict.fromkeys(check["rule"] for check in checks))


def by_rule(implementation: Data, function: str) -> list[str]:
    """How each rule ended on a function, a line a table, as in "[nf4] PASS S3 S4; FAIL S5"."""
    own = [check for check in implementation["checks"] if check["function"] == function]
    views = [view for view in implementation["dialects"] if view["function"] == function]
    reasons = {v["table"]: v["unsupported"].removeprefix(RAISED) for v in views if v["unsupported"]}
    lines = []
    for table in dict.fromkeys(check["table"] for check in own):
        ended: dict[str, list[str]] = {}
        for rule in rules(same := [check for check in own if check["table"] == table]):
            status = worst(check["status"] for check in same if check["rule"] == rule)
            ended.setdefault(status, []).append(rule)
        text = "; ".join(f"{status} {' '.join(names)}" for status, names in ended.items())
        why = f": {reasons[table]}" if table in reasons else ""
        lines.append((f"[{table}] " if table else "") + text + why)
    return lines


def view(checks: Sequence[Check]) -> str:
    """The function of checks, with its table or tables."""
    tables = dict.fromkeys(check["table"] for check in checks if check["table"])
    listed = f"[{', '.join(tables)}]" if tables else ""
    return f"{checks[0]['function']}{listed}"


def wrong(checks: Sequence[Check]) -> str:
    """How many of the compared values are wrong; '' where no values were compared."""
    found, compared = (sum(check[name] for check in checks) for name in ("wrong", "comparisons"))
    counted = found and compared and checks[0]["failure"] is not None
    return f"{found:,} of {compared:,}" if counted else ""


def limits(report: Data) -> list[str]:
    """Why the report is less than a verdict, in plain words."""
    found = ["PARTIAL: the run was interrupted; this is no verdict"] if report["partial"] else []
    if report.get("stopped"):
        found.append("PARTIAL: stopped at the first failure; what was not run is not judged")
    only = report.get("only")
    return [*found, *([f"PARTIAL: only {only} was run; nothing else is judged"] if only else [])]


def notes(report: Data) -> list[str]:
    """What concerns the run as a whole, each in a sentence."""
    unmet = [f"REQUIRED: {text}" for text in report["unmet"]]
    stale = [f"KNOWN FAILURES: {text}" for text in report["known_problems"]]
    return [*limits(report), *unmet, *stale]


def run(report: Data) -> str:
    """What was run, in a line."""
    return (
        f"qloracle {report['qloracle_version']}, specification {report['spec_version']}, "
        f"profile {report['profile']}, seed {report['seed']}"
    )


def statement(rule: str) -> str:
    """The first sentence of a rule, without its number.

    >>> statement("S4")
    'absmax = max |x| of the block, exact, in float32; 0 stays 0.'
    """
    words = " ".join(families.statement(rule).split()).removeprefix(f"{rule}. ")
    return re.split(r"(?<=\.) ", words, maxsplit=1)[0]


@dataclass(frozen=True)
class Entry:
    """Checks that failed on the same element of the same input, and the findings that they name."""

    checks: list[Check]
    findings: list[Data]

    @property
    def first(self) -> Check:
        """The check that speaks for all."""
        return self.checks[0]

    @property
    def scripts(self) -> list[str]:
        """The repro scripts, seen from the report's folder."""
        return list(dict.fromkeys(check["repro"] for check in self.checks if "repro" in check))

    @property
    def title(self) -> str:
        """The rules, and the function with its table or tables."""
        return f"{' '.join(rules(self.checks))} {view(self.checks)}"

    @property
    def brief(self) -> str:
        """What is wrong in a few words, without the reason."""
        failure = self.first["failure"]
        if failure is None or failure["result"] == "call":
            return str(self.first["message"])
        text = f"{_place(self.first)} is {failure['got']}, expected {failure['expected']}"
        form = failure["input"].get("form", "")
        return f"{text} ({form.replace('_', ' ')})" if form else text

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, as (name, text)."""
        return [*_element(self), *_found(self)]

    @property
    def body(self) -> str:
        """That as text, a line each."""
        return "\n".join(f"{name:<12}{' '.join(text.split())}" for name, text in self.rows)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, as a reader meets it.

    The entries that show it, the plainest first; those that fail because of it; and a function that
    fails as well and that this one builds on, '' if there is none.
    """

    entries: list[Entry]
    consequences: list[Entry]
    after: str

    @property
    def first(self) -> Entry:
        """The entry that speaks for all."""
        return self.entries[0]

    @property
    def checks(self) -> list[Check]:
        """Every failing check that shows this fault."""
        return [check for entry in self.entries for check in entry.checks]


def faults(implementation: Data) -> list[Fault]:
    """The faults of an implementation, causes first; what builds on a faulty function is last."""
    checks = {check["id"]: check for check in implementation["checks"]}
    broken = {c["function"] for c in checks.values() if c["status"] in BAD + BROKEN}
    found = []
    for fault in implementation["faults"]:
        own, later = ([checks[name] for name in fault[part]] for part in ("checks", "consequences"))
        bases = families.MEMBERS[own[0]["function"]].builds_on
        after = next((base for base in bases if base in broken), "")
        found.append(Fault(_grouped(implementation, own), _grouped(implementation, later), after))
    return sorted(found, key=lambda fault: bool(fault.after))


def entries(implementation: Data) -> list[Entry]:
    """All failing checks, causes before what may follow from them."""
    found = faults(implementation)
    return [entry for fault in found for entry in (*fault.entries, *fault.consequences)]


def entry(implementation: Data, check: Check) -> Entry:
    """One failing check alone."""
    return Entry([check], _named(implementation, [check]))


def _grouped(implementation: Data, checks: list[Check]) -> list[Entry]:
    """Checks that failed alike are one entry; a finding is told once, or where nothing else is."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(_identity(check), []).append(check)
    found, told = [], []
    for same in groups.values():
        findings = _named(implementation, same)
        new = [finding for finding in findings if finding not in told]
        found.append(Entry(same, new if same[0]["failure"] else findings))
        told += findings
    return found


def _identity(check: Check) -> str:
    """Equal for checks that failed alike."""
    failure = check["failure"]
    if failure is None or failure["result"] == "call":  # one reason to raise, many inputs
        message = check["message"].removeprefix("after: ")
        return json.dumps([check["function"], check["status"], message])
    where = [failure[name] for name in ("input", "result", "index", "got", "expected")]
    where[0] = {name: value for name, value in where[0].items() if name != "note"}
    return json.dumps([check["status"], where], sort_keys=True)


def _named(implementation: Data, checks: list[Check]) -> list[Data]:
    """The probe's findings that the messages of these checks name."""
    views = [v for v in implementation["dialects"] if v["function"] == checks[0]["function"]]
    return [
        finding
        for view in views
        if view["table"] == checks[0]["table"]
        for finding in view["findings"]
        if any(f"{finding['field']} is {finding['found']}" in c["message"] for c in checks)
    ]


def _element(entry: Entry) -> Iterator[tuple[str, str]]:
    """The call, the element and its numbers; the message where there is no input to show."""
    check, failure = entry.first, entry.first["failure"]
    if failure is None:
        if not entry.findings:
            yield "because", check["message"]
        return
    yield "call", failure["call"]
    if failure["result"] != "call":
        yield "result", _place(check)
    yield "got", failure["got"]
    yield "expected", failure["expected"]
    if failure["reason"]:
        yield "because", failure["reason"]
    for name in ("bound", "observed", "ratio") if failure["bound"] else ():
        yield name, number(failure[name])


def _found(entry: Entry) -> Iterator[tuple[str, str]]:
    """Likely causes, findings, how much was wrong, every check that found it, and its scripts."""
    for story in dict.fromkeys(story for check in entry.checks for story in check["looks_like"]):
        yield "looks like", story
    for finding in entry.findings:
        said = "declared" if finding["declared"] else "specified"
        text = f"{finding['field']} is {finding['found']}, {said}: {finding['expected']}"
        yield "finding", f"{text} ({finding['evidence']})"
        if finding["declare"]:
            yield "declare", finding["declare"]
    if counted := wrong(entry.checks):
        yield "wrong", f"{counted} compared"
    yield "checks", ", ".join(check["id"] for check in entry.checks)
    for path in entry.scripts:
        yield "repro", path


def _place(check: Check) -> str:
    """The result, and its wrong element; P1 to P4 speak of results as a whole."""
    failure = check["failure"]
    whole = check["rule"] in ("P1", "P2", "P3", "P4")
    return str(failure["result"]) if whole else f"{failure['result']}[{failure['index']}]"


def number(value: Any) -> str:
    """A number as a report shows it; inf and nan are texts already."""
    return value if isinstance(value, str) else f"{value:.6g}"
