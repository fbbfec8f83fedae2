"""Codes by a bin and one exact comparison (codes.cuh) equal codes by a division and a search."""

import itertools

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle.codebook import FP4_MAGNITUDES
from qloracle_gpu import kernels
from qloracle_gpu.devices.gcc import Host, unavailable
from qloracle_gpu.operations import adam, blockwise
from qloracle_gpu.operations.arguments import BLOCKSIZES

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
TABLES = ("nf4", "fp4")
ONE = np.float32(1)
each_table = pytest.mark.parametrize("quant_type", TABLES)
many = settings(derandomize=True, deadline=None, max_examples=500)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@pytest.fixture(scope="module")
def host():
    return Host()


def bits(result):
    """A result as (type, shape, bytes)."""
    if isinstance(result, tuple):
        return [bits(part) for part in result]
    array = np.asarray(result)
    return array.dtype.name, array.shape, array.tobytes()


def agree_4bit(host, x, **options):
    with np.errstate(all="ignore"):
        expected = q.quantize_4bit(x, **options)
    assert bits(blockwise.quantize_4bit(host, x, **options)) == bits(expected)


def agree_8bit(host, x, levels, **options):
    with np.errstate(all="ignore"):
        expected = q.quantize_blockwise(x, levels, **options)
    assert bits(blockwise.quantize_blockwise(host, x, levels, **options)) == bits(expected)


# ---- bins ----------------------------------------------------------------------------------------


def ordered(quant_type):
    """The thresholds of a table; of FP4, those of its magnitudes."""
    levels = FP4_MAGNITUDES if quant_type == "fp4" else q.codebook(quant_type)
    return q.thresholds(np.array(levels, np.float32)).astype(np.float64)


def first_quotients(bins):
    """The quotients where 8-bit bins begin: a float's bits, shifted by two, make a kind of root."""
    starts = np.ldexp((np.abs(bins) - np.sign(bins) / 16) / 408, -96)
    roots = starts.astype(np.float32)
    roots = np.where(roots < starts, np.nextafter(roots, ONE), roots)
    return (roots.view(np.uint32) << 2).view(np.float32) * np.sign(bins).astype(np.float32) * 4


EDGES_4 = (np.arange(-15, 17) - 1 / 16) / 16
EDGES_8 = first_quotients(np.delete(np.arange(-510, 511), 510)).astype(np.float64)

LINEAR = np.linspace(-1, 1, 256, dtype=np.float32)  # no level is 0, and a threshold is
MAPS = {
    "signed": q.dynamic_codebook(),
    "unsigned": q.dynamic_codebook(signed=False),
    "linear": LINEAR,
    "linear with zero": np.sort(np.append(np.linspace(-1, 1, 255, dtype=np.float32), ONE * 0)),
}


def no_bin_is_marked(edges, thresholds):
    """No bin has two thresholds, though one near an edge belongs to the bins on both sides."""
    margin = 2.0**-20 * np.abs(thresholds)
    last = np.searchsorted(edges, thresholds + margin, side="right")
    first = np.searchsorted(edges, thresholds - margin, side="right")
    return bool(np.all(last[:-1] < first[1:]))


@each_table
def test_a_table_of_4_bits_has_no_marked_bin(quant_type):
    assert no_bin_is_marked(EDGES_4, ordered(quant_type))


@pytest.mark.parametrize("name", MAPS)
def test_the_usual_maps_have_no_marked_bin(name):
    known = q.thresholds(MAPS[name]).astype(np.float64)
    assert no_bin_is_marked(EDGES_8, known)
    assert not no_bin_is_marked(EDGES_8, np.repeat(known, 2))


class Unsearched(Host):
    """A host whose text has no search: what is not told by a bin has the code 0."""

    def __init__(self):
        text = kernels.text()
        start = text.index("template <int BITS>\n__device__ inline Codes<BITS> search(")
        end = text.index("// The codes of an octet; `strange`")
        empty = "{ return 0; }\n\n"
        head = text[start : text.index("{\n", start)]
        super().__init__(text[:start] + head + empty + text[end:])


@pytest.mark.parametrize("name", MAPS)
def test_the_usual_maps_need_no_search(name):
    levels, rng = MAPS[name], np.random.default_rng(4)
    x = np.concatenate([rng.standard_normal((64, 255)), np.ones((64, 1))], axis=1)
    x *= 10.0 ** rng.uniform(-9, 0, x.shape) * 10.0 ** rng.uniform(-20, 20, (64, 1))
    agree_8bit(Unsearched(), x.astype(np.float32), levels)


