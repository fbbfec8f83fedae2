"""`qloracle_gpu.torch_backend` equals the reference in every bit, errors included."""

import itertools
import math
import os
import re
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle as q

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from qloracle_gpu import torch_backend  # noqa: E402
from qloracle_gpu.torch_backend import blockwise, nested, tables  # noqa: E402

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
NAMES = {np.float32: "float32", np.float16: "float16", bfloat16: "bfloat16"}
TABLES = ("nf4", "fp4")
CPU = torch.device("cpu")
fixed = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=[8, 1 << 20], ids=["small parts", "one part"])
def backend(request, monkeypatch):
    """The implementation, with parts of 8 elements too: small arrays then have many."""
    monkeypatch.setattr(blockwise, "PART", request.param)
    return torch_backend


# ---- from NumPy to torch and back, by the bits ---------------------------------------------------


def give(value):
    """An argument of the reference as one of torch: arrays and their types, the rest as it is."""
    if isinstance(value, type) and value in NAMES:
        return getattr(torch, NAMES[value])
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.array(value)
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def bits(result):
    """A result of either side as (type, shape, bytes); that of torch must be plain."""
    if isinstance(result, tuple):
        return [bits(part) for part in result]
    if isinstance(result, torch.Tensor):
        assert not result.requires_grad
        assert result.is_contiguous()
        name, raw = str(result.dtype).removeprefix("torch."), result.reshape(-1).view(torch.uint8)
        return name, tuple(result.shape), bytes(raw.numpy())
    array = np.asarray(result)
    return array.dtype.name, array.shape, array.tobytes()


def pair_of_calls(backend, name, *arguments, **options):
    """What the reference returns, and what the backend returns for the same call."""
    expected = getattr(q, name)(*arguments, **options)
    tensors = [give(a) for a in arguments]
    got = getattr(backend, name)(*tensors, **{k: give(v) for k, v in options.items()})
    return bits(expected), bits(got)


def agree(backend, name, *arguments, **options):
    expected, got = pair_of_calls(backend, name, *arguments, **options)
    return expected == got


# ---- any array, any table, any block -------------------------------------------------------------


def every_bit_pattern(dtype):
    """Finite numbers of a type, subnormals as likely as others."""
    kind = np.uint32 if dtype is np.float32 else np.uint16
    patterns = hnp.arrays(kind, shapes, elements=st.integers(0, np.iinfo(kind).max))
    return patterns.map(lambda array: finite(array.view(dtype)))


def finite(array):
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.where(np.isfinite(array), array, np.zeros_like(array))


def ordinary(dtype):
    numbers = st.one_of(st.floats(-4, 4, width=16), st.sampled_from([0.0, -0.0, 1.0, -1.0]))
    return hnp.arrays(np.float32, shapes, elements=numbers).map(lambda a: a.astype(dtype))


def at_thresholds(table):
    """Numbers on a threshold and one ulp beside it, times a power of two, under an absmax of it."""
    edges = q.thresholds(table)
    beside = [np.nextafter(edges, np.float32(side), dtype=np.float32) for side in (-2, 2)]
    near = np.concatenate([edges, -edges, *beside, *[-b for b in beside], [-1e-9, -0.0]])
    index = hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, near.size - 1))
    return st.builds(
        lambda i, k: np.float32(2.0**k) * np.concatenate([[1], near[i]]).astype(np.float32),
        index,
        st.integers(-20, 20),
    )


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
blocksizes = st.one_of(st.integers(1, 20), st.sampled_from([64, 256, 2**40]))
floats = st.sampled_from(FLOATS)
types = st.sampled_from(TABLES)
arrays = floats.flatmap(lambda dtype: st.one_of(every_bit_pattern(dtype), ordinary(dtype)))
float32s = hnp.arrays(
    np.float32, st.integers(0, 60), elements=st.floats(-(2.0**99), 2.0**99, width=32)
)
SORTED_FP4 = np.sort(q.fp4_codebook()[:8])
codebooks = st.one_of(
    st.sampled_from([q.dynamic_codebook(), q.dynamic_codebook(signed=False), q.nf4_codebook()]),
    hnp.arrays(np.float32, st.integers(2, 256), elements=st.floats(width=32, allow_nan=False))
    .map(np.sort)
    .filter(lambda levels: np.isfinite(levels).all()),
)


