"""Pictures in SVG: the map of wrong elements, and bars.

They are drawn with attributes and classes alone: the page's policy allows no style in an element.
"""

import re

from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page.markup import Markup, counted, more, number, row, table, tag

LEFT, TOP = 56, 24  # space for the numbers of blocks and lanes
LARGE, SMALL = 12, 7  # the side of a cell, where few and where many are shown
FLIPS = 8  # pairs of codes shown at once
FULL = 1.25  # a bar's full width, as a share of its bound


# ---- the map of wrong elements -------------------------------------------------------------------


def error_map(drawn: Data) -> Markup:
    """The wrong elements of a call by block and lane, and what the picture shows, in words."""
    words = f"{drawn['wrong']:,} of {drawn['elements']:,} wrong in {drawn['result']}"
    caption = tag("figcaption", tag("strong", words), f". {_legend(drawn)}")
    of = tag("p.of", tag("code", drawn["call"]))
    picture = tag("div.scroll", _picture(drawn, words), tabindex=0, role="group", aria_label=words)
    return tag("figure.map", caption, picture, of)


def _legend(drawn: Data) -> str:
    """What a row and a cell are."""
    lanes, shown, blocks = drawn["lanes"], len(drawn["rows"]), drawn["blocks"]
    cell = "one element" if lanes == 1 else f"{lanes} elements, filled if one of them is wrong"
    part = ""
    if shown < blocks:
        last = drawn["first"] + shown - 1
        part = f" Blocks {drawn['first']:,} to {last:,} of {blocks:,} are shown."
    return f"A row is a block of {drawn['blocksize']:,}, a cell {cell}.{part}"


def _picture(drawn: Data, words: str) -> Markup:
    rows = drawn["rows"]
    columns = max(map(len, rows), default=0)
    side = LARGE if columns <= 32 and len(rows) <= 32 else SMALL
    width, height = LEFT + columns * side + 8, TOP + len(rows) * side + 2
    parts = [
        tag("path.right", d="".join(_run(0, y, len(row), side) for y, row in enumerate(rows))),
        tag("path.wrong", d="".join(_wrong(rows, side))),
        tag("path.grid", d=_grid(columns, len(rows), side)),
        *_lanes(columns, drawn["lanes"], side),
        *_blocks(len(rows), drawn["first"], side),
    ]
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", *parts, role="img", aria_label=words, **size)


def _wrong(rows: list[str], side: int) -> list[str]:
    """The runs of wrong cells: far fewer than the cells themselves."""
    return [
        _run(run.start(), y, len(run[0]), side)
        for y, row in enumerate(rows)
        for run in re.finditer("x+", row)
    ]


def _run(x: int, y: int, length: int, side: int) -> str:
    """A rectangle of `length` cells, as part of a path."""
    return f"M{LEFT + x * side} {TOP + y * side}h{length * side}v{side}h{-length * side}z"


def _grid(columns: int, rows: int, side: int) -> str:
    """Lines in the colour of the page part the cells."""
    down = [f"M{LEFT + x * side} {TOP}v{rows * side}" for x in range(columns + 1)]
    across = [f"M{LEFT} {TOP + y * side}h{columns * side}" for y in range(rows + 1)]
    return "".join([*down, *across])


def _lanes(columns: int, lanes: int, side: int) -> list[Markup]:
    name = tag("text", "lane", x=LEFT - 8, y=TOP - 8, text_anchor="end")
    middles = ((x, LEFT + x * side + side / 2) for x in range(0, columns, 8))
    return [name, *(tag("text", str(x * lanes), x=at, y=TOP - 8) for x, at in middles)]


def _blocks(rows: int, first: int, side: int) -> list[Markup]:
    step = 1 if side == LARGE else 8
    middle = TOP + side / 2 + 4
    return [
        tag("text", _block(first, y), x=LEFT - 8, y=middle + y * side, text_anchor="end")
        for y in range(0, rows, step)
    ]


def _block(first: int, y: int) -> str:
    """The first number says what the numbers count."""
    return f"block {first}" if y == 0 and first < 100 else str(first + y)


# ---- counts and shares, each with a bar ----------------------------------------------------------


def code_flips(flips: list[list[int]]) -> Markup:
    """Which codes came instead of which, the most frequent first."""
    if not flips:
        return Markup()
    most = max(count for _, _, count in flips)
    rows = [
        row(f"{expected} → {got}", number(count), _bar(count, max=most))
        for expected, got, count in flips
    ]
    title = "Codes: expected, and got instead"
    head = ("expected → got", counted("times"), "")
    rest = more(f"{len(rows) - FLIPS} pairs less frequent", table(title, head, [rows[FLIPS:]]))
    return tag("div.flips", table(title, head, [rows[:FLIPS]]), rest if rows[FLIPS:] else "")


def bound_use(use: float) -> list[Markup]:
    """The share of a bound that was needed: in words, and as a bar whose end is 125 %."""
    shown = min(use, FULL)  # infinity is no length
    return [tag("td.number", f"{100 * use:.1f} %"), _bar(shown, max=FULL, high=1)]


def _bar(value: float, **limits: float) -> Markup:
    return tag("td.wide", tag("meter", value=f"{value:.6g}", aria_hidden="true", **limits))
