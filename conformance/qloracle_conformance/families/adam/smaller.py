"""Smaller neighbours of a failing step of Adam: an element or two, no state, rounder numbers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam.inputs import ZERO_CODES, fresh
from qloracle_conformance.judging.smaller import (
    cut,
    in_float32,
    plainer,
    replaced,
    rounded,
    spans,
    without,
)

ELEMENTS = ("param", "grad", "m", "v", "m_codes", "v_codes")
SCALES = ("m_absmax", "v_absmax")
SIMPLER = {"step": (1, 2, 10), "lr": (1.0, 0.5, 0.125, 0.1)}
FEW = 4  # elements whose numbers are made rounder


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a call, the boldest first; `index` is an element's, or a block's."""
    yield from _pairs(case, index)
    yield from _cut(case, index)
    yield from without(case, [name for name in case.options if name not in SIMPLER])
    yield from plainer(case, SIMPLER)
    yield from _without_state(case)
    yield from in_float32(case)
    if case.arrays["param"].size <= FEW:
        for other in rounded(case, ("param", "grad", "m", "v", *SCALES)):
            if all((other.arrays[name] >= 0).all() for name in {"v", "v_absmax"} & {*other.arrays}):
                yield other


def _pairs(case: Case, index: int) -> Iterator[Case]:
    """Eight bits: a gradient beside a large one, from nothing; the element beside its largest."""
    grad = case.arrays["grad"].reshape(-1)
    if "m_codes" not in case.arrays or grad.size <= 2 or index >= grad.size:
        return
    if "m_codebook" not in case.arrays:
        for small in (0, grad[index]):
            pair = np.array([1, small], grad.dtype)
            param = np.zeros(2, case.arrays["param"].dtype)
            yield replace(case, arrays={"param": param, "grad": pair, **fresh(2)})
    size = case.option("blocksize")
    start = index - index % size
    lead = start + int(np.argmax(np.abs(grad[start : start + size])))
    both = {n: case.arrays[n].reshape(-1)[[lead, index]] for n in ELEMENTS if n in case.arrays}
    block = slice(index // size, index // size + 1)
    yield case.with_arrays(**both, **{name: case.arrays[name][block].copy() for name in SCALES})


def _cut(case: Case, index: int) -> Iterator[Case]:
    """The element alone, its block, a half, all but the first or the last; flat."""
    n, size = case.arrays["param"].size, case.options.get("blocksize", 256)
    along = dict.fromkeys(ELEMENTS, (0, 1)) | dict.fromkeys(SCALES, (0, size))
    names = [name for name in ELEMENTS if name in case.arrays]
    flat = case.with_arrays(**{name: case.arrays[name].reshape(-1) for name in names})
    block = index // size * size
    bold = (index, index + 1), (block, block + size), (index * size, index * size + size)
    yield from (cut(flat, along, *span) for span in spans(n, *bold))
    if case.arrays["param"].ndim != 1 and n:
        yield cut(flat, along, 0, n)


def _without_state(case: Case) -> Iterator[Case]:
    """Without a state, a gradient, a parameter; states under a scale of 1."""
    for name in ("m", "v", "param", "grad"):
        yield from replaced(case, name, 0)
    for kind, code in ZERO_CODES.items():
        if f"{kind}_codebook" not in case.arrays:
            yield from replaced(case, f"{kind}_codes", code)
            yield from replaced(case, f"{kind}_absmax", 0)
            if case.arrays.get(f"{kind}_absmax", np.zeros(0)).any():
                yield from replaced(case, f"{kind}_absmax", 1)
