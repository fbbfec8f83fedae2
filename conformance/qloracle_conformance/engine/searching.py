"""Hypothesis, driven outside a test: draw cases, and shrink the first that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from qloracle_conformance.cases import Case


class _Failed(Exception):
    """Tells Hypothesis that the example just tried fails."""


def search(
    strategy: st.SearchStrategy[Case],
    take: Callable[[Case], None],
    failing: Callable[[], bool],
    examples: int,
    own_seed: int,
) -> None:
    """Try examples until one fails, then shrink it; the last failing case taken is the smallest."""

    @seed(own_seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def attempt(case: Case) -> None:
        take(case)
        if failing():
            raise _Failed

    with contextlib.suppress(_Failed):
        attempt()
