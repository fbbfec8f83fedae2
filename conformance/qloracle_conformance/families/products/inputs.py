"""Calls of a 4-bit linear layer: rows that show single weights, whole numbers, and ordinary data.

Rows are for either direction: x of `columns` = in features, or dy of out features.  The same layer
is asked with few rows and with many, since kernels choose another path for each.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Arrays, Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES, FUNCTIONS
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import Float32, full_mantissa
from qloracle_conformance.judging.views import View

ROWS = (1, 2, 16, 33, 64)  # M: a vector, a tile, one more than a tile
COLUMNS = (513, 700, 1023, 1025, 1031, 1040, 2047, 2100, 4099)  # K: beyond tiles, primes, ragged
LARGEST = {"float32": 4095, "float16": 2047, "bfloat16": 255}  # whole numbers that a type holds
NEAR = 1 + 2.0**-10  # a scale that float16 and bfloat16 weights round to 1


def backward(view: View) -> bool:
    """Whether rows are gradients, which meet the columns of W."""
    return view.function.endswith("backward")


def layer(
    view: View, codes: NDArray[np.uint8], scale: Float32, shape: tuple[int, int], blocksize: int
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and options of W [out, in]; scales are repeated where the layout has more."""
    correct = expected.blocks_of(shape, blocksize, view.dialect["layout"]).sizes.size
    packed = expected.pack(codes.reshape(-1), view.dialect["nibble_order"])
    arrays: Arrays = {"packed": packed, "absmax": np.resize(scale, correct).astype(np.float32)}
    return arrays, {"shape": list(shape), "blocksize": blocksize, "quant_type": view.table}


def random_layer(
    rng: np.random.Generator, view: View, shape: tuple[int, int], blocksize: int
) -> tuple[Arrays, dict[str, Any]]:
    """Codes in any order; scales with full mantissas, each block another."""
    codes = rng.integers(0, view.levels.size, shape[0] * shape[1]).astype(np.uint8)
    correct = expected.blocks_of(shape, blocksize, view.dialect["layout"]).sizes.size
    return layer(view, codes, full_mantissa(rng, correct, -3, 2), shape, blocksize)


def even_layer(
    view: View, shape: tuple[int, int], blocksize: int = 64
) -> tuple[Arrays, dict[str, Any]]:
    """All weights alike: the largest level, at scale 1."""
    top = np.full(shape[0] * shape[1], int(np.argmax(view.levels)), np.uint8)
    return layer(view, top, expected.f32(1), shape, blocksize)


def call(
    view: View, rows: NDArray[Any], weight: tuple[Arrays, dict[str, Any]], note: str,
    bias: NDArray[Any] | None = None,
) -> Case:  # fmt: skip
    """A call on rows of either direction; an adapter, where there is one, adds nothing."""
    back, options = backward(view), dict(weight[1])
    arrays = {"dy" if back else "x": rows, **weight[0]} | ({} if bias is None else {"bias": bias})
    if "a" in FUNCTIONS[view.function].arrays:
        out, into = options["shape"]
        arrays |= {"a": np.zeros((1, into), rows.dtype), "b": np.zeros((out, 1), rows.dtype)}
        arrays |= {"x": np.zeros((*rows.shape[:-1], into), rows.dtype)} if back else {}
        options["scaling"] = 1.0
    return Case(view.function, arrays, options, note)


def plain(ask: Asker, view: View) -> Case:
    """A call that every implementation of the function should take: one row of ones."""
    dtype, blocksize = ask.dtype(view), ask.blocksize(view)
    rows = np.ones((1, 64 if backward(view) else blocksize), FLOAT_TYPES[dtype])
    return call(view, rows, even_layer(view, (64, blocksize), blocksize), "plain")


def facing(view: View, columns: int, others: int) -> tuple[int, int]:
    """The shape of W (out, in) that rows of so many columns meet."""
    return (columns, others) if backward(view) else (others, columns)


def units(columns: int, at: NDArray[np.intp], dtype: str) -> NDArray[Any]:
    """One-hot rows, one for each place."""
    rows = np.zeros((at.size, columns), FLOAT_TYPES[dtype])
    rows[np.arange(at.size), at] = 1
    return rows


