"""The checks of one implementation as single tests, for pytest: each can be run alone.

`Suite` is what the plugin's items and `conformance_tests` call: a `Run`, opened once in each
process that runs tests, whose checks are asked for one by one.  P1 to P4 and the verdict on a
function need all its checks: where some of them ran in another process, or were not selected, they
are run again here.
"""

import atexit
import textwrap
from typing import Any

import pytest

from qloracle_conformance.calling import objects
from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.engine import ledger
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, UNJUDGED, Judgement, function_rows
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.data import implementation
from qloracle_conformance.running.run import Run, name_causes

IMPORT, VERDICT, KNOWN = "import", "verdict/", "known/"  # tests beside the checks
OPEN: list["Suite"] = []


class Failed(Exception):
    """A check that did not pass; its text is for the reader of the test run."""


class Suite:
    """The tests of one implementation: their names, and what becomes of each.

    `found` is what `objects.target` returns; the options are those of `Run`.
    """

    def __init__(self, found: Any, require: str = "", **options: Any) -> None:
        self.name, self._found = objects.name_of(found), found
        self._require = LEVELS[: LEVELS.index(require) + 1] if require else ()
        self._run = Run(found, searching=True, **options)  # in smoke, too: a CI has the time
        OPEN.append(self)

    def close(self) -> None:
        """Let go of the implementation."""
        self._run.close()

    # ---- names ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The tests: every check of what is offered, a verdict a function, stale known failures."""
        if self._run.engine is None:
            return [IMPORT]
        judged = [name for name in MEMBERS if name in self._run.judgement.offers]
        checks = [
            *self._run.plan,
            *(f"{rule}/{name}" for name in judged for rule in ledger.rules_of(name)),
        ]
        every = [f.name for f in FUNCTIONS.values() if not f.optional]
        verdicts = [VERDICT + name for name in dict.fromkeys([*every, *judged])]
        stale = [KNOWN + entry.check for entry in self._run.known if entry.check not in checks]
        return [*checks, *verdicts, *stale]

    # ---- results -------------------------------------------------------------------------------

    def demand(self, name: str) -> None:
        """Run a test: return if it passed, else raise Failed, or pytest's skip or xfail."""
        if name == IMPORT:
            judgement = self._run.judgement
            raise Failed(f"{judgement.status} {self.name}: {judgement.message}")
        if name.startswith(KNOWN):
            raise Failed(f"known failure {name.removeprefix(KNOWN)} matches no check of this run")
        if name.startswith(VERDICT):
            self._verdict(name.removeprefix(VERDICT))
            return
        check = self._run.check(name)
        if check.status == "XFAIL":
            pytest.xfail(f"known: {check.known}")
        if check.status == "UNSUPPORTED":
            pytest.skip(f"UNSUPPORTED: {check.message}")
        if check.status != "PASS":
            raise Failed(self.text(check))

    def _verdict(self, function: str) -> None:
        """The function as a whole, as the command line judges it."""
        for name in self._run.plan_of(function):
            self._run.check(name)
        rows = {row["name"]: row for row in function_rows(self._run.judgement)}
        row = rows[function]
        text = f"{function} {row['status']}, {row['comparisons']:,} comparisons"
        missing = row["status"] in ("MISSING", "UNSUPPORTED")
        if missing and row["level"] not in self._require:
            pytest.skip(text)
        if row["status"] in (*BAD, *BROKEN, *UNJUDGED):
            raise Failed(f"{text}: {', '.join(row['failed_checks']) or 'too few for a verdict'}")

    def text(self, check: CheckRun) -> str:
        """What is wrong: the rule, the smallest input, got and expected, the likely cause."""
        name_causes([check])
        alone = Judgement(self.name, views=self._run.judgement.views, checks=[check])
        data = implementation(alone)
        entry = failures.entry(data, data["checks"][0])
        lines = [f"{check.status} {entry.title}: {failures.statement(check.rule)}"]
        for line in entry.body.splitlines():
            lines += textwrap.wrap(line, 96, subsequent_indent=" " * 12)
        if isinstance(self._found, str):
            lines.append(
                f"repro       qloracle verify {self.name} --only '{check.id}' --report DIR"
            )
        return "\n".join(lines)


def close_all() -> None:
    """Let go of every implementation that this process has opened."""
    while OPEN:
        OPEN.pop().close()


atexit.register(close_all)
