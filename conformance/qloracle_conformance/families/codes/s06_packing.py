"""S6. Packing: element 2k lies in the high nibble of byte k, element 2k + 1 in the low one.

The spare nibble after an odd last element is written as the code of q = +0 and never judged; a
decoder must not read it.  Each direction is judged on its own, because a swap in both cancels in a
round trip: all pairs of levels to their bytes, all 256 bytes to their levels.

Low nibble first is a format dialect: such bytes cannot be exchanged with others.  Undeclared it
fails here, with the line that would declare it; the other rules are judged under what was found.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes.cases import bytes_case, encode_case
from qloracle_conformance.families.codes.judge import declared_order, judge_decoded
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values, Wrong
from qloracle_conformance.judging.expected import f32
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import QUANT_TYPES, View


def all_pairs(plan: Plan) -> Iterator[Case]:
    """The pair of the outermost levels alone, then every pair of levels at absmax 1."""
    levels = plan.view.levels
    x = np.zeros(64, np.float32)
    x[:2] = levels.max(), levels.min()
    yield encode_case(plan.view, x, 64, "the outermost levels")
    pairs = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1)
    rows = np.resize(pairs, (-(-pairs.size // 62), 62))
    lead = np.full((len(rows), 2), levels.max())
    yield encode_case(plan.view, np.concatenate([lead, rows], axis=1), 64, "all pairs")


def judge_bytes(case: Case, values: Values, view: View) -> Outcome:
    """Whole bytes: both levels, in the declared order."""
    packed = values[0].reshape(-1)
    if packed.size != (case.arrays["x"].size + 1) // 2:
        return Outcome(0)
    order, coder = declared_order(view), view.coder
    correct = coder.ranks(case.arrays["x"].reshape(-1))
    got = coder.ranks_of(expected.unpack(packed.astype(np.uint8), correct.size, order))
    bad = np.flatnonzero(got != correct)
    if not bad.size:
        return Outcome(packed.size)
    i = int(bad[0] // 2)
    pair = correct[2 * i : 2 * i + 2]
    zero = coder.ranks(np.zeros(2 - pair.size, np.float32))  # a spare nibble holds the code of zero
    codes = np.array([coder.code_of(int(rank)) for rank in (*pair, *zero)], np.uint8)
    elements = ", ".join(show(x) for x in case.arrays["x"].reshape(-1)[2 * i : 2 * i + 2])
    first = Mismatch(
        "packed", i, f"0x{int(packed[i]):02x}", f"0x{expected.pack(codes, order)[0]:02x}",
        f"elements {elements}; {order.replace('_', ' nibble ')}",
    )  # fmt: skip
    where = Wrong("packed", packed.size, np.unique(bad // 2))
    return Outcome(packed.size, where.at.size, first, where=where)


def all_bytes(plan: Plan) -> Iterator[Case]:
    """The byte of two different levels, then all bytes whose nibbles name levels."""
    size = plan.view.levels.size
    top, bottom = int(np.argmax(plan.view.levels)), int(np.argmin(plan.view.levels))
    pair = np.full(32, top << 4 | top, np.uint8)
    pair[0] = bottom << 4 | top
    yield bytes_case(plan.view, pair, f32(1), 64, "float32", "two levels in a byte")
    every = np.array([h << 4 | low for h in range(size) for low in range(size)], np.uint8)
    every = np.resize(every, -(-every.size // 32) * 32)
    scale = np.ones(every.size // 32, np.float32)
    yield bytes_case(plan.view, every, scale, every.size * 2, "float32", "all bytes")


def judge_order(case: Case, values: Values, view: View) -> Outcome:
    """Known answers under the declared order, not under the one that was found."""
    dialect = view.dialect | {"nibble_order": declared_order(view)}
    return judge_decoded(case, values, replace(view, dialect=dialect))


def spare_nibble(plan: Plan) -> Iterator[Case]:
    """An odd count, with everything that the spare nibble could hold."""
    top = int(np.argmax(plan.view.levels))
    low_first = plan.view.dialect["nibble_order"] != "high_first"
    for n in (1, 3, 65):
        for spare in range(qloracle.codebook(plan.view.table).size):
            packed = np.full((n + 1) // 2, top * 17, np.uint8)
            packed[-1] = spare << 4 | top if low_first else top << 4 | spare
            scale = np.arange(1, -(-n // 64) + 1, dtype=np.float32)
            yield bytes_case(plan.view, packed, scale, n, "float32", "spare nibble")
    yield next(all_bytes(plan))


CHECKS = (
    Check("S6", "pairs", "quantize_4bit", all_pairs, judge_bytes, tables=QUANT_TYPES),
    Check("S6", "bytes", "dequantize_4bit", all_bytes, judge_order, tables=QUANT_TYPES),
    Check("S6", "spare", "dequantize_4bit", spare_nibble, judge_decoded, tables=QUANT_TYPES[:2]),
)