def differences(view: View, dtype: str, rows: int, blocksize: int = 64) -> Case:
    """Rows e_j - e_i over equal codes in blocks of scale 1 and NEAR: the weights' own type shows.

    float32 weights differ by level * 2^-10, 16-bit ones by a multiple of their spacing or not at
    all; the difference is exact in float32.  Forward, each row of W is two blocks; backward
    each row of W is one block, and the scales alternate.
    """
    size = view.levels.size
    codes = np.resize(np.arange(size, dtype=np.uint8), blocksize)
    if backward(view):
        shape, pairs = (2 * rows, blocksize), np.arange(rows)
        x = units(2 * rows, 2 * pairs + 1, dtype) - units(2 * rows, 2 * pairs, dtype)
        weight = layer(view, np.tile(codes, 2 * rows), expected.f32(1, NEAR), shape, blocksize)
    else:
        shape, places = (64, 2 * blocksize), np.arange(rows) % blocksize
        x = units(shape[1], places + blocksize, dtype) - units(shape[1], places, dtype)
        weight = layer(view, np.tile(codes, 128), expected.f32(1, NEAR), shape, blocksize)
    return call(view, x, weight, f"differences of weights, {rows} rows")


def weights(plan: Plan) -> Iterator[Case]:
    """The layer's weights, one by one, at every number of rows and in every type."""
    view, rng = plan.view, plan.rng
    for dtype in FLOAT_TYPES:
        for columns, others in ((70, 17), (128, 64), (130, 5), (33, 64)):
            weight = random_layer(rng, view, facing(view, columns, others), 64)
            for rows in ROWS:
                some = plan.rng.integers(0, columns, max(rows - 4, 0))
                ends = [columns - 1] if rows == 1 else [0, columns - 1, columns - 2, 1]
                at = np.array([*ends, *some][:rows], np.intp) % columns
                yield call(view, units(columns, at, dtype), weight, f"one-hot, {rows} rows")
        yield from (differences(view, dtype, rows) for rows in ROWS)


