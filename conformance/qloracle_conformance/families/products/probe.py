"""The dialect of a product: which weights it uses, how they lie, and whether sums are truncated."""

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.products import inputs
from qloracle_conformance.families.products.s09_products import judge_only_result
from qloracle_conformance.judging.asking import Asker, Found
from qloracle_conformance.judging.views import View

ROWS = 64  # asked at once: rules S9 and S10 ask again with few


def forward(ask: Asker, view: View) -> Found:
    """Layout of the weights, their type, how products are summed, what becomes of the bias."""
    return weights(ask, view) | sums(ask, view) | bias(ask, view)


def backward(ask: Asker, view: View) -> Found:
    """The same; a gradient has no bias."""
    return weights(ask, view) | sums(ask, view)


def weights(ask: Asker, view: View) -> Found:
    """Name the order of nibbles, the layout of blocks and the weights' type that explain y."""
    size = ask.blocksize(view)
    ragged, even = (3, 2 * size - 1), (64, 2 * size)  # six blocks, however they lie; for the choosy
    fields = ("nibble_order", "layout", "product_weights")
    for shape in (ragged, even):
        cases = _showing(ask, view, shape)
        if ask.values(cases[0]) is not None:
            return ask.explain(view, fields, cases, judge_only_result, unnamed=fields[-1])
    return {}


def _showing(ask: Asker, view: View, shape: tuple[int, int]) -> list[Case]:
    """One-hot rows over a layer all of whose blocks differ, and differences of weights."""
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


def bias(ask: Asker, view: View) -> Found:
    """A bias of 1 + 2^-12 less a product of 1 is 2^-12, or 0 if the bias is rounded to 16 bits."""
    size, dtype = ask.blocksize(view), ask.dtype(view, "bfloat16", "float16")
    weight = inputs.even_layer(view, (64, 2 * size), size)
    row = -inputs.units(2 * size, np.arange(1), dtype)
    added = np.full(64, 1 + 2.0**-12, np.float32)
    case = inputs.call(view, row, weight, "a bias less a product", added)
    return ask.explain(view, ["bias_type"], [case], judge_only_result)


def sums(ask: Asker, view: View) -> Found:
    """1 + 1.5 * 2^-24 is 1 + 2^-23 when it is rounded, and 1 when it is truncated."""
    size = ask.blocksize(view)
    if ask.dtype(view) != "float32":
        return {}
    columns = 2 * size
    weight = inputs.even_layer(view, inputs.facing(view, columns, 64), size)
    rows = np.zeros((ROWS, columns), np.float32)
    places = np.arange(ROWS)
    rows[places, places % columns] = 1
    rows[places, (places + 1 + places // 8) % columns] = 1.5 * 2.0**-24
    case = inputs.call(view, rows, weight, "a sum that rounds up")
    got = ask.first(case)
    if got is None or view.levels.max() != 1 or not (got == 1).all():
        return {}
    return {"accumulate": ("truncated", f"1 + 1.5 * 2^-24 is 1 in {got.size} sums")}
