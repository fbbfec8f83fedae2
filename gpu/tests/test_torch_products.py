"""Products with a packed weight in `qloracle_gpu.torch_backend`: S9, gradients, operators."""

import math
import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle as q

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import library  # noqa: E402

from qloracle_gpu import torch_backend  # noqa: E402
from qloracle_gpu.devices.on_torch import Tensors  # noqa: E402
from qloracle_gpu.torch_backend import linear4bit  # noqa: E402

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
TABLES = ("nf4", "fp4")
U = 2.0**-24
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
fixed = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=[1, 100, 1 << 18], ids=["a row", "some rows", "all rows"])
def backend(request, monkeypatch):
    """The implementation, with chunks of few rows too: small weights then have many."""
    monkeypatch.setattr(Tensors, "chunk", request.param)
    return torch_backend


def give(value):
    """An argument of the reference as one of torch: arrays, the rest as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def call(backend, name, *arguments, **options):
    """Call one function of the backend with the reference's arguments; float64 of its results."""
    result = getattr(backend, name)(
        *[give(a) for a in arguments], **{k: give(v) for k, v in options.items()}
    )
    return result.double().numpy()


def draw(rng, shape, dtype=np.float32, size=1.0):
    return (rng.standard_normal(shape) * size).astype(dtype)


def weight(rng, shape, **form):
    """A packed weight, some scales of which are negative, and its float64 values."""
    packed, absmax = q.quantize_4bit(draw(rng, shape), **form)
    absmax *= rng.choice(np.array([-1, 1], np.float32), absmax.shape)
    return packed, absmax, q.dequantize_4bit(packed, absmax, shape=shape, **form).astype(float)


# ---- S9: every element within its bound ----------------------------------------------------------


def excess(got, exact, terms, d, dtype):
    """The largest error in units of S9's bound, for sums of d products of total size `terms`."""
    name = np.dtype(dtype).name
    e = d * U / (1 - d * U) * terms + d * 2.0**-149
    bound = e + UNIT[name] * (np.abs(exact) + e) + TINY[name]
    return np.max(np.abs(got - exact) / bound, initial=0)


def forward_excess(backend, rng, shape, leading, dtype, bias_type=None, **form):
    packed, absmax, w = weight(rng, shape, **form)
    x = draw(rng, (*leading, shape[1]), dtype)
    bias = None if bias_type is None else draw(rng, shape[:1], bias_type)
    got = call(backend, "matmul_4bit", x, packed, absmax, shape=shape, bias=bias, **form)
    assert got.shape == (*leading, shape[0])
    joint = np.zeros(1) if bias is None else bias.astype(float)
    x = x.astype(float)
    terms = np.abs(x) @ np.abs(w).T + np.abs(joint)
    d = (x != 0).astype(float) @ (w != 0).astype(float).T + (bias is not None)
    return excess(got, x @ w.T + joint, terms, d, dtype)


def backward_excess(backend, rng, shape, leading, dtype, **form):
    packed, absmax, w = weight(rng, shape, **form)
    dy = draw(rng, (*leading, shape[0]), dtype)
    got = call(backend, "matmul_4bit_backward", dy, packed, absmax, shape=shape, **form)
    assert got.shape == (*leading, shape[1])
    dy = dy.astype(float)
    d = (dy != 0).astype(float) @ (w != 0).astype(float)
    return excess(got, dy @ w, np.abs(dy) @ np.abs(w), d, dtype)


sizes = st.one_of(st.integers(0, 9), st.sampled_from([31, 33, 64, 65]))
shapes = st.tuples(sizes, sizes)
leadings = st.sampled_from([(), (1,), (2,), (0,), (2, 3), (16,), (33,)])
forms = st.fixed_dictionaries(
    {
        "blocksize": st.one_of(st.integers(1, 20), st.sampled_from([64, 4096, 2**40])),
        "quant_type": st.sampled_from(TABLES),
    }
)
seeds = st.integers(0, 2**32 - 1)
floats = st.sampled_from(FLOATS)


