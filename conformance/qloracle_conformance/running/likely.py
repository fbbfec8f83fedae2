"""Which mutant does a failure look like?  The one that returns the same wrong results.

Every mutant that has the failing function wrong is called with the failing inputs.  One that
returns, on the smallest of them, the very result that the implementation returned is a likely
cause; among several, those that agree on most of the other failing inputs.  All this changes no
verdict, and is sought after it.
"""

import json
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from qloracle_conformance.calling.calls import Calls
from qloracle_conformance.contract.cases import Case, bits
from qloracle_conformance.contract.protocol import FUNCTIONS, VIEWS
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.compare import Values

MOST_NAMED = 3
calls_on = cache(Calls)
KEPT = 1 << 14  # calls whose results are kept: many checks fail on the same small input


def likely(run: CheckRun) -> list[str]:
    """Tell the stories of the mutants that match best, at most three."""
    from qloracle_conformance.mutants import story

    failure = run.failure
    if failure is None or not failure.values:
        return []
    case, form, result = failure.case, run.rule == "P1", failure.mismatch.result
    names = FUNCTIONS[case.function].results
    result = names[0] if result == "code" else result
    # The results that the failing check judges: the one it names, or all of them.
    judged = [i for i, name in enumerate(names) if name == result] or list(range(len(names)))
    of_tensors = case.form in VIEWS  # views are the business of mutants on tensors, nothing else is
    mutants = [m for m in _mutants_of(case.function) if (m.arrays != "numpy") == of_tensors]
    first = [m for m in mutants if _same(m, case, failure.values, judged, form)]
    if len(first) < 2:
        return [story(m) for m in first]
    scores = {m: sum(_same(m, c, v, judged, form) for c, v in failure.others) for m in first}
    best = max(scores.values(), default=0)
    return [story(m) for m in first if scores[m] == best][:MOST_NAMED]


@cache
def _mutants_of(function: str) -> list[Any]:
    """The mutants that have this function wrong, and not from the right ones."""
    from qloracle_conformance.mutants import MUTANTS, here
    from qloracle_conformance.mutants.parts import Right

    right = getattr(Right, function, None)
    own = [mutant for mutant in MUTANTS if getattr(mutant, function, right) is not right]
    return [mutant for mutant in own if here(mutant)]


def _same(mutant: Any, case: Case, values: Values, judged: list[int], form: bool) -> bool:
    """Whether the mutant returns the same judged results (the same form, if that is judged)."""
    got = _results(mutant, _Asked(case))
    return bool(got) and all(_equal(case, got[i], values[i], form) for i in judged)


class _Asked:
    """A case by all that a call sees of it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        options = json.dumps(dict(case.options), sort_keys=True)
        self.key = case.function, options, case.form, (*case.arrays,), bits(case.arrays.values())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@lru_cache(maxsize=KEPT)
def _results(mutant: Any, asked: _Asked) -> Values:
    """What a mutant returns; it is called once with the same input."""
    case = asked.case
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    calls = calls_on(mutant)
    values = calls.perform(replace(case, arrays=arrays)).values
    calls.let_go()
    return values


def _equal(case: Case, got: np.ndarray, other: np.ndarray, form: bool) -> bool:
    if got.size != other.size or (form and (got.dtype, got.shape) != (other.dtype, other.shape)):
        return False
    settled = MEMBERS[case.function].settled
    a, b = settled(case, got.reshape(-1)), settled(case, other.reshape(-1))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
