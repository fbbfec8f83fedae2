"""Weights for the round trip: whole groups of 256 blocks of 64, which every library takes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Arrays, Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes import values
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View

BLOCK, GROUP = 64, 256


def scales_case(absmax: Float32, note: str = "", blocksize: int = 256) -> Case:
    """A call of `quantize_absmax`."""
    return Case("quantize_absmax", {"absmax": absmax}, {"blocksize": blocksize}, note)


def codes_case(
    codes: NDArray[np.uint8], scale: Float32, offset: float, note: str = "", blocksize: int = 256
) -> Case:
    """A call of `dequantize_absmax`."""
    arrays: Arrays = {
        "codes": codes,
        "nested_absmax": scale,
        "offset": np.array(offset, np.float32),
    }
    return Case("dequantize_absmax", arrays, {"blocksize": blocksize}, note)


def case(x: NDArray[np.floating], note: str, blocksize: int = BLOCK) -> Case:
    """A round trip of x, in the type of x."""
    options = {"blocksize": blocksize, "quant_type": "nf4", "dtype": x.dtype.name}
    return Case("quantize_nested", {"x": x}, options, note)


def plain_absmax(ask: Asker, view: View) -> Case:
    """A call that everybody should take: one full group of equal scales."""
    return scales_case(np.ones(256, np.float32))


def plain_codes(ask: Asker, view: View) -> Case:
    """A call that everybody should take: one code."""
    return codes_case(np.zeros(1, np.uint8), np.ones(1, np.float32), 0.0)


def plain_state(ask: Asker, view: View) -> Case:
    """A call that everybody should take: each level in each block of a group, float32."""
    return next(levels(view.levels))


def scales(count: int = GROUP) -> Float32:
    """Absmax that differ from block to block by more than coding can move them: 1 to 3.75."""
    return (1 + np.arange(count) * 5 % 12 / 4).astype(np.float32)


def whole_groups(rows: Float32) -> Float32:
    """Rows of 64, repeated until they fill groups of 256."""
    return np.resize(rows, (-(-len(rows) // GROUP) * GROUP, rows.shape[1]))


def levels(table: Float32) -> Iterator[Case]:
    """Each level in each block, beside scales of many sizes, in all three types."""
    x = np.outer(scales(), np.resize(table, BLOCK)).astype(np.float32)
    for dtype in FLOAT_TYPES.values():
        yield case(x.astype(dtype), "each level in each block")


def candidates(rng: np.random.Generator, thresholds: Float32, size: int) -> Float32:
    """Absmax values whose residuals lie at the outer thresholds: 1 +- t * n, balanced around 1."""
    scale = np.float32(rng.uniform(0.5, 1.0))
    outer = thresholds[np.abs(thresholds) > 0.12]
    chosen = rng.choice(outer, (size - 2) // 2)
    distance = expected.shift(chosen * scale, rng.integers(-2, 3, chosen.size))
    odd = np.zeros(size % 2, np.float32)  # keeps the mean at 1, without which no threshold is met
    pairs = np.concatenate([[scale, -scale], distance, -distance, odd])
    return (np.float32(1) + pairs).astype(np.float32)


def row_candidates(rng: np.random.Generator, thresholds: Float32, count: int) -> Float32:
    """Values for which x / a and x * (1 / a) fall on different sides; rows of 64 led by a."""
    x, scale = values.discriminating(rng, thresholds, count, 0, 2)
    return whole_groups(values.anchored(x, scale, BLOCK))


def outlier() -> Float32:
    """Tiny blocks beside a huge one: however scales are coded, theirs come back far off."""
    tiny = np.float32(0.001) * np.linspace(-1, 1, BLOCK, dtype=np.float32)
    x = np.tile(tiny, (GROUP, 1))
    x[17] *= np.float32(1e6)
    return x


def all_halves(dtype: str) -> NDArray[np.floating]:
    """All values of a 16-bit type from -1 to 1, rows of 64 led by 1."""
    rows = values.anchored(values.up_to_one(dtype)[None, :], np.ones(1, np.float32), BLOCK)
    return whole_groups(rows).astype(FLOAT_TYPES[dtype])
