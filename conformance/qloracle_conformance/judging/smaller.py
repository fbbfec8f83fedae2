"""Smaller neighbours of any failing call: the steps of which each family's `smaller` is made."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.numbers import rounder, simpler_scales, zeroed

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
    """More zeros in one of the arrays."""
    for name in names:
        if name in case.arrays:
            yield from (case.with_arrays(**{name: part}) for part in zeroed(case.arrays[name]))


def rounded(case: Case, names: Iterable[str]) -> Iterator[Case]:
    """One number of one of the arrays replaced by a simpler one."""
    for name in names:
        if name in case.arrays:
            yield from (case.with_arrays(**{name: part}) for part in rounder(case.arrays[name]))


def simpler(case: Case, name: str) -> Iterator[Case]:
    """Scales that are easier to read."""
    yield from (case.with_arrays(**{name: s}) for s in simpler_scales(case.arrays[name]))
