"""Programs whose counters can be judged: nothing is advised, and not every pager counts."""

from collections.abc import Iterator, Mapping
from itertools import chain

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import Program, program_of
from qloracle_conformance.families.paging import directed
from qloracle_conformance.families.paging.directed import Cases, drafts, sizes
from qloracle_conformance.families.paging.drafts import SIDES
from qloracle_conformance.judging.checks import Plan


def counting(*kinds: Cases) -> Cases:
    """Programs on pagers that count: each new one is asked for its counters."""

    def cases(plan: Plan) -> Iterator[Case]:
        for case in chain.from_iterable(kind(plan) for kind in kinds):
            program: Program = [["counters"]]
            for operation in program_of(case):
                program += [operation, ["counters"]] if operation[0] == "load" else [operation]
            yield case.with_options(program=program)

    return cases


def capacity(plan: Plan) -> Iterator[Case]:
    """More than the device holds, written and read by both sides while its capacity changes."""
    no_whole_pages = (2 * 64 + 63, 64), (4097, 4096)
    for draft in drafts(plan, *sizes(plan), *no_whole_pages):
        size = draft.size
        for name in "abcd":
            draft.new(name, 3 * size + 5, side="device")
        for frames in (2, 5, 1, 9, 20, 3):
            draft.shrink(frames).read_all("abcd", "device")
            draft.write("b", (0, 3 * size), "device").read("b", (size, 2 * size))
        yield draft.case("four arrays of four pages each")


def prefetch(plan: Plan) -> Iterator[Case]:
    """Of an array that fits, of several, of one that does not, again and after others came."""
    for draft in drafts(plan, *((n * page, page) for n in (1, 3, 4, 12) for page in (4096, 100))):
        page = draft.size
        draft.new("a", 3 * page).new("b", page + 1).new("c", page)
        for use, name in enumerate("abcba"):
            draft.do("prefetch", name, "device").read(name, None, "device")
            draft.write(name, (0, page // 2), "device").read(name, (1, 3))
            draft.do("prefetch", name, "device").do("open", f"u{use}", [name, name])
            draft.read(name, None, f"u{use}.1").do("close", f"u{use}")
        for name in "abc":
            draft.do("prefetch", name, "device")
        draft.read_all("abc", "device")
        draft.read("a", (0, 1), "device").read("c", None, "device").read("b", (0, 1), "device")
        draft.do("prefetch", "a", "device").read("a", None, "device")  # one page was there
        draft.do("prefetch", "a", "host").read("a").shrink(9).do("prefetch", "a", "device")
        yield draft.read("a", None, "device").case("prefetched")


def freed(plan: Plan) -> Iterator[Case]:
    """Arrays that fill the device come and go: each time there is room for the next one."""
    for draft in drafts(plan, *((n * page, page) for n in (2, 3, 8) for page in (4096, 100))):
        rest = (draft.capacity or 0) - draft.size
        draft.new("kept", draft.size).read("kept", None, "device")
        for i in range(8):
            name = f"a{i}"
            draft.new(name, rest - (i % 2) * 3, side=SIDES[i % 2])
            draft.do("prefetch", name, "device").read(name, None, "device")
            draft.write(name, None, "device").do("free", name).read("kept", None, "device")
        yield draft.case("eight arrays, one after the other")


DIRECTED: Mapping[str, Cases] = {
    "counters": counting(directed.pages, directed.many, directed.sharing, directed.lifetimes),
    "capacity": counting(capacity), "prefetch": counting(prefetch), "freed": counting(freed),
    "resume": counting(directed.resuming(3, 3)),
}  # fmt: skip