def test_without_a_search_a_marked_bin_is_missed(host):
    levels = np.full(3, 0.25, np.float32)
    x = np.array([np.nextafter(levels[0], ONE), ONE])
    assert blockwise.quantize_blockwise(host, x, levels)[0].tolist() == [2, 2]
    assert blockwise.quantize_blockwise(Unsearched(), x, levels)[0].tolist() == [0, 0]


# ---- beside thresholds and edges -----------------------------------------------------------------


def blocks_of(rng, absmax, quotients):
    """A block for each absmax, in float32: the quotients times absmax, and absmax itself."""
    x = np.concatenate([quotients * absmax[:, None], absmax[:, None]], axis=1)
    return rng.permuted(x, axis=1).astype(np.float32)


def beside(rng, points, steps):
    """2000 blocks of 64 with quotients some steps away from the points, of either sign."""
    absmax = rng.uniform(1, 2, 2000) * np.ldexp(1.0, rng.integers(-80, 103, 2000))
    near = rng.choice(np.concatenate([points, -points]), (2000, 63))
    away = steps * rng.integers(-24, 25, near.shape)
    return blocks_of(rng, absmax, np.clip(near * (1 + away) + steps * away, -1, 1))


each_step = pytest.mark.parametrize("steps", [2.0**-25, 2.0**-24, 2.0**-20, 2.0**-12])


@each_step
@each_table
def test_4bit_codes_beside_thresholds_and_edges(host, quant_type, steps):
    points = np.concatenate([ordered(quant_type), EDGES_4])
    x = beside(np.random.default_rng(9), points, steps)
    agree_4bit(host, x, blocksize=64, quant_type=quant_type)


@each_step
@pytest.mark.parametrize("name", MAPS)
def test_8bit_codes_beside_thresholds_and_edges(host, name, steps):
    points = np.concatenate([q.thresholds(MAPS[name]), EDGES_8])
    agree_8bit(host, beside(np.random.default_rng(9), points, steps), MAPS[name], blocksize=64)


@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_thresholds_at_the_edges_of_bins(host, ulps):
    """Levels in pairs, of which every second threshold is where a bin ends or begins."""
    rng = np.random.default_rng(3)
    edges = (first_quotients(np.arange(20, 511)).view(np.int32) + ulps).view(np.float32)
    for start in range(4):
        levels = np.repeat(edges[start::4][:127], 2)
        x = blocks_of(rng, rng.uniform(1, 2, 500), rng.choice(levels, (500, 255)).astype(float))
        agree_8bit(host, x, levels, blocksize=256)
        agree_8bit(host, -x, -levels[::-1], blocksize=256)


def midway_quotients(count):
    """Pairs x < absmax whose quotient lies as near to the middle of two floats as any can."""
    for absmax in itertools.islice(range(2**24 - 1, 2**23, -2), count):
        half = pow(2**25, -1, absmax)  # 2**25 x = 1 or -1 modulo absmax
        yield from ((x, absmax) for x in (half, absmax - half) if x >= 2**23)


def some_quotients():
    random = np.sort(np.random.default_rng(5).integers(2**23, 2**24, (100, 2)), axis=1)
    return [*midway_quotients(100), *random.tolist()]


POWERS = [0, -24, -60, -120, -140, 60, 90, 103]  # absmax is 2 ** (24 + power)


@pytest.mark.parametrize("power", POWERS)
def test_the_quotient_is_rounded_correctly(host, power):
    """Between its neighbours in a codebook, q has code 1 if and only if it is RN(x / absmax)."""
    for small, large in some_quotients():
        x = np.ldexp(np.float32([small] * 8 + [large]), power)
        t = x[0] / x[8]
        below = np.nextafter(np.nextafter(t, np.float32(0)), np.float32(0))
        levels = np.array([below, t, t])
        assert q.thresholds(levels).tolist() == [np.nextafter(t, np.float32(0)), t]
        codes, _ = blockwise.quantize_blockwise(host, x, levels, blocksize=32)
        assert codes[:8].tolist() == [1] * 8, (small, large)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("power", POWERS)
def test_one_threshold_is_compared_exactly(host, power, sign):
    """Of two equal levels, q has code 1 if it is above them: not in a tie, but one ulp further."""
    for small, large in some_quotients():
        x = np.ldexp(np.float32([small] * 8 + [large]), power)
        x[:8] *= sign
        t = x[0] / x[8]
        for level, code in ((t, 0), (np.nextafter(t, -ONE), 1), (np.nextafter(t, ONE), 0)):
            levels = np.array([level, level])
            codes, _ = blockwise.quantize_blockwise(host, x, levels, blocksize=32)
            assert codes[:8].tolist() == [code] * 8, (small, large, level)


