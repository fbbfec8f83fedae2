"""Smaller neighbours of any failing call: the steps of which each family's `smaller` is made."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case

Along = Mapping[
    str, tuple[int, int]
]  # of each array the axis to cut, 0 or -1, and elements a number


def cut(case: Case, along: Along, start: int, stop: int) -> Case:
    """Some elements along one axis of several arrays; of scales those of as many blocks."""
    parts = {}
    for name in along.keys() & case.arrays.keys():
        axis, size = along[name]
        part = slice(start // size, start // size - (start - stop) // size)
        parts[name] = case.arrays[name][(part,) if axis == 0 else (..., part)].copy()
    return case.with_arrays(**parts)


def spans(n: int, *bold: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where to cut n elements: the bold ways, as far as they go, a half, all but one."""
    for start, stop in (*bold, (0, n // 2), (n // 2, n), (1, n), (0, n - 1)):
        if 0 < min(stop, n) - start < n:
            yield start, min(stop, n)


def narrowed(case: Case, names: list[str], axes: int) -> Iterator[Case]:
    """Both halves along each of the first axes: what needs its axes stays with them."""
    for axis, length in enumerate(case.arrays[names[0]].shape[:axes]):
        halves = {name: np.array_split(case.arrays[name], 2, axis) for name in names}
        for i in range(2) if length > 1 else ():
            yield case.with_arrays(**{name: both[i].copy() for name, both in halves.items()})


def without(case: Case, names: Iterable[str]) -> Iterator[Case]:
    """The call without an array or an option that it need not have."""
    for name in names:
        arrays, options = (
            {key: value for key, value in given.items() if key != name}
            for given in (case.arrays, case.options)
        )
        if len(arrays) + len(options) < len(case.arrays) + len(case.options):
            yield replace(case, arrays=arrays, options=options)


def plainer(case: Case, options: Mapping[str, Iterable[Any]]) -> Iterator[Case]:
    """Plainer values of options: those that stand before its own."""
    for name, values in options.items():
        for value in values if name in case.options else ():
            if value == case.options[name]:
                break
            yield case.with_options(**{name: value})


def replaced(case: Case, name: str, *others: Any) -> Iterator[Case]:
    """One array full of another number, if it is there, and not so already."""
    array = case.arrays.get(name, np.zeros(0))
    for other in others:
        if (array != other).any():
            yield case.with_arrays(**{name: np.full_like(array, other)})


def alike(case: Case, name: str, *codes: Any) -> Iterator[Case]:
    """All codes of an array the same one, if they are not."""
    if len(set(case.arrays[name].tolist())) > 1:
        yield from replaced(case, name, *dict.fromkeys(codes))


def sparser(case: Case, names: Iterable[str]) -> Iterator[Case]:
    """A share of the numbers of one array set to zero: all, halves, at last a single one."""
    for name, array in _named(case, names):
        places = np.flatnonzero(array)
        step = len(places)
        while step > 1:
            step = -(-step // 2) if step > 2 else 1
            for start in range(0, len(places) if step > 1 or len(places) <= 64 else 0, step):
                part = array.copy()
                part.reshape(-1)[places[start : start + step]] = 0
                yield case.with_arrays(**{name: part})


def rounded(case: Case, names: Iterable[str]) -> Iterator[Case]:
    """One number of one array replaced by a simpler one, where there are few."""
    for name, array in _named(case, names):
        places = np.flatnonzero(array)
        for place in places if len(places) <= 8 else ():
            value = float(array.reshape(-1)[place])
            for other in _simpler(value):
                with np.errstate(over="ignore"):  # a power of two above the largest number
                    simple, part = np.array(other).astype(array.dtype), array.copy()
                if _complexity(other) < _complexity(value) and np.isfinite(float(simple)):
                    part.reshape(-1)[place] = simple
                    yield case.with_arrays(**{name: part})


def _named(case: Case, names: Iterable[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Those of the arrays that the case has."""
    return ((name, case.arrays[name]) for name in names if name in case.arrays)


def simpler(case: Case, name: str) -> Iterator[Case]:
    """Scales that are easier to read: all 1, or 1, 2, 3 and on."""
    scale = case.arrays[name]
    for other in (np.ones_like(scale), np.arange(1, scale.size + 1, dtype=np.float32)):
        if _to_read(other) < _to_read(scale):
            yield case.with_arrays(**{name: other})


def in_float32(case: Case) -> Iterator[Case]:
    """The same numbers in float32, if any of them are in 16 bits."""
    short = [name for name, array in case.arrays.items() if array.dtype.itemsize == 2]
    if short:
        yield case.with_arrays(**{name: case.arrays[name].astype(np.float32) for name in short})


def shorter(length: int) -> list[int]:
    """Shorter lengths: few, lanes, blocks and the edges below, then bisection."""
    edges = {1, 2, 3, 16, 32, 64, length // 4, length // 2, length - length % 16}
    return sorted(n for n in {*edges, length - 16, length - 2, length - 1} if 0 < n < length)


def _simpler(value: float) -> Iterator[float]:
    """Simpler numbers near a value: signs dropped, small wholes, powers of two, short mantissas."""
    yield from (1.0, -1.0, 2.0, 0.5, abs(value))
    mantissa, exponent = np.frexp(value)
    yield float(np.ldexp(np.sign(mantissa), int(exponent)))
    for bits in (1, 2, 3, 5, 8, 12, 16, 20):
        yield float(np.ldexp(np.round(mantissa * 2**bits), int(exponent) - bits))


def _to_read(scale: NDArray[np.floating]) -> tuple[int, float]:
    """How much there is to read in an array."""
    parts = [_complexity(float(v)) for v in scale[:64]]
    return sum(bits for bits, _ in parts), sum(rest for _, rest in parts)


def _complexity(value: float) -> tuple[int, float]:
    """Order numbers by how much there is to read in them: mantissa bits, distance from 1, sign."""
    if value == 0:
        return (0, 0.0)
    mantissa, exponent = np.frexp(abs(value))
    bits = int(mantissa * 2**53)
    length = 53 - ((bits & -bits).bit_length() - 1)
    return (length, abs(int(exponent) - 1) + (0.5 if value < 0 else 0.0))
