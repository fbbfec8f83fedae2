"""Expected values: what each rule demands, under any dialect.

Written independently of the reference, of which only the tables are used: the reference is judged,
too.  `exact` is a second opinion that shares nothing with either.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qloracle
from qloracle_conformance.contract.dialects import BANDS, Dialect
from qloracle_conformance.contract.protocol import FLOAT_TYPES

Float32 = NDArray[np.float32]
SMALL = 1 << 13  # elements of a shape whose blocks are kept
SMALLEST_NORMAL = np.float32(2.0**-126)

# ulps by which published decimals, rounded once by a C compiler, miss the float32 midpoints
LITERAL_ULPS = {0: -1, 8: 1, 12: -1, 14: -1}
CUDA_FP4_ULPS = (14, 0, -1, -1, 0, -6, -1)


def f32(*values: float) -> Float32:
    """Make a float32 array of some numbers."""
    return np.array(values, np.float32)


def full_mantissa(rng: np.random.Generator, count: int, low: int = -20, high: int = 20) -> Float32:
    """Scales whose mantissa is full, over the binades low..high."""
    mantissa = rng.integers(1 << 23, 1 << 24, count) | 1
    return np.ldexp(mantissa.astype(np.float32), rng.integers(low, high, count) - 23).astype("f4")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which block each element belongs to, and how many elements each block has."""

    index: NDArray[np.int64]
    sizes: NDArray[np.int64]
    blocksize: int

    @cached_property
    def full(self) -> NDArray[np.bool_]:
        """True for each element of a full block."""
        full: NDArray[np.bool_] = self.sizes == self.blocksize
        return full[self.index]


def blocks_of(shape: tuple[int, ...], blocksize: int, layout: str = "flat") -> Blocks:
    """Lay blocks over a shape: over the flattened elements, or afresh in every row.

    >>> blocks_of((2, 5), 4).index.tolist(), blocks_of((2, 5), 4, "per_row").index.tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 2, 2, 2, 2, 3])
    """
    small = math.prod(shape) < SMALL
    return (_kept_blocks if small else _blocks)(shape, blocksize, layout)


