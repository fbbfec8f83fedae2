"""Which mutant does a failure look like?  The one that returns the same wrong results.

Every mutant of the catalogue is called with the failing inputs.  One that returns, on the smallest
of them, the very result that the implementation returned is a likely cause; among several, those
that agree on most of the other failing inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qloracle_conformance.calling.calls import Calls
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.forms import VIEWS
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.compare import Values

MOST_NAMED = 3


def likely(run: CheckRun) -> list[str]:
    """Tell the stories of the mutants that match best, at most three."""
    from qloracle_conformance.mutants import story

    failure = run.failure
    if failure is None or not failure.values:
        return []
    case, form = failure.case, run.rule == "P1"
    judged = _judged(case.function, failure.mismatch.result)
    first = [m for m in _candidates(case) if _same(m, case, failure.values, judged, form)]
    scores = {m: sum(_same(m, c, v, judged, form) for c, v in failure.others) for m in first}
    best = max(scores.values(), default=0)
    return [story(m) for m in first if scores[m] == best][:MOST_NAMED]


def _candidates(case: Case) -> list[Any]:
    """Mutants of the function; views are the business of those on tensors, and nothing else is."""
    from qloracle_conformance.mutants import MUTANTS, here

    offering = [mutant for mutant in MUTANTS if hasattr(mutant, case.function) and here(mutant)]
    return [m for m in offering if (m.arrays != "numpy") == (case.form in VIEWS)]


def _judged(function: str, result: str) -> list[int]:
    """The results that the failing check judges: the one it names, or all of them."""
    names = FUNCTIONS[function].results
    wanted = names[0] if result == "code" else result
    return [i for i, name in enumerate(names) if name == wanted] or list(range(len(names)))


def _same(mutant: Any, case: Case, values: Values, judged: list[int], form: bool) -> bool:
    """Whether the mutant returns the same judged results (the same form, if that is judged)."""
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    got = Calls(mutant).perform(replace(case, arrays=arrays)).values
    return bool(got) and all(_equal(case, got[i], values[i], form) for i in judged)


def _equal(case: Case, got: np.ndarray, other: np.ndarray, form: bool) -> bool:
    if got.size != other.size or (form and (got.dtype, got.shape) != (other.dtype, other.shape)):
        return False
    settled = MEMBERS[case.function].settled
    a, b = settled(case, got.reshape(-1)), settled(case, other.reshape(-1))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