@fixed
@given(seeds, shapes, leadings, floats, st.booleans(), st.booleans(), forms)
def test_matmul_4bit(backend, seed, shape, leading, dtype, biased, wide, form):
    bias_type = (np.float32 if wide else dtype) if biased else None
    rng = np.random.default_rng(seed)
    assert forward_excess(backend, rng, shape, leading, dtype, bias_type, **form) <= 1


@fixed
@given(seeds, shapes, leadings, floats, forms)
def test_matmul_4bit_backward(backend, seed, shape, leading, dtype, form):
    rng = np.random.default_rng(seed)
    assert backward_excess(backend, rng, shape, leading, dtype, **form) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [513, 700, 1031, 2100, 4099])
def test_long_sums(k, dtype):
    rng = np.random.default_rng(k)
    for leading in ((1,), (33,)):
        assert forward_excess(torch_backend, rng, (130, k), leading, dtype, dtype) <= 1
        assert backward_excess(torch_backend, rng, (k, 130), leading, dtype) <= 1


# ---- sharper than the bound ----------------------------------------------------------------------


def shown_weights(backend, packed, absmax, shape, dtype, rows, **form):
    """The weights that one-hot rows show, `rows` of them at a time."""
    hot = np.eye(shape[1], dtype=dtype)
    parts = [
        call(backend, "matmul_4bit", part, packed, absmax, shape=shape, **form)
        for part in np.split(hot, range(rows, shape[1], rows))
    ]
    return np.concatenate(parts).T


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 2, 16, 64])
def test_one_hot_rows_show_the_decoded_weight_at_every_number_of_rows(backend, dtype, rows):
    rng, shape = np.random.default_rng(0), (5, 131)
    packed, absmax, w = weight(rng, shape)
    shown = shown_weights(backend, packed, absmax, shape, dtype, rows)
    assert np.array_equal(shown, w.astype(dtype).astype(float))


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_rows_show_a_weight_of_float32(backend, dtype):
    """Two equal codes under the scales 1 and 1 + 2**-10: a rounded weight hides the difference."""
    packed, absmax = np.full(64, 0xEE, np.uint8), np.array([1, 1 + 2.0**-10], np.float32)
    x = np.zeros((1, 128), dtype)
    x[0, 0], x[0, 64] = -1, 1
    w = q.dequantize_4bit(packed, absmax, shape=(1, 128))[0].astype(float)
    got = call(backend, "matmul_4bit", x, packed, absmax, shape=(1, 128))
    assert got == (w[64] - w[0]).astype(dtype).astype(float) != 0


def test_sums_of_wide_integers_are_exact(backend):
    """Levels -1, 0, 1 times integers below 4096: every partial sum is an integer below 2**24."""
    rng, shape = np.random.default_rng(0), (24, 4096)
    codes = rng.choice(np.array([0, 7, 15], np.uint8), shape)
    packed, absmax = q.pack_4bit(codes.reshape(-1)), np.full(24 * 64, 0.25, np.float32)
    w = q.dequantize_4bit(packed, absmax, shape=shape).astype(float)
    x = rng.integers(-4095, 4096, (4, 4096)).astype(np.float32)
    got = call(backend, "matmul_4bit", x, packed, absmax, shape=shape)
    assert np.array_equal(got, x.astype(float) @ w.T)
    dy = rng.integers(-4095, 4096, (4, 24)).astype(np.float32)
    got = call(backend, "matmul_4bit_backward", dy, packed, absmax, shape=shape)
    assert np.array_equal(got, dy.astype(float) @ w)


@fixed
@given(seeds, shapes, forms)
def test_chunks_are_the_decoded_weight(backend, seed, shape, form):
    packed, absmax, w = weight(np.random.default_rng(seed), shape, **form)
    chunks = linear4bit.row_chunks(give(packed), give(absmax), shape, **form)
    seen = np.zeros(shape)
    for rows, part in chunks:
        assert part.numel() <= max(Tensors.chunk, shape[1])
        seen[rows] = part.numpy()
    assert np.array_equal(seen, w)


