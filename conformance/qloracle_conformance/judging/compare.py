"""Comparisons, element by element: each one exact, within its band, or wrong.

A judge takes a case, the results that came back and the view under which they are judged, and
returns an Outcome.  Codes are judged on the implementation's own absmax, so that one fault does
not show twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.expected import Blocks
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

Values = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Mismatch:
    """One wrong element: where, what came, what is due, and why."""

    result: str
    index: int
    got: str
    expected: str
    reason: str = ""
    bound: float = 0.0
    observed: float = 0.0

    @property
    def ratio(self) -> float:
        """Observed error over bound; infinite where the bound is 0."""
        return self.observed / self.bound if self.bound else float("inf")

    def __str__(self) -> str:
        text = f"{self.result}[{self.index}] is {self.got}, due {self.expected}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Wrong:
    """The wrong elements of one result: flat indices among `size`.

    Of codes also the level that is due for each, by its rank, and the code that came.
    """

    result: str
    size: int
    at: NDArray[np.intp]
    due: NDArray[np.int64] | None = None
    got: NDArray[Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one comparison found: elements compared, wrong, in the band, and only recorded.

    `use` is the largest share of its bound that an element needed, where there is a bound.
    """

    compared: int
    wrong: int = 0
    first: Mismatch | None = None
    band: int = 0
    recorded: int = 0
    use: float = 0.0
    where: Wrong | None = None

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.compared + other.compared,
            self.wrong + other.wrong,
            self.first or other.first,
            self.band + other.band,
            self.recorded + other.recorded,
            max(self.use, other.use),
            self.where if self.first else other.where,
        )


NOTHING = Outcome(0)

Judge = Callable[[Case, Values, View], Outcome]


def exact(name: str, got: NDArray[Any], due: NDArray[Any], reason: str = "") -> Outcome:
    """Every element equal by value (zeros whatever their sign, NaN only where NaN is due)."""
    if got.size != due.size:
        return NOTHING  # the form check (P1) reports it; nothing here can be compared
    got, due = got.reshape(-1), due.reshape(-1)
    with np.errstate(all="ignore"):
        bad = ~(got.astype(np.float64) == due.astype(np.float64))
        bad &= ~(np.isnan(got.astype(np.float64)) & np.isnan(due.astype(np.float64)))
    if not bad.any():
        return Outcome(got.size)
    at = np.flatnonzero(bad)
    i = int(at[0])
    error = abs(float(got[i]) - float(due[i]))
    first = Mismatch(name, i, show(got[i]), show(due[i]), reason, 0.0, error)
    return Outcome(got.size, at.size, first, where=Wrong(name, got.size, at))


def blocks_of(case: Case, view: View) -> Blocks:
    """The blocks that a case's array or shape is cut into."""
    shape = case.options.get("shape")
    if shape is None:
        shape = next(iter(case.arrays.values())).shape
    size = case.options.get("blocksize", FUNCTIONS[case.function].options["blocksize"])
    return expected.blocks_of(tuple(shape), size, view.dialect.get("layout", "flat"))


def under_its_map(case: Case, view: View) -> View:
    """The view with the levels of the codebook that a case passes in."""
    levels = case.arrays.get("codebook", view.levels)
    return view if levels is view.levels else replace(view, levels=levels)
