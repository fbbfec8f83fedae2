"""Runs the checks of one implementation: probe, call, judge, keep what failed, reduce it.

Data flows one way: a Check yields Cases, a Caller answers them, a judge compares, and a CheckRun
holds what came of it.  Nothing is ever turned from skipped into passed.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qloracle_conformance import reduce
from qloracle_conformance.callers import Caller, LoadError
from qloracle_conformance.cases import Answer, Case
from qloracle_conformance.checks import Check, Plan, all_checks
from qloracle_conformance.judging import Mismatch, Outcome, Values
from qloracle_conformance.probe import Finding, Prober, View
from qloracle_conformance.rules.p1_form import wrong_form
from qloracle_conformance.scope import Scope

FAILING_CASES = 12  # after so many failing cases a check has said enough
TROUBLES = 2  # crashes or time-outs of one function after which it is left alone
REPEATED = 24  # calls of a function that are made once more at the end
FAKES = ("zeros", "constant", "shuffled")


@dataclass
class Failure:
    """A failing input, as small as the reducer could make it, and what came back."""

    case: Case
    values: Values
    mismatch: Mismatch
    others: list[tuple[Case, Values]] = field(default_factory=list)


@dataclass
class CheckRun:
    """The result of one check."""

    id: str
    rule: str
    function: str
    table: str
    status: str = "NOT_RUN"
    message: str = ""
    cases: int = 0
    unsupported: int = 0
    comparisons: int = 0
    wrong: int = 0
    band: int = 0
    recorded: int = 0
    failure: Failure | None = None
    seconds: float = 0.0
    known: str = ""
    looks_like: list[str] = field(default_factory=list)


@dataclass
class Ledger:
    """What all calls of one function showed beside their values: rules P1 to P4."""

    calls: int = 0
    form: tuple[Case, Values, Mismatch] | None = None
    changed: tuple[Case, Values, str] | None = None
    late: list[int] = field(default_factory=list)
    read_again: int = 0
    samples: list[tuple[Case, Answer]] = field(default_factory=list)
    by_call: dict[int, Case] = field(default_factory=dict)
    troubles: int = 0
    last_trouble: tuple[str, str] = ("", "")


class Engine:
    """Judges one implementation."""

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
    ):
        self.caller, self.profile, self.seed = caller, profile, seed
        self.scope = Scope(caller.declared.get("limits", {}), caller.offers)
        self.declared = dict(caller.declared.get("dialect", {})) | (declared or {})
        self.ledgers: dict[str, Ledger] = {}
        self.views: list[View] = []
        self._only, self._searching, self._reducing = only, searching, reducing
        self._small: dict[str, list[Case]] = {}

    # ---- calls ---------------------------------------------------------------------------------

    def call(self, case: Case) -> Answer:
        """Call within the scope, and enter in the ledger what the call shows beside its values."""
        ledger = self.ledgers.setdefault(case.function, Ledger())
        if ledger.troubles >= TROUBLES:
            return Answer(ledger.last_trouble[0], message=f"after: {ledger.last_trouble[1]}")
        answer = self.caller.call(self.scope.accepted(case))
        ledger.calls += 1
        if answer.status in ("TIMEOUT", "CRASH"):
            ledger.troubles += 1
            ledger.last_trouble = answer.status, answer.message
        if answer.status == "OK":
            self._enter(ledger, case, answer)
        return answer

    def _enter(self, ledger: Ledger, case: Case, answer: Answer) -> None:
        if answer.changed_inputs and ledger.changed is None:
            ledger.changed = case, answer.values, ", ".join(answer.changed_inputs)
        view = self._view_of(case)
        if view is not None:
            wrong = wrong_form(case, answer.values, view)
            if wrong and (ledger.form is None or _plainer(case, ledger.form[0])):
                ledger.form = case, answer.values, wrong
        if case.size < 1 << 16:
            ledger.by_call[answer.call] = case
            if ledger.calls % 7 == 1:
                ledger.samples.append((case, answer))

    def _view_of(self, case: Case) -> View | None:
        fitting = [view for view in self.views if view.function == case.function]
        same = [view for view in fitting if view.table == case.quant_type]
        return (same or fitting or [None])[0]  # type: ignore[list-item]

    # ---- the run -------------------------------------------------------------------------------

    def planned(self) -> list[tuple[Check, View]]:
        """Every check on every table that it applies to and that was asked for."""
        pairs = []
        for check in all_checks():
            for view in self.views:
                fits = view.function == check.function and (
                    not check.tables or view.table in check.tables
                )
                wanted = (self._searching or check.search is None) and (
                    not check.profiles or self.profile in check.profiles
                )
                if fits and wanted and self._only(check.id(view)):
                    pairs.append((check, view))
        return pairs

    def probe(self) -> list[View]:
        """Find the dialect; the views are what everything else is judged under."""
        prober = Prober(self.call, self.caller.offers, self.scope, self.declared)
        self.views = prober.views()
        return self.views

    def run(self) -> Iterator[CheckRun]:
        """Yield the result of each check as it ends; the P rules come last, from the ledgers."""
        for check, view in self.planned():
            start = time.perf_counter()
            run = CheckRun(check.id(view), check.rule, check.function, view.table)
            try:
                self._run_check(check, view, run)
            except LoadError as error:
                run.status, run.message = "CRASH", str(error)
            run.seconds = time.perf_counter() - start
            yield run
        for function in self.ledgers:
            yield from self._ledger_runs(function)

    def plan(self, check: Check, view: View) -> Plan:
        """The plan of a check: its seed depends on the run's and on its own name."""
        own = zlib.crc32(check.id(view).encode())
        return Plan(view, self.profile, (self.seed << 32) + own)

    def _run_check(self, check: Check, view: View, run: CheckRun) -> None:
        if view.unsupported:
            run.status, run.message, run.unsupported = "UNSUPPORTED", view.unsupported, 1
            return
        finding = self._finding_for(check, view)
        judged = _Judged(check, view, run, self)
        if check.search is not None:
            self._search(check, view, judged)
        else:
            for case in check.cases(self.plan(check, view)):
                judged.take(case)
                if judged.enough:
                    break
        judged.conclude(finding)

    @staticmethod
    def _finding_for(check: Check, view: View) -> Finding | None:
        """The finding that fails this very check: the rule that owns the field."""
        return next((f for f in view.findings if _owned(check, f)), None)

    def _search(self, check: Check, view: View, judged: _Judged) -> None:
        """Let Hypothesis draw and shrink; the last failing example that it tried is the smallest."""
        from qloracle_conformance import searching

        plan = self.plan(check, view)
        assert check.search is not None
        count = {"smoke": 60, "standard": 1000}.get(self.profile, 10_000)
        searching.search(check.search(plan), judged.take, lambda: judged.failing, count, plan.seed)

    # ---- rules P1 to P4 ------------------------------------------------------------------------

    def _ledger_runs(self, function: str) -> Iterator[CheckRun]:
        ledger = self.ledgers[function]
        runs = {rule: CheckRun(f"{rule}/{function}", rule, function, "") for rule in ("P1", "P2", "P3", "P4")}
        if not ledger.by_call and ledger.form is None:
            return
        self._form(ledger, runs["P1"])
        self._inputs(ledger, runs["P2"])
        self._repeat(ledger, runs["P4"])
        self._lasting(function, runs["P3"])
        for run in runs.values():
            if self._only(run.id):
                yield run

    def _form(self, ledger: Ledger, run: CheckRun) -> None:
        run.cases = run.comparisons = ledger.calls
        run.status = "PASS"
        if ledger.form is not None:
            case, values, mismatch = ledger.form
            view = self._view_of(case)
            assert view is not None

            def judge(case: Case, values: Values) -> Outcome:
                wrong = wrong_form(case, values, view)
                return Outcome(1, int(wrong is not None), wrong)

            run.failure = self.reduced(case, values, mismatch, judge)
            run.status, run.wrong = "FAIL", 1
            run.message = _form_message(run.failure)

    def _inputs(self, ledger: Ledger, run: CheckRun) -> None:
        run.cases = run.comparisons = ledger.calls
        run.status = "PASS"
        if ledger.changed is not None:
            case, values, names = ledger.changed
            run.status, run.wrong = "FAIL", 1
            run.message = f"the call changed its input {names}"
            run.failure = Failure(case, values, Mismatch(names, 0, "changed", "untouched"))

    def _repeat(self, ledger: Ledger, run: CheckRun) -> None:
        """Call a sample again in another order; the same call must give the same bits."""
        rng = np.random.default_rng(self.seed)
        samples = ledger.samples
        order = rng.permutation(len(samples))[:REPEATED]
        for i in order:
            case, first = samples[int(i)]
            again = self.caller.call(self.scope.accepted(case))
            run.cases += 1
            run.comparisons += sum(value.size for value in first.values)
            if again.status == "OK" and again.digest == first.digest:
                continue
            run.status, run.wrong = "FAIL", run.wrong + 1
            run.message = "the same call gave other bits the second time"
            text = again.message or "other bits"
            run.failure = run.failure or Failure(
                case, again.values, Mismatch("second call", 0, text, "the first call's bits")
            )
        if run.status == "NOT_RUN" and run.comparisons:
            run.status = "PASS"

    def _lasting(self, function: str, run: CheckRun) -> None:
        ledger = self.ledgers[function]
        again, changed = self.caller.settle()
        for name, other in self.ledgers.items():
            other.late += [call for call in changed if call in other.by_call and name != function]
            other.read_again += again
        ledger.late += [call for call in changed if call in ledger.by_call]
        run.cases = run.comparisons = ledger.read_again
        run.status = "PASS" if ledger.read_again else "NOT_RUN"
        if ledger.late:
            case = ledger.by_call[ledger.late[0]]
            run.status, run.wrong = "FAIL", len(ledger.late)
            run.message = "a result read 50 ms later, after other calls, had changed"
            run.failure = Failure(case, (), Mismatch("result", 0, "changed", "as it was returned"))

    # ---- reduction -----------------------------------------------------------------------------

    def reduced(
        self, case: Case, values: Values, mismatch: Mismatch, judge: Callable[[Case, Values], Outcome]
    ) -> Failure:
        """Make a failing case small: anything smaller that still fails the same judge will do."""
        state = Failure(case, values, mismatch)
        if not self._reducing:
            return state

        def fails(candidate: Case) -> int | None:
            if self.scope.outside(candidate):
                return None
            answer = self.caller.call(self.scope.accepted(candidate))
            outcome = judge(candidate, answer.values) if answer.status == "OK" else Outcome(0)
            if outcome.first is None:
                return None
            state.case, state.values, state.mismatch = candidate, answer.values, outcome.first
            return outcome.first.index

        known = self._small.setdefault(f"{case.function}[{case.quant_type}]", [])
        try:
            reduce.reduce(case, mismatch.index, fails, _fitting(known, case))
        except LoadError:  # it died on the way and does not start again: what we have must do
            pass
        known.insert(0, state.case)
        return state


