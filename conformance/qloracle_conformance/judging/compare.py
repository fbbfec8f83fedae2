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
from qloracle_conformance.contract.dialects import BANDS, Dialect
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.judging import expected as oracle
from qloracle_conformance.judging.expected import Blocks, Float32
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


def show(value: Any) -> str:
    """Write a number so that it can be read and reproduced: decimal and hex float.

    >>> show(np.float32(0.1)), show(np.uint8(7))
    ('0.1 (0x1.99999a0000000p-4)', '7')
    """
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return str(int(value))
    if not np.isfinite(np.float64(value)) or float(value) == round(float(value), 3):
        return str(float(value))
    return f"{np.float32(value)!s} ({float(value).hex()})"


def exact(name: str, got: NDArray[Any], due: NDArray[Any], reason: str = "") -> Outcome:
    """Every element equal by value (zeros whatever their sign, NaN only where NaN is due)."""
    if got.size != due.size:
        return NOTHING  # the form check (P1) reports it; nothing here can be compared
    got, due = got.reshape(-1), due.reshape(-1)
    if got.dtype == due.dtype and np.array_equal(_bits(got), _bits(due)):
        return Outcome(got.size)
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


def _bits(flat: NDArray[Any]) -> NDArray[Any]:
    return flat.view(f"u{flat.itemsize}")


def blocks_of(case: Case, view: View) -> Blocks:
    """The blocks that a case's array or shape is cut into."""
    shape = case.options.get("shape")
    if shape is None:
        shape = next(iter(case.arrays.values())).shape
    size = case.options.get("blocksize", FUNCTIONS[case.function].options["blocksize"])
    return oracle.blocks_of(tuple(shape), size, view.dialect.get("layout", "flat"))


def under_its_map(case: Case, view: View) -> View:
    """The view with the levels of the codebook that a case passes in."""
    levels = case.arrays.get("codebook", view.levels)
    return view if levels is view.levels else replace(view, levels=levels)


def judge_absmax(case: Case, values: Values, view: View) -> Outcome:
    """S4: absmax is the largest magnitude of its block, exact."""
    due = oracle.absmax_of(case.arrays["x"], blocks_of(case, view), view.dialect)
    return exact("absmax", values[1], due, "the largest |x| of the block")


def judge_codes(case: Case, values: Values, view: View) -> Outcome:
    """S5: each code is the number of thresholds below x / absmax, on the own absmax."""
    x, blocks, view = case.arrays["x"], blocks_of(case, view), under_its_map(case, view)
    codes = codes_in(case, values[0], view)
    if codes is None:
        return NOTHING
    absmax = own_absmax(x, values[1], blocks, view.dialect)
    return compare_codes("code", codes, x, absmax, blocks, view)


def judge_encoded(case: Case, values: Values, view: View) -> Outcome:
    """S3: both results of a quantizer, on data whose codes no lawful rounding can move."""
    return judge_absmax(case, values, view) + judge_codes(case, values, view)


def codes_in(case: Case, raw: NDArray[Any], view: View) -> NDArray[Any] | None:
    """The codes that a result holds, unpacked where it is packed; None if the count is wrong."""
    n, flat = case.arrays["x"].size, raw.reshape(-1)
    if view.quant_type:
        if flat.size != (n + 1) // 2:
            return None
        return oracle.unpack(flat.astype(np.uint8), n, view.dialect["nibble_order"])
    return flat if flat.size == n else None


def own_absmax(x: NDArray[Any], got: NDArray[Any], blocks: Blocks, dialect: Dialect) -> Float32:
    """The implementation's absmax where it can serve; S4's where it is negative or not finite."""
    due = oracle.absmax_of(x, blocks, dialect)
    if got.size != due.size:
        return due
    with np.errstate(all="ignore"):
        own = got.reshape(-1).astype(np.float32)
    return np.where(np.isfinite(own) & (own >= 0), own, due)


def compare_codes(
    name: str, codes: NDArray[Any], x: NDArray[Any], absmax: Float32, blocks: Blocks, view: View
) -> Outcome:
    """Compare codes by the level that they name; count the band and what is only recorded."""
    if not codes.size:
        return NOTHING
    coder, dialect = view.coder, view.dialect
    q = oracle.scaled(x, absmax, blocks, dialect)
    due, got = coder.ranks(q), coder.ranks_of(codes)
    scale = absmax[blocks.index]
    due = np.where(scale == 0, coder.zero_rank(dialect.get("zero_block", "zero")), due)
    bad = got != due
    if not bad.any():
        return Outcome(codes.size)
    recorded = bad & _only_recorded(scale, blocks, dialect)
    near = bad & ~recorded & (np.abs(got - due) == 1) & oracle.band(q, coder.cuts, blocks, dialect)
    bad &= ~recorded & ~near
    outcome = Outcome(codes.size, int(bad.sum()), None, int(near.sum()), int(recorded.sum()))
    if not bad.any():
        return outcome
    at = np.flatnonzero(bad)
    i = int(at[0])
    first = Mismatch(
        name, i, show(codes.reshape(-1)[i].astype(np.uint8)), str(coder.code_of(int(due[i]))),
        _why(x.reshape(-1)[i], scale[i], q[i], coder, int(due[i])),
        0.0, abs(int(got[i]) - int(due[i])),
    )  # fmt: skip
    where = Wrong(name, codes.size, at, due[at], codes.reshape(-1)[at])
    return replace(outcome, first=first, where=where)


def _only_recorded(scale: Float32, blocks: Blocks, dialect: Dialect) -> NDArray[np.bool_]:
    """A reciprocal of a subnormal may overflow: its codes are recorded, not judged (RULES)."""
    kinds = dialect["normalisation_full"], dialect["normalisation_partial"]
    if kinds == ("divide", "divide"):
        return np.zeros(scale.shape, np.bool_)
    full = blocks.full
    inexact = np.where(full, *(kind != "divide" for kind in kinds))
    approximate = np.where(full, *(kind in BANDS for kind in kinds))
    beyond = inexact & (scale < oracle.SMALLEST_NORMAL) | approximate & (scale > 2.0**126)
    return np.asarray(beyond & (scale != 0))


def _why(x: Any, scale: Any, q: Any, coder: oracle.Coder, rank: int) -> str:
    text = f"x = {show(x)}, absmax = {show(scale)}, q = {show(q)}"
    below = f"t[{rank - 1}] = {show(coder.cuts[rank - 1])} < q" if rank else "q"
    above = f" <= t[{rank}] = {show(coder.cuts[rank])}" if rank < coder.cuts.size else ""
    return f"{text}; {below}{above}"


def judge_decoded(case: Case, values: Values, view: View) -> Outcome:
    """S7: level * absmax, one float32 rounding, then one rounding to the output type."""
    blocks, view = blocks_of(case, view), under_its_map(case, view)
    n = blocks.index.size
    if view.quant_type:
        codes = oracle.unpack(case.arrays["packed"], n, view.dialect["nibble_order"])
    else:
        codes = case.arrays["codes"].reshape(-1)
    levels, scale = view.levels[codes], case.arrays["absmax"][blocks.index]
    due = oracle.product(levels, scale, case.options.get("dtype", "float32"), view.dialect)
    outcome = exact("values", values[0], due)
    if outcome.first is None:
        return outcome
    i = outcome.first.index
    first = Mismatch(
        "values", i, outcome.first.got, outcome.first.expected,
        f"code {codes[i]}, level {show(levels[i])}, block {blocks.index[i]} of absmax "
        f"{show(scale[i])}", 0.0, outcome.first.observed,
    )  # fmt: skip
    return replace(outcome, first=first)
