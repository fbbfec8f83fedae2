"""Where the wrong elements of a failing input lie: by block and lane, and which codes flipped.

The reduced input shows what is wrong; the map of a large one shows the pattern: one lane in all
blocks, all of the last block, every row but the first.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.compare import Wrong, blocks_of, under_its_map
from qloracle_conformance.judging.expected import Blocks
from qloracle_conformance.judging.views import View

ROWS, CELLS = 64, 64  # of a map: more blocks are cut off, wider blocks are binned
FLIPS = 24  # pairs of codes that are listed
BY_ELEMENT = ("code", "codes", "values")  # results with a place in a block; others have plain rows


@dataclass(frozen=True, eq=False)
class ErrorMap:
    """The wrong elements of one result of a call.

    `rows` is a text for each block from block `first` on: "x" for a cell that holds a wrong
    element, "." for one that holds none; a cell is `lanes` elements.  `flips` are (expected, got,
    count), the most frequent first.
    """

    case: Case
    wrong: Wrong
    blocks: Blocks
    first: int
    lanes: int
    rows: list[str]
    flips: list[tuple[int, int, int]]


def error_map(case: Case, wrong: Wrong, view: View) -> ErrorMap:
    """Draw the wrong elements of a failing case."""
    blocks = blocks_of(case, view) if wrong.result in BY_ELEMENT else None
    if blocks is None or blocks.index.size != wrong.size:
        blocks = expected.blocks_of((wrong.size,), CELLS)
    touched = blocks.index[wrong.at]
    first = int(touched.min()) if int(touched.max()) >= ROWS else 0
    lanes = -(-blocks.blocksize // CELLS)
    return ErrorMap(
        case, wrong, blocks, first, lanes,
        _rows(blocks, wrong.at, first, lanes), _flips(wrong, under_its_map(case, view)),
    )  # fmt: skip


def _rows(blocks: Blocks, at: NDArray[np.intp], first: int, lanes: int) -> list[str]:
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    last = min(first + ROWS, blocks.sizes.size)
    cells = [["."] * -(-int(size) // lanes) for size in blocks.sizes[first:last]]
    block = blocks.index[at]
    shown = (block >= first) & (block < last)
    for i, b in zip(at[shown], block[shown], strict=True):
        cells[int(b) - first][int(i - starts[b]) // lanes] = "x"
    return ["".join(row) for row in cells]


def _flips(wrong: Wrong, view: View) -> list[tuple[int, int, int]]:
    if wrong.expected is None or wrong.got is None:
        return []
    expected_codes = view.coder.codes_of(wrong.expected)
    counts = Counter(zip(expected_codes.tolist(), wrong.got.astype(int).tolist(), strict=True))
    return [(right, got, count) for (right, got), count in counts.most_common(FLIPS)]
