"""Hypothesis, driven outside a test: draw cases, and shrink the first that fails."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisWarning
from hypothesis.internal.conjecture import providers

from qloracle_conformance.contract.cases import Case


class _Failed(Exception):
    """Tells Hypothesis that the example just tried fails."""


def search(
    strategy: st.SearchStrategy[Case],
    take: Callable[[Case], None],
    failing: Callable[[], bool],
    examples: int,
    own_seed: int,
) -> None:
    """Try examples until one fails, then shrink it; the last failing case taken is the smallest.

    The same seed draws the same cases on the command line, under pytest and in a notebook.  What
    fails only sometimes cannot be shrunk; that it has failed is known then.
    """

    @seed(own_seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        derandomize=False,
    )
    @given(strategy)
    def attempt(case: Case) -> None:
        take(case)
        if failing():
            raise _Failed

    quiet = warnings.catch_warnings(action="ignore", category=HypothesisWarning)  # large reprs
    with quiet, _no_constants_of_the_day(), contextlib.suppress(_Failed, Flaky):
        attempt()


@contextlib.contextmanager
def _no_constants_of_the_day() -> Iterator[None]:
    """Keep out the constants that Hypothesis collects from whatever modules are loaded.

    It would draw other cases under pytest than elsewhere, and leave `.hypothesis` in the user's
    folder.  There is no setting for it (6.170); where the names are others, nothing is changed.
    """
    internal: Any = providers
    if not hasattr(internal, "_get_local_constants"):
        yield
        return
    cache, none = type(internal.CONSTANTS_CACHE)(1024), internal.Constants()
    with (
        mock.patch.object(internal, "_get_local_constants", return_value=none),
        mock.patch.object(internal, "CONSTANTS_CACHE", cache),
    ):
        yield
