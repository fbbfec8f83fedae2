"""Rule S10 in numbers: the exact results of a LoRA layer, and how far lawful ones may lie."""

from typing import NamedTuple

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.products.bounds import OWN, products_of, rows_of, unit, weights
from qloracle_conformance.judging import bounds
from qloracle_conformance.judging.bounds import UNDERFLOW, Float64, gamma
from qloracle_conformance.judging.views import View

AFTER = 4  # roundings of the branch beside its dots: mask, s, its product, the sum
TOGETHER = 3  # of an adapter's gradient: mask, s, its product


class Layer(NamedTuple):
    """A call's matrices in float64; `kept` is the unit roundoff of 16-bit steps, 0 in float32.

    `merged` is how often W may have been rounded in a merged weight: 0 if it is not merged.
    """

    x: Float64
    masked: Float64
    mask: Float64
    w: Float64
    a: Float64
    b: Float64
    s: float
    u: float
    kept: float
    rounding: str
    merged: int


def layer(case: Case, view: View) -> Layer:
    """Read a call of any of the four functions."""
    arrays, dialect = case.arrays, view.dialect
    x = rows_of(arrays["x"])
    mask = rows_of(arrays["dropout_mask"]) if "dropout_mask" in arrays else np.ones(x.shape)
    dtype = arrays["x"].dtype.name
    kept = 0.0 if dtype == "float32" else bounds.U[dtype]
    twice = dialect.get("product_weights", "float32") != "float32"
    return Layer(
        x, x * mask, mask, weights(case, view), rows_of(arrays["a"]), rows_of(arrays["b"]),
        float(case.options["scaling"]), unit(dialect), kept, dialect["lora_rounding"],
        (1 + twice) * (dialect.get("lora_merged") == "yes"),
    )  # fmt: skip


def results(case: Case, view: View) -> list[tuple[Float64, Float64, str]]:
    """Of y, or of dx, dA and dB, the exact value, what accumulation may cost, and the type."""
    own, arrays = layer(case, view), case.arrays
    if "dy" not in arrays:
        y = _sums(own, own.x, own.w, own.masked, own.a, own.b)
        return [(*y, arrays["x"].dtype.name)]
    dy = rows_of(arrays["dy"])
    exact, error = _outer(own, own.masked, own.a, dy)  # of dB, transposed
    found = {
        "dy": _sums(own, dy, own.w.T, dy, own.b.T, own.a.T, own.mask),
        "a": _outer(own, dy, own.b.T, own.masked),
        "b": (exact.T, error.T),
    }
    return [(*result, arrays[name].dtype.name) for name, result in found.items()]


def _sums(
    own: Layer, rows: Float64, w: Float64, into: Float64, down: Float64, up: Float64,
    mask: Float64 | float = 1.0,
) -> tuple[Float64, Float64]:  # fmt: skip
    """rows W' + s ((into down') up') * mask, and its cost: y and dx alike."""
    h = into @ down.T  # rows, r
    exact = rows @ w.T + own.s * (h @ up.T) * mask
    base = np.abs(rows) @ np.abs(w).T
    branch = _size(own, np.abs(into) @ np.abs(down).T, np.abs(up).T) * mask
    steps = products_of(rows, w) + 1
    branch_steps = products_of(into, down).max(axis=1, keepdims=True, initial=0)
    branch_steps = branch_steps + len(own.a) + AFTER
    kept = _kept(own, base, branch, _size(own, np.abs(h), np.abs(up).T) * mask)
    if own.merged:
        steps, kept = steps + branch_steps, kept + own.kept * (own.merged * base + branch)
    return exact, _error(own, base, steps, branch, branch_steps) + kept


def _outer(own: Layer, rows: Float64, down: Float64, others: Float64) -> tuple[Float64, Float64]:
    """s (rows down')' others, and its cost: dA, and dB transposed."""
    h = rows @ down.T  # rows, r
    through = np.abs(rows) @ np.abs(down).T  # what cancels in h is rounded all the same
    size = _size(own, through.T, np.abs(others))
    steps = products_of(rows, down).max(initial=0) + products_of(through.T, others.T) + TOGETHER
    kept = _kept(own, 0 * size, size, _size(own, np.abs(h).T, np.abs(others)))
    return own.s * (h.T @ others), _error(own, 0 * size, 0 * steps, size, steps) + kept


def _size(own: Layer, left: Float64, right: Float64) -> Float64:
    """|s| times the product of two matrices of magnitudes."""
    size: Float64 = abs(own.s) * (left @ right)
    return size


def _error(
    own: Layer, base: Float64, steps: Float64, branch: Float64, branch_steps: Float64
) -> Float64:
    """What accumulation costs, underflow of a product included, and the kit's own float64 sums."""
    small = UNDERFLOW * ((base > 0) * steps + (branch > 0) * branch_steps * (1 + abs(own.s)))
    mine = OWN * (steps + branch_steps) * (base + branch)
    rounding: Float64 = gamma(steps, own.u) * base + gamma(branch_steps, own.u) * branch
    return rounding + small + mine


def _kept(own: Layer, base: Float64, branch: Float64, hidden: Float64) -> Float64:
    """What results of single steps cost that are kept in a 16-bit type."""
    masked = own.kept * branch if (own.mask != 1).any() else 0 * branch
    match own.rounding:
        case "hidden":
            return own.kept * hidden + masked
        case "separate":
            every: Float64 = own.kept * base + gamma(4, own.kept) * branch
            return every
    return 0 * base