@fixed
@given(arrays, blocksizes, types)
def test_quantize_4bit(backend, x, blocksize, quant_type):
    assert agree(backend, "quantize_4bit", x, blocksize=blocksize, quant_type=quant_type)


@pytest.mark.parametrize("quant_type", TABLES)
@fixed
@given(st.data())
def test_quantize_4bit_at_thresholds(backend, quant_type, data):
    table = SORTED_FP4 if quant_type == "fp4" else q.codebook(quant_type)
    x = data.draw(at_thresholds(table))
    assert agree(backend, "quantize_4bit", x, blocksize=256, quant_type=quant_type)


@fixed
@given(shapes, st.integers(0, 2**32 - 1), blocksizes, types, floats)
def test_dequantize_4bit(backend, shape, seed, blocksize, quant_type, dtype):
    n, rng = math.prod(shape), np.random.default_rng(seed)
    packed = q.pack_4bit(rng.integers(0, 16, n).astype(np.uint8), spare=int(rng.integers(16)))
    absmax = any_scales(rng, -(-n // blocksize))
    options = {"blocksize": blocksize, "quant_type": quant_type, "dtype": dtype}
    assert agree(backend, "dequantize_4bit", packed, absmax, shape=shape, **options)


def any_scales(rng, n):
    """Finite float32 of every size and sign, subnormals among them."""
    return finite(rng.integers(0, 2**32, n, np.uint32).view(np.float32))


@fixed
@given(arrays, codebooks, blocksizes)
def test_quantize_blockwise(backend, x, codebook, blocksize):
    assert agree(backend, "quantize_blockwise", x, codebook, blocksize=blocksize)


@fixed
@given(st.data())
def test_quantize_blockwise_at_thresholds(backend, data):
    levels = data.draw(st.sampled_from([q.dynamic_codebook(), q.nf4_codebook()]))
    x = data.draw(at_thresholds(levels))
    assert agree(backend, "quantize_blockwise", x, levels)


@fixed
@given(shapes, st.integers(0, 2**32 - 1), codebooks, blocksizes, floats)
def test_dequantize_blockwise(backend, shape, seed, levels, blocksize, dtype):
    n, rng = math.prod(shape), np.random.default_rng(seed)
    codes = rng.integers(0, levels.size, n).astype(np.uint8)
    absmax = any_scales(rng, -(-n // blocksize)) / np.float32(2)
    levels = levels / np.float32(2.0**127)  # no product of ours overflows to inf - inf
    options = {"shape": shape, "blocksize": blocksize, "dtype": dtype}
    assert agree(backend, "dequantize_blockwise", codes, absmax, levels, **options)


maps = st.one_of(st.none(), codebooks)


@fixed
@given(float32s, maps, blocksizes)
def test_quantize_absmax(backend, absmax, codebook, blocksize):
    assert agree(backend, "quantize_absmax", absmax, codebook=codebook, blocksize=blocksize)


@fixed
@given(st.integers(0, 40), st.integers(0, 2**32 - 1), maps, blocksizes)
def test_dequantize_absmax(backend, nb, seed, codebook, blocksize):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256 if codebook is None else codebook.size, nb).astype(np.uint8)
    groups = any_scales(rng, -(-nb // blocksize)) / np.float32(2.0**64)
    offset = np.float32(rng.standard_normal())
    codebook = None if codebook is None else codebook / np.float32(2.0**64)
    options = {"codebook": codebook, "blocksize": blocksize}
    assert agree(backend, "dequantize_absmax", codes, groups, offset, **options)


@fixed
@given(hnp.arrays(np.uint32, st.integers(0, 60)), st.randoms(use_true_random=False))
def test_a_sum_is_exact_in_any_order(patterns, random):
    values = finite(patterns.view(np.float32)).tolist()
    total = math.fsum(values)
    random.shuffle(values)
    assert nested.exact_sum(torch.tensor(values, dtype=torch.float32)) == total


# ---- planted faults ------------------------------------------------------------------------------


def differences(backend):
    """The functions in which a backend differs from the reference on a fixed set of calls."""
    for name, arguments, options in fixed_calls():
        try:
            same = agree(backend, name, *arguments, **options)
        except RuntimeError:  # torch's, in a mutant
            same = False
        if not same:
            yield name


def fixed_calls():
    """The name of a function, its arguments, its options."""
    rng = np.random.default_rng(0)

    for quant_type, dtype in itertools.product(TABLES, FLOATS):
        kind = {"quant_type": quant_type}
        table = SORTED_FP4 if quant_type == "fp4" else q.codebook(quant_type)
        for wide, size in inputs(rng, table):
            with np.errstate(over="ignore"):
                x = finite(wide.astype(dtype))
            yield "quantize_4bit", (x,), {"blocksize": size, **kind}
            packed, absmax = q.quantize_4bit(x, blocksize=size, **kind)
            options = {"shape": x.shape, "blocksize": size, "dtype": dtype, **kind}
            yield "dequantize_4bit", (packed, -absmax * np.float32(1.1)), options
            yield "quantize_blockwise", (x, table), {"blocksize": size}
            codes, absmax = q.quantize_blockwise(x, table, blocksize=size)
            options = {"shape": x.shape, "blocksize": size, "dtype": dtype}
            yield "dequantize_blockwise", (codes, absmax * np.float32(1.1), table), options
    for nb in (0, 1, 5, 256, 600):
        absmax = rng.uniform(0.01, 0.05, nb).astype(np.float32)
        yield "quantize_absmax", (absmax,), {}
        yield "dequantize_absmax", q.quantize_absmax(absmax), {}
    order = np.array([1, 2.0**-24, 2.0**-53, 2.0**-53], np.float32)
    yield "quantize_absmax", (order,), {}


def inputs(rng, table):
    """Arrays with ties, zeros, subnormals, short blocks and odd sizes, and their block sizes."""
    edges = q.thresholds(table)
    yield np.concatenate([[1], edges, -edges, [-1e-9, -0.0]]).astype(np.float32), 64
    for shape, size in (
        ((3, 7), 6),
        ((3, 6), 5),
        ((2, 3, 33), 64),
        ((700,), 64),
        ((), 64),
        ((0, 3), 64),
    ):
        yield rng.standard_normal(shape).astype(np.float32), size
    yield np.array([0, 0, 0, -0.0, 1, 2, 3], np.float32), 4
    yield np.array([1e-40, -3e-41, 2e-42, 0, 1e-45], np.float32), 5
    yield np.float32(3e38) * rng.uniform(-1, 1, 65).astype(np.float32), 32


DENEST = "dequantize_by(levels, known, nested, blocksize, torch.float32)"
FUSED = "(levels.double()[known.int()] * nested.repeat_interleave(blocksize)[: len(known)] + mean)"
FAULTS = {
    "a tie takes the upper code": ("right=False)", "right=True)"),
    "the reciprocal": ("wide / divisor[:, None]", "wide * (1 / divisor)[:, None]"),
    "0 / 0": ("largest.masked_fill(largest == 0, 1)", "largest"),
    "a signed maximum": ("wide.abs().amax(dim=1)", "wide.amax(dim=1)"),
    "scaled in the type of x": ("rows.float()", "rows"),
    "low nibble first": ("codes[::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[::2]"),
    "a spare nibble of zero": ("encode(absmax.new_zeros(1))", "codes.new_zeros(1)"),
    "FP4's sign from the sign bit": ("(q < 0)", "q.signbit()"),
    "FP4's ties by sign": ("thresholds, q.abs())", "thresholds, q.abs() - 1e-7 * q)"),
    "FP4's codes in order": ("np.array(FP4_CODES, np.uint8)", "np.arange(8, dtype=np.uint8)"),
    "blocks that share a byte": ("if blocksize % 2:", "if False:"),
    "scaled in the output type": ("own[:, None], out", "own[:, None].to(wanted), out"),
    "the first scale for all": ("own[:, None], out", "own[:1, None], out"),
    "pairs the other way": ("16), np.tile(levels, 16)]", "16), np.tile(levels, 16)][::-1]"),
    "a float64 sum": ("exact_sum(known) / max", "known.double().sum().item() / max"),
    "a float32 sum": ("exact_sum(known) / max", "known.sum().item() / max"),
    "no hidden bit": ("| (power > 0).int() << 23", ""),
    "the offset left out": (f"{DENEST} + mean", DENEST),
    "product and offset rounded once": (f"{DENEST} + mean", f"{FUSED}.float()"),
}


def test_the_fixed_set_finds_nothing_in_what_is_right(backend):
    assert list(differences(backend)) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fixed_set_finds_a_planted_fault(mutant, fault):
    backend = mutant(f"mutant_{list(FAULTS).index(fault)}", *FAULTS[fault])
    assert next(differences(backend), None)  # one is enough


# ---- however a tensor lies in memory, and whatever it is part of ---------------------------------


def negated(x):
    """The same numbers, as a tensor whose negation is still to be done."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


X = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 35)).astype(np.float32))
VIEWS = {
    "strided": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim == 2 else t,
    "offset": lambda t: torch.cat([t.new_ones(64), t.reshape(-1)])[64:].view(t.shape),
    "unaligned": lambda t: torch.cat([t.new_ones(1), t.reshape(-1)])[1:].view(t.shape),
    "requires_grad": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    "not a leaf": lambda t: t.clone().requires_grad_() * 1 if t.is_floating_point() else t,
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "negation to be done": lambda t: negated(t) if t.dtype == torch.float32 else t,
    "of inference mode": lambda t: torch.inference_mode()(t.clone)(),
}


def calls():
    """One call of each function: (name, tensors, options)."""
    levels, scales = torch.from_numpy(q.dynamic_codebook()), torch.rand(300) + 1
    packed, absmax = torch_backend.quantize_4bit(X)
    codes, scale = torch_backend.quantize_blockwise(X, levels)
    yield "quantize_4bit", [X], {}
    yield "quantize_4bit", [X.bfloat16()], {"quant_type": "fp4"}
    yield "dequantize_4bit", [packed, absmax], {"shape": (6, 35)}
    yield "quantize_blockwise", [X, levels], {}
    yield "dequantize_blockwise", [codes, scale, levels], {"shape": (6, 35)}
    yield "quantize_absmax", [scales], {"codebook": levels}
    yield "dequantize_absmax", [*torch_backend.quantize_absmax(scales)], {"codebook": levels}


@pytest.mark.parametrize("view", VIEWS)
def test_views_change_nothing_and_are_not_changed(view):
    for name, tensors, options in calls():
        function, seen = getattr(torch_backend, name), [VIEWS[view](t) for t in tensors]
        changed = {k: VIEWS[view](v) if k == "codebook" else v for k, v in options.items()}
        before = [t.detach().clone() for t in seen]
        assert bits(function(*seen, **changed)) == bits(function(*tensors, **options))
        assert all(torch.equal(t, b) for t, b in zip(seen, before, strict=True))


def test_every_view_is_one():
    for view in ("strided", "transposed"):
        assert not VIEWS[view](X).is_contiguous()
    assert VIEWS["offset"](X).storage_offset() == 64
    assert VIEWS["unaligned"](X).data_ptr() % 16
    assert VIEWS["requires_grad"](X).requires_grad
    assert not VIEWS["not a leaf"](X).is_leaf
    assert VIEWS["negation to be done"](X).is_neg()
    assert VIEWS["of inference mode"](X).is_inference()
    assert all(torch.equal(view(X), X) for view in VIEWS.values())


def test_an_expanded_tensor_is_read_as_it_looks():
    x = torch.tensor([1.0, -0.3]).expand(5, 2)
    assert bits(torch_backend.quantize_4bit(x)) == bits(torch_backend.quantize_4bit(x.clone()))


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as mps."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, function
        return result


def test_nothing_needs_float64():
    for name, tensors, options in calls():
        with NoFloat64():
            getattr(torch_backend, name)(*tensors, **options)


def test_a_float64_would_be_seen():
    with NoFloat64(), pytest.raises(AssertionError):
        torch.ones(2).double()


# ---- tables --------------------------------------------------------------------------------------


def test_a_table_kept_from_inference_mode_is_an_ordinary_tensor(monkeypatch):
    monkeypatch.setattr(tables, "_SENT", {})
    with torch.inference_mode():
        sent = tables.table("thresholds", "nf4", torch.device("meta"))
    assert [table is sent for table in tables._SENT.values()] == [True]
    assert not sent.is_inference()


def test_tables_made_in_inference_mode_are_ordinary_tensors(mutant):
    with torch.inference_mode():
        copy = mutant("imported_late", 'arrays = "torch"', "arrays = 'torch'")
    made = sys.modules[f"{copy.__name__}.tables"]._MADE.values()
    assert made
    assert not any(table.is_inference() for table in made)


def test_a_fake_table_is_not_kept(monkeypatch):
    monkeypatch.setattr(tables, "_SENT", {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(tables.table("thresholds", "nf4", torch.device("meta"))) is not torch.Tensor
    assert tables._SENT == {}


def test_a_call_of_a_tracer_gives_forms_and_harms_no_later_one(monkeypatch):
    monkeypatch.setattr(tables, "_SENT", {})
    with FakeTensorMode() as mode:
        packed, absmax = torch_backend.quantize_4bit(mode.from_tensor(X))
    assert tables._SENT == {}
    expected = torch_backend.quantize_4bit(X)
    assert (packed.shape, absmax.shape) == tuple(part.shape for part in expected)
    assert (packed.dtype, absmax.dtype) == (torch.uint8, torch.float32)
    assert bits(torch_backend.quantize_4bit(X)) == bits(q.quantize_4bit(X.numpy()))


def test_a_caller_cannot_write_into_a_table():
    one, scale = torch.tensor([0xFF], dtype=torch.uint8), torch.ones(1)
    for _ in range(2):
        decoded = torch_backend.dequantize_4bit(one, scale, shape=(2,))
        assert decoded.tolist() == [1, 1]
        decoded.zero_()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("dtype", FLOATS)
def test_decoding_compiles_to_one_graph(dtype):
    x = np.random.default_rng(0).standard_normal((3, 130)).astype(np.float32)
    for name in TABLES:
        torch._dynamo.reset()
        packed, absmax = (give(part) for part in q.quantize_4bit(x, quant_type=name))
        options = {"shape": (3, 130), "quant_type": name, "dtype": give(dtype)}
        compiled = torch.compile(torch_backend.dequantize_4bit, fullgraph=True)
        expected = bits(torch_backend.dequantize_4bit(packed, absmax, **options))
        assert bits(compiled(packed, absmax, **options)) == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_beside_input_and_result_is_what_the_lesson_says():
    freed_at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", PEAK], env=freed_at_once, capture_output=True, text=True, check=True
    )
    encode, decode = (float(word) for word in run.stdout.split())
    assert 1 < encode < 2
    assert 0 < decode < 0.6


PEAK = """
import torch, qloracle_gpu.torch_backend as t

def status(word):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

def extra(function):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    result = function()
    peak = status("VmHWM") - before
    return (peak - sum(part.nbytes for part in result)) / x.numel()

torch.set_num_threads(1)
x = torch.rand(1 << 25)
packed, absmax = t.quantize_4bit(x)
t.dequantize_4bit(packed, absmax, shape=x.shape)
print(extra(lambda: t.quantize_4bit(x)))
print(extra(lambda: (t.dequantize_4bit(packed, absmax, shape=x.shape, dtype=torch.float16),)))
"""


# ---- bad input -----------------------------------------------------------------------------------

A = np.array([1, 2, 3, -4, 0.5, 0], np.float32)
LEVELS = np.array([-1, 0, 1], np.float32)
PACKED = np.array([0x12, 0x34, 0x56], np.uint8)
CODES = np.array([0, 1, 2, 0, 1, 2], np.uint8)
ONE = np.float32(1)


def f32(*values):
    return np.array(values, np.float32)


BAD = [
    ("quantize_4bit", [[1.0]], {}),
    ("quantize_4bit", [A.astype(np.float64)], {}),
    ("quantize_4bit", [A.astype(np.int32)], {}),
    ("quantize_4bit", [A == 1], {}),
    ("quantize_4bit", [A.astype(np.complex64)], {}),
    ("quantize_4bit", [f32(1, np.inf, np.nan, -np.inf)], {}),
    ("quantize_4bit", [np.array([[1, 2], [3, np.nan]], np.float16)], {"blocksize": 2}),
    ("quantize_4bit", [f32(-np.inf).astype(bfloat16)], {"quant_type": "fp4"}),
    *[("quantize_4bit", [A], {"blocksize": b}) for b in (0, -64, True, 64.0, None, "64")],
    *[("quantize_4bit", [A], {"quant_type": t}) for t in ("NF4", 4, None)],
    ("quantize_blockwise", [[1.0], LEVELS], {}),
    ("quantize_blockwise", [f32(1, np.nan), LEVELS], {}),
    ("quantize_blockwise", [A, LEVELS], {"blocksize": 0}),
    ("quantize_blockwise", [A, [0.0, 1.0]], {}),
    ("quantize_blockwise", [A, None], {}),
    ("quantize_blockwise", [A, np.arange(3)], {}),
    *[
        ("quantize_blockwise", [A, levels], {})
        for levels in (f32(1), f32(1, 0), f32(0, np.nan), f32([0, 1]), f32(*range(257)))
    ],
    *[
        ("dequantize_4bit", [packed, f32(1, 2)], {"shape": (6,), "blocksize": 3})
        for packed in (PACKED[:2], PACKED[:, None], PACKED.astype(np.int8), [1, 2, 3])
    ],
    *[
        ("dequantize_4bit", [PACKED, absmax], {"shape": (6,), "blocksize": 3})
        for absmax in (f32(1), f32(1, np.inf), f32(np.nan, 1), np.ones(2), np.ones(2, np.float16))
    ],
    *[
        ("dequantize_4bit", [PACKED, f32(1)], {"shape": shape})
        for shape in ((-6,), (-2, -3), (6.0,), (True, 6), 6, None, (2**70, 2**70))
    ],
    *[
        ("dequantize_4bit", [PACKED, f32(1)], {"shape": (6,), "dtype": dtype})
        for dtype in (np.float64, None, "single bits", np.int8)
    ],
    *[("dequantize_4bit", [PACKED, f32(1)], {"shape": (6,), "blocksize": b}) for b in (0, 2.5)],
    ("dequantize_4bit", [PACKED, f32(1)], {"shape": (6,), "quant_type": "af4"}),
    ("dequantize_4bit", [PACKED, f32(1)], {"shape": (6,), "quant_type": "int4"}),
    ("dequantize_blockwise", [CODES[:5], f32(1), LEVELS], {"shape": (6,)}),
    ("dequantize_blockwise", [CODES.astype(np.int64), f32(1), LEVELS], {"shape": (6,)}),
    ("dequantize_blockwise", [CODES, f32(1, 2), LEVELS], {"shape": (6,)}),
    ("dequantize_blockwise", [CODES + np.uint8(3), f32(1), LEVELS], {"shape": (6,)}),
    ("dequantize_blockwise", [CODES, f32(1), f32(1, 0)], {"shape": (6,)}),
    ("dequantize_blockwise", [CODES, f32(1), LEVELS], {"shape": (6,), "dtype": np.int8}),
    ("dequantize_blockwise", [CODES, f32(1), LEVELS], {"shape": (6,), "blocksize": 2.5}),
    *[
        ("quantize_absmax", [absmax], {})
        for absmax in ([1.0], np.ones(3), f32([1, 2]), f32(1, np.inf), f32(3e38, -3e38, -3e38))
    ],
    ("quantize_absmax", [A], {"blocksize": 0}),
    ("quantize_absmax", [A], {"codebook": f32(1)}),
    *[
        ("dequantize_absmax", [CODES, f32(1), offset], {})
        for offset in (0.5, np.float64(1), f32(1), f32(np.inf)[0])
    ],
    ("dequantize_absmax", [CODES, f32(1, 2), ONE], {}),
    ("dequantize_absmax", [CODES, f32(np.inf), ONE], {}),
    ("dequantize_absmax", [CODES[None], f32(1), ONE], {}),
    ("dequantize_absmax", [CODES, f32(1), ONE], {"blocksize": 0}),
    ("dequantize_absmax", [CODES, f32(1), ONE], {"codebook": f32(1, 0)}),
]
SAME_WORDS = {"a NumPy array": "a torch tensor"}
TORCH_TYPES = {np.float64: torch.float64, np.int8: torch.int8}


def message(call, kind=Exception):
    """The type and the words of what a call raises; what came is left out where it is a type."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    if caught.type is TypeError and text.startswith("dtype"):
        text = text.partition(", got")[0]
    return caught.type, re.sub("|".join(SAME_WORDS), lambda m: SAME_WORDS[m[0]], text)


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_raises_what_the_reference_raises(case):
    name, arguments, options = BAD[case]
    tensors = [give(a) for a in arguments]
    changed = {
        k: TORCH_TYPES.get(v, give(v)) if k == "dtype" else give(v) for k, v in options.items()
    }
    expected = message(lambda: getattr(q, name)(*arguments, **options))
    assert expected[0] in (TypeError, ValueError)
    assert message(lambda: getattr(torch_backend, name)(*tensors, **changed)) == expected


@pytest.mark.parametrize("place", range(70))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_found_wherever_it_stands(place, bad):
    x = torch.ones(70)
    x[place] = bad
    with pytest.raises(ValueError, match=rf"x must be finite, .* {bad} at flat index {place}$"):
        torch_backend.quantize_4bit(x)


def test_numpy_arrays_are_refused_by_name():
    with pytest.raises(TypeError, match=r"^x must be a torch tensor, got ndarray$"):
        torch_backend.quantize_4bit(A)
    with pytest.raises(TypeError, match=r"^dtype must be .*, got 'float32'$"):
        torch_backend.dequantize_4bit(give(PACKED), torch.ones(1), shape=(6,), dtype="float32")


def test_sparse_tensors_are_refused_by_name():
    with pytest.raises(TypeError, match=r"^x must be a dense tensor, got torch.sparse_coo$"):
        torch_backend.quantize_4bit(X.to_sparse())


def test_tensors_on_two_devices_are_refused_by_name():
    parameters = {
        "quantize_blockwise": ["x", "codebook"],
        "dequantize_4bit": ["packed", "absmax"],
        "dequantize_blockwise": ["codes", "absmax", "codebook"],
        "dequantize_absmax": ["codes", "nested_absmax", "offset"],
    }
    tried = 0
    for name, tensors, options in calls():
        for i, argument in enumerate(parameters.get(name, [])):
            moved = [t.to("meta") if i == j else t for j, t in enumerate(tensors)]
            words = f"{argument} must lie on cpu like" if i else f"{argument} must hold values"
            wrong = message(lambda n=name, m=moved, o=options: getattr(torch_backend, n)(*m, **o))
            assert wrong[0] is ValueError
            assert wrong[1].startswith(words)
            tried += 1
    assert tried == 10


def test_a_codebook_on_another_device_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^codebook must lie on cpu like .*, got meta$"):
        torch_backend.quantize_absmax(torch.ones(3), codebook=torch.empty(3, device="meta"))


def test_arrays_are_declared():
    assert torch_backend.arrays == "torch"
