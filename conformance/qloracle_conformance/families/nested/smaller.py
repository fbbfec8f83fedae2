"""Smaller neighbours of a failing call on nested scales."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes.smaller import smaller_x
from qloracle_conformance.judging.smaller import cut, rounded


def _sparser(case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """As many elements, most of them zero: some libraries take whole groups of blocks only."""
    x, size = case.arrays["x"], case.options["blocksize"]
    flat = x.reshape(-1)
    first = np.arange(flat.size) == 0
    lone = [np.where(first, value, 0) for value in (1.0, 2.0**-10)]  # an ordinary one, a small one
    for kept in (*lone, *(np.where(few, flat, 0 * flat) for few in _few(flat, size, index))):
        if np.count_nonzero(kept) < np.count_nonzero(flat):
            yield kept.astype(x.dtype).reshape(x.shape)


def _few(flat: NDArray[np.floating], size: int, index: int) -> Iterator[NDArray[np.bool_]]:
    """The largest of the block, of another, of all blocks; with the wrong element; the block."""
    starts, places = np.arange(0, flat.size, size), np.arange(flat.size)
    at = [start + int(np.argmax(np.abs(flat[start : start + size]))) for start in starts]
    leads, block = np.isin(places, at), places // size == index // size
    lead, wrong = leads & block, places == index
    other = places == max(at, key=lambda i: 0 if block[i] else abs(float(flat[i])), default=0)
    yield from (lead, other, lead | wrong, lead | other, lead | other | wrong)
    yield from (block, leads, leads | block)


def smaller_state(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a round trip; first those that keep whole groups of blocks."""
    yield from (case.with_arrays(x=part) for part in _sparser(case, index))
    yield from smaller_x(case, index)


def smaller_absmax(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a call of `quantize_absmax`."""
    return smaller_x(case, index, "absmax")


def smaller_codes(case: Case, _: int) -> Iterator[Case]:
    """Smaller neighbours of a decoder's call: fewer codes and groups, simpler scales."""
    n, size = case.arrays["codes"].size, case.options["blocksize"]
    for m in sorted({1, 2, n // 2, n - size, n - 1}):
        for span in ((0, m), (n - m, n)) if 0 < m < n else ():
            yield cut(case, {"codes": (0, 1), "nested_absmax": (0, size)}, *span)
    scales = [name for name in ("nested_absmax", "offset") if case.arrays[name].size == 1]
    yield from rounded(case, scales)
