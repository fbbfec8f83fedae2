"""Rule S9 in numbers: exact results of a 4-bit layer, and how far lawful ones may lie."""

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import Dialect
from qloracle_conformance.judging import bounds, expected
from qloracle_conformance.judging.bounds import UNDERFLOW, Bounded, Float64, U, gamma
from qloracle_conformance.judging.compare import blocks_of
from qloracle_conformance.judging.views import View

OWN = 2.0**-53  # the unit roundoff of the kit's own sums
TRUNCATED = 2.0**-23  # the unit roundoff of additions that truncate


def incoming(case: Case) -> NDArray[np.generic]:
    """The array that a layer is applied to: x, or the gradient dy."""
    return case.arrays["dy" if case.function.endswith("backward") else "x"]


def rows_of(array: NDArray[np.generic]) -> Float64:
    """All leading axes as one: float64 [rows, columns]."""
    columns = array.shape[-1] if array.ndim else 1
    return array.reshape(-1, columns).astype(np.float64)


def weights(case: Case, view: View) -> Float64:
    """W [out, in] as the dialect's product uses it: decoded, in float32 or in the type of x."""
    if "w" in case.arrays:
        return case.arrays["w"].astype(np.float64)
    blocks = blocks_of(case, view)
    codes = expected.unpack(case.arrays["packed"], blocks.index.size, view.dialect["nibble_order"])
    how, dtype = view.dialect["product_weights"], incoming(case).dtype.name
    decode = {"decode": "output_type" if how == "own_factors" else "separate"}
    scale = case.arrays["absmax"][blocks.index]
    value = expected.product(
        view.levels[codes], scale, "float32" if how == "float32" else dtype, decode
    )
    return value.astype(np.float64).reshape(case.options["shape"])


def operands(case: Case, view: View) -> tuple[Float64, Float64, Float64]:
    """Rows, the matrix whose rows they meet, and the bias: y = rows @ matrix.T + bias."""
    w = weights(case, view)
    matrix = w.T if case.function.endswith("backward") else w
    bias = case.arrays.get("bias", np.zeros(matrix.shape[0]))
    if view.dialect.get("bias_type") == "own":
        bias = expected.round_to(bias, incoming(case).dtype.name)
    return rows_of(incoming(case)), matrix, bias.astype(np.float64)


def product(case: Case, view: View) -> Bounded:
    """Exact value and bound of every element of y, or of dx."""
    rows, matrix, bias = operands(case, view)
    exact, error = linear(rows, matrix, bias, view.dialect)
    return bounds.rounded(exact, error, incoming(case).dtype.name)


def linear(
    rows: Float64, matrix: Float64, bias: Float64, dialect: Dialect
) -> tuple[Float64, Float64]:
    """rows @ matrix.T + bias [m, n], and what accumulation may cost, element by element."""
    u = unit(dialect)
    terms = products_of(rows, matrix)
    roundings = ordered(terms, rows.shape[1], dialect.get("order", "any")) + (bias != 0)
    size = np.abs(rows) @ np.abs(matrix).T + np.abs(bias)
    own = rows.shape[1] * OWN * size
    return rows @ matrix.T + bias, gamma(roundings, u) * size + terms * UNDERFLOW + own


def unit(dialect: Dialect) -> float:
    """The unit roundoff of one addition."""
    return TRUNCATED if dialect.get("accumulate") == "truncated" else U["float32"]


def products_of(rows: Float64, matrix: Float64) -> Float64:
    """How many products are not zero, for each element of rows @ matrix.T."""
    counted: Float64 = (rows != 0).astype(np.float64) @ (matrix != 0).T.astype(np.float64)
    return counted


def ordered(terms: Float64, k: int, order: str) -> Float64:
    """Roundings that a term meets at most, under an order of summation.

    >>> ordered(np.array([4096.0, 3.0]), 4096, "pairwise").tolist()
    [13.0, 3.0]
    """
    if order == "pairwise":
        most = float(np.ceil(np.log2(max(k, 1)))) + 1
    elif order.startswith("chunk"):
        size = int(order[6:-1])
        most = size + -(-k // size)
    else:
        return terms
    return np.minimum(terms, most)
