"""Programs whose counters can be judged: nothing is advised, and not every pager counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK
from qloracle_conformance.families.paging import directed as paging
from qloracle_conformance.families.paging.directed import HALF, SIDES, sizes, stepping
from qloracle_conformance.families.paging.drafts import Draft, drawn
from qloracle_conformance.judging.checks import Plan

Cases = Callable[[Plan], Iterator[Case]]


def _counted(capacity: int | None, page: int | None) -> Draft:
    return Draft(capacity, page).do("counters")


def counting(*kinds: Cases) -> Cases:
    """The programs of S12, but on pagers that count."""

    def cases(plan: Plan) -> Iterator[Case]:
        for kind in kinds:
            for case in kind(plan):
                yield case.with_options(program=[["counters"], *case.options["program"]])

    return cases


def capacity(plan: Plan) -> Iterator[Case]:
    """More than the device holds, written and read by both sides while its capacity changes."""
    rng = plan.rng
    for room, page in (*sizes(plan), (2 * 64 + 63, 64), (4097, 4096)):  # or no whole pages
        size = page or 4096
        draft = _counted(room, page)
        for name in "abcd":
            draft.new(name, drawn(rng, (3 * size + 5,), "uint8"), "device")
        for frames in (2, 5, 1, 9, 20, 3):
            draft.shrink(frames)
            for name in "abcd":
                draft.read(name, side="device")
            draft.write("b", drawn(rng, (3 * size,), "uint8"), (0, 3 * size), "device")
            draft.read("b", (size, 2 * size))
        yield draft.case("four arrays of four pages each")


def prefetch(plan: Plan) -> Iterator[Case]:
    """Of an array that fits, of several, of one that does not, again and after others came."""
    rng = plan.rng
    for frames in (1, 3, 4, 12):
        for page in (4096, 100):
            draft = _counted(frames * page, page)
            for name, n in (("a", 3 * page), ("b", page + 1), ("c", page)):
                draft.new(name, drawn(rng, (n,), "uint8"))
            for name in "abcba":
                draft.do("prefetch", name, "device").read(name, side="device")
                draft.write(name, drawn(rng, (page // 2,), "uint8"), (0, page // 2), "device")
                draft.read(name, (1, 3), "host").do("prefetch", name, "device")
                draft.do("open", f"u{len(draft.program)}", [name, name])
                label = draft.program[-1][1]
                draft.read(name, side=f"{label}.1").do("close", label)
            for name in "abc":
                draft.do("prefetch", name, "device")
            for name in "abc":
                draft.read(name, side="device")
            draft.read("a", (0, 1), "device").read("c", side="device").read("b", (0, 1), "device")
            draft.do("prefetch", "a", "device").read("a", side="device")  # one page was there
            draft.do("prefetch", "a", "host").read("a").do("shrink", 9 * page)
            yield draft.do("prefetch", "a", "device").read("a", side="device").case("prefetched")


def freed(plan: Plan) -> Iterator[Case]:
    """Arrays that fill the device come and go: each time there is room for the next one."""
    rng = plan.rng
    for frames in (2, 3, 8):
        for page in (4096, 100):
            draft = _counted(frames * page, page).new("kept", drawn(rng, (page,), "uint8"))
            draft.read("kept", side="device")
            for i in range(8):
                name, n = f"a{i}", (frames - 1) * page - (i % 2) * 3
                draft.new(name, drawn(rng, (n,), "uint8"), SIDES[i % 2])
                draft.do("prefetch", name, "device").read(name, side="device")
                draft.write(name, drawn(rng, (n,), "uint8"), side="device")
                draft.do("free", name).read("kept", side="device")
            yield draft.case("eight arrays, one after the other")


def resumed(plan: Plan) -> Iterator[Case]:
    """A state that was loaded pages like the first one: on a device of a page, of a few, of all."""
    for function in ("adam_step", "adam_step_8bit"):
        for frames, page, part in ((1, 4096, BLOCK), (2, 256, None), (64, 256, BLOCK)):
            draft, names = stepping(plan, function, frames * page, page, 300)
            draft.do("counters").do("step", function, names, "g", 1, 3, part).do("save", "f")
            draft.do("load", "f", frames * page, page).do("counters")
            draft.do("step", function, names, "g", HALF, 3, part)
            for name in names:
                draft.read(name, side="device")
            yield draft.case("resumed")


DIRECTED: Mapping[str, Cases] = {
    "counters": counting(paging.pages, paging.many, paging.sharing, paging.lifetimes),
    "capacity": capacity,
    "prefetch": prefetch,
    "freed": freed,
    "resume": resumed,
}


def search(plan: Plan) -> Any:
    """Hypothesis: programs without advice."""
    from qloracle_conformance.families.paging import drawn as drawn_programs

    return drawn_programs.programs_of(counted=True)
