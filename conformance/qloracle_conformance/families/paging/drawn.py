"""The state machine: operation by operation one is drawn, and taken if it makes sense then.

What it draws is a program, so that it can be judged, made smaller and replayed like any other.
Hypothesis lends the generator, and can so shrink what it finds; any other one will do.
"""

from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import Nonsense
from qloracle_conformance.contract.programs import Part, where
from qloracle_conformance.families.paging.drafts import SIDES, TYPES, Array, Draft

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
    if counted:
        draft.do("counters")
    verbs = {v: n for v, n in WEIGHTS.items() if not (counted and v in ("advise", "free_twice"))}
    drawn = rng.choices(list(verbs), list(verbs.values()), k=rng.randint(1, LONGEST))
    for verb in ("allocate", *drawn):
        with suppress(Nonsense, LookupError):  # nothing is alive, or open
            _draw(verb, rng, draft)
    for label in list(draft.plain.uses):
        draft.do("close", label)
    return draft.read_all(draft.plain.alive).case("drawn")


def _draw(verb: str, rng: Random, draft: Draft) -> None:
    """Add an operation, or those that belong together."""
    alive, uses, at = draft.plain.alive, draft.plain.uses, len(draft.program)
    names = sorted(alive) or [""]
    name = rng.choice(names)
    match verb:
        case "allocate" if len(alive) < MOST:
            dtype = rng.choice(TYPES)
            rows = rng.randint(0, 3 * draft.size // np.dtype(dtype).itemsize + 2)
            shape = rows, *rng.choice(((), (), (1,), (2,)))
            draft.given(f"a{at}", _bytes(rng, draft, shape, dtype), rng.choice(SIDES))
        case "write":
            part = _part(rng, draft.size, alive[name].values)
            old = alive[name].values[where(part)]
            values = _bytes(rng, draft, old.shape, old.dtype.name)
            draft.write(name, part, _side(rng, uses, name), values)
        case "read":
            part = _part(rng, draft.size, alive[name].values)
            draft.read(name, part, _side(rng, uses, name))
        case "prefetch":
            draft.do("prefetch", name, rng.choice(("device", "device", "host")))
        case "advise":
            draft.do("advise", name, rng.choice((None, *SIDES)), rng.choice((False, True)))
        case "shrink":
            draft.shrink(rng.randint(1, 9))
        case "free":
            draft.do("free", name)
        case "free_twice":  # the second time is refused, and what lives stays
            draft.do("free", name).do("must_fail", ["free", name])
        case "resume":  # all that is alive goes through a file, into a fresh pager
            capacity = draft.page and rng.randint(1, 5) * draft.page
            draft.do("save", f"f{at}").do("load", f"f{at}", capacity, draft.page)
        case "step" if "g" not in draft.arrays:
            _step(rng, draft)
        case "open" if len(uses) < 2:  # one array perhaps twice
            draft.do("open", f"u{at}", [rng.choice(names) for _ in range(rng.randint(1, 3))])
        case "close":
            draft.do("close", list(uses)[-1])


def _step(rng: Random, draft: Draft) -> None:
    """A state of its own, stepped a few times: once a program."""
    numbers = np.random.default_rng(rng.randint(0, 9))
    param, grads = numbers.standard_normal((2, 1, rng.randint(1, 40))).astype(np.float32)
    draft.arrays["g"] = grads
    for name, values in (("p", param[0]), ("m", 0 * param[0]), ("v", 0 * param[0])):
        draft.given(name, values)
    count, part = rng.randint(1, 3), rng.choice((None, 1, 7))
    draft.do("step", "adam_step", ["p", "m", "v"], "g", 1, count, part)


def _bytes(rng: Random, draft: Draft, shape: tuple[int, ...], dtype: str) -> Array:
    """Random bytes by a seed; those of seed 0 are simple."""
    seed = rng.randint(0, 99)
    draft.rng = np.random.default_rng(seed)
    return draft.bytes(shape, dtype) if seed else np.ones(shape, dtype)


def _side(rng: Random, uses: dict[str, list[str]], name: str) -> str:
    """A side that may touch an array: in an open `use` of it only what that yields."""
    opened = [f"{u}.{i}" for u, names in uses.items() for i, n in enumerate(names) if n == name]
    return rng.choice(opened or SIDES)


def _part(rng: Random, page: int, values: Array) -> Part:
    """All of an array or some of its rows; many begin or end where a page does."""
    row, rows = max(values.nbytes // max(len(values), 1), 1), len(values)
    pages = range(page, values.nbytes, page)
    edges = [0, rows, *(min(p // row + more, rows) for p in pages for more in (0, 1))]
    ends = (rng.choice((rng.choice(edges), rng.randint(0, rows))) for _ in "ab")
    return rng.choice((None, sorted(ends)))
