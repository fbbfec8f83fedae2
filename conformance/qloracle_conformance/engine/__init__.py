"""Runs the checks of one implementation: probe, call, judge, reduce.

Data flows one way: a Check yields Cases, a Caller answers them, a judge compares, and a CheckRun
holds what came of it.  Nothing is ever turned from skipped into passed.
"""

import contextlib
import itertools
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from qloracle_conformance.calling.callers import Caller
from qloracle_conformance.contract.cases import Answer, Case
from qloracle_conformance.contract.dialects import check_declaration
from qloracle_conformance.contract.errors import LoadError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.contract.scope import Scope, check_limits
from qloracle_conformance.engine import ledger as ledgers
from qloracle_conformance.engine import probe, reduce
from qloracle_conformance.engine.ahead import Ahead, Cases
from qloracle_conformance.engine.examining import Examination
from qloracle_conformance.engine.ledger import Ledger
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.families import MEMBERS, all_checks
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

TROUBLES = 2  # crashes or time-outs of one function after which it is left alone
# Examples that Hypothesis draws a check.  Smoke draws only where a test run asks for it (pytest's
# plugin, `conformance_tests`), and not in the loop of edit and run: no fault is known that only a
# drawn case has found, neither among the mutants nor among the kernels that were judged.
EXAMPLES = {"smoke": 60, "standard": 1000, "exhaustive": 10_000}


def bare_views(functions: Iterable[str]) -> list[View]:
    """Functions on each of their tables, of which nothing but the name is asked: none is probed."""
    none = np.zeros(0, np.float32)
    return [View(name, table, {}, none) for name in functions for table in MEMBERS[name].tables]


