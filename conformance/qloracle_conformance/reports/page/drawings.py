"""The map of wrong elements, and counts and shares with a bar beside them."""

import re
from collections.abc import Iterator

from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.page.markup import Markup, counted, more, number, row, table, tag

FLIPS = 8  # pairs of codes shown at once
FULL = 1.25  # a bar's full width, as a share of its bound


def error_map(drawn: Data) -> Markup:
    """The wrong elements of a call by block and lane, and what the map shows, in words."""
    words = f"{drawn['wrong']:,} of {drawn['elements']:,} wrong in {drawn['result']}"
    caption = tag("figcaption", tag("strong", words), f". {_legend(drawn)}")
    cells = tag("pre.cells", *_cells(drawn), tabindex=0, role="group", aria_label=words)
    return tag("figure.map", caption, cells, tag("p.of", tag("code", drawn["call"])))


def _legend(drawn: Data) -> str:
    """What a row and a mark are."""
    lanes, shown, blocks = drawn["lanes"], len(drawn["rows"]), drawn["blocks"]
    mark = "one element" if lanes == 1 else f"{lanes} elements, filled if one of them is wrong"
    part = ""
    if shown < blocks:
        last = drawn["first"] + shown - 1
        part = f" Blocks {drawn['first']:,} to {last:,} of {blocks:,} are shown."
    return f"A row is a block of {drawn['blocksize']:,}, a mark {mark}.{part}"


def _cells(drawn: Data) -> Iterator[str]:
    """A line of lanes, then a line a block: its number, and a mark for each of its lanes."""
    columns = max(map(len, drawn["rows"]), default=0)
    lanes = "".join(f"{x * drawn['lanes']:<8}" for x in range(0, columns, 8))
    yield f"{'block':>9} lane {lanes}".rstrip()
    for block, cells in enumerate(drawn["rows"], drawn["first"]):
        yield f"\n{block:>9}      "
        for run in re.findall("x+|[^x]+", cells):
            yield tag("mark", "■" * len(run)) if run[0] == "x" else "·" * len(run)


def code_flips(flips: list[list[int]]) -> Markup:
    """Which codes came instead of which, the most frequent first."""
    rows = [row(f"{expected} → {got}", number(count)) for expected, got, count in flips]
    title, head = "Codes: expected, and got instead", ("expected → got", counted("times"))
    rest = more(f"{len(rows) - FLIPS} pairs less frequent", table(title, head, [rows[FLIPS:]]))
    shown = table(title, head, [rows[:FLIPS]])
    return tag("div.flips", shown, rest if rows[FLIPS:] else "") if rows else Markup()


def bound_use(use: float) -> list[Markup]:
    """The share of a bound that was needed: in words, and as a bar whose end is 125 %."""
    shown = f"{min(use, FULL):.6g}"  # infinity is no length
    bar = tag("meter", value=shown, max=FULL, high=1, aria_hidden="true")
    return [tag("td.number", f"{100 * use:.1f} %"), tag("td.wide", bar)]
