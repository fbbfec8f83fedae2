"""Smaller neighbours of a failing call of a quantizer or a decoder."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.numbers import (
    in_float32,
    rounder,
    shorter,
    simpler_scales,
    zeroed,
)


def smaller_x(case: Case, index: int, name: str = "x") -> Iterator[Case]:
    """Smaller neighbours of a quantizer's call, the boldest first; `name` is the array to cut."""
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
    yield from in_float32(case)
    if case.option("blocksize") not in (32, 64) and name == "x":
        yield case.with_options(blocksize=64)
    yield from (case.with_arrays(**{name: part}) for part in rounder(x))


def _pairs(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """The wrong element alone, beside its block's largest, and that in a full block; at scale 1."""
    size = case.option("blocksize")
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


def _narrowed(x: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """Both halves along each axis: what needs its axes stays with them."""
    for axis, length in enumerate(x.shape):
        if length > 1:
            yield from (part.copy() for part in np.array_split(x, 2, axis))


def _cuts(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """Shorter pieces: one block, halves, without the ends, without the zeros."""
    size = case.option("blocksize")
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


def smaller_codes(case: Case, _: int) -> Iterator[Case]:
    """Smaller neighbours of a decoder's call: shapes, scales, codes, types and blocks."""
    shape = tuple(case.options["shape"])
    for trial in _shapes(shape):
        yield resized(case, trial)
    yield from _simple_scales(case)
    yield from _simple_codes(case)
    if case.options.get("dtype", "float32") != "float32":
        yield case.with_options(dtype="float32")
    for size in (32, 64, 128, 256, 512, 1024, 2048):
        if size < (old := case.option("blocksize")):
            smaller = case.with_options(blocksize=size)
            yield resized(smaller, shape)
            n = int(np.prod(shape))  # and as many blocks as there were, each of them smaller
            yield resized(smaller, (n // old * size + min(n % old, size),))


def _shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Smaller shapes: fewer axes, then each axis shorter."""
    n = int(np.prod(shape))
    if len(shape) > 1:
        yield (n,)
    if len(shape) > 2:
        yield (n // shape[-1] if shape[-1] else 0, shape[-1])
    for axis, length in enumerate(shape):
        yield from ((*shape[:axis], n, *shape[axis + 1 :]) for n in shorter(length))


def resized(case: Case, shape: tuple[int, ...]) -> Case:
    """The case cut (or its arrays repeated) to fit another shape or block size."""
    n = int(np.prod(shape))
    name = "packed" if "packed" in case.arrays else "codes"
    count = (n + 1) // 2 if name == "packed" else n
    blocks = -(-n // case.option("blocksize"))
    codes, scale = case.arrays[name], case.arrays["absmax"]
    if codes.size == 0 or scale.size == 0:
        return case
    arrays = {name: np.resize(codes, count), "absmax": np.resize(scale, blocks)}
    return case.with_arrays(**arrays).with_options(shape=list(shape))


def _simple_scales(case: Case) -> Iterator[Case]:
    scale = case.arrays["absmax"]
    rounded = rounder(scale) if scale.size == 1 else ()
    for simple in itertools.chain(simpler_scales(scale), rounded):
        yield case.with_arrays(absmax=simple)


def _simple_codes(case: Case) -> Iterator[Case]:
    name = "packed" if "packed" in case.arrays else "codes"
    codes = case.arrays[name]
    if codes.size == 0 or (codes == codes[0]).all():
        return
    for value in dict.fromkeys(int(v) for v in itertools.chain(codes[:4], codes[-2:])):
        yield case.with_arrays(**{name: np.full_like(codes, value)})
