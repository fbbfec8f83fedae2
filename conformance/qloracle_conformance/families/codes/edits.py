"""Anchored edits for Hypothesis: a block of zeros, an anchor that is its absmax, a few edits.

Hypothesis draws structure only (shape, block size, type, the places and values of the edits), so
that a failure shrinks to one or two elements that are not zero.
"""

from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.cases import encode_case, packed_case
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import f32

BLOCKSIZES = (64, 32, 128, 256)
MOST_EDITS = 4


def anchors() -> Any:
    """The absmax: powers of two first, then anything."""
    from hypothesis import strategies as st

    exponents = st.integers(-126, 126)
    mantissas = st.integers(1 << 23, (1 << 24) - 1)
    power = exponents.map(lambda k: 2.0**k)
    full = st.builds(lambda m, k: m * 2.0 ** (k - 23), mantissas, st.integers(-60, 60))
    return st.one_of(st.just(1.0), st.just(2.0), power, full)


def encoded(plan: Plan) -> Any:
    """Calls of a quantizer: an anchor and up to four edits in an array of zeros.

    An edit is a place, a share of the absmax, and the ulps by which it is moved.
    """
    from hypothesis import strategies as st

    coder = plan.view.coder
    share = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 0.5]),
        st.sampled_from([float(t) for t in coder.thresholds]),
        st.sampled_from([float(c) for c in coder.levels]),
        st.floats(-1, 1, width=32, allow_subnormal=False),
    )
    edit = st.tuples(st.integers(0, 300), share, st.integers(-2, 2))
    return st.builds(
        lambda *drawn: _encode(plan, *drawn),
        st.sampled_from(BLOCKSIZES), st.integers(1, 300), st.sampled_from(tuple(FLOAT_TYPES)),
        st.integers(0, 300), anchors(), st.lists(edit, max_size=MOST_EDITS),
    )  # fmt: skip


def _encode(
    plan: Plan, size: int, n: int, dtype: str, place: int, anchor: float, changes: list[Any]
) -> Case:
    x = np.zeros(n, np.float32)
    with np.errstate(all="ignore"):
        for where, share, ulps in changes:
            value = expected.shift(f32(share) * f32(anchor), [ulps])[0]
            x[where % n] = np.clip(value, -np.float32(anchor), np.float32(anchor))
        x[place % n] = anchor
        typed = x.astype(FLOAT_TYPES[dtype])
    if not np.isfinite(typed.astype(np.float32)).all():  # beyond float16: stay in float32
        typed = x
    return encode_case(plan.view, typed, size, "anchored edits")


def decoded(plan: Plan) -> Any:
    """Calls of a decoder: small shapes, codes of zero with a few edits, a ramp of scales."""
    from hypothesis import strategies as st

    shapes = st.lists(st.integers(1, 70), min_size=1, max_size=3).filter(
        lambda shape: np.prod(shape) <= 2000
    )
    edit = st.tuples(st.integers(0, 2000), st.integers(0, 255))
    return st.builds(
        lambda shape, *drawn: _decode(plan, tuple(shape), *drawn),
        shapes, st.sampled_from(BLOCKSIZES), st.sampled_from(tuple(FLOAT_TYPES)),
        anchors(), st.lists(edit, max_size=MOST_EDITS),
    )  # fmt: skip


def _decode(
    plan: Plan, shape: tuple[int, ...], size: int, dtype: str, anchor: float, changes: list[Any]
) -> Case:
    blocks = expected.blocks_of(shape, size, plan.view.dialect["layout"])
    n, levels = blocks.index.size, plan.view.levels
    codes = np.full(n, int(np.argmin(np.abs(levels))), np.uint8)
    for where, code in changes:
        codes[where % n] = code % levels.size
    with np.errstate(all="ignore"):
        scale = np.arange(1, blocks.sizes.size + 1, dtype=np.float32) * np.float32(anchor)
    scale = np.where(np.isfinite(scale), scale, np.float32(1))
    return packed_case(plan.view, codes, scale, shape, size, dtype, "anchored edits")
