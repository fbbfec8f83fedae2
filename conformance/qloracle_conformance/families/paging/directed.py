"""Programs for pagers: directed ones, and those that Hypothesis draws.

Most pages have 4096 bytes, which every system can have that knows of pages; the others are small or
odd, so that pages are many and numbers lie across two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK, dtype_of
from qloracle_conformance.families.paging.drafts import TYPES, Array, Draft, drawn
from qloracle_conformance.judging.checks import Plan

PAGES = (4096, 64, 100, 7)
FRAMES = (1, 2, 3, 64)  # pages that a device holds
SIDES = ("host", "device")


def sizes(plan: Plan) -> Iterator[tuple[int | None, int | None]]:
    """Capacities and pages: as the implementation likes them, and all that are asked for."""
    yield None, None
    for page in PAGES:
        for frames in FRAMES if plan.deep or page != 7 else FRAMES[:2]:
            yield frames * page, page
        yield None, page


def plain() -> Case:
    """A program that every pager should take: an array, written by the host, read by a step."""
    values = np.arange(64, dtype=np.float32)
    return Draft().new("a", values).read("a", side="device").case("an array")


# ---- directed ------------------------------------------------------------------------------------


def pages(plan: Plan) -> Iterator[Case]:
    """An array of five pages and a bit: whole, in parts across pages, by both sides in turn."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        size = page or 4096
        n = 5 * size + 3
        draft = Draft(capacity, page).new("a", drawn(rng, (n,), "uint8")).read("a", side="device")
        for low, high in ((size - 1, size + 1), (2 * size, 3 * size), (n - 2, n), (0, 1)):
            for side, other in (SIDES, SIDES[::-1]):
                draft.write("a", drawn(rng, (high - low,), "uint8"), (low, high), side)
                draft.read("a", (max(low - 1, 0), high + 1), other)
        draft.write("a", drawn(rng, (n,), "uint8"), side="device")
        yield draft.read("a").read("a", side="device").case("five pages and three bytes")


def types(plan: Plan) -> Iterator[Case]:
    """Every type, with bytes of all values; no axis, one, two, three, and no element."""
    rng = plan.rng
    shapes = ((), (0,), (1,), (33,), (5, 3), (0, 4), (4, 0), (9, 2, 2))
    for capacity, page in ((4096, 4096), (128, 64), (21, 7), (None, None)):
        for dtype in TYPES:
            draft = Draft(capacity, page)
            for i, shape in enumerate(shapes):
                draft.new(f"a{i}", drawn(rng, shape, dtype), SIDES[i % 2])
            for i, shape in enumerate(shapes):
                draft.read(f"a{i}", side="device").read(f"a{i}")
                if shape:
                    draft.read(f"a{i}", (1, 3), "device")
            yield draft.case(f"{dtype} in eight shapes")


