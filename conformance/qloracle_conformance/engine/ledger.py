"""What all calls of one function show beside their values: the rules P1 to P4."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Answer, Bits, Case, bits
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun, Failure, Reduce
from qloracle_conformance.families import MEMBERS, wrong_form
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.views import View

LARGE = 1 << 16  # elements of a case that is not kept
REPEATED = 24  # calls of a function that are made once more at the end
DENSE = 8  # of its fullest calls, likewise: a sum of one term has no order

RULES = ("P1", "P2", "P3", "P4")
Sample = tuple[Case, Answer]
Answers = Callable[[Sequence[Case]], Iterator[Answer]]  # to calls made in this order


@dataclass
class Ledger:
    """The entries of one function."""

    calls: int = 0
    answered: int = 0  # calls whose inputs were looked at afterwards
    formed: int = 0  # calls whose results' form was looked at: not those of the probe
    form: tuple[Case, Values, Mismatch, View] | None = None
    wrong_forms: int = 0
    changed: tuple[Case, Values, str] | None = None
    again: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    fullest: dict[Any, tuple[int, Sample]] = field(default_factory=dict)  # by types: its numbers
    by_call: dict[int, Case] = field(default_factory=dict)
    troubles: int = 0
    last_trouble: tuple[str, str] = ("", "")

    def enter(self, case: Case, answer: Answer, view: View | None) -> None:
        """Note what a call did beside returning values."""
        self.calls += 1
        if answer.status in ("TIMEOUT", "CRASH"):
            self.troubles += 1
            self.last_trouble = answer.status, answer.message
        if answer.status != "OK":
            return
        self.answered += 1
        self.formed += view is not None
        if answer.changed_inputs and self.changed is None:
            self.changed = case, answer.values, ", ".join(answer.changed_inputs)
        wrong = wrong_form(case, answer.values, view) if view is not None else None
        self.wrong_forms += wrong is not None
        if wrong and view and (self.form is None or _plainer(case, self.form[0])):
            self.form = case, answer.values, wrong, view
        if case.size < LARGE:
            self.by_call[answer.call] = case
            if not programs.steps_in(case):  # 200 steps have repeated themselves
                self._sample(case, answer)

    def _sample(self, case: Case, answer: Answer) -> None:
        """Keep every seventh call, and of each set of types the one with most numbers.

        What is rounded in one type is exact in another, and repeats whatever a kernel does.
        """
        if self.calls % 7 == 1 or len(self.samples) < REPEATED // 2:
            self.samples.append((case, answer))
        types = tuple(array.dtype for array in case.arrays.values())
        most = self.fullest[types][0] if types in self.fullest else -1
        if _first(case).size > most and (numbers := _numbers(case)) > most:
            self.fullest[types] = numbers, (case, answer)


def rules_of(function: str) -> list[str]:
    """The rules that look at all calls of a function; there is no P3 where nothing lasts."""
    return [rule for rule in RULES if rule != "P3" or not FUNCTIONS[function].tool]


def _plainer(case: Case, other: Case) -> bool:
    """Smaller, but an empty case is the last choice: it shows little."""
    return (case.size == 0, case.size) < (other.size == 0, other.size)


def runs(
    function: str, ledger: Ledger, answers: Answers, reduced: Reduce, seed: int
) -> Iterator[CheckRun]:
    """The results of P1, P2 and P4 of one function."""
    form, inputs, repeat = (
        CheckRun(f"{rule}/{function}", rule, function, "") for rule in ("P1", "P2", "P4")
    )
    _form(ledger, form, reduced)
    _inputs(ledger, inputs)
    _repeat(ledger, repeat, answers, seed)
    yield from (form, inputs, repeat)


def _looked_at(run: CheckRun, calls: int) -> None:
    """Count the calls that a rule looked at: a pass, until a fault is found."""
    run.cases = run.comparisons = calls
    run.status = "PASS" if calls else "NOT_RUN"


def _form(ledger: Ledger, run: CheckRun, reduced: Reduce) -> None:
    _looked_at(run, ledger.formed)
    if ledger.form is None:
        return
    case, values, mismatch, view = ledger.form

    def judge(case: Case, values: Values) -> Outcome:
        wrong = wrong_form(case, values, view)
        return Outcome(1, int(wrong is not None), wrong)

    failure = reduced(case, values, mismatch, judge)
    first = failure.mismatch
    text = f"{first.result} is {first.got}, expected {first.expected}"
    run.fail(text, failure, ledger.wrong_forms)


def _inputs(ledger: Ledger, run: CheckRun) -> None:
    _looked_at(run, ledger.answered)
    if ledger.changed is not None:
        case, values, names = ledger.changed
        told = Mismatch(names, 0, "changed", "untouched")
        run.fail(f"the call changed its input {names}", Failure(case, values, told))


def _repeat(ledger: Ledger, run: CheckRun, answers: Answers, seed: int) -> None:
    """Call a sample again, in another order, and what races twice; equal calls give equal bits."""
    samples = sorted(ledger.samples, key=lambda sample: _numbers(sample[0]))
    sparse = np.random.default_rng(seed).permutation(max(len(samples) - DENSE, 0))[:REPEATED]
    dense = {id(case): (case, first) for case, first in samples[-DENSE:]}
    dense |= {id(case): (case, first) for _, (case, first) in ledger.fullest.values()}
    chosen = [*(samples[i] for i in sparse), *dense.values(), *[*dense.values()][::-1]]
    for (case, first), again in zip(chosen, answers([case for case, _ in chosen]), strict=True):
        run.cases += 1
        run.comparisons += sum(value.size for value in first.values)
        if again.status == "OK" and _bits(case, again) == _bits(case, first):
            continue
        told = Mismatch("second call", 0, again.message or "other bits", "the first call's bits")
        failure = run.failure or Failure(case, again.values, told)
        run.fail("the same call gave other bits the second time", failure, run.wrong + 1)
    if run.status == "NOT_RUN" and run.comparisons:
        run.status = "PASS"


def _bits(case: Case, answer: Answer) -> Bits:
    """The results that an equal call must give again."""
    return bits(answer.values[: MEMBERS[case.function].repeats])


def _first(case: Case) -> np.ndarray:
    return next(iter(case.arrays.values()), np.zeros(0))


def _numbers(case: Case) -> int:
    """How many values of the first array are not zero."""
    return int(np.count_nonzero(_first(case)))


def lasting(function: str, ledger: Ledger) -> CheckRun:
    """The result of P3: second readings compared with the first."""
    run = CheckRun(f"P3/{function}", "P3", function, "")
    _looked_at(run, len(ledger.again))
    if ledger.late:
        case = ledger.by_call.get(ledger.late[0], next(iter(ledger.by_call.values())))
        told = Mismatch("result", 0, "changed", "as it was returned")
        text = "a result read 50 ms later, after other calls, had changed"
        run.fail(text, Failure(case, (), told), len(ledger.late))
    return run
