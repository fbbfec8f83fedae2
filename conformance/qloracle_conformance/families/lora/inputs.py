"""Calls of a LoRA layer, on a dense or a packed weight, forward and backward.

B is never zero, no row is masked whole, and s has a full mantissa wherever the data are not whole
numbers: a missing scale, a swapped matrix or a mask that is left out would not show otherwise.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.products import inputs as products
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.views import View

SCALINGS = (0.7, 1 / 3, 16 / math.sqrt(8))
RANKS = (1, 2, 4, 8, 16)
SIZES = ((64, 64), (65, 33), (127, 17), (257, 129), (40, 200), (96, 31))  # in, out


def call(
    view: View, x: NDArray[Any], w: NDArray[Any], a: NDArray[Any], b: NDArray[Any], s: float,
    note: str, *, dy: NDArray[Any] | None = None, mask: NDArray[Any] | None = None,
    blocksize: int = 64,
) -> Case:  # fmt: skip
    """A call on a dense W [out, in]; of a packed one `w` holds the codes, the scales are a ramp."""
    arrays, options = {"x": x, "a": a, "b": b}, {"scaling": float(s)}
    if "qlora" in view.function:
        scales = np.ldexp(np.float32(1), np.arange(w.size // 32 + w.shape[0] + 1) % 3 - 1)
        weight, more = products.layer(view, w.astype(np.uint8), scales, w.shape, blocksize)
        arrays, options = arrays | dict(weight), options | more
    else:
        arrays["w"] = w
    if products.backward(view):
        arrays["dy"] = x[..., :1].repeat(w.shape[0], -1) if dy is None else dy
    if mask is not None:
        arrays["dropout_mask"] = mask
    return Case(view.function, arrays, options, note)


def plain(ask: Asker, view: View) -> Case:
    """A call that every implementation of the function should take: one row of ones."""
    type_, blocksize = FLOAT_TYPES[ask.dtype(view)], ask.blocksize(view)
    w = np.zeros((64, blocksize), np.uint8 if "qlora" in view.function else type_)
    a, b = np.ones((1, blocksize), type_), np.ones((64, 1), type_)
    return call(view, np.ones((1, blocksize), type_), w, a, b, 1.0, "plain", blocksize=blocksize)


def mask_of(rng: np.random.Generator, x: NDArray[Any], p: float) -> NDArray[Any]:
    """Entries 0 or 1 / (1 - p) in the type of x; of each row the first entry stays."""
    kept = rng.random(x.shape) >= p
    kept[..., :1] = True
    return (kept / (1 - p)).astype(x.dtype)


def shapes(plan: Plan) -> Iterator[Case]:
    """Ordinary data: ranks, scalings, masks, leading axes; adapters in the type of x or float32."""
    rng, view = plan.rng, plan.view
    leading = ((1,), (2,), (16,), (3, 5), (33,), (2, 1, 4))
    for i in range(plan.pick(6, 60)):
        into, out = SIZES[i % len(SIZES)]
        for j, dtype in enumerate(FLOAT_TYPES):
            rank = RANKS[(i + j) % len(RANKS)]
            adapter = dtype if (i + j) % 2 else "float32"
            lead = leading[(i + 2 * j) % len(leading)]
            s = SCALINGS[(i + j) % 3]
            p = (None, 0.1, 0.5)[(i // 2 + j) % 3]
            yield ordinary(rng, view, (*lead, into), out, rank, (dtype, adapter), s, p)
    for dtype in FLOAT_TYPES:  # no rank is too large: 16 is above both sides of the layer
        yield ordinary(rng, view, (3, 5), 7, 16, (dtype, "float32"), SCALINGS[0], 0.5)


def ordinary(
    rng: np.random.Generator, view: View, shape: tuple[int, ...], out: int, rank: int,
    types: tuple[str, str], s: float, p: float | None,
) -> Case:  # fmt: skip
    """Normal data; x in the first type, A and B in the second."""
    x = rng.standard_normal(shape).astype(FLOAT_TYPES[types[0]])
    dy = rng.standard_normal((*shape[:-1], out)).astype(x.dtype)
    w: NDArray[Any]
    if "qlora" in view.function:
        w = rng.integers(0, view.levels.size, (out, shape[-1]))  # codes
    else:
        w = (rng.standard_normal((out, shape[-1])) / 8).astype(x.dtype)
    a = (rng.standard_normal((rank, shape[-1])) / 4).astype(FLOAT_TYPES[types[1]])
    b = rng.standard_normal((out, rank)).astype(FLOAT_TYPES[types[1]])
    note = f"x {types[0]}{list(shape)}, out {out}, r {rank}, A {types[1]}, p {p}"
    mask = None if p is None else mask_of(rng, x, p)
    return call(view, x, w, a, b, s, note, dy=dy, mask=mask)


def integers(plan: Plan) -> Iterator[Case]:
    """Whole numbers and powers of two: no step rounds, in float32 nor in 16 bits."""
    rng, view = plan.rng, plan.view
    for i in range(plan.pick(4, 24)):
        wide = (257, 65, RANKS[i % 5], (33,), 15, 3), (1025, 17, RANKS[i % 5], (1,), 15, 3)
        narrow = (12, 5, min(RANKS[i % 5], 2), (4,), 2, 1)
        yield whole(rng, view, wide[i % 2], "float32", i % 2 == 1)
        yield from (whole(rng, view, narrow, dtype, i % 2 == 0) for dtype in FLOAT_TYPES)


def whole(
    rng: np.random.Generator, view: View, sizes: tuple[Any, ...], dtype: str, masked: bool
) -> Case:
    """x up to `most`, all other matrices up to `few`, s = 1/2, mask entries 0 and 2."""
    into, out, rank, lead, most, few = sizes
    type_ = FLOAT_TYPES[dtype]

    def drawn(shape: tuple[int, ...], limit: int) -> NDArray[Any]:
        return rng.integers(-limit, limit + 1, shape).astype(type_)

    x, dy = drawn((*lead, into), most), drawn((*lead, out), few)
    w: NDArray[Any] = drawn((out, into), few)
    if "qlora" in view.function:
        w = rng.choice(products.whole_codes(view), (out, into))
    a, b = drawn((rank, into), few), drawn((out, rank), few)
    b[0, 0] = a[0, 0] = 1
    mask = mask_of(rng, x, 0.5) if masked else None
    note = f"whole numbers, {dtype} {[*lead, into]}, out {out}, r {rank}"
    return call(view, x, w, a, b, 0.5, note, dy=dy, mask=mask)


def rounding(plan: Plan) -> Iterator[Case]:
    """Sums in 16 bits in which only what a step has rounded is left, at several places."""
    for dtype in ("bfloat16", "float16"):
        for step in ("hidden", "base"):
            for rows in (1, 16):
                yield leftover(plan.view, dtype, step, rows)


def leftover(view: View, dtype: str, step: str, rows: int = 1, columns: int = 64) -> Case:
    """q = (1 + e)^2 needs twice the bits of T: q - T(q) = e^2 is the result, or 0 if q was rounded.

    `hidden`: two hidden numbers, q and T(q), whose difference B takes; `base`: q comes from W and
    the branch takes T(q) off.
    """
    type_ = FLOAT_TYPES[dtype]
    e = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    back, out = products.backward(view), columns
    x, dy = np.zeros((rows, columns)), np.zeros((rows, out))
    a, b, w = np.zeros((2, columns)), np.zeros((out, 2)), np.zeros((out, columns))
    if step == "base":
        (dy if back else x)[:, 0] = 1 + e
        w[0, 0], a[0, 0], b[0, 0] = 1 + e, -1, 1  # the branch: -(1 + e) and, through the next, -e
        (dy if back else x)[:, 1] = e
        if back:
            b[1, 0] = 1
        else:
            a[0, 1] = -1
    elif back:  # dB = s dy' h: two rows of x whose hidden numbers are q and T(q)
        x, dy = np.zeros((2 * rows, columns)), np.zeros((2 * rows, out))
        x[0, 0], x[1, 1:3], dy[:2, 0] = 1 + e, (1 + e, e), (1, -1)
        a[0, :3], b[0, 0] = (1 + e, 1, 1), 1
    else:
        x[:, 0], x[:, 1] = 1 + e, e
        a[0, 0], a[1, 0], a[1, 1], b[0] = 1 + e, 1, 1, (1, -1)
    (dy if back else x)[:, 5] = 1  # an ordinary number elsewhere, so that zeros would not do
    w[(5, 3) if back else (3, 5)] = 1
    codes = np.where(w != 0, np.argmax(view.levels), np.argmin(np.abs(view.levels)))
    weight = codes if "qlora" in view.function else w.astype(type_)
    note = f"what {step} leaves in {dtype}, {rows} rows"
    case = call(
        view, x.astype(type_), weight, a.astype(type_), b.astype(type_), 1.0, note,
        dy=dy.astype(type_),
    )  # fmt: skip
    if "absmax" in case.arrays:  # the code of 1, times a scale of 1 + e
        case = case.with_arrays(absmax=np.full_like(case.arrays["absmax"], expected.f32(1 + e)[0]))
    return case


def edits(plan: Plan) -> Any:
    """Hypothesis: small layers, whole numbers or ordinary ones, any mask, rank and scaling."""
    from hypothesis import strategies as st

    return st.builds(
        lambda *drawn: _drawn(plan.view, *drawn),
        st.integers(0, 3), st.integers(1, 70), st.integers(1, 40), st.sampled_from(RANKS),
        st.sampled_from(products.ROWS), st.sampled_from(tuple(FLOAT_TYPES)), st.booleans(),
        st.sampled_from(SCALINGS), st.sampled_from((None, 0.5, 0.1)), st.booleans(),
    )  # fmt: skip


def _drawn(
    view: View, seed: int, into: int, out: int, rank: int, rows: int, dtype: str,
    own: bool, s: float, p: float | None, exact: bool,
) -> Case:  # fmt: skip
    rng = np.random.default_rng(seed)
    if exact:
        return whole(rng, view, (into, out, rank, (rows,), 2, 1), "float32", p is not None)
    types = (dtype, dtype if own else "float32")
    return ordinary(rng, view, (rows, into), out, rank, types, s, p)
