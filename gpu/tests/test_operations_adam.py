"""Adam compiled for the CPU equals the reference in every bit, one tensor or many at once."""

import math
import re
from functools import partial
from types import SimpleNamespace

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle as q
from qloracle_conformance import verify
from qloracle_gpu.devices.gcc import Host, unavailable
from qloracle_gpu.operations import adam
from qloracle_gpu.operations.arguments import BLOCKSIZES

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
STEPS = (1, 2, 10, 1000, 2**24)
fixed = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Unaligned(Host):
    """Results begin one element into their memory, as views of a caller's may."""

    def empty(self, shape, dtype):
        return super().empty((math.prod(shape) + 1,), dtype)[1:].reshape(shape)


class Watched(Host):
    """It keeps the names of the kernels that were launched."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def launch(self, kernel, grid, block, *arguments):
        self.launched.append(kernel)
        super().launch(kernel, grid, block, *arguments)


class Fenced(Host):
    """Results lie between bytes of 0xA5, which nothing may write."""

    FENCE = 4096

    def __init__(self):
        super().__init__()
        self.memories = []

    def empty(self, shape, dtype):
        element = np.dtype(dtype)
        size = math.prod(shape) * element.itemsize
        memory = np.full(size + 2 * self.FENCE, 0xA5, np.uint8)
        self.memories.append(memory)
        return np.ndarray(tuple(shape), element, memory, self.FENCE)

    def intact(self):
        fences = [np.r_[m[: self.FENCE], m[-self.FENCE :]] for m in self.memories]
        return all((fence == 0xA5).all() for fence in fences)


@pytest.fixture(scope="module", params=[Host, Unaligned], ids=["aligned", "unaligned"])
def host(request):
    return request.param()


@pytest.fixture(scope="module")
def plain():
    return Host()


def bits(arrays):
    """Type, shape and bytes of each array."""
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def shifted(array):
    """The same numbers one element into their memory."""
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.reshape(-1)
    return memory[1:].reshape(array.shape)


# ---- any state, any step -------------------------------------------------------------------------


def state(rng, shape, dtype, wide):
    """Parameters, gradients of 1e-9 to 10 and of zero, and moments from zero up."""
    sizes = 10.0 ** rng.uniform(-9, 1, shape) * rng.choice([-1, 0, 1], shape, p=[0.4, 0.2, 0.4])
    param = rng.standard_normal(shape) * rng.choice([0, 1], shape)
    m, v = rng.standard_normal(shape) * sizes, sizes**2 * rng.uniform(0, 2, shape)
    types = dtype, np.float32 if wide else dtype, np.float32, np.float32
    arrays = zip((param, sizes, m, v), types, strict=True)
    return [np.array(numbers, kind) for numbers, kind in arrays]


def state_8bit(rng, shape, dtype, wide, blocksize, maps):
    """The same, with moments in any codes that S11b allows."""
    param, grad, *_ = state(rng, shape, dtype, wide)
    arrays = [param, grad]
    for levels in maps:
        codes = rng.integers(0, levels.size, param.size).astype(np.uint8)
        blocks = -(-param.size // blocksize)
        scales = 10.0 ** rng.uniform(-6, 1, blocks) * rng.choice([0, 1], blocks, p=[0.1, 0.9])
        arrays += [codes, scales.astype(np.float32)]
    return arrays


DYNAMIC = q.dynamic_codebook(), q.dynamic_codebook(signed=False)
OWN = np.linspace(-1, 1, 17, dtype=np.float32), np.array([0, 0.25, 1], np.float32)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
shapes = st.sampled_from([(), (0,), (1,), (7,), (3, 5), (2, 3, 33), (600,), (4096,), (8233,)])
shares = st.one_of(st.sampled_from([0.0, 0.9, 0.999, 0.95]), st.floats(0, 0.9999))
numbers = st.fixed_dictionaries(
    {
        "step": st.one_of(st.sampled_from(STEPS), st.integers(1, 2**24)),
        "lr": st.sampled_from([0.0, 1e-3, 0.1, 1 / 3]),
        "beta1": shares,
        "beta2": shares,
        "eps": st.sampled_from([1e-8, 1e-3, 1e-30]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    }
)
steps = given(
    rng=seeds,
    shape=shapes,
    dtype=st.sampled_from(FLOATS),
    wide=st.booleans(),
    view=st.booleans(),
    options=numbers,
    flag=st.booleans(),
    blocksize=st.sampled_from(BLOCKSIZES),
)


@fixed
@steps
def test_adam_step(host, rng, shape, dtype, wide, view, options, flag, blocksize):
    arrays = state(rng, shape, dtype, wide)
    options = {**options, "decoupled_weight_decay": flag}
    expected = q.adam_step(*arrays, **options)
    given = map(shifted, arrays) if view else arrays
    assert bits(adam.adam_step(host, *given, **options)) == bits(expected)


@fixed
@steps
def test_adam_step_8bit(host, rng, shape, dtype, wide, view, options, flag, blocksize):
    maps = OWN if flag else DYNAMIC
    arrays = state_8bit(rng, shape, dtype, wide, blocksize, maps)
    books = dict(zip(("m_codebook", "v_codebook"), maps, strict=True)) if flag else {}
    options = {**options, **books, "blocksize": blocksize}
    expected = q.adam_step_8bit(*arrays, **options)
    given = map(shifted, arrays) if view else arrays
    assert bits(adam.adam_step_8bit(host, *given, **options)) == bits(expected)


def test_a_map_is_searched_to_its_last_level(plain):
    """First gradients on and beside every threshold, of maps of 2 to 256 levels."""
    for size in (2, 3, 127, 128, 129, 255, 256):
        levels = np.linspace(-1, 1, size, dtype=np.float32) ** 3
        edges = q.thresholds(levels)
        near = [np.nextafter(edges, np.float32(to)) for to in (-2, 2)]
        grad = np.concatenate([[1], edges, *near]).astype(np.float32)
        n = grad.size
        zero = np.full(n, size // 2, np.uint8), np.zeros(-(-n // 1024), np.float32)
        arrays = np.zeros(n, np.float32), grad, *zero, *zero
        options = {"step": 1, "lr": 0.1, "beta1": 0.0, "beta2": 0.0, "blocksize": 1024}
        options |= {"m_codebook": levels, "v_codebook": levels}
        found = adam.adam_step_8bit(plain, *arrays, **options)
        assert bits(found) == bits(q.adam_step_8bit(*arrays, **options))
        assert len(set(found[1].tolist())) == size


def test_steps_in_a_row_stay_equal(plain):
    rng = np.random.default_rng(0)
    param, grad, *_ = state(rng, (100,), np.float32, True)
    theirs = ours = param, np.zeros_like(param), np.zeros_like(param)
    for step in range(1, 30):
        options = {"step": step, "lr": 0.01, "weight_decay": 0.1}
        grad = (grad + 0.3 * rng.standard_normal(100)).astype(np.float32)
        theirs = q.adam_step(theirs[0], grad, *theirs[1:], **options)
        ours = adam.adam_step(plain, ours[0], grad, *ours[1:], **options)
        assert bits(ours) == bits(theirs)


@pytest.mark.parametrize("n", [1, 31, 33, 300, 4097, 8199])
def test_nothing_is_written_beside_a_result(n):
    rng, machine = np.random.default_rng(n), Fenced()
    for dtype, blocksize in zip(FLOATS, (32, 256, 1024), strict=True):
        adam.adam_step(machine, *state(rng, (n,), dtype, False), step=1, lr=0.1)
        arrays = state_8bit(rng, (n,), dtype, False, blocksize, DYNAMIC)
        adam.adam_step_8bit(machine, *arrays, step=1, lr=0.1, blocksize=blocksize)
    assert machine.intact()


def test_arguments_stay_as_they_are(plain):
    rng = np.random.default_rng(1)
    for name, arrays in (
        ("adam_step", state(rng, (300,), np.float32, True)),
        ("adam_step_8bit", state_8bit(rng, (300,), np.float32, True, 256, DYNAMIC)),
    ):
        before = bits(arrays)
        getattr(adam, name)(plain, *arrays, step=1, lr=0.1)
        assert bits(arrays) == before


# ---- many tensors --------------------------------------------------------------------------------

KINDS = [(np.float32, True), (np.float16, False), (np.float16, True)]
KINDS += [(ml_dtypes.bfloat16, False), (ml_dtypes.bfloat16, True)]
SHAPES = [(5000,), (), (0,), (3, 70), (4096,), (9000,), (1,)]
MANY = [("adam_step", 3), ("adam_step_8bit", 5)]


def tensors(rng, name, kinds):
    """Arguments of as many calls as there are kinds and shapes."""
    pairs = [(shape, *kind) for kind in kinds for shape in SHAPES]
    if name == "adam_step":
        return [state(rng, *pair) for pair in pairs]
    return [state_8bit(rng, *pair, 512, DYNAMIC) for pair in pairs]


def many(name):
    return getattr(adam, name.replace("step", "steps"))


def described(name):
    options = {"step": 7, "lr": 0.1, "weight_decay": 0.1}
    return options if name == "adam_step" else {**options, "blocksize": 512}


@pytest.mark.parametrize(("name", "width"), MANY)
def test_many_tensors_take_one_launch_for_each_pair_of_types(host, name, width):
    machine = Watched()
    machine.empty = host.empty
    calls = tensors(np.random.default_rng(2), name, KINDS)
    order = np.random.default_rng(3).permutation(len(calls))
    calls = [calls[i] for i in order]
    found = many(name)(machine, *map(list, zip(*calls, strict=True)), **described(name))
    assert len(found) == width
    expected = [getattr(q, name)(*call, **described(name)) for call in calls]
    assert [bits(new) for new in zip(*found, strict=True)] == [bits(new) for new in expected]
    assert len(machine.launched) == len(set(machine.launched)) == len(KINDS)


@pytest.mark.parametrize(("name", "width"), MANY)
def test_results_may_take_the_place_of_the_arguments(plain, name, width):
    calls = tensors(np.random.default_rng(4), name, KINDS[1:2])
    expected = [getattr(q, name)(*call, **described(name)) for call in calls]
    lists = [list(arrays) for arrays in zip(*calls, strict=True)]
    out = lists[:1] + lists[2:]
    found = many(name)(plain, *lists, **described(name), out=out)
    for written in (out, found):
        assert [bits(new) for new in zip(*written, strict=True)] == [bits(e) for e in expected]


def test_no_tensors_at_all(plain):
    options = {"step": 1, "lr": 0.1}
    assert adam.adam_steps(plain, [], [], [], [], **options) == ([], [], [])
    assert adam.adam_steps_8bit(plain, *[[]] * 6, **options, out=[[]] * 5) == ([],) * 5


# ---- arguments -----------------------------------------------------------------------------------

P = np.ones(4, np.float32)
FOUR = (P, P, P, P)
CODES, SCALE = np.full(4, 127, np.uint8), np.ones(1, np.float32)
CODED = (P, P, CODES, SCALE, CODES, SCALE)
FIRST = {"step": 1, "lr": 0.1}
SAME_AS_THE_REFERENCE = [
    ("adam_step", FOUR, {**FIRST, "step": 0}),
    ("adam_step", FOUR, {**FIRST, "step": 1.0}),
    ("adam_step", FOUR, {**FIRST, "step": 2**24 + 1}),
    ("adam_step", FOUR, {**FIRST, "lr": -0.1}),
    ("adam_step", FOUR, {**FIRST, "lr": math.inf}),
    ("adam_step", FOUR, {**FIRST, "lr": True}),
    ("adam_step", FOUR, {**FIRST, "beta1": 1.0}),
    ("adam_step", FOUR, {**FIRST, "beta2": -0.1}),
    ("adam_step", FOUR, {**FIRST, "eps": -1e-8}),
    ("adam_step", FOUR, {**FIRST, "weight_decay": -1.0}),
    ("adam_step", FOUR, {**FIRST, "decoupled_weight_decay": 1}),
    ("adam_step", ([1.0], P, P, P), FIRST),
    ("adam_step", (P.astype(np.float64), P, P, P), FIRST),
    ("adam_step", (P, P.astype(np.float16), P, P), FIRST),
    ("adam_step", (P, P[:3], P, P), FIRST),
    ("adam_step", (P, P, P.reshape(2, 2), P), FIRST),
    ("adam_step", (P, P, P, P.astype(np.float16)), FIRST),
    ("adam_step_8bit", CODED, {**FIRST, "step": 0}),
    ("adam_step_8bit", CODED, {**FIRST, "blocksize": 0}),
    ("adam_step_8bit", CODED, {**FIRST, "blocksize": "256"}),
    ("adam_step_8bit", CODED, {**FIRST, "m_codebook": SCALE}),
    ("adam_step_8bit", CODED, {**FIRST, "v_codebook": P.astype(np.float16)}),
    ("adam_step_8bit", (P, P, CODES[:3], SCALE, CODES, SCALE), FIRST),
    ("adam_step_8bit", (P, P, CODES, P, CODES, SCALE), FIRST),
    ("adam_step_8bit", (P, P, CODES, SCALE, P, SCALE), FIRST),
    ("adam_step_8bit", (P, P, CODES, SCALE, CODES, SCALE.reshape(1, 1)), FIRST),
]


@pytest.mark.parametrize(("name", "arrays", "options"), SAME_AS_THE_REFERENCE)
def test_bad_arguments_raise_what_the_reference_raises(plain, name, arrays, options):
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(q, name)(*arrays, **options)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        getattr(adam, name)(plain, *arrays, **options)


def test_a_block_size_that_the_kernel_has_not(plain):
    with pytest.raises(
        ValueError, match="blocksize must be a power of two from 32 to 4096, got 48"
    ):
        adam.adam_step_8bit(plain, *CODED, **FIRST, blocksize=48)


WRONG_LISTS = [
    (([P], [P], [P, P], [P]), {}, ValueError, "ms must hold 1 arrays, one a tensor, got 2"),
    ((P, [P], [P], [P]), {}, TypeError, "params must be a list of arrays, got ndarray"),
    (([P, P], [P, P[:3]], [P, P], [P, P]), {}, ValueError, "grads[1] must have shape (4,) beside"),
    (([P], [P], [P], [P]), {"out": ([P],)}, ValueError, "out must be 3 lists of arrays, got 1"),
    (([P], [P], [P], [P]), {"out": ([P], [P], [])}, ValueError, "out[2] must hold 1 arrays"),
    (([P], [P], [P], [P]), {"out": ([P], [P[:3]], [P])}, ValueError, "out[1][0] must have shape"),
    (([P], [P], [P], [P]), {"out": ([P], [P], [CODES])}, TypeError, "out[2][0] must have dtype"),
    (
        ([P], [P], [P], [P]),
        {"out": ([np.ones(8, np.float32)[::2]], [P], [P])},
        ValueError,
        "out[0][0] must be contiguous, since it is to be written",
    ),
]


@pytest.mark.parametrize(("lists", "options", "error", "message"), WRONG_LISTS)
def test_wrong_lists_raise_by_name(plain, lists, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        adam.adam_steps(plain, *lists, **FIRST, **options)


# ---- the kit -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kit_passes_adam(plain):
    functions = adam.adam_step, adam.adam_step_8bit
    offered = {function.__name__: partial(function, plain) for function in functions}
    limits = {"blocksize": list(BLOCKSIZES)}
    assert verify(SimpleNamespace(**offered, limits=limits), profile="smoke").ok
