"""The checks of one implementation as single tests, for pytest: each can be run alone.

`Suite` is what the plugin's items and `conformance_tests` call.  It opens the implementation once
in each process that runs tests.  P1 to P4 and the verdict on a function need all its checks: where
some of them ran in another process, or were not selected, they are run again here.
"""

from __future__ import annotations

import atexit
import textwrap
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from qloracle_conformance.calling import objects
from qloracle_conformance.calling.callers import Caller, ChildCaller, LocalCaller
from qloracle_conformance.contract.errors import CannotRun, LoadError
from qloracle_conformance.contract.protocol import FUNCTIONS, JUDGED_LEVELS, LEVELS
from qloracle_conformance.engine import Engine, ledger
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, UNJUDGED, Judgement, function_rows
from qloracle_conformance.families import MEMBERS, all_checks
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.views import View, specified_levels
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running import likely as fingerprints
from qloracle_conformance.running.known import apply, read

IMPORT, VERDICT, KNOWN = "import", "verdict/", "known/"  # tests beside the checks
OPEN: list[Suite] = []


class Failed(Exception):
    """A check that did not pass; its text is for the reader of the test run."""


class Suite:
    """The tests of one implementation: their names, and what becomes of each.

    `found` is what `objects.target` returns; the options are those of ``qloracle verify``.
    UsageError for an implementation or an option that means nothing.
    """

    def __init__(
        self, found: Any, profile: str = "smoke", device: str = "", seed: int = 0,
        dialect: Mapping[str, Any] | None = None, require: str = "",
        known: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.name, self._found, self._device = objects.name_of(found), found, device
        self._profile, self._seed, self._dialect = profile, seed, dict(dialect or {})
        self._require = LEVELS[: LEVELS.index(require) + 1] if require else ()
        entries = read(known) if known is not None else []
        self._known = [entry for entry in entries if entry.implementation in ("", self.name)]
        self._runs: dict[str, CheckRun] = {}

    # ---- the implementation, opened when it is first asked for ---------------------------------

    @cached_property
    def _caller(self) -> Caller | LoadError:
        OPEN.append(self)
        try:
            if isinstance(self._found, str):
                environment = {"QLORACLE_DEVICE": self._device} if self._device else {}
                return ChildCaller(self._found, environment=environment)
            return LocalCaller(self._found, self._device)
        except LoadError as error:
            return error

    @cached_property
    def _engine(self) -> Engine:
        caller = self._caller
        if isinstance(caller, LoadError):
            status = "NOT_RUN" if isinstance(caller, CannotRun) else "ERROR"
            raise Failed(f"{status} {self.name}: {caller}")
        return Engine(caller, profile=self._profile, seed=self._seed, declared=dict(self._dialect))

    @cached_property
    def _judgement(self) -> Judgement:
        """The implementation's judgement, which grows with each check that is run."""
        caller = self._engine.caller
        return Judgement(
            self.name, versions=caller.versions, declared=caller.declared, device=caller.device,
            offers=list(caller.offers), views=self._engine.probe(), profile=self._profile,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the implementation."""
        if not isinstance(self._caller, LoadError):
            self._caller.close()

    # ---- names ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The tests: every check of what is offered, a verdict a function, stale known failures."""
        if isinstance(self._caller, LoadError):
            return [IMPORT]
        judged = [name for name in MEMBERS if name in self._caller.offers]
        checks = [
            *self._plan,
            *(f"{rule}/{name}" for name in judged for rule in ledger.rules_of(name)),
        ]
        due = [f.name for f in FUNCTIONS.values() if f.level in JUDGED_LEVELS and not f.optional]
        verdicts = [VERDICT + name for name in dict.fromkeys([*due, *judged])]
        stale = [KNOWN + entry.check for entry in self._known if entry.check not in checks]
        return [*checks, *verdicts, *stale]

    @cached_property
    def _plan(self) -> dict[str, tuple[Check, str]]:
        """Every check of every table, by its id; nothing is probed to know them."""
        views = [
            View(name, table, {}, specified_levels(table))
            for name, member in MEMBERS.items()
            if name in self._engine.caller.offers
            for table in member.tables
        ]
        fitting = ((c, view) for c in all_checks() for view in views if self._engine.fits(c, view))
        return {check.id(view): (check, view.name) for check, view in fitting}

    # ---- results -------------------------------------------------------------------------------

    def demand(self, name: str) -> None:
        """Run a test: return if it passed, else raise Failed, or pytest's skip or xfail."""
        if name == IMPORT:
            self._engine  # noqa: B018 (raises)
        if name.startswith(KNOWN):
            raise Failed(f"known failure {name.removeprefix(KNOWN)} matches no check of this run")
        if name.startswith(VERDICT):
            self._verdict(name.removeprefix(VERDICT))
            return
        run = self.outcome(name)
        if run.status == "XFAIL":
            pytest.xfail(f"known: {run.known}")
        if run.status == "UNSUPPORTED":
            pytest.skip(f"UNSUPPORTED: {run.message}")
        if run.status != "PASS":
            raise Failed(self.text(run))

    def _verdict(self, function: str) -> None:
        """The function as a whole, as the command line judges it."""
        for name in self._names_of(function):
            self.outcome(name)
        rows = {row["name"]: row for row in function_rows(self._judgement)}
        row = rows[function]
        text = f"{function} {row['status']}, {row['comparisons']:,} comparisons"
        missing = row["status"] in ("MISSING", "UNSUPPORTED")
        if missing and row["level"] not in self._require:
            pytest.skip(text)
        if row["status"] in (*BAD, *BROKEN, *UNJUDGED):
            raise Failed(f"{text}: {', '.join(row['failed_checks']) or 'too few for a verdict'}")

    def outcome(self, name: str) -> CheckRun:
        """The result of a check, which is run once."""
        if name not in self._runs:
            found = self._runs_of(name)
            for run in found:
                if run.failure is not None and run.status in BAD + BROKEN:
                    run.looks_like = fingerprints.likely(run)
                self._mark(run)
                self._runs[run.id] = run
                self._judgement.checks.append(run)
        return self._runs.get(name) or CheckRun(
            name, name.partition("/")[0], "", "", message="nothing was called"
        )

    def _runs_of(self, name: str) -> list[CheckRun]:
        rule, _, function = name.partition("/")
        judgement = self._judgement
        if rule in ledger.RULES:
            for own in self._names_of(function):
                self.outcome(own)
            return list(self._engine.ledger_runs([function]))
        check, view = self._plan[name]
        return [self._engine.run_check(check, next(v for v in judgement.views if v.name == view))]

    def _names_of(self, function: str) -> Iterator[str]:
        return (name for name, (check, _) in self._plan.items() if check.function == function)

    def _mark(self, run: CheckRun) -> None:
        """Compare with the known failures."""
        entries = [entry for entry in self._known if entry.check == run.id]
        apply(entries, [Judgement(self.name, checks=[run])], lambda _: True)

    def text(self, run: CheckRun) -> str:
        """What is wrong: the rule, the smallest input, got and due, the likely cause."""
        alone = Judgement(self.name, views=self._judgement.views, checks=[run])
        data = Report(self._profile, self._seed, [alone]).to_dict()["implementations"][0]
        entry = failures.entry(data, data["checks"][0])
        lines = [f"{run.status} {entry.title}: {failures.statement(run.rule)}"]
        for name, text in entry.rows:
            hang = " " * 12
            lines += textwrap.wrap(f"{name:<12}{text}", 96, subsequent_indent=hang)
        if isinstance(self._found, str):
            lines.append(f"repro       qloracle verify {self.name} --only '{run.id}' --report DIR")
        return "\n".join(lines)


def close_all() -> None:
    """Let go of every implementation that this process has opened."""
    while OPEN:
        OPEN.pop().close()


atexit.register(close_all)
