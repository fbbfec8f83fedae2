"""From failing checks to faults: checks that fail for one reason are one fault, causes come first.

Two failing checks are one fault if they ended in the same smallest input (whatever its table), were
refused in the same words, show the same finding of the probe, or name the same element for the same
reason; all forms of arrays (P5) of a function are one.  The first check in the order of `CAUSES`
speaks for all.  What builds on a faulty function and shows the same wrong value is its consequence.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from qloracle_conformance.contract.cases import bits
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.views import View

# Rules in the order from cause to consequence: codes are judged on the own scale (S4 before S5),
# levels are read from what is decoded (S7 before S1), all calls (P) repeat what single ones show.
CAUSES = (
    "S3", "S6", "S4", "S7", "S5", "S2", "S1", "S8", "S9", "S10", "S11", "S11b", "S12", "S12b",
    "P1", "P2", "P4", "P3", "P5",
)  # fmt: skip
READ_FROM = {"S1": "S7", "S2": "S5"}  # what a rule looks at is made by what the other one judges
TABLE = ("quant_type",)  # options that name a table
BOOKS = ("codebook", "m_codebook", "v_codebook")  # arrays that hold one


@dataclass
class Fault:
    """Checks that fail for one reason, the plainest first, and those that fail because of it."""

    checks: list[CheckRun]
    consequences: list[CheckRun] = field(default_factory=list)


def faults(judgement: Judgement) -> list[Fault]:
    """Group the failing checks of an implementation by their cause, causes first."""
    failing = [check for check in judgement.checks if check.status in BAD + BROKEN]
    found: list[Fault] = []
    seen: list[set[Hashable]] = []
    for check in failing:
        keys = {*_reasons(check, judgement.views)}
        same = [i for i, known in enumerate(seen) if known & keys]
        if not same:
            found.append(Fault([check]))
            seen.append(keys)
            continue
        first, *others = same
        found[first].checks.append(check)
        seen[first] |= keys
        for other in reversed(others):  # what this check has in common with both makes them one
            found[first].checks += found.pop(other).checks
            seen[first] |= seen.pop(other)
    for fault in found:
        fault.checks.sort(key=_place)
    return _with_consequences(sorted(found, key=lambda fault: _place(fault.checks[0])))


def _place(check: CheckRun) -> tuple[int, int, int]:
    """Calls that end in nothing first, then by level, rule and function of the protocol."""
    names = list(FUNCTIONS)
    function = names.index(check.function)
    level = FUNCTIONS[check.function].level
    refused = check.status in (*BROKEN, "ERROR")
    return (int(level[1:]), 0 if refused else 1 + CAUSES.index(check.rule), function)


def _reasons(check: CheckRun, views: list[View]) -> Iterator[Hashable]:
    """Why a check fails, in every form that another check may share."""
    for view in views:
        if (view.function, view.table) == (check.function, check.table):
            for finding in view.findings:
                if f"{finding.field} is {finding.found}" in check.message:
                    yield "finding", finding.field, finding.found
    if check.rule == "P5":
        yield "form", check.function
    failure = check.failure
    if failure is None or failure.mismatch.result == "call":
        yield "said", check.function, check.status, check.message.removeprefix("after: ")
        return
    case, wrong = failure.case, failure.mismatch
    options = tuple(f"{k}={v}" for k, v in sorted(case.options.items()) if k not in TABLE)
    arrays = bits(a for name, a in sorted(case.arrays.items()) if name not in BOOKS)
    yield "input", check.function, case.form, options, arrays
    if wrong.reason:
        yield "element", check.function, case.form, wrong.got, wrong.expected, wrong.reason


def _with_consequences(found: list[Fault]) -> list[Fault]:
    """Move the checks of a fault to an earlier one that they are a consequence of."""
    kept: list[Fault] = []
    for fault in found:
        due = (one for one in kept if all(_due_to(check, one) for check in fault.checks))
        cause = next(due, None)
        if cause is None:
            kept.append(fault)
        else:
            cause.consequences += fault.checks
    return kept


def _due_to(check: CheckRun, fault: Fault) -> bool:
    """Whether a check looks at what a check of the fault spoils, or repeats its value."""
    own = [made for made in fault.checks if made.function == check.function]
    if any((made.rule, made.table) == (READ_FROM.get(check.rule), check.table) for made in own):
        return True
    built_on = MEMBERS[check.function].builds_on
    shown = {_shown(made) for made in fault.checks if made.function in built_on}
    return _shown(check) in shown - {None}


def _shown(check: CheckRun) -> tuple[str, str] | None:
    """What came, and what was expected."""
    failure = check.failure
    return (failure.mismatch.got, failure.mismatch.expected) if failure is not None else None