def _blocks(shape: tuple[int, ...], blocksize: int, layout: str) -> Blocks:
    n = math.prod(shape)
    if layout == "flat":
        sizes = np.full(-(-n // blocksize), blocksize)
        if n % blocksize:
            sizes[-1] = n % blocksize
        return Blocks(np.repeat(np.arange(sizes.size), sizes), sizes, blocksize)
    row = shape[-1] if shape else 1
    place = np.arange(n, dtype=np.int64)
    per_row = -(-row // blocksize) if row else 0
    index = place // max(row, 1) * per_row + place % max(row, 1) // blocksize
    return Blocks(index, np.bincount(index), blocksize)


_kept_blocks = lru_cache(maxsize=512)(_blocks)  # a shape comes back for each table and each fake


def round_to(values: NDArray[Any], dtype: str) -> Float32:
    """Round to a 16-bit type and back to float32 (or leave float32)."""
    with np.errstate(all="ignore"):
        narrow = values.astype(FLOAT_TYPES[dtype], copy=False)
        return narrow.astype(np.float32, copy=False)


def flush(values: Float32, how: str) -> Float32:
    """Replace subnormals by zeros of their sign where a dialect flushes."""
    if how != "flushed":
        return values
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.copysign(0, values), values).astype("f4")


def absmax_of(x: NDArray[Any], blocks: Blocks, dialect: Dialect) -> Float32:
    """S4: the largest magnitude of each block, exact in float32 (or in the declared type)."""
    magnitude = np.abs(
        flush(x.reshape(-1).astype(np.float32), dialect.get("subnormal_input", "kept"))
    )
    if not magnitude.size:
        return np.zeros(0, np.float32)
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    return round_to(np.maximum.reduceat(magnitude, starts), dialect.get("absmax_type", "float32"))


def scaled(x: NDArray[Any], absmax: Float32, blocks: Blocks, dialect: Dialect) -> Float32:
    """S5's q: x over the absmax of its block, in the dialect's arithmetic; 0 where absmax is 0."""
    dtype = x.dtype.name if dialect.get("input_type") == "own" else "float32"
    flat = flush(x.reshape(-1).astype(np.float32), dialect.get("subnormal_input", "kept"))
    scale = flush(absmax, dialect.get("subnormal_scale", "kept"))
    with np.errstate(all="ignore"):
        multiplied = by_recipe(blocks, dialect, lambda recipe: recipe == "reciprocal")
        q = flat if multiplied.all() else flat / scale[blocks.index]
        if multiplied.any():
            inverse = round_to(np.float32(1) / scale, dtype)
            q = np.where(multiplied, flat * inverse[blocks.index], q)
    q = round_to(q, dtype)
    return q if scale.all() else np.where(scale[blocks.index] == 0, np.float32(0), q)


def by_recipe(blocks: Blocks, dialect: Dialect, told: Callable[[str], Any]) -> NDArray[Any]:
    """What the normalisation of each element's block tells: full and short ones may differ."""
    full, partial = dialect["normalisation_full"], dialect["normalisation_partial"]
    return np.asarray(np.where(blocks.full, told(full), told(partial)))


@dataclass(frozen=True, eq=False)
class Coder:
    """Sorted distinct levels, the thresholds between them, and the level (rank) of each code."""

    levels: Float32
    thresholds: Float32
    rank_of_code: NDArray[np.int64]

    def ranks(self, q: Float32) -> NDArray[np.int64]:
        """S5: the number of thresholds below q."""
        return np.searchsorted(self.thresholds, q, side="left").astype(np.int64, copy=False)

    def ranks_of(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """The level that each code names, -1 for a code outside the table."""
        ranks = np.append(self.rank_of_code, -1)  # the last for whatever lies outside
        return ranks[np.minimum(codes.astype(np.intp), self.rank_of_code.size)]

    def zero_rank(self, zero_block: str) -> int:
        """The level that a block of zeros gets: of q = +0, of the first code or of the last."""
        if zero_block == "zero":
            return int(self.ranks(np.zeros(1, np.float32))[0])
        return int(self.rank_of_code[0 if zero_block == "first" else -1])

    def code_of(self, rank: int) -> int:
        """A code that names this level."""
        return int(np.flatnonzero(self.rank_of_code == rank)[0])

    def codes_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Codes that name these levels."""
        found, first = np.unique(self.rank_of_code, return_index=True)
        return first[np.searchsorted(found, ranks)].astype(np.int64)


def coder(levels: Float32, dialect: Dialect, quant_type: str = "") -> Coder:
    """Make the coder of a table under a dialect's thresholds."""
    ties = dialect.get("fp4_ties", "toward_zero")
    return _coder(levels.tobytes(), dialect["thresholds"], quant_type, ties)


@lru_cache(maxsize=256)
def _coder(table: bytes, kind: str, quant_type: str, ties: str) -> Coder:
    levels = np.frombuffer(table, np.float32)
    distinct, rank_of_code = np.unique(levels, return_inverse=True)
    thresholds = named_thresholds(table, quant_type, ties)[kind]
    return Coder(distinct, thresholds, rank_of_code.astype(np.int64))


@lru_cache(maxsize=256)
def named_thresholds(table: bytes, quant_type: str, ties: str) -> Mapping[str, Float32]:
    """Give every named threshold set of a table; a code is the number of thresholds below q."""
    levels = np.unique(np.frombuffer(table, np.float32))
    middle = qloracle.thresholds(levels)
    sets = {"midpoint": middle, "nearest": nearest_thresholds(levels)}
    if quant_type == "nf4" and middle.size == 15:
        sets["literal"] = shift(middle, [LITERAL_ULPS.get(i, 0) for i in range(15)])
    if quant_type == "fp4" and middle.size == 14:
        sets["cuda"] = shift(middle, [*(-u for u in CUDA_FP4_ULPS[::-1]), *CUDA_FP4_ULPS])
        if ties == "toward_zero":  # a negative tie goes up: the threshold moves below it
            sets = {name: np.where(c < 0, shift(c, [-1] * 14), c) for name, c in sets.items()}
    return sets


def nearest_ranks(q: Float32, levels: Float32, dtype: str) -> NDArray[np.int64]:
    """The first level at the least distance, levels and distances rounded to a type."""
    with np.errstate(all="ignore"):
        distance = round_to(np.abs(q[:, None] - round_to(levels, dtype)), dtype)
    first: NDArray[np.int64] = np.argmin(distance, axis=1).astype(np.int64)
    return first


def nearest_thresholds(levels: Float32) -> Float32:
    """Find the thresholds of argmin over float32 distances, by bisection over float32's order."""
    low, high = ordered(levels[:-1]), ordered(levels[1:])
    with np.errstate(all="ignore"):
        while (high - low > 1).any():
            middle = (low + high) // 2
            q = unordered(middle)
            upper = np.abs(q - levels[1:]) < np.abs(q - levels[:-1])  # a tie takes the lower index
            low, high = np.where(upper, low, middle), np.where(upper, middle, high)
    return unordered(low)


def ordered(values: NDArray[Any]) -> NDArray[np.int64]:
    """Map float32 to integers in the same order, neighbours to neighbours; both zeros to 0.

    >>> ordered(np.array([-1e-45, -0.0, 0.0, 1e-45], np.float32)).tolist()
    [-1, 0, 0, 1]
    """
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits >> 31, -(bits & 0x7FFFFFFF), bits)


def unordered(integers: NDArray[np.int64]) -> Float32:
    """Inverse of `ordered`."""
    bits = np.where(integers < 0, -integers | 0x80000000, integers)
    return bits.astype(np.uint32).view(np.float32)


def shift(values: NDArray[Any], ulps: Any) -> Float32:
    """Move float32 values by a number of ulps.

    >>> shift(np.float32([1.0]), [-1]).tolist()
    [0.9999999403953552]
    """
    return unordered(ordered(values) + np.asarray(ulps, np.int64))


def band(q: Float32, thresholds: Float32, blocks: Blocks, dialect: Dialect) -> NDArray[np.bool_]:
    """Mark elements so near a threshold that an approximate normalisation may take either side."""
    width = by_recipe(blocks, dialect, lambda recipe: BANDS.get(recipe, 0))
    if not width.any():
        return np.zeros(q.shape, np.bool_)
    right = np.clip(np.searchsorted(thresholds, q), 0, thresholds.size - 1)
    near = [thresholds[np.maximum(right - 1, 0)], thresholds[right]]
    with np.errstate(all="ignore"):  # beside a threshold at 0 the spacing is tiny: this overflows
        distance = [np.abs(q - t) / np.spacing(np.abs(t)) for t in near]
    return np.asarray(np.minimum(*distance) <= width)


def product(levels: Float32, scale: Float32, dtype: str, dialect: Dialect) -> NDArray[Any]:
    """S7: level * absmax in float32, rounded once to the output type."""
    with np.errstate(all="ignore"):
        if dialect["decode"] == "output_type":
            levels, scale = round_to(levels, dtype), round_to(scale, dtype)
        how = dialect.get("subnormal_output", "kept")
        value = flush(levels * scale, "flushed" if how == f"flushed_{dtype}" else how)
        return value.astype(FLOAT_TYPES[dtype])


def nested_value(levels: Float32, scale: Float32, offset: float, dialect: Dialect) -> Float32:
    """S8 decode: level * nested_absmax, then + offset, in two roundings (or fused into one)."""
    with np.errstate(all="ignore"):
        if dialect["decode"] != "fma":
            return levels * scale + np.float32(offset)
        return fused(levels, scale, np.float32(offset))


def fused(a: Float32, b: Float32, c: np.float32) -> Float32:
    """Compute a * b + c in float32 with one rounding.

    The product is exact in float64.  The float64 sum is rounded to odd, which makes the second
    rounding innocuous (Boldo and Melquiond, 2008).
    """
    exact = a.astype(np.float64) * b.astype(np.float64)
    total = exact + np.float64(c)
    part = total - exact
    error = (exact - (total - part)) + (np.float64(c) - part)  # Knuth's two-sum: exact
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return odd.astype(np.float32)


def unpack(packed: NDArray[np.uint8], n: int, order: str) -> NDArray[np.uint8]:
    """S6: the n codes in packed bytes, in the dialect's nibble order."""
    pair = (packed >> 4, packed & 15) if order == "high_first" else (packed & 15, packed >> 4)
    codes: NDArray[np.uint8] = np.stack(pair, axis=-1).reshape(-1)
    return codes[:n]


def pack(codes: NDArray[np.uint8], order: str) -> NDArray[np.uint8]:
    """S6: codes to bytes in the dialect's nibble order, a spare nibble holding 0."""
    pairs = np.concatenate([codes, np.zeros(codes.size % 2, np.uint8)]).reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    high, low = (first, second) if order == "high_first" else (second, first)
    packed: NDArray[np.uint8] = (high << np.uint8(4) | low).astype(np.uint8)
    return packed


def four_bit_levels(quant_type: str, dialect: Dialect) -> Float32:
    """S1: the levels of a 4-bit type in code order, under the dialect's table."""
    levels = qloracle.codebook(quant_type)
    kind = dialect.get("codebook", "pinned")
    if kind == "four_decimals":
        return np.array([round(float(v), 4) for v in levels], np.float32)
    if kind == "paper":
        return qloracle.normal_float_codebook(4)
    return round_to(levels, "bfloat16") if kind == "bfloat16" else levels


def baseline_map() -> Float32:
    """The signed 8-bit map as torch without fused instructions makes it: two roundings a point."""
    step_of = np.float32(0.9)
    levels = [np.float32(0), np.float32(1)]
    for i in range(7):
        n = 2**i + 1
        step = np.float32(step_of / np.float32(n - 1))
        k = np.arange(n, dtype=np.float32)
        rising = np.float32(0.1) + step * k
        falling = np.float32(1) - step * (np.float32(n - 1) - k)
        grid = np.where(np.arange(n) < n // 2, rising, falling).astype(np.float32)
        means = (grid[:-1] + grid[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        levels += [*means, *-means]
    return np.sort(np.array(levels, np.float32))
