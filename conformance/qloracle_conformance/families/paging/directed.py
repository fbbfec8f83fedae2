"""Programs for pagers that try one thing each, whole and at the edges of pages.

Most pages have 4096 bytes, which every system can have that knows of pages; the others are small or
odd, so that pages are many and numbers lie across two of them.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK
from qloracle_conformance.families.paging.drafts import SIDES, STATE, TYPES, Array, Draft
from qloracle_conformance.judging.checks import Plan

Cases = Callable[[Plan], Iterator[Case]]

PAGES = (4096, 64, 100, 7)
FRAMES = (1, 2, 3, 64)  # pages that a device holds
FEW = (3 * 64, 64), (100 * 64, 64), (8 * 4096, 4096)  # of a few frames, beside many pages
FLOATS = ("float32", "bfloat16", "float16", "float64")


def sizes(plan: Plan) -> Iterator[tuple[int | None, int | None]]:
    """Capacities and pages: as the implementation likes them, and all that are asked for."""
    yield None, None
    for page in PAGES:
        for frames in FRAMES if plan.deep or page != 7 else FRAMES[:2]:
            yield frames * page, page
        yield None, page


def each(write: Callable[[Draft], object], *of: tuple[int | None, int | None]) -> Cases:
    """A program for each capacity and page, or for those that are named, told by its docstring."""

    def cases(plan: Plan) -> Iterator[Case]:
        rng = plan.rng
        for capacity, page in of or sizes(plan):
            draft = Draft(rng, capacity, page)
            write(draft)
            yield draft.case((write.__doc__ or "").partition("\n")[0])

    return cases


def plain(*_: object) -> Case:
    """A program that every pager should take: an array, written by the host, read by a step."""
    values = np.arange(64, dtype=np.float32)
    return Draft(np.random.default_rng(0)).given("a", values).read("a", None, "device").case("")


# ---- bytes ---------------------------------------------------------------------------------------


def pages(draft: Draft) -> None:
    """An array of five pages and a bit: whole, in parts across pages, by both sides in turn."""
    size = draft.size
    n = 5 * size + 3
    draft.new("a", n).read("a", None, "device")
    for low, high in ((size - 1, size + 1), (2 * size, 3 * size), (n - 2, n), (0, 1)):
        for side, other in (SIDES, SIDES[::-1]):
            draft.write("a", (low, high), side).read("a", (max(low - 1, 0), high + 1), other)
    draft.write("a", None, "device").read_all("a", *SIDES)


def types(plan: Plan) -> Iterator[Case]:
    """Every type, with bytes of all values; no axis, one, two, three, and no element."""
    shapes = ((), (0,), (1,), (33,), (5, 3), (0, 4), (4, 0), (9, 2, 2))
    rng, sizes = plan.rng, ((4096, 4096), (128, 64), (21, 7), (None, None))
    for (capacity, page), dtype in product(sizes, TYPES):
        draft = Draft(rng, capacity, page)
        for i, shape in enumerate(shapes):
            draft.new(f"a{i}", shape, dtype, SIDES[i % 2])
        for i, shape in enumerate(shapes):
            draft.read_all([f"a{i}"], "device", "host")
            if shape:
                draft.read(f"a{i}", (1, 3), "device")
        yield draft.case(f"{dtype} in eight shapes")


def patterns(draft: Draft) -> None:
    """Every byte in every place of a page, and pages of 0, of 0xFF and of equal bytes."""
    size = draft.size
    counts = np.arange(3 * size, dtype=np.int64)
    for name, bytes_of in (
        ("counting", counts + counts // size),
        ("zeros", 0 * counts),
        ("ones", 0 * counts + 255),
        ("alike", counts // size + 7),
        ("down", -counts),
    ):
        draft.given(name, bytes_of.astype(np.uint8))
    for side in SIDES[::-1]:
        draft.read_all(("alike", "ones", "down", "counting", "zeros"), side)
    for name, side in (("zeros", "host"), ("ones", "device")):  # equal pages, until now
        draft.write(name, (size - 2, size + 1), side).read(name)


def numbers(plan: Plan) -> Iterator[Case]:
    """What arithmetic on a page would change: pages of 0 and -0, of subnormals, of odd NaNs."""
    sizes = ((4096, 4096), (64, 64), (None, None))
    for (capacity, page), dtype in product(sizes, FLOATS):
        draft = Draft(plan.rng, capacity, page)
        draft.given("a", delicate(dtype, 2 * draft.size), "device").read_all("a", *SIDES)
        yield draft.case(f"{dtype} that arithmetic would change")


def delicate(dtype: str, nbytes: int) -> Array:
    """Zeros, subnormals and NaNs of both signs, so many bytes of each.

    >>> delicate("float16", 4).view(np.uint16).tolist() == [0, 0x8000, 1, 0x8002, 0x7C01, 0xFC02]
    True
    """
    kind = np.dtype(dtype)
    bits: Any = np.dtype(f"u{kind.itemsize}").type
    infinite = int(np.array(np.inf, kind).view(bits))
    normal = infinite & -infinite  # the smallest one
    i = np.arange(nbytes // kind.itemsize, dtype=bits)
    rest = i % bits(normal - 1) + bits(1)
    sign = (i % bits(2)) << bits(8 * kind.itemsize - 1)
    return np.concatenate([0 * i | sign, rest | sign, rest | sign | bits(infinite)]).view(kind)


def many(draft: Draft) -> None:
    """More pages than 8 bits can count, on a device of a few; beside them other arrays' pages."""
    page = draft.size
    for name, n in (("a", 270 * page + 9), ("b", 3 * page), ("c", 270 * page + 9)):
        draft.new(name, n, side="device")
    draft.read("a", None, "device").write("a", (3, 12), "device")
    low = 256 * page - 2
    draft.write("a", (low, low + 5)).read("a", None, "device").read_all("cab")