def patterns(plan: Plan) -> Iterator[Case]:
    """Every byte in every place of a page, and pages of 0, of 0xFF and of equal bytes."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        size = page or 4096
        counts = np.arange(3 * size, dtype=np.int64)
        draft = Draft(capacity, page)
        for name, bytes_of in (
            ("counting", counts + counts // size),
            ("zeros", 0 * counts),
            ("ones", 0 * counts + 255),
            ("alike", counts // size + 7),
            ("down", -counts),
        ):
            draft.new(name, bytes_of.astype(np.uint8))
        for side in SIDES[::-1]:
            for name in ("alike", "ones", "down", "counting", "zeros"):
                draft.read(name, side=side)
        for name, side in (("zeros", "host"), ("ones", "device")):  # equal pages, until now
            draft.write(name, drawn(rng, (3,), "uint8"), (size - 2, size + 1), side).read(name)
        yield draft.case("counting bytes, equal bytes")


def numbers(plan: Plan) -> Iterator[Case]:
    """What arithmetic on a page would change: pages of 0 and -0, of subnormals, of odd NaNs."""
    for capacity, page in ((4096, 4096), (64, 64), (None, None)):
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            values = delicate(dtype, 2 * (page or 4096))
            draft = Draft(capacity, page).new("a", values, "device").read("a")
            yield draft.read("a", side="device").case(f"{dtype} that arithmetic would change")


def delicate(dtype: str, nbytes: int) -> Array:
    """Zeros, subnormals and NaNs of both signs, so many bytes of each.

    >>> delicate("float16", 4).view(np.uint16).tolist() == [0, 0x8000, 1, 0x8002, 0x7C01, 0xFC02]
    True
    """
    kind = dtype_of(dtype)
    bits: Any = np.dtype(f"u{kind.itemsize}").type
    infinite = int(np.array(np.inf, kind).view(bits))
    normal = infinite & -infinite  # the smallest one
    i = np.arange(nbytes // kind.itemsize, dtype=bits)
    rest = i % bits(normal - 1) + bits(1)
    sign = (i % bits(2)) << bits(8 * kind.itemsize - 1)
    return np.concatenate([0 * i | sign, rest | sign, rest | sign | bits(infinite)]).view(kind)


def many(plan: Plan) -> Iterator[Case]:
    """More pages than 8 bits can count, on a device of a few; beside them other arrays' pages."""
    rng = plan.rng
    for frames, page in ((3, 64), (100, 64), (8, 4096)):
        draft = Draft(frames * page, page)
        for name, size in (("a", 270 * page + 9), ("b", 3 * page), ("c", 270 * page + 9)):
            draft.new(name, drawn(rng, (size,), "uint8"), "device")
        draft.read("a", side="device").write("a", drawn(rng, (9,), "uint8"), (3, 12), "device")
        low = 256 * page - 2
        draft.write("a", drawn(rng, (5,), "uint8"), (low, low + 5)).read("a", side="device")
        for name in "cab":
            draft.read(name)
        yield draft.case("two arrays of 271 pages, and one of 3")


def sharing(plan: Plan) -> Iterator[Case]:
    """Several arrays in one `use`, one array twice, and a `use` inside of another."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        n = 2 * (page or 4096) + 1
        draft = Draft(capacity, page)
        for name in "abc":
            draft.new(name, drawn(rng, (n,), "uint8"))
        draft.do("open", "u", ["a", "b", "a"]).read("a", side="u.0").read("b", side="u.1")
        draft.write("a", drawn(rng, (5,), "uint8"), (1, 6), "u.2").read("a", (0, 9), "u.0")
        draft.do("open", "v", ["c", "a"]).write("a", drawn(rng, (n,), "uint8"), side="v.1")
        draft.read("a", side="u.0").read("c", side="v.0")
        draft.write("c", drawn(rng, (2,), "uint8"), (0, 2), "v.0").do("close", "v")
        draft.read("a", side="u.2").do("close", "u")
        for name in "cab":
            draft.read(name).read(name, side="device")
        yield draft.case("one array twice, and nested")


def moving(plan: Plan) -> Iterator[Case]:
    """Prefetch, advice, other capacities and free, between writes and reads of both sides."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        size = page or 4096
        n = 3 * size - 1
        draft = Draft(capacity, page)
        for name in "abc":
            draft.new(name, drawn(rng, (n,), "uint8"))
        for name, preferred, mostly, frames in (
            ("a", "device", False, 1), ("b", "host", False, 3), ("c", None, True, 2),
            ("b", None, True, 1),
        ):  # fmt: skip
            draft.do("prefetch", name, "device")
            draft.write(name, drawn(rng, (5,), "uint8"), (2, 7), "device")
            draft.do("advise", name, preferred, mostly).read(name, side="device")
            draft.write(name, drawn(rng, (size,), "uint8"), (1, size + 1), "device").read(name)
            draft.write(name, drawn(rng, (9,), "uint8"), (size - 4, size + 5))
            draft.read(name, side="device").do("prefetch", name, "host").read(name, side="device")
            draft.write(name, drawn(rng, (size,), "uint8"), (7, size + 7), "device")
            draft.shrink(frames).read(name)
        draft.do("free", "b").new("d", drawn(rng, (n,), "uint8"), "device")
        draft.do("prefetch", "d", "host").shrink(9).do("prefetch", "a", "device").read("a")
        yield draft.read("c", side="device").read("d").read("a", side="device").case("moved")


