"""One check on one view: take its cases, count, control, and conclude with a status."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qloracle_conformance.calling.calls import Calls
from qloracle_conformance.contract.cases import Answer, Case
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.maps import ErrorMap, error_map
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values, exact
from qloracle_conformance.judging.views import Finding, View

if TYPE_CHECKING:
    from qloracle_conformance.engine import Engine

FAILING_CASES = 6  # after so many failing cases a check has said enough
FAKES = ("zeros", "constant", "shuffled")


class Examination:
    """The judging of one check."""

    def __init__(self, check: Check, view: View, run: CheckRun, engine: "Engine") -> None:
        self.check, self.view, self.run, self.engine = check, view, run, engine
        self.failing = False  # how the last case went
        self._failures: list[tuple[Case, Values, Outcome]] = []
        self._stopped = False
        self._blind = set(FAKES)
        self._constants: dict[int, Any] = {}

    @property
    def enough(self) -> bool:
        """True when more cases would say nothing new."""
        return self._stopped or len(self._failures) >= FAILING_CASES

    def take(self, case: Case) -> None:
        """Call, judge and count one case."""
        run, self.failing = self.run, False
        if self.engine.scope.outside(case):
            run.unsupported += 1
            return
        answer = self.engine.call(case)
        if answer.status == "UNSUPPORTED":
            run.unsupported += 1
            run.message = run.message or answer.message
            return
        if answer.status != "OK" and self._fails_plainly(case):
            return
        run.cases += 1
        if answer.status != "OK":
            self._refused(case, answer)
            return
        self._count(case, answer.values, self._judge(case, answer.values))
        self._control(case, answer.values)

    def _judge(self, case: Case, values: Values) -> Outcome:
        """The check's judgement; a form answers only for what is right in the plain form."""
        outcome = self.check.judge(case, values, self.view)
        if outcome.first is not None and self._fails_plainly(case):
            return Outcome(0)
        return outcome

    def _fails_plainly(self, case: Case) -> bool:
        """Whether a case that fails in a form of P5 fails in the plain form, too."""
        if not case.form:
            return False
        plain = self.engine.call(replace(case, form=""))
        return plain.status != "OK" or bool(self.check.judge(case, plain.values, self.view).wrong)

    def _count(self, case: Case, values: Values, outcome: Outcome) -> None:
        run = self.run
        if hasattr(self.engine.second, case.function) and self.check.directed:
            outcome += self._second_opinion(case, values)
        run.comparisons += outcome.compared
        run.wrong += outcome.wrong
        run.band += outcome.band
        run.recorded += outcome.recorded
        run.use = max(run.use, outcome.use)
        if outcome.first is not None:
            self.failing = True
            self._failures.append((case, values, outcome))

    def _second_opinion(self, case: Case, values: Values) -> Outcome:
        """The second oracle's results, element by element; nothing may differ."""
        second = Calls(self.engine.second).perform(case)
        if second.status != "OK":
            text = f"the second oracle: {second.message}"
            return Outcome(0, 1, Mismatch("second oracle", 0, text, "results"))
        outcome = Outcome(0)
        names = FUNCTIONS[case.function].results
        for name, got, other in zip(names, values, second.values, strict=True):
            outcome += exact(f"{name} (second oracle)", got, other, "exact rational arithmetic")
        return outcome

    def _refused(self, case: Case, answer: Answer) -> None:
        """A call that raised, hung or crashed is a status of its own; the first one is told."""
        self.failing = True
        if self.run.status not in ("CRASH", "TIMEOUT"):
            self.run.status, self.run.message = answer.status, answer.message
            told = Mismatch("call", 0, answer.message, "a result")
            self.run.failure = Failure(self.engine.scope.accepted(case), (), told)
        self._stopped = answer.status != "ERROR" or self.check.search is None

    # ---- self-control --------------------------------------------------------------------------

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

    # ---- the conclusion ------------------------------------------------------------------------

    def conclude(self) -> None:
        """Settle the status; of the failing cases the smallest is reduced and shown."""
        run, owns = self.run, MEMBERS[self.check.function].owns
        own = (f for f in self.view.findings if owns(self.check, BY_NAME[f.field]))
        finding = next(own, None)  # the one that fails this very check: of its layer
        if self._failures:
            self._fail()
        elif run.status == "NOT_RUN":
            run.status, run.message = self._verdict(finding)
        if finding is not None:
            self._add(finding)

    def _fail(self) -> None:
        case, values, outcome = min(self._failures, key=lambda failure: failure[0].size)
        others = [(case, values) for case, values, _ in self._failures if case.size < 1 << 17]
        assert outcome.first is not None
        failure = self.engine.reduced(case, values, outcome.first, self._judge)
        self.run.failure = replace(failure, others=others, map=self._map())
        if self.run.status not in ("CRASH", "TIMEOUT"):
            self.run.status, self.run.message = "FAIL", str(failure.mismatch)

    def _map(self) -> ErrorMap | None:
        """The failing case with the most wrong elements, whole."""
        drawn = [(case, o.where) for case, _, o in self._failures if o.where is not None]
        case, wrong = max(drawn, key=lambda pair: pair[1].at.size, default=(None, None))
        if case is None or wrong is None:
            return None
        return error_map(self.engine.scope.accepted(case), wrong, self.view)

    def _verdict(self, finding: Finding | None) -> tuple[str, str]:
        """PASS only for what was compared, on data that would have shown a fault."""
        run = self.run
        if not run.comparisons and run.unsupported:
            return "UNSUPPORTED", run.message or "outside the declared limits"
        if not run.comparisons:
            return "NOT_RUN", "nothing was compared"
        if self._blind and finding is None:
            return "NOT_RUN", f"these data would accept {', '.join(sorted(self._blind))} results"
        return "PASS", ""

    def _add(self, finding: Finding) -> None:
        """A format field that differs, or a contradicted declaration, fails this check."""
        run = self.run
        said = "declared" if finding.declared else "specified"
        text = f"{finding.field} is {finding.found}, {said}: {finding.expected}"
        text += f" ({finding.evidence})"
        if finding.declare:
            text += f"; to declare it: {finding.declare}"
        if run.status == "FAIL":
            run.message = f"{run.message}. {text}"
        elif run.status in ("PASS", "NOT_RUN"):
            run.status, run.message, run.wrong = "FAIL", text, 1
