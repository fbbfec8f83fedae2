"""The right pager, and the places in it where a fault stands.

A fault is one method of `Pages`, which knows bytes and where they lie, or of `Pager`, which makes
arrays of them; `pager_of` builds `make_pager` around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qloracle import paging
from qloracle.paging import Managed, Pager
from qloracle.paging.pager import ADDRESS_SPACE
from qloracle.paging.pages import DEVICE, Page, Pages
from qloracle_conformance.mutants.parts import Array, Right

Step = Callable[..., Any]
Words = Mapping[str, str] | None
Loaded = tuple[dict[str, Managed], dict[str, str]]


class Paged(Right):
    """Every function as the reference has it, the pager too."""

    make_pager: ClassVar[Any] = staticmethod(paging.make_pager)
    save_paged: ClassVar[Any] = staticmethod(paging.save)
    load_paged: ClassVar[Any] = staticmethod(paging.load)


def pager_of(pages: type[Pages] = Pages, pager: type[Pager] = Pager) -> Step:
    """Build make_pager from its two classes."""

    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Pager:
        asked = paging.make_pager(capacity_bytes, page_bytes)
        return pager(pages(asked.capacity, asked.page_bytes), ADDRESS_SPACE)

    return make_pager


def saver(change: Callable[[str, Managed], Array]) -> Step:
    """Build save_paged from what it takes for the values of an array."""

    def save_paged(path: str | Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
        values: Any = {name: change(name, array) for name, array in arrays.items()}
        paging.save(path, values, metadata)

    return save_paged


def oldest(pages: Pages) -> Page:
    """The page that is to be evicted next."""
    return next(iter(pages._memory[DEVICE]))


class Remembering(Pages):
    """Pages that still know what each one held when it last came to the device."""

    def __init__(self, capacity_bytes: int | None, page_bytes: int) -> None:
        super().__init__(capacity_bytes, page_bytes)
        self.old: dict[Page, Array] = {}

    def _move(self, page: Page, to: str) -> None:
        super()._move(page, to)
        if to == DEVICE:
            self.old[page] = self._memory[DEVICE][page].copy()


class Staged:
    """A private copy of an array, which goes back whole when `flush` is called."""

    def __init__(self, array: Managed) -> None:
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.ndim, self.size = array.ndim, array.size
        self._array, self._values = array, array[...].copy()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, where: Any) -> Array:
        return np.array(self._values[where])

    def __setitem__(self, where: Any, values: Any) -> None:
        self._values[where] = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._values, dtype)

    def flush(self) -> None:
        """Write all of it back."""
        self._array[...] = self._values