class Engine:
    """Judges one implementation.

    `second` is another oracle that offers the protocol, for judging the reference itself;
    `searching` says whether Hypothesis draws cases, by default in every profile but smoke;
    `reducing` switches off what a run over many mutants does not need; `functions`
    are those whose checks are run, and `only` says which checks.  What these do not need is not
    probed.  UsageError if the implementation declares limits or a dialect that mean nothing.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        profile: str = "smoke",
        seed: int = 0,
        declared: dict[str, Any] | None = None,
        only: Callable[[str], bool] = lambda _: True,
        searching: bool | None = None,
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
        self._searching = profile != "smoke" if searching is None else searching
        self._only, self._reducing = only, reducing
        self._small: dict[str, list[Case]] = {}
        self._expected: dict[int, Case] = {}  # by the identity of a case: the call that was sent
        self._function_of: dict[int, str] = {}

    # ---- calls ---------------------------------------------------------------------------------

    def call(self, case: Case) -> Answer:
        """Call within the scope, and enter in the ledger what the call shows beside its values."""
        ledger = self._ledgers.setdefault(case.function, Ledger())
        if ledger.troubles >= TROUBLES:
            self._forget(case)
            return Answer(ledger.last_trouble[0], message=f"after: {ledger.last_trouble[1]}")
        accepted = self._expected.pop(id(case), None) or self.scope.accepted(case)
        answer = self._bare_call(accepted)
        ledger.enter(accepted, answer, self._view_of(case))
        return answer

    def _bare_call(self, accepted: Case) -> Answer:
        """Call without an entry in the ledger; a second reading still counts."""
        answer = self.caller.call(accepted)
        self._function_of[answer.call] = accepted.function
        return answer

    def _answers(self, accepted: Iterable[Case]) -> Iterator[Answer]:
        """Call in this order, some sent before their turn, without an entry in the ledger."""
        calls = [partial(map, replace, accepted)]  # copies: a call is known by its case's identity
        for case in Ahead(calls, self.caller.expect, self.caller.forget).of(0):
            yield self._bare_call(case)

    def _expect(self, case: Case) -> None:
        """Let a case be called before its turn, if it will be called."""
        ledger = self._ledgers.get(case.function)
        if self.scope.outside(case) or (ledger is not None and ledger.troubles >= TROUBLES):
            return
        self._expected[id(case)] = self.scope.accepted(case)
        self.caller.expect(self._expected[id(case)])

    def _forget(self, case: Case) -> None:
        accepted = self._expected.pop(id(case), None)
        if accepted is not None:
            self.caller.forget(accepted)

    def _view_of(self, case: Case) -> View | None:
        fitting = [view for view in self.views if view.function == case.function]
        same = [view for view in fitting if view.table == case.quant_type]
        return next(iter(same or fitting), None)

    # ---- the run -------------------------------------------------------------------------------

    def probe(self) -> list[View]:
        """Find the dialect; the views are what everything else is judged under."""
        wanted = [name for name in MEMBERS if self._wants(name)]
        self.views = probe.views(self.call, self.caller.offers, self.scope, self.declared, wanted)
        return self.views

    def _wants(self, function: str) -> bool:
        """Whether any check of a function is asked for."""
        if function not in self.functions:
            return False
        pairs = itertools.product(all_checks(), bare_views([function]))
        checks = (check.id(view) for check, view in pairs if self.fits(check, view))
        return any(map(self._only, (*checks, *(f"{rule}/{function}" for rule in ledgers.RULES))))

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
        if check.search is not None:
            return self._searching
        return not check.form or check.form in self.caller.forms.get(check.function, ())

    def run(self) -> Iterator[CheckRun]:
        """Yield the result of each check as it ends; the P rules come last, from the ledgers."""
        planned = self.planned()
        sources = [partial(self._cases, check, view) for check, view in planned]
        ahead = Ahead(sources, self._expect, self._forget)
        for number, (check, view) in enumerate(planned):
            yield self.run_check(check, view, ahead.of(number))
        yield from (run for run in self.ledger_runs(self.functions) if self._only(run.id))

    def _cases(self, check: Check, view: View) -> Iterator[Case]:
        """The directed cases of a check."""
        if view.unsupported:
            return
        for case in check.cases(self.plan(check, view)):
            yield replace(case, form=check.form) if check.form else case

    def run_check(self, check: Check, view: View, cases: Cases | None = None) -> CheckRun:
        """Run one check to its end; its own directed cases by default."""
        start = time.perf_counter()
        run = CheckRun(check.id(view), check.rule, check.function, view.table)
        if cases is None:
            own = Ahead([partial(self._cases, check, view)], self._expect, self._forget)
            cases = own.of(0)
        try:
            with contextlib.closing(cases):
                self._examine(check, view, run, cases)
        except LoadError as error:
            run.status, run.message = "CRASH", str(error)
        run.seconds = time.perf_counter() - start
        return run

    def _examine(self, check: Check, view: View, run: CheckRun, cases: Cases) -> None:
        if view.unsupported:
            run.status, run.message, run.unsupported = "UNSUPPORTED", view.unsupported, 1
            return
        examination = Examination(check, view, run, self)
        if check.search is not None:  # the last example that fails will be the smallest
            from qloracle_conformance.engine import searching

            plan = self.plan(check, view)
            searching.search(
                check.search(plan), examination.take, lambda: examination.failing,
                EXAMPLES[self.profile], plan.seed,
            )  # fmt: skip
        for case in cases:
            examination.take(case)
            if examination.enough:
                break
        examination.conclude()

    def plan(self, check: Check, view: View) -> Plan:
        """The plan of a check: its seed depends on the run's and on its own name."""
        own = zlib.crc32(check.id(view).encode())
        return Plan(view, self.profile, (self.seed << 32) + own)

    def ledger_runs(self, functions: Collection[str] = tuple(FUNCTIONS)) -> Iterator[CheckRun]:
        """The results of P1 to P4, which look at all calls of a function that were made so far."""
        used = {name: ledger for name, ledger in self._ledgers.items() if ledger.by_call}
        used = {name: ledger for name, ledger in used.items() if name in functions}
        for name, ledger in used.items():
            yield from ledgers.runs(name, ledger, self._answers, self.reduced, self.seed)
        again, late = self.caller.settle()
        for calls, kind in ((again, "again"), (late, "late")):
            for call in calls:
                if call in self._function_of:  # else it was made early, and dropped
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
            answer = self._bare_call(self.scope.accepted(candidate))
            outcome = judge(candidate, answer.values) if answer.status == "OK" else Outcome(0)
            if outcome.first is None:
                return None
            state.case, state.values, state.mismatch = candidate, answer.values, outcome.first
            return outcome.first.index

        known = self._small.setdefault(f"{case.function}[{case.quant_type}]", [])
        book = {n: array for n, array in case.arrays.items() if n == "codebook"}  # this case's own
        hints = [small.with_arrays(**book) for small in known if small.form == case.form]
        with contextlib.suppress(LoadError):  # if it dies on the way, what we have must do
            reduce.reduce(case, mismatch.index, fails, hints[:3])
        known.insert(0, state.case)
        state.case = self.scope.accepted(state.case)  # the call as it was made
        return state