# ---- every quotient ------------------------------------------------------------------------------


def every(dtype, absmax):
    """Blocks of 4096: absmax, and all numbers of a 16-bit type up to it, of both signs."""
    words = np.arange(2**15, dtype=np.uint16).view(dtype).astype(np.float32)
    sizes = words[words <= absmax]
    x = np.concatenate([sizes, -sizes])
    x = np.resize(x, (-(-x.size // 4095), 4095))
    return np.concatenate([np.full((len(x), 1), absmax), x], axis=1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_every_quotient_of_some_16_bit_scales(host, name, dtype):
    for absmax in (1, 1.5, 2, 5.0390625, 0.6640625, 1.9921875):
        agree_8bit(host, every(dtype, np.float32(absmax)), MAPS[name], blocksize=4096)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "count"), [(np.float16, 1024), (bfloat16, 128)])
def test_every_quotient_of_every_16_bit_scale(host, dtype, count):
    """Scales in [1, 2): another power of two gives the same quotients."""
    for k in range(count):
        x = every(dtype, np.float32(1 + k / count))
        agree_8bit(host, x, MAPS["signed"], blocksize=4096)
        agree_4bit(host, x, blocksize=4096)


def in_float32(first, last):
    """Blocks of 4096 that hold 1 and all float32 from the first to the last, a part at a time."""
    low, high = np.array([first, last], np.float32).view(np.uint32).tolist()
    for start in range(low, high, 4095 * 4096):
        words = np.arange(start, start + 4095 * 4096, dtype=np.uint32)
        part = np.minimum(words, high).view(np.float32).reshape(4096, 4095)
        yield np.concatenate([np.ones((4096, 1), np.float32), part], axis=1)


@pytest.mark.slow
@each_table
def test_4bit_codes_of_every_quotient_from_2_to_the_minus_10(host, quant_type):
    for x in in_float32(2.0**-10, 1):
        agree_4bit(host, x, blocksize=4096, quant_type=quant_type)
        agree_4bit(host, -x, blocksize=4096, quant_type=quant_type)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_8bit_codes_of_every_quotient_from_2_to_the_minus_10(host, name):
    for x in in_float32(2.0**-10, 1):
        agree_8bit(host, x, MAPS[name], blocksize=4096)
        agree_8bit(host, -x, MAPS[name], blocksize=4096)


# ---- what is near zero, and what is no number ----------------------------------------------------


def underflowing():
    """Blocks of 128: multiples of 2**-149, and scales under which they round to zero or do not."""
    k = np.concatenate(
        [np.arange(-31, 32) * 2.0**-149, np.ldexp([-1.0, 1.0], [[-100], [-30]]).flat]
    )
    powers = np.ldexp(1.0, [0, 1, 15, 20, 25, 50, 100, 127, -60, -110, -149])
    sizes = np.array([6, 14, 30, 62, *powers], np.float32)
    absmax = np.concatenate([sizes, np.nextafter(sizes, np.float32(0))])
    x = np.zeros((absmax.size, 128), np.float32)
    x[:, : k.size], x[:, -1] = k, absmax
    return x


@each_table
def test_quotients_that_underflow(host, quant_type):
    """Below 2**-150 q is a zero without a sign, and all codes but that of a zero are wrong."""
    agree_4bit(host, underflowing(), blocksize=128, quant_type=quant_type)


@pytest.mark.parametrize("t", [0.0, -0.0, 1e-45, -1e-45, 1e-40, 2.0**-126, 2.0**-27, -(2.0**-26)])
def test_thresholds_near_zero(host, t):
    rng, level = np.random.default_rng(8), np.float32(t)
    around = np.array([-1, level, level, 1], np.float32)  # -0.5, t and 0.5
    points = np.array([t, np.nextafter(level, ONE), np.nextafter(level, -ONE), 0])
    absmax = rng.uniform(1, 2, 500) * np.ldexp(1.0, rng.integers(-149, 120, 500))
    for levels in (around, around[1:3], np.sort([-1, -level, level, 1]).astype(np.float32)):
        agree_8bit(host, underflowing(), levels, blocksize=128)
        x = blocks_of(rng, absmax, rng.choice(points, (500, 127)))
        agree_8bit(host, x[np.abs(x).max(axis=1) > 0], levels, blocksize=128)


def strange_places():
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    return x, [8, 21]


@each_table
@pytest.mark.parametrize("strange", [np.nan, -np.nan, np.inf])
def test_a_nan_has_code_0(host, quant_type, strange):
    x, places = strange_places()
    x[places] = strange
    packed, absmax = blockwise.quantize_4bit(host, x, quant_type=quant_type)
    assert absmax == (np.inf if np.isinf(strange) else 1)
    assert [packed[4] >> 4, packed[10] & 15] == [0, 0]


@pytest.mark.parametrize("strange", [np.nan, -np.nan])
@pytest.mark.parametrize("name", MAPS)
def test_a_nan_has_code_0_and_harms_no_neighbour(host, name, strange):
    x, places = strange_places()
    expected, _ = q.quantize_blockwise(x, MAPS[name], blocksize=64)
    x[places], expected[places] = strange, 0
    codes, absmax = blockwise.quantize_blockwise(host, x, MAPS[name], blocksize=64)
    assert absmax == 1
    assert codes.tolist() == expected.tolist()


# ---- any codebook --------------------------------------------------------------------------------


def codebook(rng):
    """2 to 256 levels: spread or close together, some equal, some far out, some near zero."""
    size = int(rng.choice([2, 3, 5, 16, 255, 256, rng.integers(2, 257)]))
    kind = rng.integers(6)
    if kind == 0:
        levels = rng.uniform(-1, 1, size)
    elif kind == 1:  # neighbours among floats
        levels = rng.uniform(-1, 1) * (1 + 2.0**-23 * rng.integers(0, 40, size))
    elif kind == 2:
        levels = np.ldexp(rng.uniform(-1, 1, size), rng.integers(-150, 3, size))
    elif kind == 3:
        levels = rng.choice(EDGES_8, size)
    elif kind == 4:
        levels = rng.standard_normal(size) * 10.0 ** rng.integers(-3, 38)
    else:
        levels = rng.choice(q.dynamic_codebook(signed=bool(rng.integers(2))), size)
    levels = np.sort(levels.astype(np.float32))
    return np.sort(rng.choice(levels, size)) if rng.random() < 0.3 else levels


def near(rng, levels, shape):
    """Quotients on thresholds and a few ulps away, on edges of bins, and anywhere."""
    known = np.clip(q.thresholds(levels), -1, 1)
    points = rng.choice(np.concatenate([known, EDGES_8.astype(np.float32), known]), shape)
    moved = (points.view(np.int32) + rng.integers(-2, 3, shape)).astype(np.int32).view(np.float32)
    anywhere = rng.uniform(-1, 1, shape) * 10.0 ** rng.integers(-9, 1, shape)
    return np.clip(np.where(rng.random(shape) < 0.7, np.nan_to_num(moved), anywhere), -1, 1)


@many
@given(rng=seeds, blocksize=st.sampled_from(BLOCKSIZES), dtype=st.sampled_from(FLOATS))
def test_any_codebook(rng, blocksize, dtype):
    levels, n = codebook(rng), int(rng.integers(1, 600))
    widest = (-20, 10) if dtype is np.float16 else (-149, 126)
    blocks = -(-n // blocksize)
    absmax = rng.uniform(1, 2, blocks) * np.ldexp(1.0, rng.integers(*widest, blocks))
    x = near(rng, levels, n) * np.repeat(absmax, blocksize)[:n]
    x[::blocksize] = absmax * rng.choice([-1, 1], blocks)
    agree_8bit(Host(), x.astype(dtype), levels, blocksize=blocksize)


@many
@given(rng=seeds, blocksize=st.sampled_from((32, 512)))
def test_any_codebook_of_moments(rng, blocksize):
    """From zero moments with betas of 0, m is the gradient and v its square."""
    levels, n = codebook(rng), int(rng.integers(1, 700))
    grad = near(rng, levels, n).astype(np.float32)
    grad[::blocksize] = 1
    zero = np.zeros(n, np.uint8), np.zeros(-(-n // blocksize), np.float32)
    options = {"step": 1, "lr": 0.1, "eps": 1e-3, "beta1": 0.0, "beta2": 0.0}
    options |= {"blocksize": blocksize, "m_codebook": levels, "v_codebook": levels}
    arrays = np.ones(n, np.float32), grad, *zero, *zero
    with np.errstate(all="ignore"):
        expected = q.adam_step_8bit(*arrays, **options)
    assert bits(adam.adam_step_8bit(Host(), *arrays, **options)) == bits(expected)