def lifetimes(plan: Plan) -> Iterator[Case]:
    """Arrays that come and go: what is freed may be given out again, what lives stays."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        size = page or 4096
        draft = Draft(capacity, page).new("kept", drawn(rng, (2 * size,), "uint8"))
        for i in range(6):
            n = (size // 2, size, 2 * size + 1)[i % 3]
            draft.new(f"a{i}", drawn(rng, (n,), "uint8"), SIDES[i % 2])
            draft.read(f"a{i}", side=SIDES[1 - i % 2])
            if i > 1:
                draft.do("free", f"a{i - 2}").read(f"a{i - 1}")
        yield draft.read("kept", side="device").read("kept").read("a5").case("come and go")


def two_pagers(plan: Plan) -> Iterator[Case]:
    """Saved, loaded into a fresh pager of other sizes, written, read, saved and loaded again."""
    rng = plan.rng
    for (capacity, page), (other, small) in zip(
        sizes(plan), [(None, None), *sizes(plan)], strict=False
    ):
        draft = Draft(capacity, page)
        for name, dtype in (("a", "float32"), ("b", "bfloat16"), ("c", "uint8")):
            draft.new(name, drawn(rng, ((page or 4096) // 4 + 8, 3), dtype))
        draft.write("b", drawn(rng, (4, 3), "bfloat16"), (2, 6), "device").do("save", "f")
        draft.read("b", side="device").write("a", drawn(rng, (2, 3), "float32"), (0, 2), "device")
        draft.do("save", "f").read("a").do("free", "a").do("load", "f", other, small)
        draft.read("a", side="device").write("c", drawn(rng, (2, 3), "uint8"), (1, 3), "device")
        draft.do("save", "g").do("load", "g", capacity, page)
        yield draft.read("c", side="device").read("b").read("a").case("saved and loaded twice")
    draft = Draft()
    for dtype in TYPES:
        for i, shape in enumerate(((), (0,), (3, 2))):
            draft.new(f"{dtype}_{i}", drawn(rng, shape, dtype), SIDES[i % 2])
    names = [operation[1] for operation in draft.program if operation[0] == "empty"]
    draft.do("save", "f").do("load", "f", None, None)
    for name in names:
        draft.read(name, side="device")
    yield draft.case("all types in a file")


def errors(plan: Plan) -> Iterator[Case]:
    """What must be refused, between two arrays that must stay as they are."""
    rng = plan.rng
    for capacity, page in sizes(plan):
        n = 2 * (page or 4096)
        draft = Draft(capacity, page).new("a", drawn(rng, (n,), "uint8"))
        draft.new("gone", drawn(rng, (n,), "uint8")).new("b", drawn(rng, (n,), "uint8"), "device")
        draft.do("free", "gone")
        for operation in (
            ["free", "gone"],
            ["open", "u", ["gone"]],
            ["open", "v", ["a", "gone"]],
            ["prefetch", "gone", "device"],
            ["read", "gone", None, None, "host"],
            ["read", "gone", 0, 2, "host"],
            ["write", "gone", 0, n, "x0", "host"],
            ["write", "a", 0, n - 1, "x0", "host"],
            ["write", "a", 0, n - 1, "x0", "device"],
            ["empty", "huge", [2**61], "float32"],
        ):
            draft.do("must_fail", operation)
        draft.read("a", side="device").do("free", "b").do("must_fail", ["free", "b"])
        draft.new("c", drawn(rng, (n,), "uint8"), "device")  # perhaps where b was
        for operation in (["read", "b", 0, 2, "host"], ["open", "w", ["b"]], ["free", "b"]):
            draft.do("must_fail", operation)
        draft.read("a").read("c")
        draft.do("free", "a").do("must_fail", ["free", "a"])
        yield draft.read("c", side="device").case("errors")


# ---- steps ---------------------------------------------------------------------------------------

STEPS = 200
HALF = STEPS // 2


def state_of(function: str, rng: np.random.Generator, n: int) -> dict[str, Array]:
    """A parameter and the moments that a step has left, and three gradients to choose from."""
    param, *grads = rng.standard_normal((4, n)).astype(np.float32)
    zero = np.zeros(n, np.float32)
    if function == "adam_step":
        return {"param": param, "m": zero, "v": zero, "grads": np.array(grads)}
    blocks = -(-n // BLOCK)
    codes = {"m_codes": np.full(n, 127, np.uint8), "v_codes": np.zeros(n, np.uint8)}
    scale = np.zeros(blocks, np.float32)
    state = {"m_codes": codes["m_codes"], "m_absmax": scale}
    state |= {"v_codes": codes["v_codes"], "v_absmax": scale}
    return {"param": param, **state, "grads": np.array(grads)}


def stepping(
    plan: Plan, function: str, capacity: int | None, page: int | None, n: int
) -> tuple[Draft, list[str]]:
    """A draft whose state is written: step it with the names that come with it."""
    draft, state = Draft(capacity, page), state_of(function, plan.rng, n)
    draft.arrays["g"] = state.pop("grads")
    for name, values in state.items():
        draft.new(name, values)
    return draft, list(state)


def step_sizes(plan: Plan) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Capacity, page, and elements that a step takes at a time."""
    yield 4096, 4096, BLOCK
    yield 3 * 4096, 4096, None
    yield 256, 256, BLOCK
    yield None, None, BLOCK
    if plan.deep:
        yield 5 * 300, 300, None
        yield 100, 100, BLOCK
        yield 2 * 4096, 4096, None
        yield 7 * 64, 64, BLOCK
        yield None, 4096, BLOCK


