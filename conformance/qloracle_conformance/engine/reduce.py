"""Make a failing case small, by plain greedy steps that know what the arrays mean.

Each function of the protocol has smaller neighbours: fewer elements, more zeros, rounder numbers, a
smaller block.  A neighbour that still fails is taken; when none does, the case is reported.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import ADAPTERS, OPTIMIZERS, PACKED
from qloracle_conformance.families.adam import smaller as smaller_adam
from qloracle_conformance.families.paging import smaller as smaller_programs
from qloracle_conformance.families.products import smaller as smaller_products
from qloracle_conformance.judging.plainer import complexity, rounder, zeroed

SECONDS = 2.0
CALLS = 400
OF_A_FORM = 0.2  # the share of both where a form is at fault (P5): small inputs, two calls a trial

Fails = Callable[[Case], int | None]


def reduce(case: Case, index: int, fails: Fails, hints: list[Case]) -> Case:
    """Return the smallest failing case that greedy steps find within the budget.

    `index` is the wrong element, a hint where to cut first; `fails` returns the index of a wrong
    element of a candidate, or None.  `hints` are reduced cases that failed another check: what is
    wrong there is often what is wrong here.
    """
    share = OF_A_FORM if case.form else 1.0
    deadline, calls = time.monotonic() + SECONDS * share, 0
    for hint in hints:
        if hint.size <= case.size and fails(hint) is not None:
            return hint  # it was reduced when it was found
    improved = True
    while improved:
        improved = False
        for candidate in smaller(case, index):
            calls += 1
            if calls > CALLS * share or time.monotonic() > deadline:
                return case
            found = fails(candidate)
            if found is not None:
                case, index, improved = candidate, found, True
                break
    return case


def smaller(case: Case, index: int) -> Iterator[Case]:
    """Smaller neighbours of a case, the boldest first."""
    if case.function == "make_pager":
        yield from smaller_programs.smaller(case)
        return
    if case.function in OPTIMIZERS:
        yield from smaller_adam.smaller(case, index)
        return
    if case.function in (*PACKED, *ADAPTERS):
        yield from smaller_products.smaller(case, index)
        return
    if case.function == "quantize_nested":
        yield from (case.with_arrays(x=part) for part in _sparser(case, index))
    if "x" in case.arrays:
        yield from _smaller_x(case, "x", index)
    elif case.function == "quantize_absmax":
        yield from _smaller_x(case, "absmax", index)
    elif case.function == "dequantize_absmax":
        yield from _smaller_nested(case)
    elif "shape" in case.options:
        yield from _smaller_decode(case)


# ---- quantizers ----------------------------------------------------------------------------------


def _smaller_x(case: Case, name: str, index: int) -> Iterator[Case]:
    x = case.arrays[name]
    flat = x.reshape(-1)
    if name == "x":
        yield from (case.with_arrays(x=pair) for pair in _pairs(flat, case, index))
    if x.ndim != 1 and flat.size:
        yield case.with_arrays(**{name: flat.copy()})
        yield from (case.with_arrays(**{name: part}) for part in _narrowed(x))
    if x.size > 1:
        yield from (case.with_arrays(**{name: part}) for part in _cuts(flat, case, index))
    yield from (case.with_arrays(**{name: part}) for part in zeroed(x))
    if x.dtype != np.float32:
        yield case.with_arrays(**{name: x.astype(np.float32)})
    if case.options.get("blocksize", 64) not in (32, 64) and name == "x":
        yield case.with_options(blocksize=64)
    yield from (case.with_arrays(**{name: part}) for part in rounder(x))


def _pairs(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """The wrong element alone, beside its block's largest, and that in a full block; at scale 1."""
    size = case.options.get("blocksize", 64)
    if index >= flat.size:
        return
    block = flat[index // size * size :][:size]
    lead = block[np.argmax(np.abs(block))]
    one = np.ones((), flat.dtype)
    for pair in ([flat[index]], [one, 0 * one], [lead, 0 * one], [lead, flat[index]]):
        small = np.array(pair, flat.dtype)
        if small.size < np.count_nonzero(flat) or small.size < flat.size:
            yield small
    padded = np.zeros(size, flat.dtype)
    padded[:2] = lead, flat[index]
    if size < flat.size or np.count_nonzero(padded) < np.count_nonzero(flat):
        yield padded


def _sparser(case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """As many elements, most of them zero: some libraries take whole groups of blocks only."""
    x, size = case.arrays["x"], case.options["blocksize"]
    flat = x.reshape(-1)
    for kept in (*_lone(flat), *(np.where(few, flat, 0 * flat) for few in _few(flat, size, index))):
        if np.count_nonzero(kept) < np.count_nonzero(flat):
            yield kept.astype(x.dtype).reshape(x.shape)


def _lone(flat: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """One element that is not zero: an ordinary number, or a small one."""
    for value in (1.0, 2.0**-10):
        yield np.where(np.arange(flat.size) == 0, value, 0)


def _few(flat: NDArray[np.floating], size: int, index: int) -> Iterator[NDArray[np.bool_]]:
    """The largest of the block, of another, of all blocks; with the wrong element; the block."""
    starts, places = np.arange(0, flat.size, size), np.arange(flat.size)
    at = [start + int(np.argmax(np.abs(flat[start : start + size]))) for start in starts]
    leads, block = np.isin(places, at), places // size == index // size
    lead, wrong = leads & block, places == index
    other = places == max(at, key=lambda i: 0 if block[i] else abs(float(flat[i])), default=0)
    yield from (lead, other, lead | wrong, lead | other, lead | other | wrong)
    yield from (block, leads, leads | block)


def _narrowed(x: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """Both halves along each axis: what needs its axes stays with them."""
    for axis, length in enumerate(x.shape):
        if length > 1:
            yield from (part.copy() for part in np.array_split(x, 2, axis))


def _cuts(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """Shorter pieces: one block, halves, without the ends, without the zeros."""
    size = case.options.get("blocksize", 64)
    if flat.size > size:
        block = index // size * size
        yield flat[block : block + size].copy()
        yield from (
            part.copy() for part in (flat[: block + size], flat[block:]) if part.size < flat.size
        )
        yield flat[-(flat.size % size) or -size :].copy()
    kept = flat[flat != 0]
    if 0 < kept.size < flat.size:
        yield np.concatenate([kept, np.zeros(1, flat.dtype)])
        yield kept.copy()
    step = flat.size // 2
    while step:
        yield flat[step:].copy()
        yield flat[:-step].copy()
        step //= 2


# ---- decoders ------------------------------------------------------------------------------------


def _smaller_decode(case: Case) -> Iterator[Case]:
    shape = tuple(case.options["shape"])
    for trial in _shapes(shape):
        yield resized(case, trial)
    yield from _simple_scales(case)
    yield from _simple_codes(case)
    if case.options.get("dtype", "float32") != "float32":
        yield case.with_options(dtype="float32")
    for size in (32, 64, 128, 256, 512, 1024, 2048):
        if size < case.options.get("blocksize", 64):
            yield resized(case.with_options(blocksize=size), shape)


def _shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Smaller shapes: fewer axes, then each axis shorter."""
    n = int(np.prod(shape))
    if len(shape) > 1:
        yield (n,)
    if len(shape) > 2:
        yield (n // shape[-1] if shape[-1] else 0, shape[-1])
    for axis, length in enumerate(shape):
        edges = (1, 2, 3, 16, 32, 64, length // 4, length // 2)  # lanes and blocks, then bisection
        for shorter in sorted({*edges, length - length % 16, length - 16, length - 2, length - 1}):
            if 0 < shorter < length:
                yield (*shape[:axis], shorter, *shape[axis + 1 :])


def resized(case: Case, shape: tuple[int, ...]) -> Case:
    """The case cut (or its arrays repeated) to fit another shape or block size."""
    n = int(np.prod(shape))
    name = "packed" if "packed" in case.arrays else "codes"
    count = (n + 1) // 2 if name == "packed" else n
    blocks = -(-n // case.options.get("blocksize", 64 if name == "packed" else 256))
    codes, scale = case.arrays[name], case.arrays["absmax"]
    if codes.size == 0 or scale.size == 0:
        return case
    arrays = {name: np.resize(codes, count), "absmax": np.resize(scale, blocks)}
    return case.with_arrays(**arrays).with_options(shape=list(shape))


def _simple_scales(case: Case) -> Iterator[Case]:
    scale = case.arrays["absmax"]
    ramp = np.arange(1, scale.size + 1, dtype=np.float32)
    for simple in (np.ones_like(scale), ramp):
        if _plain(scale) > _plain(simple):
            yield case.with_arrays(absmax=simple)
    if scale.size == 1:
        for simple in rounder(scale):
            yield case.with_arrays(absmax=simple)


def _plain(scale: NDArray[np.floating]) -> tuple[int, float]:
    parts = [complexity(float(v)) for v in scale[:64]]
    return (sum(part[0] for part in parts), sum(part[1] for part in parts))


def _simple_codes(case: Case) -> Iterator[Case]:
    name = "packed" if "packed" in case.arrays else "codes"
    codes = case.arrays[name]
    if codes.size == 0 or (codes == codes[0]).all():
        return
    for value in dict.fromkeys(int(v) for v in itertools.chain(codes[:4], codes[-2:])):
        yield case.with_arrays(**{name: np.full_like(codes, value)})


def _smaller_nested(case: Case) -> Iterator[Case]:
    codes, scale = case.arrays["codes"], case.arrays["nested_absmax"]
    size = case.options["blocksize"]
    for n in sorted({1, 2, codes.size // 2, codes.size - size, codes.size - 1}):
        if 0 < n < codes.size:
            blocks = -(-n // size)
            yield case.with_arrays(codes=codes[:n].copy(), nested_absmax=scale[:blocks].copy())
            yield case.with_arrays(codes=codes[-n:].copy(), nested_absmax=scale[-blocks:].copy())
    for name in ("nested_absmax", "offset"):
        if case.arrays[name].size == 1:
            for simple in rounder(case.arrays[name]):
                yield case.with_arrays(**{name: simple})