# ---- planted faults ------------------------------------------------------------------------------


def faults_of(backend):
    """What is wrong with a backend: the checks that it fails on a fixed set of inputs, in order."""
    rng = np.random.default_rng(0)
    for dtype in FLOATS:
        for shape, size in (((3, 5), 5), ((5, 33), 6), ((20, 70), 64), ((6, 131), 32)):
            form = {"shape": shape, "leading": (2, 3), "dtype": dtype, "blocksize": size}
            for bias in (None, np.float32, dtype):
                if not forward_excess(backend, rng, bias_type=bias, **form) <= 1:
                    yield "bound", form, bias
            if not backward_excess(backend, rng, **form) <= 1:
                yield "backward", form
            packed, absmax, w = weight(rng, shape, blocksize=size)
            shown = shown_weights(backend, packed, absmax, shape, dtype, 64, blocksize=size)
            if not np.array_equal(shown, w.astype(dtype).astype(float)):
                yield "one-hot", form


DECODED = "levels.view(rows.stop - rows.start, width)"
ADDED = "dx += device.product(dy[:, rows], w)"
ROWS = "dims, blocksize, quant_type)\n    dx"
JOINT = "part = device.product(x, w.T)"
BIAS = "bias.float().__getitem__"
FAULTS = {
    "the last column dropped": (JOINT, "part = device.product(x[:, :-1], w.T[:-1])"),
    "the first column twice": (JOINT, f"{JOINT} + x[:, :1] @ w[:, :1].T"),
    "factors in bfloat16": (JOINT, "part = x.bfloat16().float() @ w.T.bfloat16().float()"),
    "rounded before the bias": ("else part + added", "else device.cast(part, dtype) + added"),
    "a bias in x's type": (BIAS, "bias.to(x.dtype).__getitem__"),
    "one bias for all": (BIAS, "bias.float()[:1].expand(len(bias)).__getitem__"),
    "a weight in float16": (DECODED, f"{DECODED}.half().float()"),
    "a low nibble taken for a high one": ("(stop + 1) // 2], start % 2", "(stop + 1) // 2], 0"),
    "a row begins a block": ("levels.numel(), start // step", "levels.numel(), 0"),
    "the next block's scale ahead": ("absmax[first : first + 1]", "absmax[after : after + 1]"),
    "the last scale for the rest": ("absmax[after + whole : after + whole + 1]", "absmax[-1:]"),
    "only the last rows": (ADDED, "dx = dy[:, rows] @ w"),
    "rounded at each chunk": (ADDED, "dx = (dx + dy[:, rows] @ w).bfloat16().float()"),
    "another type in the gradient": (ROWS, ROWS.replace("quant_type", "'fp4'")),
}  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch):
    """Mutants, too, then see more than one chunk."""
    monkeypatch.setattr(Tensors, "chunk", 200)


def test_what_is_right_has_no_fault(small_chunks):
    assert list(faults_of(torch_backend)) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(mutant, monkeypatch, fault):
    name = f"product_mutant_{list(FAULTS).index(fault)}"
    backend = mutant(name, *FAULTS[fault])
    monkeypatch.setattr(sys.modules[f"{name}.devices.on_torch"].Tensors, "chunk", 200)
    assert next(faults_of(backend), None)  # one is enough


# ---- however a tensor lies in memory, and whatever it is part of ---------------------------------


def negated(x):
    """The same numbers, as a tensor whose negation is still to be done."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


VIEWS = {
    "strided": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim >= 2 else t,
    "offset": lambda t: torch.cat([t.new_ones(64), t.reshape(-1)])[64:].view(t.shape),
    "unaligned": lambda t: torch.cat([t.new_ones(1), t.reshape(-1)])[1:].view(t.shape),
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "negation to be done": lambda t: negated(t) if t.dtype == torch.float32 else t,
    "of inference mode": lambda t: torch.inference_mode()(t.clone)(),
}


def integers(seed, *shape):
    """Integers up to 8. With levels -1, 0 and 1 every sum of theirs is exact, in any order."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32))


