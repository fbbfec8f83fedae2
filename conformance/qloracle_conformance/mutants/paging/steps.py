"""The right pager, and the places in it where a fault stands.

A fault is one method of `Pages`, which knows bytes and where they lie, or of `Pager`, which makes
arrays of them: `faulty` and `lawful` make a mutant of such a class.  What is a row beside them
replaces what `paged` returns: the pager, the saving or the loading.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qloracle import paging
from qloracle.paging import Managed, Pager
from qloracle.paging.pager import ADDRESS_SPACE
from qloracle.paging.pages import DEVICE, HOST, Page, Pages
from qloracle_conformance.mutants.parts import Array, Right

Step = Callable[..., Any]
Words = Mapping[str, str] | None
Loaded = tuple[dict[str, Managed], dict[str, str]]


def pager_of(pages: type[Pages] = Pages, pager: type[Pager] = Pager) -> Step:
    """Build make_pager from its two classes."""

    def make_pager(capacity_bytes: int | None = None, page_bytes: int | None = None) -> Pager:
        asked = paging.make_pager(capacity_bytes, page_bytes)
        return pager(pages(asked.capacity, asked.page_bytes), ADDRESS_SPACE)

    return make_pager


def faulty(kills: str) -> Callable[[type[Pages] | type[Pager]], Any]:
    """Make a mutant of a class, one of `Pages` or of `Pager`."""
    return lambda part: _mutant(part, kills=kills)


def lawful(part: type[Pages] | type[Pager]) -> Any:
    """Make a lawful mutant of a class."""
    return _mutant(part, lawful=True)


def _mutant(part: type[Pages] | type[Pager], **facts: Any) -> type[Right]:
    maker = pager_of(part) if issubclass(part, Pages) else pager_of(pager=part)
    told = {"__doc__": part.__doc__, "__module__": part.__module__}
    functions = {name: staticmethod(step) for name, step in paged(make_pager=maker).items()}
    return type(part.__name__, (Right,), {**told, **facts, **functions})


# ---- the functions of a row ----------------------------------------------------------------------


def paged(pages: type[Pages] = Pages, **others: Step) -> dict[str, Step]:
    """The functions of a pager of such pages, or other ones."""
    functions = {"make_pager": pager_of(pages), "save_paged": paging.save}
    return {**functions, "load_paged": paging.load, **others}


def saving(change: Callable[[Managed], Array], pages: type[Pages] = Pages) -> dict[str, Step]:
    """Saving by what it takes for the values of an array."""

    def save_paged(path: str | Path, arrays: Mapping[str, Managed], metadata: Words = None) -> None:
        values: Any = {name: change(array) for name, array in arrays.items()}
        paging.save(path, values, metadata)

    return paged(pages, save_paged=save_paged)


def loading(change: Callable[[dict[str, Managed], Pager], Any]) -> dict[str, Step]:
    """Loading by what it makes of the arrays of a file; None: it has changed them."""

    def load_paged(path: str | Path, pager: Pager) -> Loaded:
        arrays, words = paging.load(path, pager)
        changed = change(arrays, pager)
        return arrays if changed is None else changed, words

    return paged(load_paged=load_paged)


# ---- pages ---------------------------------------------------------------------------------------


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

    def restore(self, number: int) -> None:
        """What the device has written to an allocation's pages since they came is lost."""
        for page, frame in self._memory[DEVICE].items():
            if page.allocation == number:
                frame[:] = self.old[page]


def changed(
    base: type[Pages] | type[Pager] = Pages, pages: type[Pages] = Pages, **methods: Step
) -> dict[str, Step]:
    """Methods of `Pages` or `Pager` that are others; each is given the right one after `self`."""
    own: dict[str, Any] = {}
    for name, change in methods.items():
        right = getattr(base, name)
        shown = isinstance(right, property) and right.fget
        own[name] = property(_around(shown, change)) if shown else _around(right, change)
    part: Any = type("_Changed", (base,), own)
    return paged(make_pager=pager_of(part) if issubclass(part, Pages) else pager_of(pages, part))


def _around(right: Step, change: Step) -> Step:
    return lambda self, *args, **named: change(self, partial(right, self), *args, **named)


def evicting(change: Callable[[Remembering, Page, Array], Any]) -> type[Pages]:
    """Pages whose eviction goes on with something that happens to the page at home."""

    class _Pages(Remembering):
        def _evict_oldest(self) -> None:
            page = oldest(self)
            super()._evict_oldest()
            change(self, page, self._memory[HOST][page])

    return _Pages