def optimizer(function: str) -> Callable[[Plan], Iterator[Case]]:
    """200 steps of an optimizer, in slices and whole, at capacities from one page up."""

    def cases(plan: Plan) -> Iterator[Case]:
        for capacity, page, part in step_sizes(plan):
            draft, names = stepping(plan, function, capacity, page, plan.pick(300, 1500))
            draft.do("step", function, names, "g", 1, STEPS, part)
            for name in names:
                draft.read(name)
            yield draft.case(f"{STEPS} steps")

    return cases


def resume(plan: Plan) -> Iterator[Case]:
    """100 steps, saved; loaded into a fresh pager, of a page or of a few, and 100 steps more."""
    for function in ("adam_step", "adam_step_8bit"):
        for capacity, page, part in ((4096, 4096, BLOCK), (512, 256, None), (None, None, None)):
            draft, names = stepping(plan, function, capacity, page, plan.pick(300, 1500))
            draft.do("step", function, names, "g", 1, HALF, part).do("save", "f")
            draft.do("load", "f", 2 * capacity if capacity else None, page)
            draft.do("step", function, names, "g", 1 + HALF, HALF, part)
            for name in names:
                draft.read(name, side="device")
            yield draft.case(f"resumed after {HALF} of {STEPS} steps")


DIRECTED: Mapping[str, Callable[[Plan], Iterator[Case]]] = {
    "pages": pages,
    "types": types,
    "patterns": patterns,
    "numbers": numbers,
    "many": many,
    "sharing": sharing,
    "moving": moving,
    "lifetimes": lifetimes,
    "saving": two_pagers,
    "errors": errors,
    "adam": optimizer("adam_step"),
    "adam_8bit": optimizer("adam_step_8bit"),
    "resume": resume,
}


# ---- drawn ---------------------------------------------------------------------------------------


def search(plan: Plan) -> Any:
    """Hypothesis: programs of up to 30 operations on a few arrays, from a state machine."""
    from qloracle_conformance.families.paging import drawn as drawn_programs

    return drawn_programs.programs_of(counted=False)