SHAPE = (6, 35)
TENSORS = {"x": integers(1, 2, 3, 35), "dy": integers(2, 2, 3, 6), "bias": integers(3, 6)}
CODES = np.random.default_rng(4).choice(np.array([0, 7, 15], np.uint8), 210)
WEIGHT = [give(q.pack_4bit(CODES)), torch.tensor([0.5, 2.0, -4.0, 1.0])]


def calls():
    """One call of each function: (name, tensors, tensor options)."""
    yield "matmul_4bit", [TENSORS["x"], *WEIGHT], {"bias": TENSORS["bias"]}
    yield "matmul_4bit", [TENSORS["x"].bfloat16(), *WEIGHT], {"bias": TENSORS["bias"]}
    yield "matmul_4bit_backward", [TENSORS["dy"], *WEIGHT], {}


@pytest.mark.parametrize("view", VIEWS)
def test_views_change_nothing_and_are_not_changed(view):
    for name, tensors, options in calls():
        function, seen = getattr(torch_backend, name), [VIEWS[view](t) for t in tensors]
        changed = {k: VIEWS[view](v) for k, v in options.items()}
        before = [t.detach().clone() for t in seen]
        result = function(*seen, shape=SHAPE, **changed)
        assert torch.equal(result, function(*tensors, shape=SHAPE, **options))
        assert result.is_contiguous()
        assert not result.requires_grad
        assert all(torch.equal(t, b) for t, b in zip(seen, before, strict=True))


def test_an_expanded_tensor_is_read_as_it_looks():
    x = TENSORS["x"][:, :1].expand(2, 3, 35)
    got = torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE)
    assert torch.equal(got, torch_backend.matmul_4bit(x.clone(), *WEIGHT, shape=SHAPE))


def test_a_result_is_new_even_where_nothing_is_computed():
    x = torch.ones(2, 3)
    nothing = torch.zeros(0, dtype=torch.uint8), torch.zeros(0)
    y = torch_backend.matmul_4bit(x[:, :0], *nothing, shape=(4, 0))
    assert torch.equal(y, torch.zeros(2, 4))


# ---- gradients -----------------------------------------------------------------------------------


def learnt(t):
    return t.detach().clone().requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autograd_gives_the_backward_function(dtype):
    x, bias, dy = learnt(TENSORS["x"].to(dtype)), learnt(TENSORS["bias"]), TENSORS["dy"].to(dtype)
    torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE, bias=bias).backward(dy)
    assert torch.equal(x.grad, torch_backend.matmul_4bit_backward(dy, *WEIGHT, shape=SHAPE))
    assert bias.grad.dtype == bias.dtype
    assert torch.allclose(bias.grad, dy.float().sum((0, 1)), rtol=8 * U, atol=8 * U)


def test_torch_differentiates_the_same_product_in_float64_to_the_same_gradient():
    w = torch_backend.dequantize_4bit(*WEIGHT, shape=SHAPE)
    x, x64 = learnt(TENSORS["x"]), learnt(TENSORS["x"].double())
    (torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE) ** 2).sum().backward()
    y64 = x64 @ w.double().T
    (y64**2).sum().backward()
    terms = 2 * (x64.abs() @ w.double().abs().T) @ w.double().abs()
    assert ((x.grad - x64.grad).abs() <= 60 * U * terms).all()  # 35 + 6 and a few roundings


def test_a_gradient_that_nobody_asked_for_is_not_made(monkeypatch):
    bias = learnt(TENSORS["bias"])
    y = torch_backend.matmul_4bit(TENSORS["x"], *WEIGHT, shape=SHAPE, bias=bias)
    monkeypatch.setattr(linear4bit, "row_chunks", None)  # nothing may be decoded
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 6.0))


def test_the_weight_gets_no_gradient():
    x, packed, absmax = TENSORS["x"], WEIGHT[0], learnt(WEIGHT[1])
    assert not torch_backend.matmul_4bit(x, packed, absmax, shape=SHAPE).requires_grad
    y = torch_backend.matmul_4bit(learnt(x), packed, absmax, shape=SHAPE)
    y.sum().backward()
    assert absmax.grad is None