# The layer in which a format field that differs, or a contradicted declaration, is a failure.
OWNERS = {
    "codebook": "S1/levels", "map_8bit": "S1/map", "nibble_order": "S6", "layout": "S3/shapes",
    "absmax_type": "S4/scales", "zero_block": "S5/zeros", "thresholds": "S2/powers",
    "fp4_ties": "S2/powers", "normalisation_full": "S5/full", "normalisation_partial": "S5/partial",
    "input_type": "S5/16bit", "subnormal_input": "S5/extremes", "subnormal_scale": "S5/extremes",
    "subnormal_output": "S7/extremes", "decode": "S7/mantissas",
}  # fmt: skip


def _plainer(case: Case, other: Case) -> bool:
    """Smaller, but an empty case is the last choice: it shows little."""
    return (case.size == 0, case.size) < (other.size == 0, other.size)


def _owned(check: Check, finding: Finding) -> bool:
    owner = OWNERS[finding.field]
    if check.rule == "S8":  # nested scales keep all their fields in one room
        return finding.field != "map_8bit"
    return owner in (check.rule, f"{check.rule}/{check.layer}") and check.layer != "spare"


def _fitting(known: list[Case], case: Case) -> list[Case]:
    """Small failing cases of the same function, with this case's codebook."""
    book = case.arrays.get("codebook")
    return [small if book is None else small.with_arrays(codebook=book) for small in known[:3]]


