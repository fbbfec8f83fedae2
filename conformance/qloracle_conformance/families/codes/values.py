"""Directed values: around every threshold, at every scale, and all that 16 bits can hold.

Random data almost never meets a tie, or tells a division from the product with a reciprocal.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import Float32, full_mantissa, shift

NORMAL_POWERS = tuple(range(-126, 128))
SUBNORMAL_POWERS = tuple(range(-149, -126))


def powers(exponents: Sequence[int]) -> Float32:
    """2**k in float32, subnormals included.

    >>> powers([-149, 0, 127]).tolist()
    [1.401298464324817e-45, 1.0, 1.7014118346046923e+38]
    """
    return np.ldexp(np.ones(len(exponents), np.float32), list(exponents)).astype(np.float32)


def around(thresholds: Float32, scale: Float32, reach: int = 2) -> Float32:
    """Every threshold times every scale, and its neighbours up to `reach` ulps.

    Returns [scales, thresholds * ulps].
    """
    with np.errstate(all="ignore"):
        middle = (scale[:, None] * thresholds[None, :]).astype(np.float32)
    steps = np.arange(-reach, reach + 1)
    moved = shift(middle[:, :, None], steps[None, None, :])
    return np.clip(moved.reshape(scale.size, -1), -scale[:, None], scale[:, None])


def anchored(values: Float32, scale: Float32, blocksize: int) -> Float32:
    """Cut rows of values into blocks, each led by its scale so that its absmax is the scale.

    values [rows, m], scale [rows] -> [rows * ceil(m / (blocksize - 1)), blocksize]; the sign of the
    leading element alternates, the rest of a last block is the scale's zero.
    """
    rows, m = values.shape
    per_row = -(-m // (blocksize - 1))
    body = np.zeros((rows, per_row * (blocksize - 1)), np.float32)
    body[:, :m] = values
    body = body.reshape(rows * per_row, blocksize - 1)
    lead = np.repeat(scale, per_row)
    lead = np.where(np.arange(lead.size) % 2, -lead, lead).astype(np.float32)
    return np.concatenate([lead[:, None], body], axis=1)


def discriminating(
    rng: np.random.Generator, thresholds: Float32, count: int, low: int = -20, high: int = 20
) -> tuple[Float32, Float32]:
    """Full-mantissa scales and values for which x / a and x * (1 / a) fall on different sides.

    Returns values [count, m], all candidates around the thresholds, and their scales [count]; in
    each row at least one value tells the two apart.
    """
    rows: list[Float32] = []
    scales: list[Float32] = []
    found = 0
    for _ in range(64):
        scale = full_mantissa(rng, count, low, high)
        x = around(thresholds, scale, 3)
        divide = np.searchsorted(thresholds, x / scale[:, None])
        inverse = (np.float32(1) / scale)[:, None]
        tells = (divide != np.searchsorted(thresholds, x * inverse)).any(axis=1)
        rows.append(x[tells])
        scales.append(scale[tells])
        found += int(tells.sum())
        if found >= count:
            break
    return np.concatenate(rows)[:count], np.concatenate(scales)[:count]


def all_values(dtype: str) -> NDArray[np.floating]:
    """All finite values of a 16-bit type, by rising magnitude, signs alternating.

    >>> all_values("float16").size, all_values("bfloat16").size
    (63488, 65280)
    """
    bits = np.arange(1 << 15, dtype=np.uint16)
    both = np.stack([bits, bits | np.uint16(1 << 15)], axis=1).reshape(-1)
    values: NDArray[np.floating] = both.view(FLOAT_TYPES[dtype])
    return values[np.isfinite(values.astype(np.float32))]


def up_to_one(dtype: str) -> Float32:
    """Those from -1 to 1, in float32."""
    x = all_values(dtype).astype(np.float32)
    return x[np.abs(x) <= 1]


def rows_of_all(dtype: str) -> NDArray[np.floating]:
    """The same in rows of 64."""
    x = all_values(dtype)
    return x[: x.size // 64 * 64].reshape(-1, 64)


def maps() -> tuple[Float32, ...]:
    """Maps that a caller may pass in: sixteen levels, three, two, and one with equal neighbours.

    Then fifteen, evenly spaced, and sixteen of which none is zero.
    """
    few = ([-1, 0, 1], [0, 1], [-1, -0.25, 0, 0, 0.5, 1])
    short = (np.array(levels, np.float32) for levels in few)
    return (qloracle.nf4_codebook(), *short, qloracle.int4_codebook(), qloracle.notes_codebook())


def extremes() -> Float32:
    """Scales at the edges of float32: subnormal, tiny, huge, and beyond what float16 can hold."""
    return np.array(
        [1e-45, 1e-39, 1e-38, 2.0**-126, 1.2e-38, 1e-30, 1e-8, 3e-8, 1.0, 65504.0, 70000.0,
         1e30, 8.6e37, 2.0**126, 1.8e38, 3e38, 3.4028235e38],
        np.float32,
    )  # fmt: skip


def volume(plan: Plan) -> Iterator[Case]:
    """Random blocks: normal weights of many sizes, heavy tails, uniform bits of a binade."""
    rng = plan.rng
    for blocksize in (32, 64, 128, 256, 1024, 4096):
        for dtype in FLOAT_TYPES:
            n = plan.pick(1 << 13, 1 << 19) + 17
            kinds: tuple[NDArray[np.float64], ...] = (
                rng.standard_normal(n) * np.exp(rng.normal(-4, 1, n)), rng.standard_t(3, n),
                rng.uniform(-1, 1, n),
            )  # fmt: skip
            for kind in kinds if plan.deep else kinds[:1]:
                x = kind.astype(FLOAT_TYPES[dtype])
                yield encode_case(plan.view, x, blocksize, "random volume")
