"""Derived error bounds: how far a lawful result may lie from the exact value.

Rules S8 to S11 derive them, all from one line of analysis.  A floating-point operation returns its
exact result times (1 + d), |d| <= u, or is off by half a subnormal step where it underflows.  So a
chain of k roundings, in any order, is off by at most gamma_k = k u / (1 - k u) of the sum of
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1).  What
remains is to count.  A result of type T is then rounded once more::

    bound = E + u_T (|exact| + E) + tiny_T

where E is what accumulation may cost and tiny_T is half the smallest subnormal of T.  If nothing
that is not zero was added up, the bound is zero, and zero is demanded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.judging.compare import NOTHING, Mismatch, Outcome, Wrong
from qloracle_conformance.judging.text import show

Float64 = NDArray[np.float64]

U = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # unit roundoffs
TINY = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
UNDERFLOW = 2.0**-149  # what a float32 product or sum may lose below the normal numbers
FLOAT16_INFINITE = 65520.0  # from here on float16 rounds to infinity


class Bounded(NamedTuple):
    """The exact value of each element, and how far a result may lie from it."""

    exact: Float64
    bound: Float64


def gamma(k: Any, u: float = U["float32"]) -> Any:
    """The relative cost of k roundings.

    >>> gamma(1) > 2.0**-24, float(gamma(4096)) / 2.0**-12
    (True, 1.0002442002442002)
    """
    return k * u / (1 - k * u)


def rounded(exact: Float64, error: Float64, dtype: str) -> Bounded:
    """Add the last rounding, to the result's type, to what accumulation may cost."""
    bound = error + U[dtype] * (np.abs(exact) + error) + TINY[dtype]
    return Bounded(exact, np.where((error == 0) & (exact == 0), 0.0, bound))


def nearest(exact: Float64, dtype: str) -> Bounded:
    """Exact values that have one lawful result: the nearest number of the type, bound 0."""
    with np.errstate(all="ignore"):
        expected = exact.astype(np.float32).astype(FLOAT_TYPES[dtype])
    return Bounded(expected.astype(np.float64), np.zeros(exact.shape))


@np.errstate(all="ignore")
def within(
    name: str, got: NDArray[Any], expected: Bounded, why: Callable[[int], str] | None = None
) -> Outcome:
    """Every element within its bound, or infinite where float16 may lawfully overflow.

    Of several wrong elements the worst is shown; `why` describes the element at its flat index, by
    its row and its column if nothing else is said.
    """
    if got.size != expected.exact.size:
        return NOTHING  # the form check (P1) reports it; nothing here can be compared
    own, exact = got.reshape(-1).astype(np.float64), expected.exact.reshape(-1)
    bound = expected.bound.reshape(-1)
    error = np.abs(own - exact)
    if got.dtype == np.float16:
        beyond = np.isinf(own) & (np.sign(own) == np.sign(exact))
        error = np.where(beyond & (np.abs(exact) + bound >= FLOAT16_INFINITE), 0.0, error)
    bad = ~(error <= bound)
    ratio = np.where(bound > 0, error / bound, 0.0)
    use = float(np.max(ratio, initial=0.0, where=np.isfinite(ratio)))
    if not bad.any():
        return Outcome(got.size, use=use)
    at = np.flatnonzero(bad)
    i = int(at[np.argmax(np.nan_to_num(error[at] / bound[at], nan=np.inf, posinf=np.inf))])
    reason = why(i) if why is not None else _place(i, expected.exact.shape)
    shown = show(got.reshape(-1)[i]), show(exact[i])
    first = Mismatch(name, i, *shown, reason, float(bound[i]), float(error[i]))
    return Outcome(got.size, at.size, first, use=use, where=Wrong(name, got.size, at))


def _place(i: int, shape: tuple[int, ...]) -> str:
    """Where an element lies in a matrix; '' where there is none."""
    if len(shape) != 2:
        return ""
    return f"row {i // shape[1]}, column {i % shape[1]} of {list(shape)}"
