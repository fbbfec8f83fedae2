"""Make a failing case small, by greedy steps.

Each family knows the smaller neighbours of its cases: fewer elements, more zeros, rounder numbers,
a smaller block.  A neighbour that still fails is taken; when none does, the case is reported.
"""

import time
from collections.abc import Callable

from qloracle_conformance.contract.cases import Case, bits
from qloracle_conformance.families import MEMBERS

SECONDS = 2.0
CALLS = 400
OF_A_FORM = 0.2  # the share of both where a form is at fault (P5): small inputs, two calls a trial

Fails = Callable[[Case], int | None]


def reduce(case: Case, index: int, fails: Fails, hints: list[Case]) -> Case:
    """Return the smallest failing case that greedy steps find within the budget.

    `index` is the wrong element, a hint where to cut first; `fails` returns the index of a wrong
    element of a candidate, or None.  `hints` are reduced cases that failed another check: what is
    wrong there is often what is wrong here.
    """
    share = OF_A_FORM if case.form else 1.0
    deadline, calls = time.monotonic() + SECONDS * share, 0
    for hint in hints:
        if hint.size <= case.size and fails(hint) is not None:
            return hint  # it was reduced when it was found
    improved, tried = True, set[object]()
    while improved:
        improved = False
        for candidate in MEMBERS[case.function].smaller(case, index):
            key = bits(candidate.arrays.values()), tuple(candidate.arrays), repr(candidate.options)
            if key in tried:  # before the last step
                continue
            tried.add(key)
            calls += 1
            if calls > CALLS * share or time.monotonic() > deadline:
                return case
            found = fails(candidate)
            if found is not None:
                case, index, improved = candidate, found, True
                break
    return case
