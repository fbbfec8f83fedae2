"""The kernels of L0 and L1, compiled for the CPU, equal the reference in every bit."""

import itertools
import math
import re

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle as q
from qloracle_conformance import verify
from qloracle_gpu import operations
from qloracle_gpu.devices.gcc import Host, unavailable
from qloracle_gpu.operations import blockwise, nested
from qloracle_gpu.operations.arguments import BLOCKSIZES

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
TABLES = ("nf4", "fp4")
LARGEST = {np.float32: 3e38, np.float16: 65504, bfloat16: 3e38}
many = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Unaligned(Host):
    """Results begin one element into their memory, as views of a caller's may."""

    def empty(self, shape, dtype):
        n = math.prod(shape)
        return super().empty((n + 1,), dtype)[1:].reshape(shape)


class Still(Host):
    """It launches nothing."""

    def launch(self, kernel, grid, block, *arguments):
        raise AssertionError(f"{kernel} was launched")


@pytest.fixture(scope="module", params=[Host, Unaligned], ids=["aligned", "unaligned"])
def host(request):
    return request.param()


@pytest.fixture(scope="module")
def plain():
    return Host()


def bits(result):
    """A result as (type, shape, bytes)."""
    if isinstance(result, tuple):
        return [bits(part) for part in result]
    array = np.asarray(result)
    return array.dtype.name, array.shape, array.tobytes()


def shifted(array):
    """The same numbers one element into their memory."""
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.reshape(-1)
    return memory[1:].reshape(array.shape)


# ---- inputs --------------------------------------------------------------------------------------