# ---- operations ----------------------------------------------------------------------------------


def sharing(draft: Draft) -> None:
    """Several arrays in one `use`, one array twice, and a `use` inside of another."""
    n = 2 * draft.size + 1
    for name in "abc":
        draft.new(name, n)
    draft.do("open", "u", ["a", "b", "a"]).read("a", None, "u.0").read("b", None, "u.1")
    draft.write("a", (1, 6), "u.2").read("a", (0, 9), "u.0")
    draft.do("open", "v", ["c", "a"]).write("a", None, "v.1")
    draft.read("a", None, "u.0").read("c", None, "v.0")
    draft.write("c", (0, 2), "v.0").do("close", "v")
    draft.read("a", None, "u.2").do("close", "u")
    draft.read_all("cab", *SIDES)


def moving(draft: Draft) -> None:
    """Prefetch, advice, other capacities and free, between writes and reads of both sides."""
    size = draft.size
    n = 3 * size - 1
    for name in "abc":
        draft.new(name, n)
    for name, preferred, mostly, frames in (
        ("a", "device", False, 1), ("b", "host", False, 3), ("c", None, True, 2),
        ("b", None, True, 1),
    ):  # fmt: skip
        draft.do("prefetch", name, "device").write(name, (2, 7), "device")
        draft.do("advise", name, preferred, mostly).read(name, None, "device")
        draft.write(name, (1, size + 1), "device").read(name)
        draft.write(name, (size - 4, size + 5)).read(name, None, "device")
        draft.do("prefetch", name, "host").read(name, None, "device")
        draft.write(name, (7, size + 7), "device").shrink(frames).read(name)
    draft.do("free", "b").new("d", n, side="device").do("prefetch", "d", "host").shrink(9)
    draft.do("prefetch", "a", "device").read("a").read("c", None, "device").read("d")
    draft.read("a", None, "device")


