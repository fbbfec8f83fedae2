"""LoRA in `qloracle_gpu.torch_backend`, dense and on packed weights: S10, gradients, operators."""

import math
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

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
U = 2.0**-24
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
SCALINGS = (0.7, 1 / 3, 16 / 8**0.5, -1.3)
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
    tensors, options = [give(a) for a in arguments], {k: give(v) for k, v in options.items()}
    result = getattr(backend, name)(*tensors, **options)
    parts = result if isinstance(result, tuple) else (result,)
    return [part.double().numpy() for part in parts]


def draw(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


# ---- S10: every element within its bound ---------------------------------------------------------


def gamma(d):
    return d * U / (1 - d * U)


def use(got, exact, e, dtype):
    """The largest error in units of S10's bound; a bound of zero demands zero."""
    name = np.dtype(dtype).name
    e = e + np.where(e > 0, 2.0**-140, 0)
    bound = e + UNIT[name] * (np.abs(exact) + e) + np.where(e > 0, TINY[name], 0)
    error = np.abs(got - exact)
    return np.max(np.where(error == 0, 0, error / np.maximum(bound, 2.0**-1000)), initial=0)


def matrices(*arrays):
    """Each in float64, its leading dimensions as one."""
    return [a.astype(float).reshape(math.prod(a.shape[:-1]), a.shape[-1]) for a in arrays]


def forward_use(got, x, w, a, b, s, mask):
    x64, masked, w, a, b = matrices(x, x.astype(float) * mask, w, a, b)
    exact = x64 @ w.T + s * (masked @ a.T) @ b.T
    k, r = w.shape[1], len(a)
    e = gamma(k + 1) * np.abs(x64) @ np.abs(w).T
    e += gamma(k + r + 5) * abs(s) * (np.abs(masked) @ np.abs(a).T) @ np.abs(b).T
    return use(got.reshape(exact.shape), exact, e, x.dtype)


def backward_use(got, dy, x, w, a, b, s, mask):
    kept = np.broadcast_to(mask, x.shape)
    dy64, masked, w, a64, b64, kept = matrices(dy, x.astype(float) * mask, w, a, b, kept)
    (n, k), m, r, mag = w.shape, len(masked), len(a), np.abs
    dh, h = dy64 @ b64, masked @ a64.T
    big_dh, big_h = mag(dy64) @ mag(b64), mag(masked) @ mag(a64).T
    exact = dy64 @ w + s * kept * (dh @ a64), s * dh.T @ masked, s * dy64.T @ h
    e = (
        gamma(n + 1) * mag(dy64) @ mag(w) + gamma(n + r + 5) * abs(s) * kept * (big_dh @ mag(a64)),
        gamma(n + m + 4) * abs(s) * big_dh.T @ mag(masked),
        gamma(k + m + 4) * abs(s) * mag(dy64).T @ big_h,
    )
    types = x.dtype, a.dtype, a.dtype
    parts = zip(got, exact, e, types, strict=True)
    return max(use(g.reshape(t.shape), t, *rest) for g, t, *rest in parts)


def layer(rng, shape, r, leading, dtype, wide, dropped):
    """The operands of a layer: dy, x, w, a, b and the mask."""
    out, width = shape
    x, dy = draw(rng, (*leading, width), dtype), draw(rng, (*leading, out), dtype)
    learnt = np.float32 if wide else dtype
    a, b = draw(rng, (r, width), learnt), draw(rng, (out, r), learnt)
    mask = q.draw_dropout_mask(rng, x.shape, 0.3, dtype=dtype) if dropped else None
    return dy, x, draw(rng, shape, dtype), a, b, mask


def uses(backend, rng, shape, r, leading, dtype, s, wide=False, dropped=True, blocksize=64):
    """The shares of their bounds that all four functions use."""
    dy, x, w, a, b, mask = layer(rng, shape, r, leading, dtype, wide, dropped)
    packed, absmax = q.quantize_4bit(w, blocksize=blocksize)
    decoded = q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)
    kept = 1.0 if mask is None else mask.astype(float)
    options = {"scaling": s, "dropout_mask": mask}
    form = {**options, "shape": shape, "blocksize": blocksize}
    y = call(backend, "lora_forward", x, w, a, b, **options)[0]
    z = call(backend, "qlora_forward", x, packed, absmax, a, b, **form)[0]
    dense = call(backend, "lora_backward", dy, x, w, a, b, **options)
    coded = call(backend, "qlora_backward", dy, x, packed, absmax, a, b, **form)
    for got in (dense, coded):
        assert [part.shape for part in got] == [x.shape, a.shape, b.shape]
    assert y.shape == z.shape == dy.shape
    return {
        "lora_forward": forward_use(y, x, w, a, b, s, kept),
        "qlora_forward": forward_use(z, x, decoded, a, b, s, kept),
        "lora_backward": backward_use(dense, dy, x, w, a, b, s, kept),
        "qlora_backward": backward_use(coded, dy, x, decoded, a, b, s, kept),
    }