def saved_by(function):
    """The tensors that a forward pass keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function()
    return kept


def test_what_is_kept_for_the_gradient_was_passed_in():
    kept = saved_by(lambda: torch_backend.matmul_4bit(learnt(TENSORS["x"]), *WEIGHT, shape=SHAPE))
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in WEIGHT]


def test_infinite_gradients_pass_through_where_autograd_asks():
    """Loss scaling looks for them afterwards."""
    x = learnt(TENSORS["x"])
    torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE).backward(TENSORS["dy"] * math.inf)
    assert not x.grad.isfinite().any()


def test_a_second_derivative_is_refused():
    x = learnt(TENSORS["x"])
    y = torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE)
    (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        dx.sum().backward()


# ---- operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_pass_torch_s_own_check(dtype):
    form = list(SHAPE), 64, "nf4"
    ops, (x, dy) = torch.ops.qloracle, (TENSORS[name].to(dtype) for name in ("x", "dy"))
    for bias in (None, learnt(TENSORS["bias"])):
        library.opcheck(ops.matmul_4bit.default, (learnt(x), *WEIGHT, *form, bias))
    library.opcheck(ops.matmul_4bit.default, (x.mT.contiguous().mT, *WEIGHT, *form, None))
    library.opcheck(ops.matmul_4bit_backward.default, (dy, *WEIGHT, *form))


@pytest.mark.parametrize(
    "fault",
    [("x.new_empty(*x.shape[:-1], shape[0])", "x.new_empty(*x.shape[:-1], shape[1])"),
     ("as_matrix(known).float(), added", "as_matrix(known).float().mul_(2), added")],
    ids=["a fake of another shape", "x is changed"],
)  # fmt: skip
def test_torch_s_own_check_fails_on_a_fault(mutant, fault):
    name = f"operator_mutant_{len(fault[1])}"
    mutant(name, *fault)
    arguments = learnt(TENSORS["x"]), *WEIGHT, list(SHAPE), 64, "nf4", learnt(TENSORS["bias"])
    with pytest.raises(Exception, match=r"(?i)opcheck"):
        library.opcheck(getattr(torch.ops, name).matmul_4bit.default, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_layer_compiles_to_one_graph(dynamic):
    torch._dynamo.reset()

    def layer(x, bias):
        return torch_backend.matmul_4bit(x, *WEIGHT, shape=SHAPE, bias=bias).relu()

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for rows in (6, 5):
        plain, seen = (learnt(TENSORS["x"].view(6, 35)[:rows]) for _ in range(2))
        y, z = layer(plain, TENSORS["bias"]), compiled(seen, TENSORS["bias"])
        y.sum().backward()
        z.sum().backward()
        assert torch.equal(y, z)
        assert torch.equal(plain.grad, seen.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_function_compiles_with_sizes_that_are_not_known():
    torch._dynamo.reset()
    compiled = torch.compile(torch_backend.matmul_4bit, fullgraph=True, dynamic=True)
    for out in (6, 4):  # rows of half a block each, and a whole number of bytes
        packed, absmax = WEIGHT[0][: 16 * out], WEIGHT[1][: -(-out // 2)]
        x = TENSORS["x"][..., :32]
        got = compiled(x, packed, absmax, shape=(out, 32))
        assert torch.equal(got, torch_backend.matmul_4bit(x, packed, absmax, shape=(out, 32)))


# ---- float32 is float32 --------------------------------------------------------------------------


def settings_of_products():
    """Everything that may change what a product of float32 matrices is, as it stands now."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to tell where old and new settings differ
        older = "mixed"
    own = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    newer = [backend.fp32_precision for backend in own] if hasattr(own[1], "fp32_precision") else []
    return [older, *newer, torch.is_autocast_enabled("cpu")]


def with_older(word):
    torch.set_float32_matmul_precision(word)


