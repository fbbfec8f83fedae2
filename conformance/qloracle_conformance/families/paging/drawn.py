"""The state machine: Hypothesis draws operation by operation, each one that makes sense then.

What it draws is a program, so that it can be judged, made smaller and replayed like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import dtype_of
from qloracle_conformance.families.paging.drafts import TYPES, Array, Draft, drawn

LONGEST = 30  # operations
PAGES_DRAWN = (*[4096] * 8, None, None, 64, 100, 7)  # small ones are not for everybody
MOST = 4  # arrays alive
WEIGHTS = {
    "allocate": 3, "write": 6, "read": 6, "prefetch": 2, "advise": 1, "shrink": 1, "free": 1,
    "free twice": 1, "resume": 1, "step": 1, "open": 1, "close": 1,
}  # fmt: skip


@dataclass
class Machine:
    """A draft, what is alive in it, and what is open."""

    draft: Draft
    page: int
    alive: dict[str, Array] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    made: int = 0
    stepped: int = 0
    advised: bool = False

    @property
    def busy(self) -> set[str]:
        """Arrays in an open `use`."""
        return {name for names in self.uses.values() for name in names}


@st.composite
def programs_of(draw: Any, counted: bool) -> Case:
    """A program; a `counted` one asks for counters, and advises nothing."""
    page = draw(st.sampled_from(PAGES_DRAWN))
    frames = draw(st.sampled_from((1, 2, 3, 5, 16, None)))
    size = page or 4096
    capacity = None if frames is None or page is None else frames * page
    machine = Machine(Draft(capacity, page), size)
    if counted:
        machine.draft.do("counters")
    allocate(machine, draw)
    for _ in range(draw(st.integers(1, LONGEST))):
        verb = draw(st.sampled_from([verb for verb, n in WEIGHTS.items() for _ in range(n)]))
        if not (counted and verb in ("advise", "free twice")):
            VERBS[verb](machine, draw)
    for label in list(machine.uses):
        machine.draft.do("close", label)
    for name in machine.alive:
        machine.draft.read(name)
    return machine.draft.case("drawn")


def allocate(machine: Machine, draw: Any) -> None:
    """An array of a few pages or of a few numbers, written at once."""
    if len(machine.alive) >= MOST:
        return
    dtype = draw(st.sampled_from(TYPES))
    most = 3 * machine.page // dtype_of(dtype).itemsize + 2
    rows, more = draw(st.integers(0, most)), draw(st.sampled_from(((), (), (1,), (2,))))
    name = f"a{machine.made}"
    machine.made += 1
    values = _bytes(draw, (rows, *more), dtype)
    machine.alive[name] = values
    machine.draft.new(name, values, draw(st.sampled_from(("host", "device"))))


def _bytes(draw: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """Random bytes by a seed; those of seed 0 are simple."""
    seed = draw(st.integers(0, 99))
    if seed:
        return drawn(np.random.default_rng(seed), shape, dtype)
    return np.ones(shape, dtype_of(dtype))


def _pick(machine: Machine, draw: Any) -> str:
    return str(draw(st.sampled_from(sorted(machine.alive))))


def _part(machine: Machine, draw: Any, name: str) -> tuple[Any, Any]:
    """The whole, or rows; many begin or end where a page does."""
    rows = len(machine.alive[name])
    if draw(st.booleans()):
        return None, None
    edges = st.sampled_from([0, rows, *_edges(machine, name)])
    low, high = sorted(draw(st.one_of(edges, st.integers(0, rows))) for _ in "ab")
    return low, high


def _edges(machine: Machine, name: str) -> list[int]:
    values = machine.alive[name]
    row = max(values.nbytes // max(len(values), 1), 1)
    pages = range(machine.page, values.nbytes, machine.page)
    return [min(max(p // row + d, 0), len(values)) for p in pages for d in (0, 1)]


def _side(machine: Machine, draw: Any, name: str) -> str:
    opened = [
        f"{u}.{i}" for u, names in machine.uses.items() for i, n in enumerate(names) if n == name
    ]
    return str(draw(st.sampled_from(opened or ["host", "device"])))


def write(machine: Machine, draw: Any) -> None:
    """New bytes into an array or a part of it."""
    if machine.alive:
        name = _pick(machine, draw)
        part = _part(machine, draw, name)
        shape = machine.alive[name][slice(*part)].shape
        values = _bytes(draw, shape, machine.alive[name].dtype.name)
        machine.draft.write(name, values, part, _side(machine, draw, name))


def read(machine: Machine, draw: Any) -> None:
    """An array or a part of it."""
    if machine.alive:
        name = _pick(machine, draw)
        machine.draft.read(name, _part(machine, draw, name), _side(machine, draw, name))


def prefetch(machine: Machine, draw: Any) -> None:
    """To either side."""
    if machine.alive:
        to = draw(st.sampled_from(("device", "device", "host")))
        machine.draft.do("prefetch", _pick(machine, draw), to)


def advise(machine: Machine, draw: Any) -> None:
    """Any advice."""
    if machine.alive:
        preferred = draw(st.sampled_from((None, "host", "device")))
        machine.draft.do("advise", _pick(machine, draw), preferred, draw(st.booleans()))


def shrink(machine: Machine, draw: Any) -> None:
    """Another capacity."""
    machine.draft.shrink(draw(st.integers(1, 9)))


def free(machine: Machine, draw: Any) -> None:
    """An array that no `use` holds."""
    idle = sorted(set(machine.alive) - machine.busy)
    if idle:
        name = draw(st.sampled_from(idle))
        del machine.alive[name]
        machine.draft.do("free", name)


def free_twice(machine: Machine, draw: Any) -> None:
    """The second time is refused, and what lives stays."""
    before = set(machine.alive)
    free(machine, draw)
    for name in before - set(machine.alive):
        machine.draft.do("must_fail", ["free", name])


def resume(machine: Machine, draw: Any) -> None:
    """All that is alive goes through a file, into a fresh pager of another capacity."""
    if not machine.uses:
        file, page = f"f{len(machine.draft.program)}", machine.draft.options["page_bytes"]
        capacity = None if page is None else draw(st.integers(1, 5)) * page
        machine.draft.do("save", file).do("load", file, capacity, page)


def step(machine: Machine, draw: Any) -> None:
    """A state of its own, stepped a few times: once a program."""
    if machine.stepped:
        return
    machine.stepped = 1
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    param, grad = rng.standard_normal((2, n)).astype(np.float32)
    for name, values in (("p", param), ("m", 0 * param), ("v", 0 * param)):
        machine.draft.new(name, values)
        machine.alive[name] = values
    machine.draft.arrays["g"] = grad[None]
    count, part = draw(st.integers(1, 3)), draw(st.sampled_from((None, 1, 7)))
    machine.draft.do("step", "adam_step", ["p", "m", "v"], "g", 1, count, part)


def open_use(machine: Machine, draw: Any) -> None:
    """A `use` of one to three arrays, perhaps of one of them twice."""
    if machine.alive and len(machine.uses) < 2:
        names = [_pick(machine, draw) for _ in range(draw(st.integers(1, 3)))]
        label = f"u{len(machine.draft.program)}"
        machine.uses[label] = names
        machine.draft.do("open", label, names)


def close(machine: Machine, draw: Any) -> None:
    """The end of the `use` that was opened last."""
    if machine.uses:
        label, _ = machine.uses.popitem()
        machine.draft.do("close", label)


VERBS = {
    "allocate": allocate, "write": write, "read": read, "prefetch": prefetch, "advise": advise,
    "shrink": shrink, "free": free, "free twice": free_twice, "resume": resume, "step": step,
    "open": open_use, "close": close,
}  # fmt: skip
