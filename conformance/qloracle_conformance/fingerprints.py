"""Which mutant does a failure look like?  The one that returns the same wrong results.

Every mutant of the catalogue is called with the failing inputs; one whose results are the very
results that the implementation returned, on the smallest input and on the others that were kept,
is a likely cause.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qloracle_conformance.calling import Calls
from qloracle_conformance.cases import Case
from qloracle_conformance.judging import Values
from qloracle_conformance.runs import CheckRun

MOST_NAMED = 3


def likely(run: CheckRun) -> list[str]:
    """Name the mutants whose results match, at most three, the one that matches most first."""
    from qloracle_conformance.mutants import MUTANTS

    failure = run.failure
    if failure is None or not failure.values:
        return []
    first = [m for m in MUTANTS if _same(m, failure.case, failure.values)]
    scores = {m: sum(_same(m, case, values) for case, values in failure.others) for m in first}
    best = max(scores.values(), default=0)
    return [_story(m) for m in first if scores[m] == best][:MOST_NAMED]


def _same(mutant: Any, case: Case, values: Values) -> bool:
    """True if the mutant returns exactly these results (whatever their shape) for this case."""
    if not hasattr(mutant, case.function):
        return False
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    got = Calls(mutant).perform(Case(case.function, arrays, case.options)).values
    return len(got) == len(values) and all(
        a.size == b.size and np.array_equal(a.reshape(-1), b.reshape(-1), equal_nan=True)
        for a, b in zip(got, values, strict=True)
    )


def _story(mutant: Any) -> str:
    text = (mutant.__doc__ or mutant.__name__).strip().split("\n\n")[0]
    return " ".join(text.split())
