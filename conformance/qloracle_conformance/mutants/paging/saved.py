"""Faulty savers and loaders: what a resumed run does not get back."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from qloracle import paging
from qloracle.paging import Managed, Pager
from qloracle.paging.pages import DEVICE
from qloracle_conformance.mutants.paging.steps import (
    Remembering,
    Words,
    changed,
    loading,
    paged,
    saving,
)
from qloracle_conformance.mutants.parts import BFLOAT16, Array, fault, rounded

# ---- savers --------------------------------------------------------------------------------------


def _without_end(array: Managed) -> Array:
    values, page = array[...].copy(), array._pages.page_bytes
    flat = values.reshape(-1).view(np.uint8)
    flat[-(flat.size % page or page) :] = 0
    return values


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


def _short(array: Managed) -> Array:
    values: Array = array[...]
    short = {"float64": "float32", "int64": "int32"}.get(values.dtype.name, values.dtype)
    with np.errstate(all="ignore"):
        return values.astype(short).astype(values.dtype)


def _save_and_lose(path: Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
    before = {name: _old(array) for name, array in arrays.items()}
    paging.save(path, arrays, metadata)
    for name, array in arrays.items():
        array[...] = before[name]


# ---- loaders -------------------------------------------------------------------------------------


def _turned(arrays: dict[str, Managed], pager: Pager) -> dict[str, Managed]:
    forms: dict[Any, list[str]] = {}
    for name, array in sorted(arrays.items()):
        forms.setdefault((array.shape, array.dtype), []).append(name)
    return {
        name: arrays[other]
        for names in forms.values()
        for name, other in zip(names, reversed(names), strict=True)
    }


def _flat(arrays: dict[str, Managed], pager: Pager) -> dict[str, Managed]:
    flat = {name: pager.empty((array.size,), array.dtype) for name, array in arrays.items()}
    for name, array in arrays.items():
        flat[name][...] = array[...].reshape(-1)
    return flat


def _as_vectors(arrays: dict[str, Managed], pager: Pager) -> None:
    for array in arrays.values():
        array.shape = array.shape or (1,)


def _ends_unwritten(arrays: dict[str, Managed], pager: Pager) -> None:
    for array in arrays.values():
        rest = array.nbytes % pager.page_bytes or pager.page_bytes
        start = max(array.nbytes - rest, 0)
        end = np.full(array.nbytes - start, 0xFF, np.uint8)
        array._pages.write(array._number, start, end, "host")


# ---- rows ----------------------------------------------------------------------------------------
# fmt: off

SavesAPageLess = fault("S12",
    "The last page of an array does not reach the file: zeros stand there (rule S12).",
    **saving(_without_end))
SavesOldPages = fault("S12",
    "The file gets the host's side of each page, which is old where the device has written.",
    **saving(_old, Remembering))
SavesIn16Bits = fault("S12",
    "The moments are saved as bfloat16, to make the file smaller (rule S12).",
    **saving(lambda a: rounded(a[...], BFLOAT16) if a.dtype == np.float32 else a[...]))
SavesIn32Bits = fault("S12",
    "Numbers of 64 bits are saved as 32, as a framework without them does (rule S12).",
    **saving(_short))
SavesLargeArraysOnly = fault("S12",
    "Small arrays, as the absmax of 8-bit codes, are not saved and come back as zeros.",
    **saving(lambda a: a[...] if a.size >= 16 else np.zeros(a.shape, a.dtype)))
SaveFreesPages = fault("S12",
    "A run that goes on after it has saved finds its pages as they were before the last step.",
    **paged(Remembering, save_paged=_save_and_lose))
SavesOnce = fault("S12",
    "Where the file is there already, it is kept: the second save is lost (rule S12).",
    **paged(save_paged=lambda path, *content:
        None if path.exists() else paging.save(path, *content)))
LoadsInAnotherOrder = fault("S12",
    "Arrays of one form are taken in the wrong order: m comes back as v, and v as m.",
    **loading(_turned))
LoadsFlat = fault("S12", "An array comes back without its shape (rule S12).", **loading(_flat))
LoadsScalarsAsVectors = fault("P1",
    "A number without an axis comes back as an array of one (rule P1).",
    **loading(_as_vectors))
LoadsAPageLess = fault("S12",
    "The last page of an array is not read from the file: it stays as nobody has written it.",
    **loading(_ends_unwritten))
WordsForgotten = fault("S12",
    "The words beside the arrays are lost, the step among them (rule S12).",
    **paged(load_paged=lambda path, pager: (paging.load(path, pager)[0], {})))
ResumesUnpaged = fault("S12b",
    "A resumed state is ordinary memory of the device: it is never paged (bitsandbytes).",
    **changed(
        Pager,
        use=lambda self, right, *handles: (
            right(*handles) if {handle._pages for handle in handles} == {self._pages}
            else nullcontext(handles)),
        prefetch=lambda self, right, handle, **to: (
            handle._pages is self._pages and right(handle, **to)),
        free=lambda self, right, handle: handle._pages is self._pages and right(handle),
    ) | {"load_paged": lambda path, pager: paging.load(path, paging.make_pager())})
