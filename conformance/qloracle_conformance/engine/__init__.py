"""Runs the checks of one implementation: probe, call, judge, reduce.

Data flows one way: a Check yields Cases, a Caller answers them, a judge compares, and a CheckRun
holds what came of it.  Nothing is ever turned from skipped into passed.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from qloracle_conformance.calling.callers import Caller
from qloracle_conformance.contract.cases import Answer, Case
from qloracle_conformance.contract.dialects import check_declaration
from qloracle_conformance.contract.errors import LoadError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.contract.scope import Scope, check_limits
from qloracle_conformance.engine import ledger as ledgers
from qloracle_conformance.engine import probe, reduce
from qloracle_conformance.engine.examining import Examination
from qloracle_conformance.engine.ledger import Ledger
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.families import all_checks
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

TROUBLES = 2  # crashes or time-outs of one function after which it is left alone
MAIN_TABLES = ("nf4", "signed", "")
EXAMPLES = {"smoke": 60, "standard": 1000, "exhaustive": 10_000}  # that Hypothesis draws a check


class Engine:
    """Judges one implementation.

    `second` is another oracle that offers the protocol, for judging the reference itself;
    `searching` and `reducing` switch off what a run over many mutants does not need; `functions`
    are those whose checks are run (all that are offered are probed).  UsageError
    if the implementation declares limits or a dialect that mean nothing.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        profile: str = "smoke",
        seed: int = 0,
        declared: dict[str, Any] | None = None,
        only: Callable[[str], bool] = lambda _: True,
        searching: bool = True,
        reducing: bool = True,
        second: Any = None,
        functions: Collection[str] = tuple(FUNCTIONS),
    ):
        self.caller, self.profile, self.seed, self.second = caller, profile, seed, second
        self.functions = functions
        limits, dialect = caller.declared.get("limits", {}), caller.declared.get("dialect", {})
        check_limits(limits)
        check_declaration(dialect)
        self.scope = Scope(limits, caller.offers)
        self.declared = dict(dialect) | (declared or {})
        self.views: list[View] = []
        self._ledgers: dict[str, Ledger] = {}
        self._only, self._searching, self._reducing = only, searching, reducing
        self._small: dict[str, list[Case]] = {}
        self._function_of: dict[int, str] = {}

    # ---- calls ---------------------------------------------------------------------------------

    def call(self, case: Case) -> Answer:
        """Call within the scope, and enter in the ledger what the call shows beside its values."""
        ledger = self._ledgers.setdefault(case.function, Ledger())
        if ledger.troubles >= TROUBLES:
            return Answer(ledger.last_trouble[0], message=f"after: {ledger.last_trouble[1]}")
        answer = self._bare_call(case)
        ledger.enter(self.scope.accepted(case), answer, self._view_of(case))
        return answer

    def _bare_call(self, case: Case) -> Answer:
        """Call without an entry in the ledger; a second reading still counts."""
        answer = self.caller.call(self.scope.accepted(case))
        self._function_of[answer.call] = case.function
        return answer

    def _view_of(self, case: Case) -> View | None:
        fitting = [view for view in self.views if view.function == case.function]
        same = [view for view in fitting if view.table == case.quant_type]
        return next(iter(same or fitting), None)

    # ---- the run -------------------------------------------------------------------------------

    def probe(self) -> list[View]:
        """Find the dialect; the views are what everything else is judged under."""
        self.views = probe.views(self.call, self.caller.offers, self.scope, self.declared)
        return self.views

    def planned(self) -> list[tuple[Check, View]]:
        """Every check on every table that it applies to and that was asked for."""
        return [
            (check, view)
            for check in all_checks()
            for view in self.views
            if self.fits(check, view) and self._only(check.id(view))
        ]

    def fits(self, check: Check, view: View) -> bool:
        """Whether a check is run on a view in this profile."""
        if view.function != check.function or check.function not in self.functions:
            return False
        if check.tables and view.table not in check.tables:
            return False
        if check.profiles and self.profile not in check.profiles:
            return False
        if check.search is not None:  # in the smoke profile only the main tables are searched
            return self._searching and (view.table in MAIN_TABLES or self.profile != "smoke")
        return not check.form or check.form in self.caller.forms.get(check.function, ())

    def run(self) -> Iterator[CheckRun]:
        """Yield the result of each check as it ends; the P rules come last, from the ledgers."""
        yield from (self.run_check(check, view) for check, view in self.planned())
        yield from (run for run in self.ledger_runs(self.functions) if self._only(run.id))

    def run_check(self, check: Check, view: View) -> CheckRun:
        """Run one check to its end."""
        start = time.perf_counter()
        run = CheckRun(check.id(view), check.rule, check.function, view.table)
        try:
            self._examine(check, view, run)
        except LoadError as error:
            run.status, run.message = "CRASH", str(error)
        run.seconds = time.perf_counter() - start
        return run

    def _examine(self, check: Check, view: View, run: CheckRun) -> None:
        if view.unsupported:
            run.status, run.message, run.unsupported = "UNSUPPORTED", view.unsupported, 1
            return
        examination = Examination(check, view, run, self)
        plan = self.plan(check, view)
        if check.search is not None:
            self._search(check, plan, examination)
        else:
            for case in check.cases(plan):
                examination.take(replace(case, form=check.form))
                if examination.enough:
                    break
        examination.conclude()

    def plan(self, check: Check, view: View) -> Plan:
        """The plan of a check: its seed depends on the run's and on its own name."""
        own = zlib.crc32(check.id(view).encode())
        return Plan(view, self.profile, (self.seed << 32) + own)

    def _search(self, check: Check, plan: Plan, examination: Examination) -> None:
        """Let Hypothesis draw and shrink: the last failing example it tries is the smallest."""
        from qloracle_conformance.engine import searching

        assert check.search is not None
        searching.search(
            check.search(plan), examination.take, lambda: examination.failing,
            EXAMPLES[self.profile], plan.seed,
        )  # fmt: skip

    def ledger_runs(self, functions: Collection[str] = tuple(FUNCTIONS)) -> Iterator[CheckRun]:
        """The results of P1 to P4, which look at all calls of a function that were made so far."""
        used = {name: ledger for name, ledger in self._ledgers.items() if ledger.by_call}
        used = {name: ledger for name, ledger in used.items() if name in functions}
        for name, ledger in used.items():
            yield from ledgers.runs(name, ledger, self._bare_call, self.reduced, self.seed)
        again, late = self.caller.settle()
        for calls, kind in ((again, "again"), (late, "late")):
            for call in calls:
                getattr(self._ledgers[self._function_of[call]], kind).append(call)
        for name, ledger in used.items():
            if "P3" in ledgers.rules_of(name):
                yield ledgers.lasting(name, ledger)

    # ---- reduction -----------------------------------------------------------------------------

    def reduced(
        self,
        case: Case,
        values: Values,
        mismatch: Mismatch,
        judge: Callable[[Case, Values], Outcome],
    ) -> Failure:
        """Make a failing case small: anything smaller that still fails the same judge will do."""
        state = Failure(self.scope.accepted(case), values, mismatch)
        if not self._reducing:
            return state

        def fails(candidate: Case) -> int | None:
            if self.scope.outside(candidate):
                return None
            answer = self._bare_call(candidate)
            outcome = judge(candidate, answer.values) if answer.status == "OK" else Outcome(0)
            if outcome.first is None:
                return None
            state.case, state.values, state.mismatch = candidate, answer.values, outcome.first
            return outcome.first.index

        known = self._small.setdefault(f"{case.function}[{case.quant_type}]", [])
        with contextlib.suppress(LoadError):  # if it dies on the way, what we have must do
            reduce.reduce(case, mismatch.index, fails, _fitting(known, case))
        known.insert(0, state.case)
        state.case = self.scope.accepted(state.case)  # the call as it was made
        return state


def _fitting(known: list[Case], case: Case) -> list[Case]:
    """Small failing cases of the same function, with this case's codebook."""
    book = case.arrays.get("codebook")
    same = [small for small in known if small.form == case.form]
    return [small if book is None else small.with_arrays(codebook=book) for small in same[:3]]