def numbers(rng, n, blocksize, dtype, levels):
    """Numbers with all that the kernels tell apart: sizes from subnormal to huge, zeros, ties."""
    edges = q.thresholds(np.sort(levels))
    x = rng.standard_normal(n)
    near = rng.random(n) < 0.3
    x[near] = rng.choice(edges, near.sum())  # over an absmax of 1 these are ties
    x[rng.random(n) < 0.1] *= 1e-30  # below 2**-100 once the block is small
    x[rng.random(n) < 0.1] = rng.choice([0.0, -0.0])
    x[::blocksize] = rng.choice([1.0, -1.0, 3.0], len(x[::blocksize]))
    blocks = -(-n // blocksize)
    sizes = np.ldexp(1.0, rng.integers(-149, 126, blocks))
    sizes[rng.random(blocks) < 0.5] = 1
    sizes[rng.random(blocks) < 0.1] = 0
    x *= np.repeat(sizes, blocksize)[:n]
    return np.clip(x, -LARGEST[dtype], LARGEST[dtype]).astype(dtype)


def maps(rng):
    """A sorted codebook of 2 to 256 levels, at times with equal neighbours or without a zero."""
    size = int(rng.choice([2, 3, 16, 17, 255, 256, rng.integers(2, 257)]))
    levels = np.sort(rng.uniform(-1, 1, size)).astype(np.float32)
    return np.sort(rng.choice(levels, size)) if rng.random() < 0.3 else levels


def sizes(rng, blocksize):
    """How many elements: few, about one block, or several with a tail."""
    return int(
        rng.choice(
            [1, rng.integers(0, 20), blocksize + rng.integers(-2, 3), rng.integers(5 * blocksize)]
        )
    )


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
cases = given(
    rng=seeds,
    blocksize=st.sampled_from(BLOCKSIZES),
    dtype=st.sampled_from(FLOATS),
    view=st.booleans(),
)


# ---- L0 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant_type", TABLES)
@many
@cases
def test_4bit_codes_and_scales(host, quant_type, rng, blocksize, dtype, view):
    x = numbers(rng, sizes(rng, blocksize), blocksize, dtype, q.codebook(quant_type))
    given = shifted(x) if view else x
    options = {"blocksize": blocksize, "quant_type": quant_type}
    expected = q.quantize_4bit(x, **options)
    assert bits(blockwise.quantize_4bit(host, given, **options)) == bits(expected)


@pytest.mark.parametrize("quant_type", TABLES)
@many
@cases
def test_4bit_values(host, quant_type, rng, blocksize, dtype, view):
    n = sizes(rng, blocksize)
    packed = rng.integers(0, 256, (n + 1) // 2).astype(np.uint8)
    absmax = scales(rng, -(-n // blocksize))
    options = {"shape": (n,), "blocksize": blocksize, "quant_type": quant_type, "dtype": dtype}
    expected = q.dequantize_4bit(packed, absmax, **options)
    given = shifted(packed) if view else packed
    assert bits(blockwise.dequantize_4bit(host, given, absmax, **options)) == bits(expected)


def scales(rng, blocks):
    """Scales of any size and sign."""
    absmax = rng.standard_normal(blocks) * np.ldexp(1.0, rng.integers(-149, 126, blocks))
    absmax[rng.random(blocks) < 0.1] = rng.choice([0.0, -0.0, 1.0])
    return absmax.astype(np.float32)


@many
@cases
def test_8bit_codes_and_scales(host, rng, blocksize, dtype, view):
    levels = maps(rng)
    x = numbers(rng, sizes(rng, blocksize), blocksize, dtype, levels)
    expected = q.quantize_blockwise(x, levels, blocksize=blocksize)
    given = shifted(x) if view else x
    got = blockwise.quantize_blockwise(host, given, levels, blocksize=blocksize)
    assert bits(got) == bits(expected)


@many
@cases
def test_8bit_values(host, rng, blocksize, dtype, view):
    n, levels = sizes(rng, blocksize), maps(rng)
    codes = rng.integers(0, len(levels), n).astype(np.uint8)
    absmax = scales(rng, -(-n // blocksize))
    options = {"shape": (n,), "blocksize": blocksize, "dtype": dtype}
    expected = q.dequantize_blockwise(codes, absmax, levels, **options)
    given = shifted(codes) if view else codes
    assert bits(blockwise.dequantize_blockwise(host, given, absmax, levels, **options)) == bits(
        expected
    )


def test_more_blocks_than_sixteen_bits_count(plain):
    x = np.random.default_rng(1).standard_normal(65_537 * 32 + 3).astype(bfloat16)
    packed, absmax = blockwise.quantize_4bit(plain, x, blocksize=32)
    assert bits((packed, absmax)) == bits(q.quantize_4bit(x, blocksize=32))
    options = {"shape": x.shape, "blocksize": 32, "dtype": bfloat16}
    expected = q.dequantize_4bit(packed, absmax, **options)
    assert bits(blockwise.dequantize_4bit(plain, packed, absmax, **options)) == bits(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_code_that_names_nothing_decodes_to_nan(plain, dtype):
    levels, codes = np.array([-1, 1], np.float32), np.array([2, 1], np.uint8)
    given = codes, np.ones(1, np.float32), levels
    values = blockwise.dequantize_blockwise(plain, *given, shape=(2,), dtype=dtype)
    assert np.isnan(values[0]) and values[1] == 1  # noqa: PT018  # one array, one look


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 3, 64)])
def test_shapes(plain, shape):
    x = np.random.default_rng(2).standard_normal(shape, np.float32)
    x = np.asarray(x)
    packed, absmax = blockwise.quantize_4bit(plain, x)
    assert bits((packed, absmax)) == bits(q.quantize_4bit(x))
    values = blockwise.dequantize_4bit(plain, packed, absmax, shape=shape)
    assert bits(values) == bits(q.dequantize_4bit(packed, absmax, shape=shape))


def test_any_strides_are_taken(plain):
    x = np.random.default_rng(3).standard_normal((70, 40), np.float32)
    for view in (x.T, x[::2], x[:, ::-1]):
        assert bits(blockwise.quantize_4bit(plain, view)) == bits(q.quantize_4bit(view))


# ---- L1 ------------------------------------------------------------------------------------------


@many
@given(rng=seeds, blocksize=st.sampled_from(BLOCKSIZES), own_map=st.booleans())
def test_nested_scales(host, rng, blocksize, own_map):
    absmax = np.abs(scales(rng, sizes(rng, blocksize)))
    codebook = maps(rng) if own_map else None
    options = {"codebook": codebook, "blocksize": blocksize}
    codes, nested_absmax, offset = nested.quantize_absmax(host, absmax, **options)
    mean = math.fsum(absmax.tolist()) / max(absmax.size, 1)
    assert abs(float(offset) - mean) <= 2.0**-24 * 1.0000001 * mean + 2.0**-150
    assert (offset.dtype, offset.shape) == (np.float32, ())
    levels = q.dynamic_codebook() if codebook is None else codebook
    with np.errstate(all="ignore"):
        expected = q.quantize_blockwise(absmax - offset, levels, blocksize=blocksize)
    assert bits((codes, nested_absmax)) == bits(expected)
    decoded = nested.dequantize_absmax(host, codes, nested_absmax, offset, **options)
    by_reference = q.dequantize_absmax(codes, nested_absmax, np.float32(offset), **options)
    assert bits(decoded) == bits(by_reference)


@pytest.mark.parametrize("n", [1, 4, 1024, 1 << 19])  # the last takes every block that may add
def test_a_mean_of_small_integers_is_exact(plain, n):
    absmax = np.random.default_rng(n).integers(1, 64, n).astype(np.float32)
    _, _, offset = nested.quantize_absmax(plain, absmax)
    assert float(offset) == float(np.float32(absmax.astype(np.int64).sum() / n))


def test_the_mean_does_not_change_from_call_to_call(plain):
    absmax = np.random.default_rng(8).uniform(0, 1, 300_001).astype(np.float32)
    offsets = {float(nested.quantize_absmax(plain, absmax)[2]) for _ in range(3)}
    assert offsets == {float(q.quantize_absmax(absmax)[2])}  # here it is the exact sum's, too


@many
@cases
def test_nested_scales_are_decoded_in_the_same_launch(host, rng, blocksize, dtype, view):
    n = sizes(rng, blocksize) + int(rng.choice([0, 300 * 32]))
    blocks = -(-n // blocksize)
    codebook = maps(rng) if view else None
    levels = 256 if codebook is None else len(codebook)
    codes = rng.integers(0, levels, blocks).astype(np.uint8)
    nested_absmax, offset = scales(rng, -(-blocks // 256)) / 16, np.float32(rng.standard_normal())
    packed = rng.integers(0, 256, (n + 1) // 2).astype(np.uint8)
    with np.errstate(all="ignore"):
        absmax = q.dequantize_absmax(codes, nested_absmax, offset, codebook=codebook)
        options = {"shape": (n,), "blocksize": blocksize, "dtype": dtype}
        expected = q.dequantize_4bit(packed, absmax, **options)
    state = codes, nested_absmax, np.asarray(offset), codebook
    assert bits(blockwise.dequantize_4bit(host, packed, nested=state, **options)) == bits(expected)


# ---- arguments -----------------------------------------------------------------------------------


def test_nothing_is_launched_for_nothing():
    host, none = Still(), np.zeros(0, np.float32)
    no_codes, levels = np.zeros(0, np.uint8), np.array([0, 1], np.float32)
    assert bits(blockwise.quantize_4bit(host, none)) == bits(q.quantize_4bit(none))
    assert bits(blockwise.quantize_blockwise(host, none, levels)) == bits((no_codes, none))
    options = {"shape": (3, 0), "dtype": "bfloat16"}
    expected = bits(np.zeros((3, 0), bfloat16))
    assert bits(blockwise.dequantize_4bit(host, no_codes, none, **options)) == expected
    assert bits(blockwise.dequantize_blockwise(host, no_codes, none, levels, **options)) == expected
    *rest, offset = nested.quantize_absmax(host, none)
    assert bits((*rest, offset)) == bits((no_codes, none, np.float32(0)))
    assert bits(nested.dequantize_absmax(host, *rest, offset)) == bits(none)
    offset[()] = 7  # it is the caller's
    assert float(nested.quantize_absmax(host, none)[2]) == 0


X, CODES, SCALE = np.ones(64, np.float32), np.zeros(64, np.uint8), np.ones(1, np.float32)
MAP, MEAN = np.array([-1, 0, 1], np.float32), np.float32(0)
SAME_AS_THE_REFERENCE = [
    ("quantize_4bit", (X.astype(np.float64),), {}),
    ("quantize_4bit", (X,), {"quant_type": "nf5"}),
    ("quantize_4bit", (X,), {"quant_type": 4}),
    ("quantize_4bit", (X,), {"blocksize": 64.0}),
    ("quantize_4bit", (X,), {"blocksize": 0}),
    ("quantize_4bit", (X,), {"blocksize": True}),
    ("dequantize_4bit", (CODES[:31], SCALE), {"shape": (64,)}),
    ("dequantize_4bit", (CODES[:32].astype(np.int8), SCALE), {"shape": (64,)}),
    ("dequantize_4bit", (CODES[:32], SCALE), {"shape": 64}),
    ("dequantize_4bit", (CODES[:32], SCALE), {"shape": (-64,)}),
    ("dequantize_4bit", (CODES[:32], np.ones(2, np.float32)), {"shape": (64,)}),
    ("dequantize_4bit", (CODES[:32], SCALE.astype(np.float16)), {"shape": (64,)}),
    ("dequantize_4bit", (CODES[:32], SCALE), {"shape": (64,), "dtype": np.float64}),
    ("dequantize_4bit", (CODES[:32], SCALE), {"shape": (64,), "dtype": "float"}),
    ("dequantize_4bit", (CODES[:32], SCALE), {"shape": (64,), "dtype": None}),
    ("quantize_blockwise", (X, MAP[:1]), {}),
    ("quantize_blockwise", (X, MAP.astype(np.float64)), {}),
    ("quantize_blockwise", (X, MAP.reshape(3, 1)), {}),
    ("quantize_blockwise", (X, np.zeros(257, np.float32)), {}),
    ("dequantize_blockwise", (CODES, SCALE, MAP), {"shape": (63,)}),
    ("dequantize_blockwise", (CODES, SCALE.reshape(1, 1), MAP), {"shape": (64,)}),
    ("quantize_absmax", (X.astype(np.float16),), {}),
    ("quantize_absmax", (X.reshape(8, 8),), {}),
    ("quantize_absmax", (X,), {"blocksize": -1}),
    ("dequantize_absmax", (CODES, SCALE, np.float64(0)), {}),
    ("dequantize_absmax", (CODES, SCALE, np.zeros(1, np.float32)), {}),
    ("dequantize_absmax", (CODES, X, MEAN), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), SAME_AS_THE_REFERENCE)
def test_bad_arguments_raise_what_the_reference_raises(name, arguments, options):
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(q, name)(*arguments, **options)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        getattr(operations.implementation(Still()), name)(*arguments, **options)


def test_other_block_sizes_are_refused_by_name():
    x, levels = np.ones(8, np.float32), np.array([0, 1], np.float32)
    codes, one = np.zeros(8, np.uint8), np.ones(1, np.float32)
    calls = {
        "quantize_4bit": (x,),
        "quantize_blockwise": (x, levels),
        "quantize_absmax": (x,),
        "dequantize_absmax": (codes, one, np.float32(0)),
    }
    for (name, arguments), size in itertools.product(calls.items(), (1, 16, 48, 8192)):
        words = f"blocksize must be a power of two from 32 to 4096, got {size}"
        with pytest.raises(ValueError, match=words):
            getattr(operations.implementation(Still()), name)(*arguments, blocksize=size)


@pytest.mark.parametrize(
    ("absmax", "state", "words"),
    [
        (None, None, "absmax or nested must be given, and not both, got neither"),
        (SCALE, (CODES[:1], SCALE, MEAN, None), "got both"),
        (None, (CODES[:1], SCALE, MEAN), "nested must be (codes, nested_absmax, offset, codebook)"),
        (None, (CODES, SCALE, MEAN, None), "the codes of nested must have shape (1,), got (64,)"),
        (None, (CODES[:1], X, MEAN, None), "nested_absmax must have shape (1,), got (64,)"),
        (None, (CODES[:1], SCALE, SCALE, None), "offset must have shape (), got (1,)"),
        (None, (CODES[:1], SCALE, MEAN, MAP[:1]), "codebook must hold 2 to 256 levels, got 1"),
    ],
)
def test_scales_come_plain_or_nested(absmax, state, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        blockwise.dequantize_4bit(Still(), CODES[:32], absmax, shape=(64,), nested=state)


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype(np.float16), "torch.float16"])
def test_a_type_may_be_named_or_given(plain, dtype):
    values = blockwise.dequantize_4bit(plain, CODES[:32], SCALE, shape=(64,), dtype=dtype)
    assert values.dtype == np.float16


# ---- the kit -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kit_finds_no_fault():
    functions = ("quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise")
    report = verify(
        operations.implementation(Host()), [*functions, "quantize_absmax", "dequantize_absmax"]
    )
    assert report.ok, report
