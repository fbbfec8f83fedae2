"""Programs whose counters can be judged: nothing is advised, and not every pager counts."""

from collections.abc import Mapping

from qloracle_conformance.contract.programs import BLOCK
from qloracle_conformance.families.paging import directed
from qloracle_conformance.families.paging.directed import Cases, each
from qloracle_conformance.families.paging.drafts import SIDES, Draft


def counting(*kinds: Cases) -> Cases:
    """Programs on pagers that count."""
    return lambda plan: (case.with_options(counted=True) for kind in kinds for case in kind(plan))


def capacity(draft: Draft) -> None:
    """More than the device holds, written and read by both sides while its capacity changes."""
    size = draft.size
    for name in "abcd":
        draft.new(name, 3 * size + 5, side="device")
    for frames in (2, 5, 1, 9, 20, 3):
        draft.shrink(frames).read_all("abcd", "device")
        draft.write("b", (0, 3 * size), "device").read("b", (size, 2 * size))


def prefetch(draft: Draft) -> None:
    """Of an array that fits, of several, of one that does not, again and after others came."""
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
    draft.read("a", None, "device")


def freed(draft: Draft) -> None:
    """Arrays that fill the device come and go: each time there is room for the next one."""
    rest = (draft.capacity or 0) - draft.size
    draft.new("kept", draft.size).read("kept", None, "device")
    for i in range(8):
        name = f"a{i}"
        draft.new(name, rest - (i % 2) * 3, side=SIDES[i % 2])
        draft.do("prefetch", name, "device").read(name, None, "device")
        draft.write(name, None, "device").do("free", name).read("kept", None, "device")


def _holding(*frames: int) -> list[tuple[int, int]]:
    return [(n * page, page) for n in frames for page in (4096, 100)]


SAME = ("pages", "many", "sharing", "lifetimes")  # as S12 has them
DIRECTED: Mapping[str, Cases] = {
    "counters": counting(*(directed.DIRECTED[name] for name in SAME)),
    "capacity": counting(each(capacity), each(capacity, (2 * 64 + 63, 64), (4097, 4096))),
    "prefetch": counting(each(prefetch, *_holding(1, 3, 4, 12))),
    "freed": counting(each(freed, *_holding(2, 3, 8))),
    "resume": counting(directed.resuming(3, 3, (64 * 256, 256, BLOCK))),
}
