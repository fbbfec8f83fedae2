"""Smaller neighbours of a failing step of Adam: an element or two, no state, rounder numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.adam.inputs import ZERO_CODES, fresh
from qloracle_conformance.judging.numbers import in_float32, rounder

ELEMENTS = ("param", "grad", "m", "v", "m_codes", "v_codes")
SCALES = ("m_absmax", "v_absmax")
SIMPLER: dict[str, tuple[Any, ...]] = {"step": (1, 2, 10), "lr": (1.0, 0.5, 0.125, 0.1)}
FEW = 4  # elements whose numbers are made rounder


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a call, the boldest first; `index` is an element's, or a block's."""
    yield from _pairs(case, index)
    yield from _cut(case, index)
    yield from _plain_options(case)
    yield from _without(case)
    yield from in_float32(case)
    if case.arrays["param"].size <= FEW:
        yield from _rounder(case)


def _pairs(case: Case, index: int) -> Iterator[Case]:
    """Eight bits: a gradient beside a large one, from nothing; the element beside its largest."""
    grad = case.arrays["grad"].reshape(-1)
    if "m_codes" not in case.arrays or grad.size <= 2 or index >= grad.size:
        return
    if "m_codebook" not in case.arrays:
        for small in (0, grad[index]):
            pair = np.array([1, small], grad.dtype)
            param = np.zeros(2, case.arrays["param"].dtype)
            yield Case(case.function, {"param": param, "grad": pair, **fresh(2)}, case.options)
    size = case.option("blocksize")
    start = index - index % size
    lead = start + int(np.argmax(np.abs(grad[start : start + size])))
    names = [name for name in ELEMENTS if name in case.arrays]
    both = {name: case.arrays[name].reshape(-1)[[lead, index]] for name in names}
    one = _span(case, index, index + 1).arrays
    yield case.with_arrays(**both, **{name: one[name] for name in SCALES})


def _cut(case: Case, index: int) -> Iterator[Case]:
    """The element alone, its block, a half, all but the first or the last; flat."""
    n, size = case.arrays["param"].size, case.options.get("blocksize", 256)
    block = index // size * size
    spans = [(index, 1), (block, size), (index * size, size), (0, n // 2), (n // 2, n), (1, n)]
    for start, length in (*spans, (0, n - 1)):
        part = _span(case, start, min(start + length, n))
        if part.arrays["param"].size < n and part.arrays["param"].size:
            yield part
    if case.arrays["param"].ndim != 1 and n:
        yield _span(case, 0, n)


def _span(case: Case, start: int, stop: int) -> Case:
    """Some elements of a call, flat; an 8-bit state keeps as many scales as they fill blocks."""
    size = case.options.get("blocksize", 256)
    blocks = -(-max(stop - start, 0) // size)
    names = [name for name in ELEMENTS if name in case.arrays]
    parts = {name: case.arrays[name].reshape(-1)[start:stop].copy() for name in names}
    first = start // size
    for name in SCALES:
        if name in case.arrays:
            scale = case.arrays[name][first : first + blocks]
            parts[name] = np.resize(scale, blocks) if scale.size else scale
    return case.with_arrays(**parts)


def _plain_options(case: Case) -> Iterator[Case]:
    """Fewer options, and plainer ones."""
    for name in set(case.options) - {"step", "lr"}:
        options = {key: value for key, value in case.options.items() if key != name}
        yield Case(case.function, case.arrays, options, case.note, case.form)
    for name, values in SIMPLER.items():
        for value in values:
            if value == case.options[name]:
                break
            yield case.with_options(**{name: value})


def _without(case: Case) -> Iterator[Case]:
    """Without a state, a gradient, a parameter; states under a scale of 1."""
    for name in ("m", "v", "param", "grad"):
        array = case.arrays.get(name)
        if array is not None and array.any():
            yield case.with_arrays(**{name: np.zeros_like(array)})
    for kind, code in ZERO_CODES.items():
        codes, scale = (case.arrays.get(f"{kind}_{part}") for part in ("codes", "absmax"))
        if codes is None or scale is None or f"{kind}_codebook" in case.arrays:
            continue
        if (codes != code).any():
            yield case.with_arrays(**{f"{kind}_codes": np.full_like(codes, code)})
        if scale.any():
            yield case.with_arrays(**{f"{kind}_absmax": np.zeros_like(scale)})
        if (scale != 1).any() and scale.any():
            yield case.with_arrays(**{f"{kind}_absmax": np.ones_like(scale)})


def _rounder(case: Case) -> Iterator[Case]:
    """One number replaced by a simpler one; v stays above zero."""
    for name in ("param", "grad", "m", "v", *SCALES):
        for part in rounder(case.arrays.get(name, np.zeros(0, np.float32))):
            if name[0] != "v" or (part >= 0).all():
                yield case.with_arrays(**{name: part})
