"""Smaller neighbours of a failing call of a quantizer or a decoder."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.smaller import (
    alike,
    in_float32,
    narrowed,
    plainer,
    rounded,
    shorter,
    simpler,
    sparser,
)

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def smaller_x(case: Case, index: int, name: str = "x") -> Iterator[Case]:
    """Smaller neighbours of a quantizer's call, the boldest first; `name` is the array to cut."""
    x = case.arrays[name]
    flat = x.reshape(-1)
    if name == "x":
        yield from (case.with_arrays(x=pair) for pair in _pairs(flat, case, index))
    if x.ndim != 1 and flat.size:
        yield case.with_arrays(**{name: flat.copy()})
        yield from narrowed(case, [name], x.ndim)
    if x.size > 1:
        yield from (case.with_arrays(**{name: part.copy()}) for part in _cuts(flat, case, index))
    yield from sparser(case, [name])
    yield from in_float32(case)
    if case.option("blocksize") not in (32, 64) and name == "x":
        yield case.with_options(blocksize=64)
    yield from rounded(case, [name])


def _pairs(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """The wrong element alone, beside its block's largest, and that in a full block; at scale 1."""
    size = case.option("blocksize")
    if index >= flat.size:
        return
    block = flat[index // size * size :][:size]
    lead = block[np.argmax(np.abs(block))]
    one, padding = np.ones((), flat.dtype), np.zeros(size - 2, flat.dtype)
    pairs = [flat[index]], [one, 0 * one], [lead, 0 * one], [lead, flat[index]]
    for pair in (*pairs, [lead, flat[index], *padding]):
        small = np.array(pair, flat.dtype)
        if small.size < flat.size or np.count_nonzero(small) < np.count_nonzero(flat):
            yield small


def _cuts(flat: NDArray[np.floating], case: Case, index: int) -> Iterator[NDArray[np.floating]]:
    """Shorter pieces: one block, halves, without the ends, without the zeros."""
    size, n = case.option("blocksize"), flat.size
    if n > size:
        block = index // size * size
        yield flat[block : block + size]
        yield from (part for part in (flat[: block + size], flat[block:]) if part.size < n)
        yield flat[-(n % size) or -size :]
    kept = flat[flat != 0]
    if 0 < kept.size < n:
        yield np.concatenate([kept, np.zeros(1, flat.dtype)])
        yield kept
    for step in (n >> k for k in range(1, n.bit_length())):
        yield flat[step:]
        yield flat[:-step]


def smaller_codes(case: Case, _: int) -> Iterator[Case]:
    """Smaller neighbours of a decoder's call: shapes, scales, codes, types and blocks."""
    shape, old = tuple(case.options["shape"]), case.option("blocksize")
    yield from (resized(case, trial) for trial in _shapes(shape))
    yield from simpler(case, "absmax")
    if case.arrays["absmax"].size == 1:
        yield from rounded(case, ["absmax"])
    name = "packed" if "packed" in case.arrays else "codes"
    codes = case.arrays[name]
    yield from alike(case, name, *codes[:4], *codes[-2:])
    yield from plainer(case, {"dtype": ("float32",)})
    n = math.prod(shape)
    for size in (size for size in SIZES if size < old):
        yield resized(case.with_options(blocksize=size), shape)
        fewer = n // old * size + min(n % old, size)  # as many blocks, each of them smaller
        yield resized(case.with_options(blocksize=size), (fewer,))


def _shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Smaller shapes: fewer axes, then each axis shorter."""
    n = math.prod(shape)
    if len(shape) > 1:
        yield (n,)
    if len(shape) > 2:
        yield (n // shape[-1] if shape[-1] else 0, shape[-1])
    for axis, length in enumerate(shape):
        yield from ((*shape[:axis], n, *shape[axis + 1 :]) for n in shorter(length))


def resized(case: Case, shape: tuple[int, ...]) -> Case:
    """The case cut (or its arrays repeated) to fit another shape or block size."""
    n, name = math.prod(shape), "packed" if "packed" in case.arrays else "codes"
    blocks = -(-n // case.option("blocksize"))
    codes, scale = case.arrays[name], case.arrays["absmax"]
    if codes.size == 0 or scale.size == 0:
        return case
    count = (n + 1) // 2 if name == "packed" else n
    arrays = {name: np.resize(codes, count), "absmax": np.resize(scale, blocks)}
    return case.with_arrays(**arrays).with_options(shape=list(shape))