def with_newer(where, word):
    where.fp32_precision = word


ALLOWED = {
    "nothing": lambda: None,
    "TF32": lambda: with_older("high"),
    "bfloat16": lambda: with_older("medium"),
    "TF32 on CUDA": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "bfloat16 in oneDNN": lambda: with_newer(torch.backends.mkldnn.matmul, "bf16"),
    "TF32 everywhere": lambda: with_newer(torch.backends, "tf32"),
}


@pytest.fixture
def as_before():
    """Put every setting back."""
    yield
    torch.set_float32_matmul_precision("highest")
    for where in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        where.fp32_precision = "none"


@pytest.mark.parametrize("allowed", ALLOWED)
@pytest.mark.parametrize("autocast", [False, True])
def test_settings_of_the_process_change_nothing_and_are_not_changed(
    monkeypatch, as_before, allowed, autocast
):
    rng = np.random.default_rng(0)  # large enough for the product in bfloat16
    x, (packed, absmax, _) = give(draw(rng, (64, 1024))), weight(rng, (64, 1024))
    arguments, options = (x, give(packed), give(absmax)), {"shape": (64, 1024)}
    expected = [
        torch_backend.matmul_4bit(*arguments, **options),
        torch_backend.matmul_4bit_backward(x[:, :64], *arguments[1:], **options),
    ]
    inside, product = [], torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: (inside.append(settings_of_products()), product(a, b))[1],
    )
    ALLOWED[allowed]()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = settings_of_products()
        got = [
            torch_backend.matmul_4bit(*arguments, **options),
            torch_backend.matmul_4bit_backward(x[:, :64], *arguments[1:], **options),
        ]
        assert settings_of_products() == before
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    assert len(inside) >= 2
    assert all(set(map(str, state)) <= {"highest", "none", "ieee", "False"} for state in inside)


def test_a_setting_that_is_inherited_stays_inherited(as_before):
    torch.backends.fp32_precision = "tf32"
    torch_backend.matmul_4bit(TENSORS["x"], *WEIGHT, shape=SHAPE)
    torch.backends.fp32_precision = "none"
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_autocast_would_change_a_product_that_is_not_guarded(mutant):
    guard = "torch.autocast(device.type, enabled=False) if casts else nullcontext(), _ieee()"
    bare = mutant("unguarded", guard, "nullcontext()")
    x = TENSORS["x"] + 1e-3
    expected = bare.matmul_4bit(x, *WEIGHT, shape=SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(bare.matmul_4bit(x, *WEIGHT, shape=SHAPE), expected)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_than_a_few_rows_of_the_weight_are_held(dtype):
    freed_at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK, dtype]
    run = subprocess.run(command, env=freed_at_once, capture_output=True, text=True, check=True)
    forward, backward, whole = (float(word) for word in run.stdout.split())
    assert 0 < forward < 6
    assert 0 < backward < 6
    assert whole > 64  # a weight that is decoded as one shows


PEAK = """
import sys, torch, qloracle_gpu.torch_backend as t
from qloracle_gpu.devices.on_torch import Tensors

def status(word):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

def extra(function):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    result = function()
    peak = status("VmHWM") - before
    return (peak - sum(part.nbytes for part in result)) / 2**20

n, dtype = 4096, getattr(torch, sys.argv[1])
packed, absmax = torch.randint(256, (n * n // 2,), dtype=torch.uint8), torch.rand(n * n // 64)
x, dy, a, b = (torch.randn(size, dtype=dtype) for size in ((16, n), (16, n), (16, n), (n, 16)))
forward = lambda: (t.qlora_forward(x, packed, absmax, a, b, shape=(n, n), scaling=0.7),)
backward = lambda: t.qlora_backward(dy, x, packed, absmax, a, b, shape=(n, n), scaling=0.7)
small = dict(shape=(16, n), scaling=0.7)
few = (packed[: 8 * n], absmax[: n // 4], a, b[:16])
t.qlora_forward(x, *few, **small), t.qlora_backward(dy[:, :16], x, *few, **small)  # loads MKL
print(extra(forward), extra(backward))
Tensors.chunk = n * n
print(extra(forward))
"""


