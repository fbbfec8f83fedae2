"""Programs while they are written: by those who know what they try, or drawn at random.

The state machine draws operation by operation, and takes what makes sense then.  What it draws is a
program, so that it can be judged, made smaller and replayed like any other.  Hypothesis lends the
generator, and can so shrink what it finds; any other one will do.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import Nonsense, PlainArrays
from qloracle_conformance.contract.programs import BLOCKS, Part, where

Array = NDArray[Any]

SIDES = ("host", "device")
TYPES = (
    "uint8", "float32", "bfloat16", "float16", "float64", "int8", "int32", "int64", "bool",
)  # fmt: skip
STATE = {
    "adam_step": ("param", "m", "v"),
    "adam_step_8bit": ("param", "m_codes", "m_absmax", "v_codes", "v_absmax"),
}


class Draft:
    """A program, operation by operation, beside the plain arrays that it has made so far.

    What it writes are random bytes, or ones without `rng`, unless values are given; the arrays of
    the case are named as they come.
    """

    def __init__(
        self, rng: np.random.Generator | None, capacity: int | None = None, page: int | None = None
    ) -> None:
        self.rng, self.capacity, self.page = rng, capacity, page
        self.size = page or 4096  # of a page, if it is not asked for
        self.program: programs.Program = []
        self.arrays: dict[str, Array] = {}
        self.plain = PlainArrays(self.arrays, capacity, page)

    def do(self, *operation: Any) -> Self:
        """Add an operation."""
        self.plain.perform(operation)
        self.program.append(list(operation))
        return self

    def write(
        self, name: str, part: Part = None, side: str = "host", values: Array | None = None
    ) -> Self:
        """Write an array, or a part of it."""
        if values is None:
            values = self._bytes(self.plain.alive[name].values[where(part)])
        data = f"x{len(self.arrays)}"
        self.arrays[data] = values
        return self.do("write", name, part and list(part), data, side)

    def read(self, name: str, part: Part = None, side: str = "host") -> Self:
        """Read an array, or a part of it."""
        return self.do("read", name, part and list(part), side)

    def read_all(self, names: Iterable[str], *sides: str) -> Self:
        """Read several arrays, each by all of the sides."""
        for name in names:
            for side in sides or ("host",):
                self.read(name, side=side)
        return self

    def new(
        self, name: str, shape: int | tuple[int, ...], dtype: str = "uint8", side: str = "host"
    ) -> Self:
        """Allocate an array and write it."""
        return self.given(name, self._bytes(np.empty(shape, dtype)), side)

    def given(self, name: str, values: Array, side: str = "host") -> Self:
        """Allocate an array and write these values."""
        self.do("empty", name, list(values.shape), values.dtype.name)
        return self.write(name, None, side, values)

    def state(self, function: str, n: int, seed: int) -> Self:
        """Allocate and write `n` parameters and the state of an optimizer; make gradients."""
        param, *grads = np.random.default_rng(seed).standard_normal((4, n)).astype(np.float32)
        for name, block in zip(STATE[function], BLOCKS[function], strict=True):
            values: Array = np.zeros(-(-n // block), np.uint8 if "codes" in name else np.float32)
            self.given(name, {"param": param, "m_codes": values + 127}.get(name, values))
        self.arrays["g"] = np.array(grads)
        return self

    def steps(self, function: str, first: int, count: int, part: int | None) -> Self:
        """Step a state."""
        return self.do("step", function, list(STATE[function]), "g", first, count, part)

    def save(self, file: str) -> Self:
        """Save all arrays that are alive."""
        return self.do("save", file, [*self.plain.alive])

    def load(self, file: str, capacity: int | None, page: int | None) -> Self:
        """A fresh pager of these sizes, with all of a file."""
        return self.do("load", file, [*self.plain.files[file]], capacity, page)

    def shrink(self, frames: int) -> Self:
        """Another capacity in pages, where the size of a page is known."""
        return self if self.page is None else self.do("shrink", frames * self.page)

    def case(self, note: str) -> Case:
        """The program as a case."""
        sizes = {"capacity_bytes": self.capacity, "page_bytes": self.page}
        return Case("make_pager", self.arrays, {**sizes, "program": self.program}, note)

    def _bytes(self, like: Array) -> Array:
        """Bytes of all values: NaNs, subnormals, infinities."""
        if self.rng is None:
            return np.ones_like(like)
        size, top = like.nbytes, 2 if like.dtype == np.bool_ else 256
        return self.rng.integers(0, top, size, np.uint8).view(like.dtype).reshape(like.shape)


# ---- drawn at random -----------------------------------------------------------------------------

LONGEST = 30  # operations
PAGES = (*[4096] * 8, None, None, 64, 100, 7)  # small ones are not for everybody
MOST = 4  # arrays alive


def programs_of(counted: bool) -> Any:
    """Hypothesis: a program; a `counted` one asks for counters, and advises nothing."""
    from hypothesis import strategies as st

    return st.randoms(use_true_random=False).map(lambda rng: drawn(rng, counted))


def drawn(rng: Random, counted: bool = False) -> Case:
    """Draw a program; one of many writes nothing but ones."""
    page, frames, seed = rng.choice(PAGES), rng.choice((1, 2, 3, 5, 16, None)), rng.randint(0, 99)
    capacity = None if frames is None or page is None else frames * page
    draft = Draft(np.random.default_rng(seed) if seed else None, capacity, page)
    _allocate(rng, draft, "a0")
    for _ in range(rng.randint(1, LONGEST)):
        with suppress(Nonsense, LookupError):  # nothing is alive, or open
            _draw(rng, draft, counted)
    for label in list(draft.plain.uses):
        draft.do("close", label)
    return draft.read_all(draft.plain.alive).case("drawn").with_options(counted=counted)


def _draw(rng: Random, draft: Draft, counted: bool) -> None:
    """Add an operation, or those that belong together: of each kind so many of all."""
    alive, uses, at = draft.plain.alive, draft.plain.uses, len(draft.program)
    names = sorted(alive) or [""]
    name, frames = rng.choice(names), rng.randint(1, 9)
    some = [rng.choice(names) for _ in range(rng.randint(1, 3))]  # one array perhaps twice
    part = _part(rng, draft.size, alive[name].values) if alive else None
    opened = [f"{u}.{i}" for u, held in uses.items() for i, n in enumerate(held) if n == name]
    side = rng.choice(opened or SIDES)  # in an open `use` of it only what that yields
    room = draft.page and frames * draft.page
    kinds: list[tuple[int, Callable[[], Any]]] = [
        (3 * (len(alive) < MOST), lambda: _allocate(rng, draft, f"a{at}")),
        (6, lambda: draft.write(name, part, side)),
        (6, lambda: draft.read(name, part, side)),
        (2, lambda: draft.do("prefetch", name, rng.choice(("device", "device", "host")))),
        (1, lambda: draft.shrink(frames)),
        (1, lambda: draft.do("free", name)),
        ("g" not in draft.arrays, lambda: _step(rng, draft)),
        (len(uses) < 2, lambda: draft.do("open", f"u{at}", some)),
        (1, lambda: draft.do("close", list(uses)[-1])),
        (1, lambda: draft.save(f"f{at}").load(f"f{at}", room, draft.page)),
    ]
    if not counted:
        advice = rng.choice((None, *SIDES)), rng.choice((False, True))
        kinds.append((1, lambda: draft.do("advise", name, *advice)))
        kinds.append((1, lambda: draft.do("free", name).do("must_fail", ["free", name])))
    (chosen,) = rng.choices(range(len(kinds)), [weight for weight, _ in kinds])
    kinds[chosen][1]()


def _allocate(rng: Random, draft: Draft, name: str) -> None:
    dtype = rng.choice(TYPES)
    rows = rng.randint(0, 3 * draft.size // np.dtype(dtype).itemsize + 2)
    draft.new(name, (rows, *rng.choice(((), (), (1,), (2,)))), dtype, rng.choice(SIDES))


def _step(rng: Random, draft: Draft) -> None:
    """A state of its own, stepped a few times: once a program."""
    draft.state("adam_step", rng.randint(1, 40), rng.randint(0, 9))
    draft.steps("adam_step", 1, rng.randint(1, 3), rng.choice((None, 1, 7)))


def _part(rng: Random, page: int, values: Array) -> Part:
    """All of an array or some of its rows; many begin or end where a page does."""
    row, rows = max(values.nbytes // max(len(values), 1), 1), len(values)
    pages = range(page, values.nbytes, page)
    edges = [0, rows, *(min(p // row + more, rows) for p in pages for more in (0, 1))]
    ends = (rng.choice((rng.choice(edges), rng.randint(0, rows))) for _ in "ab")
    return rng.choice((None, sorted(ends)))
