"""Faulty savers and loaders: what a resumed run does not get back."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qloracle import paging
from qloracle.paging import Managed, Pager
from qloracle.paging.pages import DEVICE
from qloracle_conformance.mutants.paging.steps import (
    Loaded,
    Paged,
    Remembering,
    Words,
    pager_of,
    saver,
)
from qloracle_conformance.mutants.parts import BFLOAT16, Array, rounded


class SavesAPageLess(Paged):
    """The last page of an array does not reach the file: zeros stand there (rule S12)."""

    kills = "S12"

    @staticmethod
    def _without_end(name: str, array: Managed) -> Array:
        values = array[...].copy()
        flat = values.reshape(-1).view(np.uint8)
        flat[-(flat.size % array._pages.page_bytes or array._pages.page_bytes) :] = 0
        return values

    save_paged = staticmethod(saver(_without_end))


class SavesOldPages(Paged):
    """The file gets the host's side of each page, which is old where the device has written."""

    kills = "S12"

    save_paged = staticmethod(saver(lambda name, array: _old(array)))
    make_pager = staticmethod(pager_of(Remembering))


def _old(array: Managed) -> Array:
    """An array as its pages were when they last left the host; those there are up to date."""
    pages = array._pages
    assert isinstance(pages, Remembering)
    held = [page for page in pages._memory[DEVICE] if page.allocation == array._number]
    values: Array = array[...].copy()
    flat, size = values.reshape(-1).view(np.uint8), pages.page_bytes
    for page in held:
        part = flat[page.i * size : (page.i + 1) * size]
        part[:] = pages.old[page][: part.size]
    return values


class SavesIn16Bits(Paged):
    """The moments are saved as bfloat16, to make the file smaller (rule S12)."""

    kills = "S12"

    @staticmethod
    def _narrow(name: str, array: Managed) -> Array:
        values: Array = array[...]
        return rounded(values, BFLOAT16) if values.dtype == np.float32 else values

    save_paged = staticmethod(saver(_narrow))


class SavesIn32Bits(Paged):
    """Numbers of 64 bits are saved as 32, as a framework without them does (rule S12)."""

    kills = "S12"

    @staticmethod
    def _short(name: str, array: Managed) -> Array:
        values: Array = array[...]
        short = {"float64": "float32", "int64": "int32"}.get(values.dtype.name, values.dtype)
        with np.errstate(all="ignore"):
            return values.astype(short).astype(values.dtype)

    save_paged = staticmethod(saver(_short))


class SavesLargeArraysOnly(Paged):
    """Small arrays, as the absmax of 8-bit codes, are not saved and come back as zeros."""

    kills = "S12"

    @staticmethod
    def _large(name: str, array: Managed) -> Array:
        return array[...] if array.size >= 16 else np.zeros(array.shape, array.dtype)

    save_paged = staticmethod(saver(_large))


class SaveFreesPages(Paged):
    """A run that goes on after it has saved finds its pages as they were before the last step."""

    kills = "S12"

    @staticmethod
    def save_paged(path: str | Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
        before = {name: _old(array) for name, array in arrays.items()}
        paging.save(path, arrays, metadata)
        for name, array in arrays.items():
            array[...] = before[name]

    make_pager = staticmethod(pager_of(Remembering))


class SavesOnce(Paged):
    """Where the file is there already, it is kept: the second save is lost (rule S12)."""

    kills = "S12"

    @staticmethod
    def save_paged(path: str | Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
        if not Path(path).exists():
            paging.save(path, arrays, metadata)


class LoadsInAnotherOrder(Paged):
    """Arrays of one form are taken in the wrong order: m comes back as v, and v as m."""

    kills = "S12"

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays, words = paging.load(path, pager)
        forms: dict[Any, list[str]] = {}
        for name, array in sorted(arrays.items()):
            forms.setdefault((array.shape, array.dtype), []).append(name)
        turned = {
            name: arrays[other]
            for names in forms.values()
            for name, other in zip(names, reversed(names), strict=True)
        }
        return turned, words


class LoadsFlat(Paged):
    """An array comes back without its shape (rule S12)."""

    kills = "S12"

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays, words = paging.load(path, pager)
        flat = {}
        for name, array in arrays.items():
            flat[name] = pager.empty((array.size,), array.dtype)
            flat[name][...] = array[...].reshape(-1)
        return flat, words


class LoadsScalarsAsVectors(Paged):
    """A number without an axis comes back as an array of one (rule P1)."""

    kills = "P1"

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays, words = paging.load(path, pager)
        for array in arrays.values():
            array.shape = array.shape or (1,)
        return arrays, words


class LoadsAPageLess(Paged):
    """The last page of an array is not read from the file: it stays as nobody has written it."""

    kills = "S12"

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays, words = paging.load(path, pager)
        for array in arrays.values():
            rest = array.nbytes % pager.page_bytes or pager.page_bytes
            start = max(array.nbytes - rest, 0)
            end = np.full(array.nbytes - start, 0xFF, np.uint8)
            array._pages.write(array._number, start, end, "host")
        return arrays, words


class WordsForgotten(Paged):
    """The words beside the arrays are lost, the step among them (rule S12)."""

    kills = "S12"

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        return paging.load(path, pager)[0], {}


class ResumesUnpaged(Paged):
    """A resumed state is ordinary memory of the device: it is never paged (bitsandbytes)."""

    kills = "S12b"

    class _Pager(Pager):
        @contextmanager
        def use(self, *handles: Managed) -> Iterator[tuple[Managed, ...]]:
            own = [handle for handle in handles if handle._pages is self._pages]
            with super().use(*own) as arrays:
                paged = iter(arrays)
                yield tuple(
                    next(paged) if handle._pages is self._pages else handle for handle in handles
                )

        def prefetch(self, handle: Managed, to: str = DEVICE) -> None:
            if handle._pages is self._pages:
                super().prefetch(handle, to)

        def free(self, handle: Managed) -> None:
            if handle._pages is self._pages:
                super().free(handle)

    @staticmethod
    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        return paging.load(path, paging.make_pager())

    make_pager = staticmethod(pager_of(pager=_Pager))