def one_hot(plan: Plan) -> Iterator[Case]:
    """One product a row, full mantissas: nothing hides a factor that was rounded or left out."""
    for columns in COLUMNS[:: 1 if plan.deep else 4]:
        for dtype in FLOAT_TYPES:
            at = np.arange(columns) if columns <= 1031 else np.arange(columns - 16, columns)
            at = at if plan.deep else np.union1d(at[:: max(at.size // 48, 1)], at[-16:])
            yield from lone_products(plan, columns, at, dtype)


def lone_products(plan: Plan, columns: int, at: NDArray[np.intp], dtype: str) -> Iterator[Case]:
    """All places at once, then twelve of them alone, the last among them."""
    view, rng = plan.view, plan.rng
    weight = random_layer(rng, view, facing(view, columns, 7), 64)
    factors = full_mantissa(rng, at.size, -2, 2).astype(FLOAT_TYPES[dtype])
    rows = units(columns, at, dtype) * factors[:, None]
    yield call(view, rows, weight, f"{at.size} lone products of {columns}")
    few = np.unique(np.linspace(0, at.size - 1, 12 if plan.deep else 3).astype(int))
    for i in few:
        yield call(view, rows[i : i + 1], weight, f"one lone product of {columns}")


def integers(plan: Plan) -> Iterator[Case]:
    """Wide whole numbers, weights -1, 0 and 1 times powers of two: every order of sums is exact."""
    view, rng = plan.view, plan.rng
    for columns in (4096, 700, 1025, 33)[: 4 if plan.deep else 2]:
        shape = facing(view, columns, 64)
        for dtype in FLOAT_TYPES:
            codes = rng.choice(whole_codes(view), shape[0] * shape[1]).astype(np.uint8)
            weight = layer(view, codes, expected.f32(2.0**-12), shape, 64)
            for rows in (1, 2, 16, 33) if plan.deep else (1, 33):
                most = LARGEST[dtype]
                x = rng.integers(-most, most + 1, (rows, columns)).astype(FLOAT_TYPES[dtype])
                yield call(view, x, weight, f"whole numbers, {rows} rows of {columns}")


def whole_codes(view: View) -> NDArray[np.intp]:
    """The codes of the levels -1, 0 and 1."""
    return np.flatnonzero(np.isin(view.levels, (-1, 0, 1)))


def swamped(plan: Plan) -> Iterator[Case]:
    """One large product among many small ones, which may all be lost, and some that cancel."""
    view, rng = plan.view, plan.rng
    for columns in (4096, 700) if plan.deep else (700,):
        yield stagnating(view, columns)
        weight = random_layer(rng, view, facing(view, columns, 9), 64)
        for dtype, type_ in FLOAT_TYPES.items():
            x = rng.uniform(0.5, 1, (6, columns)) * 2.0**-12
            x[np.arange(6), rng.integers(0, columns, 6)] = 1.5
            yield call(view, x.astype(type_), weight, f"one large of {columns}, {dtype}")
        for type_ in FLOAT_TYPES.values():
            half = rng.standard_normal((6, columns // 2))
            yield cancelling(view, np.concatenate([half, -half], axis=1).astype(type_), columns)


def stagnating(view: View, columns: int) -> Case:
    """1, first or last, among numbers that one addition loses: the most that S9's bound allows.

    Half an ulp of 1 is a tie, and rounded away each time; all but an ulp of it is truncated.
    """
    x = np.full((4, columns), 2.0**-24, np.float32)
    x[2:] = np.nextafter(np.float32(2.0**-23), np.float32(0))
    x[::2, 0] = x[1::2, -1] = 1
    weight = even_layer(view, facing(view, columns, 3))
    return call(view, x, weight, f"1 among {columns}, all lost")


def cancelling(view: View, x: NDArray[Any], columns: int) -> Case:
    """Rows whose second half is the first one's negative, over weights that repeat: all is zero."""
    half, others = x.shape[1] // 2, 8
    shape = facing(view, 2 * half, others)
    codes = np.random.default_rng(5).integers(0, view.levels.size, (others, half))
    whole = np.concatenate([codes, codes], axis=1).astype(np.uint8)  # others, 2 * half
    whole = whole.T if backward(view) else whole
    return call(view, x, layer(view, whole, expected.f32(0.7), shape, 64), f"{columns} that cancel")


def shapes(plan: Plan) -> Iterator[Case]:
    """Ordinary data: rows, tiles, ragged rows and blocks, leading axes, a bias."""
    view, rng = plan.view, plan.rng
    sizes = ((64, 64), (65, 33), (127, 17), (257, 129), (48, 200), (1, 64), (96, 1), (513, 31))
    leading = ((), (1,), (2,), (3, 5), (16,), (2, 1, 4), (33,), (0,))
    for i, (columns, others) in enumerate(sizes * plan.pick(1, 4)):
        blocksize = (64, 32, 128, 256)[i // len(sizes) % 4]
        shape = facing(view, columns, others)
        weight = random_layer(rng, view, shape, blocksize)
        for j, (dtype, type_) in enumerate(FLOAT_TYPES.items()):
            for k, lead in enumerate(leading if plan.deep else leading[(i + j) % 2 :: 2]):
                x = rng.standard_normal((*lead, columns)).astype(type_)
                bias = None  # or in the type of x, or in float32, by turns
                if (turn := (i + j + k) % 3) and not backward(view):
                    bias = rng.standard_normal(others).astype(type_ if turn == 1 else np.float32)
                note = f"{dtype} {[*lead, columns]}, W {list(shape)}"
                yield call(view, x, weight, note, bias)


def symmetric(plan: Plan) -> Iterator[Case]:
    """Data of both signs, whose squared error has a mean that lawful orders keep small."""
    view, rng = plan.view, plan.rng
    for columns in (1024, 2100, 4096) if plan.deep else (1024,):
        weight = random_layer(rng, view, facing(view, columns, 64), 64)
        x = rng.standard_normal((48, columns)).astype(np.float32)
        yield call(view, x, weight, f"second moment over {columns}")


def edits(plan: Plan) -> Any:
    """Hypothesis: small layers of one code and scale 1, a few numbers that are not zero."""
    from hypothesis import strategies as st

    number = st.one_of(st.integers(-4, 4).map(float), st.floats(-8, 8, width=16))
    place = st.tuples(st.integers(0, 1 << 16), number)
    code = st.tuples(st.integers(0, 1 << 16), st.integers(0, plan.view.levels.size - 1))
    return st.builds(
        lambda *drawn: _edited(plan.view, *drawn),
        st.integers(1, 130), st.integers(1, 40), st.sampled_from(ROWS),
        st.sampled_from((64, 32, 128)), st.sampled_from(tuple(FLOAT_TYPES)), st.booleans(),
        st.lists(place, max_size=4), st.lists(code, max_size=4),
    )  # fmt: skip


def _edited(
    view: View, columns: int, others: int, rows: int, blocksize: int, dtype: str, biased: bool,
    numbers: list[tuple[int, float]], codes: list[tuple[int, int]],
) -> Case:  # fmt: skip
    shape = facing(view, columns, others)
    code = np.full(columns * others, view.levels.size - 1, np.uint8)
    x = np.zeros(rows * columns, FLOAT_TYPES[dtype])
    for where, value in numbers:
        x[where % x.size] = value
    for where, name in codes:
        code[where % code.size] = name
    scales = np.arange(1, code.size // blocksize + others + 2, dtype=np.float32)
    weight = layer(view, code, scales, shape, blocksize)
    ramp = np.arange(others, dtype=np.float32).astype(FLOAT_TYPES[dtype])
    bias = ramp if biased and not backward(view) else None
    return call(view, x.reshape(rows, columns), weight, "edits", bias)
