"""Make a failing case small, by plain greedy steps that know what the arrays mean.

Each function of the protocol has smaller neighbours: fewer elements, more zeros, rounder numbers, a
smaller block.  A neighbour that still fails is taken; when none does, the case is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import ADAPTERS, OPTIMIZERS, PACKED
from qloracle_conformance.families.adam import smaller as smaller_adam
from qloracle_conformance.families.codes import smaller as smaller_codes
from qloracle_conformance.families.nested import smaller as smaller_nested
from qloracle_conformance.families.paging import smaller as smaller_programs
from qloracle_conformance.families.products import smaller as smaller_products

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
    improved = True
    while improved:
        improved = False
        for candidate in smaller(case, index):
            calls += 1
            if calls > CALLS * share or time.monotonic() > deadline:
                return case
            found = fails(candidate)
            if found is not None:
                case, index, improved = candidate, found, True
                break
    return case


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a case, the boldest first."""
    if case.function == "make_pager":
        yield from smaller_programs.smaller(case)
    elif case.function in OPTIMIZERS:
        yield from smaller_adam.smaller(case, index)
    elif case.function in (*PACKED, *ADAPTERS):
        yield from smaller_products.smaller(case, index)
    elif case.function == "quantize_nested":
        yield from smaller_nested.smaller_state(case, index)
    elif "x" in case.arrays:
        yield from smaller_codes.smaller_x(case, index)
    elif case.function == "quantize_absmax":
        yield from smaller_nested.smaller_absmax(case, index)
    elif case.function == "dequantize_absmax":
        yield from smaller_nested.smaller_codes(case, index)
    elif "shape" in case.options:
        yield from smaller_codes.smaller_codes(case, index)
