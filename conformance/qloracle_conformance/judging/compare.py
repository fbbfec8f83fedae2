"""Comparisons, element by element: each one exact, within its band, or wrong.

A judge takes a case, the results that came back and the view under which they are judged, and
returns an Outcome.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.expected import Blocks, Float32
from qloracle_conformance.judging.expected import blocks_of as lay_blocks
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

Values = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Mismatch:
    """One wrong element: where, what came, what was expected, and why."""

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
        text = f"{self.result}[{self.index}] is {self.got}, expected {self.expected}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Wrong:
    """The wrong elements of one result: flat indices among `size`.

    For codes also the expected level of each, by its rank, and the code that came.
    """

    result: str
    size: int
    at: NDArray[np.intp]
    expected: NDArray[np.int64] | None = None
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

    def __add__(self, other: "Outcome") -> "Outcome":
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


def exact(
    name: str, got: NDArray[Any], expected: NDArray[Any], why: str | Callable[[int], str] = ""
) -> Outcome:
    """Every element equal by value (zeros whatever their sign, NaN only where NaN is expected)."""
    if got.size != expected.size:
        return NOTHING  # the form check (P1) reports it; nothing here can be compared
    got, expected = got.reshape(-1), expected.reshape(-1)
    if got.dtype == expected.dtype and got.tobytes() == expected.tobytes():
        return Outcome(got.size)
    with np.errstate(all="ignore"):  # a signalling NaN
        ours, theirs = (
            v if v.dtype == np.float32 else v.astype(np.float64) for v in (got, expected)
        )
        bad = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
    if not bad.any():
        return Outcome(got.size)
    at = np.flatnonzero(bad)
    i = int(at[0])
    error = abs(float(got[i]) - float(expected[i]))
    reason = why if isinstance(why, str) else why(i)
    first = Mismatch(name, i, show(got[i]), show(expected[i]), reason, 0.0, error)
    return Outcome(got.size, at.size, first, where=Wrong(name, got.size, at))


def blocks_of(case: Case, view: View) -> Blocks:
    """The blocks into which a case's array or shape falls."""
    return lay_blocks(case.shape, case.option("blocksize"), view.dialect.get("layout", "flat"))


def under_its_map(case: Case, view: View) -> View:
    """The view with the levels of the codebook that a case passes in."""
    levels = case.arrays.get("codebook", view.levels)
    return view if levels is view.levels else replace(view, levels=levels)


def own_scales(got: NDArray[Any], expected: Float32) -> Float32:
    """The implementation's own scales; the expected one where its own is negative or not finite."""
    if got.size != expected.size:
        return expected
    with np.errstate(all="ignore"):
        own = got.reshape(-1).astype(np.float32)
    return np.where(np.isfinite(own) & (own >= 0), own, expected)
