"""The dialect of a product: which weights it uses, how they lie, and whether sums are truncated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.products import bounds, inputs
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.views import View

ROWS = 64  # asked at once: rules S9 and S10 ask again with few


Worn = Callable[[Case], Case]


def same(case: Case) -> Case:
    """A product's call as it is."""
    return case


def forward(ask: Asker, view: View) -> Found:
    """Layout of the weights, their type, how products are summed, what becomes of the bias."""
    return weights(ask, view) | sums(ask, view) | bias(ask, view)


def backward(ask: Asker, view: View, worn: Worn = same) -> Found:
    """The same; a gradient has no bias.  `worn` makes the calls those of another function."""
    return weights(ask, view, worn) | sums(ask, view, worn)


def weights(ask: Asker, view: View, worn: Worn = same) -> Found:
    """Name the order of nibbles, the layout of blocks and the weights' type that explain y."""
    size = ask.blocksize(view)
    ragged, even = (3, 2 * size - 1), (64, 2 * size)  # six blocks, however they lie; for the choosy
    shown = _shown(ask, view, ragged, worn) or _shown(ask, view, even, worn)
    if not shown:
        return {}
    wanted = ("nibble_order", "layout", "product_weights")
    for values in itertools.product(*(BY_NAME[name].values for name in wanted)):
        trial = replace(view, dialect=view.dialect | dict(zip(wanted, values, strict=True)))
        if all(_explains(trial, case, got) for case, got in shown):
            why = f"{sum(got.size for _, got in shown):,} values of one-hot rows agree"
            return {name: (value, why) for name, value in zip(wanted, values, strict=True)}
    return {"product_weights": (UNNAMED, "one-hot rows show weights that no recipe explains")}


def _shown(
    ask: Asker, view: View, shape: tuple[int, int], worn: Worn
) -> list[tuple[Case, NDArray[np.generic]]]:
    """What comes back for one-hot rows over a layer all of whose blocks differ; and differences."""
    cases = [worn(case) for case in _showing(ask, view, shape)]
    if _values(ask, cases[0]) is None:
        return []
    return [(case, got) for case in cases if (got := _values(ask, case)) is not None]


def _showing(ask: Asker, view: View, shape: tuple[int, int]) -> list[Case]:
    size = ask.blocksize(view)
    types = [name for name in FLOAT_TYPES if ask.dtype(view, name) == name]
    columns = shape[0] if inputs.backward(view) else shape[1]
    weight = inputs.random_layer(np.random.default_rng(2), view, shape, size)
    cases = []
    for dtype in types:
        places = np.unique(np.linspace(0, columns - 1, ROWS).astype(np.intp))
        rows = inputs.units(columns, places, dtype)
        cases += [inputs.call(view, rows, weight, "one-hot")]
        cases += [inputs.differences(view, dtype, ROWS, size)]
    return cases


def _values(ask: Asker, case: Case) -> NDArray[np.generic] | None:
    got = ask.values(case)
    return None if got is None else got[0].reshape(-1)


def _explains(view: View, case: Case, got: NDArray[np.generic]) -> bool:
    correct = bounds.only_result(case, view).exact.reshape(-1)
    return got.size == correct.size and bool((got.astype(np.float64) == correct).all())


def bias(ask: Asker, view: View) -> Found:
    """A bias of 1 + 2^-12 less a product of 1 is 2^-12, or 0 if the bias is rounded to 16 bits."""
    size, dtype = ask.blocksize(view), ask.dtype(view, "bfloat16", "float16")
    top = np.full(64 * 2 * size, int(np.argmax(view.levels)), np.uint8)
    weight = inputs.layer(view, top, expected.f32(1), (64, 2 * size), size)
    row = -inputs.units(2 * size, np.arange(1), dtype)
    added = np.full(64, 1 + 2.0**-12, np.float32)
    got = _values(ask, inputs.call(view, row, weight, "a bias less a product", added))
    if got is None or dtype == "float32" or not (got == 0).all():
        return {}
    return {"bias_type": ("own", f"1 + 2^-12 less 1 is 0 in {dtype}")}


def sums(ask: Asker, view: View, worn: Worn = same) -> Found:
    """1 + 1.5 * 2^-24 is 1 + 2^-23 when it is rounded, and 1 when it is truncated."""
    size = ask.blocksize(view)
    if ask.dtype(view) != "float32":
        return {}
    columns, others = 2 * size, 64
    shape = inputs.facing(view, columns, others)
    top = np.full(shape[0] * shape[1], int(np.argmax(view.levels)), np.uint8)
    weight = inputs.layer(view, top, expected.f32(1), shape, size)
    rows = np.zeros((ROWS, columns), np.float32)
    places = np.arange(ROWS)
    rows[places, places % columns] = 1
    rows[places, (places + 1 + places // 8) % columns] = 1.5 * 2.0**-24
    case = worn(inputs.call(view, rows, weight, "a sum that rounds up"))
    got = _values(ask, case)
    if got is None or view.levels.max() != 1 or not (got == 1).all():
        return {}
    return {"accumulate": ("truncated", f"1 + 1.5 * 2^-24 is 1 in {got.size} sums")}