class _Judged:
    """The judging of one check: takes cases, counts, and concludes with a status."""

    def __init__(self, check: Check, view: View, run: CheckRun, engine: Engine):
        self.check, self.view, self.run, self.engine = check, view, run, engine
        self.failures: list[tuple[Case, Values, Mismatch]] = []
        self.failing = False
        self.stopped = ""
        self._blind = set(FAKES)
        self._constants: dict[int, Any] = {}

    @property
    def enough(self) -> bool:
        """True when more cases would say nothing new."""
        return bool(self.stopped) or len(self.failures) >= FAILING_CASES

    def take(self, case: Case) -> None:
        """Call, judge and count one case; `failing` tells how it went."""
        run = self.run
        self.failing = False
        if self.engine.scope.outside(case):
            run.unsupported += 1
            return
        answer = self.engine.call(case)
        if answer.status == "UNSUPPORTED":
            run.unsupported += 1
            run.message = run.message or answer.message
            return
        run.cases += 1
        if answer.status != "OK":
            self._refused(case, answer)
            return
        outcome = self.check.judge(case, answer.values, self.view)
        run.comparisons += outcome.compared
        run.wrong += outcome.wrong
        run.band += outcome.band
        run.recorded += outcome.recorded
        self._control(case, answer.values)
        if outcome.wrong and outcome.first is not None:
            self.failing = True
            self.failures.append((case, answer.values, outcome.first))

    def _refused(self, case: Case, answer: Answer) -> None:
        self.failing = True
        status = answer.status
        if self.run.status not in ("CRASH", "TIMEOUT"):
            self.run.status = status
            self.run.message = answer.message
            self.run.failure = Failure(case, (), Mismatch("call", 0, answer.message, "a result"))
        if status != "ERROR" or self.check.search is None:
            self.stopped = status

    def _control(self, case: Case, values: Values) -> None:
        """Would this check, on these data, accept zeros, constants or shuffled results?"""
        for kind in sorted(self._blind):
            fake = tuple(
                self._fake(i, value, kind) if i in self.check.judged else value
                for i, value in enumerate(values)
            )
            if self.check.judge(case, fake, self.view).wrong:
                self._blind.discard(kind)

    def _fake(self, i: int, value: np.ndarray, kind: str) -> np.ndarray:
        if kind == "zeros" or not value.size:
            return np.zeros_like(value)
        if kind == "constant":  # the same constant in every case of the check
            constant = self._constants.setdefault(i, value.reshape(-1)[value.size // 2])
            return np.full_like(value, constant)
        if value.size == 1:  # one value cannot be shuffled: it is replaced by another one
            return value + value if value.any() else np.ones_like(value)
        return np.roll(value.reshape(-1), 1).reshape(value.shape)

    def conclude(self, finding: Finding | None) -> None:
        """Settle the status; the first of several failing cases that is smallest is reduced."""
        run = self.run
        if self.failures:
            small = min(self.failures, key=lambda f: f[0].size)
            others = [(c, v) for c, v, _ in self.failures if c.size < 1 << 17][:6]
            judge = lambda case, values: self.check.judge(case, values, self.view)  # noqa: E731
            failure = self.engine.reduced(*small, judge)
            run.failure = replace(failure, others=others)
            if run.status not in ("CRASH", "TIMEOUT"):
                run.status = "FAIL"
                run.message = str(failure.mismatch)
        elif run.status in ("CRASH", "TIMEOUT", "ERROR"):
            pass
        elif not run.comparisons:
            run.status = "UNSUPPORTED" if run.unsupported else "NOT_RUN"
            run.message = run.message or ("outside the declared limits" if run.unsupported else "nothing was compared")
        elif self._blind and not finding:
            run.status = "NOT_RUN"
            run.message = f"these data would accept {', '.join(sorted(self._blind))} results"
        else:
            run.status = "PASS"
        if finding is not None:
            self._add(finding)

    def _add(self, finding: Finding) -> None:
        """A format field that differs, or a contradicted declaration, fails this check."""
        run = self.run
        said = "declared" if finding.declared else "specified"
        text = f"{finding.field} is {finding.found}, {said}: {finding.expected} ({finding.evidence})"
        if finding.declare:
            text += f"; to declare it: {finding.declare}"
        if run.status == "FAIL":
            run.message = f"{run.message}. {text}"
        elif run.status in ("PASS", "NOT_RUN"):
            run.status, run.message, run.wrong = "FAIL", text, 1


def _form_message(failure: Failure) -> str:
    mismatch = failure.mismatch
    return f"{mismatch.result} is {mismatch.got}, due {mismatch.expected}"