# ---- bad input -----------------------------------------------------------------------------------

X = np.ones((2, 3), np.float32)
DY = np.ones((2, 4), np.float32)
NAN = np.float32(np.nan)
PACKED, SCALES = np.full(6, 0x77, np.uint8), np.ones(1, np.float32)
BAD = [
    *[
        ("matmul_4bit", [x, PACKED, SCALES], {"shape": (4, 3)})
        for x in ([1.0], X.astype(np.float64), X[:, :2], X[:, 0], X * NAN)
    ],
    *[
        ("matmul_4bit", [X, PACKED, SCALES], {"shape": shape})
        for shape in ((4, 2), (5, 3), (12,), (2, 2, 3), (4.0, 3), (-4, 3), 12)
    ],
    *[
        ("matmul_4bit", [X, packed, SCALES], {"shape": (4, 3)})
        for packed in (PACKED[:5], PACKED[:, None], PACKED.astype(np.int8), [1])
    ],
    *[
        ("matmul_4bit", [X, PACKED, absmax], {"shape": (4, 3)})
        for absmax in (np.ones(2, np.float32), np.ones(1), SCALES * np.float32(np.inf), [1.0])
    ],
    *[
        ("matmul_4bit", [X, PACKED, SCALES], {"shape": (4, 3), "bias": bias})
        for bias in (DY[0, :3], np.ones(4), DY[0].astype(np.float16), [1.0], DY[0] * NAN)
    ],
    *[("matmul_4bit", [X, PACKED, SCALES], {"shape": (4, 3), "blocksize": b}) for b in (0, 2.5)],
    *[("matmul_4bit", [X, PACKED, SCALES], {"shape": (4, 3), "quant_type": t}) for t in ("af4", 4)],
    ("matmul_4bit", [X, PACKED, SCALES], {"shape": (4, 3), "quant_type": "int4"}),
    *[
        ("matmul_4bit_backward", [dy, PACKED, SCALES], {"shape": (4, 3)})
        for dy in (X, DY.astype(np.int32), None, DY * np.float32(np.inf))
    ],
    ("matmul_4bit_backward", [DY, PACKED[:2], SCALES], {"shape": (4, 3)}),
    ("matmul_4bit_backward", [DY, PACKED, SCALES], {"shape": (4, 3), "quant_type": "af4"}),
]  # fmt: skip


def message(function):
    """The type and the words of what a call raises."""
    with pytest.raises((TypeError, ValueError)) as caught:
        function()
    text = str(caught.value)
    assert "\n" not in text
    return caught.type, re.sub("a NumPy array", "a torch tensor", text)


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_raises_what_the_reference_raises(case):
    name, arguments, options = BAD[case]
    tensors, changed = [give(a) for a in arguments], {k: give(v) for k, v in options.items()}
    expected = message(lambda: getattr(q, name)(*arguments, **options))
    assert message(lambda: getattr(torch_backend, name)(*tensors, **changed)) == expected


def test_a_number_is_no_row():
    with pytest.raises(ValueError, match=r"^x must have shape \(\.\.\., 35\) .*, got \(\)$"):
        torch_backend.matmul_4bit(torch.tensor(1.0), *WEIGHT, shape=SHAPE)


def test_tensors_on_two_devices_are_refused_by_name():
    for name, tensors, options in calls():
        for i, argument in enumerate(["", "packed", "absmax"]):
            moved = [t.to("meta") if i == j else t for j, t in enumerate(tensors)]
            words = f"^{argument} must lie on cpu like" if i else "must hold values, got a tensor"
            with pytest.raises(ValueError, match=words):
                getattr(torch_backend, name)(*moved, shape=SHAPE, **options)
    with pytest.raises(ValueError, match=r"^bias must lie on cpu like"):
        torch_backend.matmul_4bit(
            TENSORS["x"], *WEIGHT, shape=SHAPE, bias=TENSORS["bias"].to("meta")
        )