sizes = st.one_of(st.integers(1, 9), st.sampled_from([31, 33, 64, 65]))
leadings = st.sampled_from([(), (1,), (2,), (0,), (2, 3), (16,), (33,)])


@fixed
@given(st.data())
def test_every_element_is_within_its_bound(backend, data):
    shape = data.draw(st.tuples(sizes, sizes))
    found = uses(
        backend,
        np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))),
        shape,
        data.draw(st.integers(0, 16)),  # above either side, too
        data.draw(leadings),
        data.draw(st.sampled_from(FLOATS)),
        data.draw(st.sampled_from(SCALINGS)),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        data.draw(st.sampled_from([1, 5, 32, 64, 4096])),
    )
    assert {name: share for name, share in found.items() if share > 1} == {}


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_of_integers_are_exact(backend, dtype):
    rng, shape = np.random.default_rng(0), (6, 35)
    codes = rng.choice(np.array([0, 7, 15], np.uint8), 210)
    packed, absmax = q.pack_4bit(codes), np.array([0.5, 2.0, -4.0, 1.0], np.float32)
    w = q.dequantize_4bit(packed, absmax, shape=shape)
    x, dy, a, b = (
        rng.integers(-2, 3, size).astype(dtype) for size in ((3, 35), (3, 6), (2, 35), (6, 2))
    )
    options = {"scaling": 0.5, "dropout_mask": 2 * rng.integers(0, 2, x.shape).astype(dtype)}
    for name, *arguments in (("forward",), ("backward", dy)):
        expected = getattr(q, f"lora_{name}")(*arguments, x, w, a, b, **options)
        parts = expected if isinstance(expected, tuple) else (expected,)
        dense = call(backend, f"lora_{name}", *arguments, x, w, a, b, **options)
        coded = call(
            backend, f"qlora_{name}", *arguments, x, packed, absmax, a, b, shape=shape, **options
        )
        for part, one, other in zip(parts, dense, coded, strict=True):
            assert np.array_equal(one, part.astype(float))
            assert np.array_equal(other, part.astype(float))


# ---- planted faults ------------------------------------------------------------------------------


def faults_of(backend):
    """The functions whose results leave their bounds on a fixed set of inputs."""
    rng, found = np.random.default_rng(0), set()
    for dtype in FLOATS:
        for shape, r in (((20, 33), 8), ((9, 70), 1)):
            for dropped, wide in ((False, True), (True, False)):
                shares = uses(backend, rng, shape, r, (2, 3), dtype, 0.7, wide, dropped, 32)
                found.update(name for name, share in shares.items() if share > 1)
    return found