def lifetimes(draft: Draft) -> None:
    """Arrays that come and go: what is freed may be given out again, what lives stays."""
    size = draft.size
    draft.new("kept", 2 * size)
    for i in range(6):
        draft.new(f"a{i}", (size // 2, size, 2 * size + 1)[i % 3], side=SIDES[i % 2])
        draft.read(f"a{i}", None, SIDES[1 - i % 2])
        if i > 1:
            draft.do("free", f"a{i - 2}").read(f"a{i - 1}")
    draft.read_all(["kept"], "device", "host").read("a5")


def two_pagers(plan: Plan) -> Iterator[Case]:
    """Saved, loaded into a fresh pager of other sizes, written, read, saved and loaded again."""
    others = iter([(None, None), *sizes(plan)])
    for capacity, page in sizes(plan):
        draft = Draft(plan.rng, capacity, page)
        for name, dtype in (("a", "float32"), ("b", "bfloat16"), ("c", "uint8")):
            draft.new(name, (draft.size // 4 + 8, 3), dtype)
        draft.write("b", (2, 6), "device").save("f")
        draft.read("b", None, "device").write("a", (0, 2), "device")
        draft.save("f").read("a").do("free", "a").load("f", *next(others))
        draft.read("a", None, "device").write("c", (1, 3), "device")
        draft.save("g").load("g", draft.capacity, draft.page)
        yield draft.read("c", None, "device").read_all("ba").case("saved and loaded twice")
    draft = Draft(draft.rng)
    for dtype in TYPES:
        for i, shape in enumerate(((), (0,), (3, 2))):
            draft.new(f"{dtype}_{i}", shape, dtype, SIDES[i % 2])
    draft.save("f").load("f", None, None).read_all(draft.plain.alive, "device")
    yield draft.case("all types in a file")


def errors(draft: Draft) -> None:
    """What must be refused, between two arrays that must stay as they are."""
    n = 2 * draft.size
    draft.new("a", n).new("gone", n).new("b", n, side="device").do("free", "gone")
    for operation in (
        ["free", "gone"],
        ["open", "u", ["gone"]],
        ["open", "v", ["a", "gone"]],
        ["prefetch", "gone", "device"],
        ["read", "gone", None, "host"],
        ["read", "gone", [0, 2], "host"],
        ["write", "gone", [0, n], "x0", "host"],
        ["write", "a", [0, n - 1], "x0", "host"],
        ["write", "a", [0, n - 1], "x0", "device"],
        ["empty", "huge", [2**61], "float32"],
    ):
        draft.do("must_fail", operation)
    draft.read("a", None, "device").do("free", "b").do("must_fail", ["free", "b"])
    draft.new("c", n, side="device")  # perhaps where b was
    for operation in (["read", "b", [0, 2], "host"], ["open", "w", ["b"]], ["free", "b"]):
        draft.do("must_fail", operation)
    draft.read_all("ac").do("free", "a").do("must_fail", ["free", "a"])
    draft.read("c", None, "device")


# ---- steps ---------------------------------------------------------------------------------------

# capacity, page, and elements that a step takes at a time
STEPPED = ((4096, 4096, BLOCK), (3 * 4096, 4096, None), (256, 256, BLOCK), (None, None, BLOCK))
MORE = (
    (5 * 300, 300, None), (100, 100, BLOCK), (2 * 4096, 4096, None), (7 * 64, 64, BLOCK),
    (None, 4096, BLOCK),
)  # fmt: skip
RESUMED = ((4096, 4096, BLOCK), (512, 256, None), (None, None, None))


def optimizer(function: str) -> Cases:
    """Many steps of an optimizer, in slices and whole, at capacities from one page up."""

    def cases(plan: Plan) -> Iterator[Case]:
        for capacity, page, part in STEPPED + MORE * plan.deep:
            draft = Draft(plan.rng, capacity, page).state(function, plan.pick(300, 1500), plan.seed)
            draft.steps(function, 1, plan.pick(20, 200), part)
            yield draft.read_all(STATE[function]).case("steps")

    return cases


def resuming(smoke: int, standard: int, *more: tuple[int, int, int]) -> Cases:
    """So many steps, saved half way: loaded into a fresh pager, of a page or of a few."""

    def cases(plan: Plan) -> Iterator[Case]:
        half = plan.pick(smoke, standard)
        for function, (capacity, page, part) in product(STATE, (*RESUMED, *more)):
            draft = Draft(plan.rng, capacity, page).state(function, plan.pick(300, 1500), plan.seed)
            draft.steps(function, 1, half, part).save("f")
            draft.load("f", 2 * capacity if capacity else None, page)
            draft.steps(function, 1 + half, half, part)
            yield draft.read_all(STATE[function], "device").case("resumed half way")

    return cases


DIRECTED: Mapping[str, Cases] = {
    "pages": each(pages), "types": types, "patterns": each(patterns), "numbers": numbers,
    "many": each(many, *FEW), "sharing": each(sharing), "moving": each(moving),
    "lifetimes": each(lifetimes), "saving": two_pagers, "errors": each(errors),
    "adam": optimizer("adam_step"), "adam_8bit": optimizer("adam_step_8bit"),
    "resume": resuming(10, 100),
}  # fmt: skip
