"""The state machine: operation by operation one is drawn, and taken if it makes sense then.

What it draws is a program, so that it can be judged, made smaller and replayed like any other.
Hypothesis lends the generator, and can so shrink what it finds; any other one will do.
"""
# ruff: noqa: D102 (each verb adds what it says, if that makes sense)

from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import Nonsense
from qloracle_conformance.contract.programs import Part, dtype_of, where
from qloracle_conformance.families.paging.drafts import TYPES, Array, Draft

LONGEST = 30  # operations
PAGES_DRAWN = (*[4096] * 8, None, None, 64, 100, 7)  # small ones are not for everybody
MOST = 4  # arrays alive
WEIGHTS = {
    "allocate": 3, "write": 6, "read": 6, "prefetch": 2, "advise": 1, "shrink": 1, "free": 1,
    "free_twice": 1, "resume": 1, "step": 1, "open": 1, "close": 1,
}  # fmt: skip


def programs_of(counted: bool) -> Any:
    """Hypothesis: a program; a `counted` one asks for counters, and advises nothing."""
    from hypothesis import strategies as st

    return st.randoms(use_true_random=False).map(lambda rng: program(rng, counted))


def program(rng: Random, counted: bool = False) -> Case:
    """Draw a program."""
    page, frames = rng.choice(PAGES_DRAWN), rng.choice((1, 2, 3, 5, 16, None))
    capacity = None if frames is None or page is None else frames * page
    draft = Draft(np.random.default_rng(0), capacity, page)
    machine = Machine(rng, draft.do("counters") if counted else draft)
    machine.allocate()
    verbs = {v: n for v, n in WEIGHTS.items() if not (counted and v in ("advise", "free_twice"))}
    for verb in rng.choices(list(verbs), list(verbs.values()), k=rng.randint(1, LONGEST)):
        with suppress(Nonsense, LookupError):  # nothing is alive, or open
            getattr(machine, verb)()
    for label in list(draft.plain.uses):
        draft.do("close", label)
    return draft.read_all(draft.plain.alive).case("drawn")


class Machine:
    """A draft, and operations that are tried on it."""

    def __init__(self, rng: Random, draft: Draft) -> None:
        self.rng, self.draft, self.plain = rng, draft, draft.plain

    def allocate(self) -> None:
        """An array of a few pages or of a few numbers, written at once."""
        dtype = self.rng.choice(TYPES)
        rows = self.rng.randint(0, 3 * self.draft.size // dtype_of(dtype).itemsize + 2)
        shape = (rows, *self.rng.choice(((), (), (1,), (2,))))
        if len(self.plain.alive) < MOST:
            name = f"a{len(self.draft.program)}"
            self.draft.given(name, self._bytes(shape, dtype), self._side(name))

    def write(self) -> None:
        name, part = self._part()
        old = self.plain.alive[name].values[where(part)]
        self.draft.write(name, part, self._side(name), self._bytes(old.shape, old.dtype.name))

    def read(self) -> None:
        name, part = self._part()
        self.draft.read(name, part, self._side(name))

    def prefetch(self) -> None:
        self.draft.do("prefetch", self._name(), self.rng.choice(("device", "device", "host")))

    def advise(self) -> None:
        preferred = self.rng.choice((None, "host", "device"))
        self.draft.do("advise", self._name(), preferred, self.rng.choice((False, True)))

    def shrink(self) -> None:
        self.draft.shrink(self.rng.randint(1, 9))

    def free(self) -> None:
        self.draft.do("free", self._name())

    def free_twice(self) -> None:
        """The second time is refused, and what lives stays."""
        name = self._name()
        self.draft.do("free", name).do("must_fail", ["free", name])

    def resume(self) -> None:
        """All that is alive goes through a file, into a fresh pager of another capacity."""
        file, page = f"f{len(self.draft.program)}", self.draft.page
        capacity = None if page is None else self.rng.randint(1, 5) * page
        self.draft.do("save", file).do("load", file, capacity, page)

    def step(self) -> None:
        """A state of its own, stepped a few times: once a program."""
        if "g" not in self.draft.arrays:
            rng = np.random.default_rng(self.rng.randint(0, 9))
            param, grads = rng.standard_normal((2, 1, self.rng.randint(1, 40))).astype(np.float32)
            self.draft.arrays["g"] = grads
            for name, values in (("p", param[0]), ("m", 0 * param[0]), ("v", 0 * param[0])):
                self.draft.given(name, values)
            count, part = self.rng.randint(1, 3), self.rng.choice((None, 1, 7))
            self.draft.do("step", "adam_step", ["p", "m", "v"], "g", 1, count, part)

    def open(self) -> None:
        """A `use` of one to three arrays, perhaps of one of them twice."""
        names = [self._name() for _ in range(self.rng.randint(1, 3))]
        if len(self.plain.uses) < 2:
            self.draft.do("open", f"u{len(self.draft.program)}", names)

    def close(self) -> None:
        """The end of the `use` that was opened last."""
        self.draft.do("close", list(self.plain.uses)[-1])

    def _bytes(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Random bytes by a seed; those of seed 0 are simple."""
        seed = self.rng.randint(0, 99)
        self.draft.rng = np.random.default_rng(seed)
        return self.draft.bytes(shape, dtype) if seed else np.ones(shape, dtype_of(dtype))

    def _name(self) -> str:
        return self.rng.choice(sorted(self.plain.alive) or [""])

    def _side(self, name: str) -> str:
        """A side that may touch an array: in an open `use` of it only what that yields."""
        uses = [(u, i, n) for u, names in self.plain.uses.items() for i, n in enumerate(names)]
        opened = [f"{label}.{i}" for label, i, used in uses if used == name]
        return self.rng.choice(opened or ["host", "device"])

    def _part(self) -> tuple[str, Part]:
        """An array, whole or some of its rows; many begin or end where a page does."""
        name = self._name()
        values = self.plain.alive[name].values
        row, rows = max(values.nbytes // max(len(values), 1), 1), len(values)
        pages = range(self.draft.size, values.nbytes, self.draft.size)
        edges = [0, rows, *(min(p // row + more, rows) for p in pages for more in (0, 1))]
        ends = (self.rng.choice((self.rng.choice(edges), self.rng.randint(0, rows))) for _ in "ab")
        return name, self.rng.choice((None, sorted(ends)))