PRODUCT = "device.product(masked, a.T)"
HIDDEN, AGAIN = (
    f"h = {PRODUCT} * scaling  # M, r\n    y",
    f"h = {PRODUCT} * scaling  # M, r\n    branch",
)
HALF = f'device.cast(device.cast({PRODUCT} * scaling, "float16"), "float32")\n    y'
JOINT = "device.cast(part if added is None else part + added(rows), dtype)"
APART = "device.cast(part, dtype) + (0 if added is None else device.cast(added(rows), dtype))"
WIDE, NARROW = 'device.cast(w[rows], "float32")', 'device.cast(w[rows].bfloat16(), "float32")'
DX = "back(dy32) + (branch if mask is None else branch * mask)"
OWN_X = 'device.product(dh.T, device.cast(as_matrix(layer.x), "float32"))'
DA = "device.cast(da, type_name(layer.a))"
FORWARD, BACKWARD = {"lora_forward", "qlora_forward"}, {"lora_backward", "qlora_backward"}
DENSE = {"lora_forward", "lora_backward"}
FAULTS = {
    "no scaling": (HIDDEN, HIDDEN.replace(" * scaling", ""), FORWARD),
    "scaling twice": (HIDDEN, HIDDEN.replace("scaling", "scaling * scaling"), FORWARD),
    "scaling in float16": (HIDDEN, HIDDEN.replace("scaling", "0.7001953125"), FORWARD),
    "no mask": (HIDDEN, HIDDEN.replace("masked", "x"), FORWARD),
    "W's branch masked": ("y = through(x,", "y = through(masked,", FORWARD),
    "h in float16": (HIDDEN, f"h = {HALF}", FORWARD),
    "branches rounded apart": (JOINT, APART, FORWARD),
    "W in bfloat16": (WIDE, NARROW, DENSE),
    "dx without the branch": (DX, "back(dy32)", BACKWARD),
    "dx not masked": (DX, "back(dy32) + branch", BACKWARD),
    "dx masked as a whole": (DX, "(back(dy32) + branch) * (1 if mask is None else mask)", BACKWARD),
    "da of x without mask": ("device.product(dh.T, masked)", OWN_X, BACKWARD),
    "da without scaling": (
        "device.product(dy32, b) * scaling",
        "device.product(dy32, b)",
        BACKWARD,
    ),
    "db without scaling": (AGAIN, AGAIN.replace(" * scaling", ""), BACKWARD),
    "db of the first row": ("product(dy32.T, h)", "product(dy32[:1].T, h[:1])", BACKWARD),
    "da rounded to bfloat16": (DA, DA.replace("da,", "da.bfloat16(),"), BACKWARD),
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Mutants, too, then see more than one chunk."""
    monkeypatch.setattr(Tensors, "chunk", 200)


def test_what_is_right_has_no_fault(small_chunks):
    assert faults_of(torch_backend) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(mutant, monkeypatch, fault):
    old, new, where = FAULTS[fault]
    name = f"lora_mutant_{list(FAULTS).index(fault)}"
    backend = mutant(name, old, new)
    monkeypatch.setattr(sys.modules[f"{name}.devices.on_torch"].Tensors, "chunk", 200)
    assert faults_of(backend) == where


# ---- gradients by torch itself -------------------------------------------------------------------

SHAPE, R = (6, 35), 2
RNG = np.random.default_rng(5)
DY, X, W, A, B, MASK = (give(t) for t in layer(RNG, SHAPE, R, (2, 3), np.float32, False, True))
WEIGHT = torch_backend.quantize_4bit(W)
FORM = {"scaling": 0.7, "dropout_mask": MASK}


def learnt(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def dense(x, a, b, **options):
    return torch_backend.lora_forward(x, W, a, b, **{**FORM, **options})


def coded(x, a, b, **options):
    return torch_backend.qlora_forward(x, *WEIGHT, a, b, shape=SHAPE, **{**FORM, **options})


def dense_backward(x, a, b):
    return torch_backend.lora_backward(DY, x, W, a, b, **FORM)


def coded_backward(x, a, b):
    return torch_backend.qlora_backward(DY, x, *WEIGHT, a, b, shape=SHAPE, **FORM)


PASSES = [(dense, dense_backward, W), (coded, coded_backward, None)]
both = pytest.mark.parametrize(("forward", "backward", "w"), PASSES, ids=["dense", "packed"])


@both
def test_autograd_gives_the_backward_function(forward, backward, w):
    tensors = learnt(X, A, B)
    forward(*tensors).backward(DY)
    for t, gradient in zip(tensors, backward(X, A, B), strict=True):
        assert torch.equal(t.grad, gradient)
        assert not gradient.requires_grad


@both
def test_torch_differentiates_the_formula_in_float64_to_the_same_gradients(forward, backward, w):
    """Through a loss that is not linear: dy comes out of the forward pass."""
    w = torch_backend.dequantize_4bit(*WEIGHT, shape=SHAPE) if w is None else w
    tensors, wide = learnt(X, A, B), learnt(X.double(), A.double(), B.double())
    x, a, b = wide
    y = x @ w.double().T + 0.7 * (x * MASK.double()) @ a.T @ b.T
    torch.tanh(y).sum().backward()
    torch.tanh(forward(*tensors)).sum().backward()
    for t, exact in zip(tensors, wide, strict=True):
        scale = exact.grad.abs().max()
        assert ((t.grad - exact.grad).abs() <= 200 * U * scale).all()


@both
@pytest.mark.parametrize("asked", ["x", "a", "b"])
def test_each_gradient_comes_alone(forward, backward, w, asked):
    tensors = {"x": X, "a": A, "b": B}
    (tensors[asked],) = learnt(tensors[asked])
    forward(**tensors).backward(DY)
    assert torch.equal(tensors[asked].grad, backward(X, A, B)["xab".index(asked)])


@both
def test_no_gradient_is_asked_for_where_nothing_learns(forward, backward, w):
    assert not forward(X, A, B).requires_grad
    with torch.no_grad():
        assert not forward(*learnt(X, A, B)).requires_grad


def test_the_weight_and_the_mask_get_no_gradient():
    w, scales, mask = learnt(W, WEIGHT[1], MASK)
    x, a, b = learnt(X, A, B)
    y = torch_backend.lora_forward(x, w, a, b, scaling=0.7, dropout_mask=mask)
    z = torch_backend.qlora_forward(x, WEIGHT[0], scales, a, b, shape=SHAPE, **FORM)
    (y + z).sum().backward()
    assert w.grad is scales.grad is mask.grad is None
    frozen = torch_backend.lora_forward(X, w, A, B, scaling=0.7, dropout_mask=mask)
    assert not frozen.requires_grad


def test_what_is_kept_for_the_gradients_was_passed_in():
    kept, tensors = [], learnt(X, A, B)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        coded(*tensors)
    passed_in = [tensors[0], *WEIGHT, *tensors[1:], MASK]
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in passed_in]


def test_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    plain, again = learnt(X, A, B), learnt(X, A, B)
    coded(*plain).tanh().sum().backward()
    checkpoint(lambda *t: coded(*t).tanh(), *again, use_reentrant=False).sum().backward()
    assert all(torch.equal(p.grad, t.grad) for p, t in zip(plain, again, strict=True))


@both
def test_autocast_changes_nothing(forward, backward, w):
    expected, tensors = forward(X, A, B), learnt(X, A, B)
    with torch.autocast("cpu", torch.bfloat16):
        y = forward(*tensors)
        y.backward(DY)
    assert torch.equal(y, expected)
    for t, gradient in zip(tensors, backward(X, A, B), strict=True):
        assert torch.equal(t.grad, gradient)


# ---- however a tensor lies in memory -------------------------------------------------------------

VIEWS = {
    "strided": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim >= 2 else t,
    "offset": lambda t: torch.cat([t.new_ones(64), t.reshape(-1)])[64:].view(t.shape),
    "unaligned": lambda t: torch.cat([t.new_ones(1), t.reshape(-1)])[1:].view(t.shape),
    "of inference mode": lambda t: torch.inference_mode()(t.clone)(),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_change_nothing_and_are_not_changed(view):
    """With integers, whose sums are exact in any order."""
    rng = np.random.default_rng(0)
    dy, x, w, a, b = (
        torch.from_numpy(rng.integers(-2, 3, t.shape)).float() for t in (DY, X, W, A, B)
    )
    mask = 2 * torch.from_numpy(rng.integers(0, 2, X.shape)).float()
    for name, tensors in (("lora_forward", [x, w, a, b]), ("lora_backward", [dy, x, w, a, b])):
        function, seen = getattr(torch_backend, name), [VIEWS[view](t) for t in tensors]
        before = [t.clone() for t in seen]
        got = function(*seen, scaling=0.5, dropout_mask=VIEWS[view](mask))
        expected = function(*tensors, scaling=0.5, dropout_mask=mask)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for part, wanted in pairs:
            assert torch.equal(part, wanted)
            assert part.is_contiguous()
        assert all(torch.equal(t, b) for t, b in zip(seen, before, strict=True))


# ---- operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_operators_pass_torch_s_own_check(mask):
    ops, form = torch.ops.qloracle, (list(SHAPE), 0.7, 64, "nf4", mask)
    x, a, b = learnt(X, A, B)
    library.opcheck(ops.lora_forward.default, (x, W, a, b, 0.7, mask))
    library.opcheck(ops.lora_backward.default, (DY, X, W, A, B, 0.7, mask))
    library.opcheck(ops.qlora_forward.default, (x, *WEIGHT, a, b, *form))
    library.opcheck(ops.qlora_backward.default, (DY, X, *WEIGHT, A, B, *form))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("forward", [dense, coded])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_layer_compiles_to_one_graph(forward, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic)
    for rows in (2, 1):
        plain, seen = learnt(X[:rows], A, B), learnt(X[:rows], A, B)
        y = forward(*plain, dropout_mask=MASK[:rows])
        z = compiled(*seen, dropout_mask=MASK[:rows])
        y.backward(DY[:rows])
        z.backward(DY[:rows])
        assert torch.equal(y, z)
        assert all(torch.equal(p.grad, s.grad) for p, s in zip(plain, seen, strict=True))


# ---- bad input -----------------------------------------------------------------------------------

ONE = np.ones((), np.float32)
GOOD = {
    "dy": np.ones((2, 4), np.float32),
    "x": np.ones((2, 3), np.float32),
    "w": np.ones((4, 3), np.float32),
    "a": np.ones((2, 3), np.float32),
    "b": np.ones((4, 2), np.float32),
    "scaling": 0.5,
    "dropout_mask": np.full((2, 3), 2, np.float32),
}
NAN = np.float32(np.nan)
HALF = np.float16
WRONG = [
    *[("dy", dy) for dy in (GOOD["x"], GOOD["dy"][0], GOOD["dy"].astype(HALF), GOOD["dy"] * NAN)],
    *[("x", x) for x in (GOOD["w"].T, GOOD["x"].astype(float), [1.0], GOOD["x"] * NAN)],
    *[("w", w) for w in (GOOD["x"], GOOD["w"][0], GOOD["w"].astype(int), GOOD["w"] * NAN)],
    *[("a", a) for a in (GOOD["b"], GOOD["a"][0], GOOD["a"].astype(HALF), GOOD["a"] * NAN)],
    *[("b", b) for b in (GOOD["a"], GOOD["b"][:, :1], GOOD["b"].astype(HALF), GOOD["b"] * NAN)],
    *[("scaling", s) for s in (None, "1", True, np.nan, ONE)],
    *[
        ("dropout_mask", mask)
        for mask in (
            GOOD["w"],
            GOOD["dropout_mask"].astype(HALF),
            np.array([[2, 0, 1.5], [0, 0, 0]], np.float32),
            np.array([[0, 0, 0.5], [0, 0, 0]], np.float32),
            np.array([[0, 0, -2], [0, 0, 0]], np.float32),
            GOOD["dropout_mask"] * NAN,
        )
    ],
]


def message(function):
    """The type and the words of what a call raises."""
    with pytest.raises((TypeError, ValueError)) as caught:
        function()
    text = re.sub("a NumPy array", "a torch tensor", str(caught.value))
    assert "\n" not in text
    return caught.type, re.sub("(ndarray|Tensor) .*", "", text)  # arrays are printed differently


FUNCTIONS = {"lora_forward": ("x", "w", "a", "b"), "lora_backward": ("dy", "x", "w", "a", "b")}


def refused(backend, name, values, send=lambda value: value):
    """What a function says of these values."""
    options = {key: send(values[key]) for key in ("scaling", "dropout_mask")}
    arrays = [send(values[key]) for key in FUNCTIONS[name]]
    return message(lambda: getattr(backend, name)(*arrays, **options))


def agree_on(changed):
    """Both sides raise the same for the two dense functions, where they take what is changed."""
    values = {**GOOD, **changed}
    for name in ["lora_backward"] if "dy" in changed else FUNCTIONS:
        assert refused(torch_backend, name, values, give) == refused(q, name, values)


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_bad_input_raises_what_the_reference_raises(case):
    agree_on(dict([WRONG[case]]))


BAD_WEIGHTS = {
    "a byte too few": (slice(5), slice(1), {}),
    "no scale": (slice(6), slice(0), {}),
    "another shape": (slice(6), slice(1), {"shape": (3, 4)}),
    "another type": (slice(6), slice(1), {"quant_type": "af4"}),
    "no matrix": (slice(6), slice(1), {"shape": (12,)}),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused_beside_an_adapter_too(case):
    codes, scales, options = BAD_WEIGHTS[case]
    packed, absmax = q.quantize_4bit(GOOD["w"])
    arrays = [GOOD["x"], packed[codes], absmax[scales], GOOD["a"], GOOD["b"]]
    options, tensors = {"shape": (4, 3), "scaling": 0.5, **options}, [give(t) for t in arrays]
    expected = message(lambda: q.qlora_forward(*arrays, **options))
    assert message(lambda: torch_backend.qlora_forward(*tensors, **options)) == expected
    arrays, tensors = [GOOD["dy"], *arrays], [give(GOOD["dy"]), *tensors]
    expected = message(lambda: q.qlora_backward(*arrays, **options))
    assert message(lambda: torch_backend.qlora_backward(*tensors, **options)) == expected


def test_tensors_on_two_devices_are_refused_by_name():
    for name in ("w", "a", "b"):
        tensors = {"w": W, "a": A, "b": B}
        tensors[name] = tensors[name].to("meta")
        with pytest.raises(ValueError, match=f"^{name} must lie on cpu like"):
            torch_backend.lora_forward(X, *tensors.values(), scaling=0.7)
    with pytest.raises(ValueError, match=r"^dropout_mask must lie on cpu like"):
        torch_backend.lora_forward(X, W, A, B, scaling=0.7, dropout_mask=MASK.to("meta"))


def test_where_nobody_looks_no_compiler_is_imported():
    """It takes torch a second, and the kit's processes have no other use for it."""
    call = """
import sys, torch, qloracle_gpu.torch_backend as t
x, w, a, b = torch.ones(1, 2, requires_grad=True), torch.eye(2), torch.ones(1, 2), torch.ones(2, 1)
packed, absmax = t.quantize_4bit(w)
with torch.no_grad():
    y = t.qlora_forward(x, packed, absmax, a, b, shape=(2, 2), scaling=1.0)
t.qlora_backward(y, x, packed, absmax, a, b, shape=(2, 2), scaling=1.0)
t.lora_backward(y, x, w, a, b, scaling=1.0)
t.adam_step(x, x, x * 0, x * 0, step=1, lr=0.1)
assert "torch._dynamo" not in sys.modules
t.lora_forward(x, w, a, b, scaling=1.0)  # of which torch shall know the gradient
assert "torch._dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", call], check=True)
