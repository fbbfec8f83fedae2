"""Rules S11 and S11b: the order of operations to the bit, and other optimizers within the bound."""

import hashlib
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle import adam

f32 = np.float32
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
U = 2.0**-24
STEPS = (1, 2, 10, 1000, 2**24)
fixed = settings(derandomize=True, deadline=None, max_examples=150)


def near(largest):
    return st.floats(-largest, largest, width=32)


def arrays(elements):
    return hnp.arrays(np.float32, 7, elements=elements)


def slow_adam(p, g, m, v, *, step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay):
    """S11 for one element, every operation written out and rounded."""
    wd = weight_decay
    if not decoupled_weight_decay:
        g = f32(g + f32(f32(wd) * p))
    m = f32(f32(f32(beta1) * m) + f32(f32(1 - beta1) * g))
    v = f32(f32(f32(beta2) * v) + f32(f32(f32(1 - beta2) * g) * g))
    if decoupled_weight_decay:
        p = f32(p * f32(1 - lr * wd))
    root = f32(np.sqrt(f32(v / f32(1 - beta2**step))))
    ratio = f32(f32(m / f32(1 - beta1**step)) / f32(root + f32(eps)))
    return f32(p - f32(f32(lr) * ratio)), m, v


@pytest.mark.filterwarnings("ignore:underflow")
@fixed
@given(
    arrays(near(100)),
    arrays(near(10)),
    arrays(near(10)),
    arrays(st.floats(0, 100, width=32)),
    st.sampled_from(FLOATS),
    st.sampled_from(STEPS),
    st.sampled_from([(0.9, 0.999), (0.0, 0.0), (0.5, 0.95), (0.99, 0.9)]),
    st.sampled_from([0.0, 0.01, 0.7]),
    st.booleans(),
)
def test_each_operation_is_the_rule(p, g, m, v, dtype, step, betas, wd, decoupled):
    assert_each_operation(p.astype(dtype), g, m, v, step, betas, wd, decoupled)


def test_a_step_may_overflow():
    """m without v: the ratio is 10 / eps, the step 3e7, which float16 does not hold."""
    zero = np.zeros(7, f32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_each_operation(
            zero.astype(np.float16), zero, zero + 10, zero, 1, (0.9, 0.999), 0.0, True
        )


def assert_each_operation(p, g, m, v, step, betas, wd, decoupled):
    options = {"step": step, "lr": 0.03, "beta1": betas[0], "beta2": betas[1], "eps": 1e-8}
    options |= {"weight_decay": wd, "decoupled_weight_decay": decoupled}
    got = q.adam_step(p, g, m, v, **options)
    assert [each.dtype for each in got] == [p.dtype, np.float32, np.float32]
    wide = p.astype(np.float32)
    expected = np.array(
        [slow_adam(*each, **options) for each in zip(wide, g, m, v, strict=True)], f32
    )
    with np.errstate(over="ignore"):  # to inf, in float16
        expected = [
            exact.astype(result.dtype) for result, exact in zip(got, expected.T, strict=True)
        ]
    assert [result.tolist() for result in got] == [exact.tolist() for exact in expected]


CASE = {
    "p": np.array([1, -2, 0, 0.5], f32),
    "g": np.array([0.3, -1e-3, 2, 1e-7], f32),
    "m": np.array([0.1, 0.2, -1, 1e-7], f32),
    "v": np.array([0.5, 1e-5, 2, 1e-13], f32),
    "step": 3,
    "betas": (0.9, 0.999),
}


def planted_constants(fault):
    right = adam._constants

    def constants(step, lr, beta1, beta2, eps, wd, decoupled):
        k = right(step, lr, beta1, beta2, eps, wd, decoupled)
        if fault == "no bias correction":
            return k._replace(c1=f32(1), c2=f32(1))
        if fault == "the step is off by one":
            return right(step + 1, lr, beta1, beta2, eps, wd, decoupled)
        if fault == "float32 betas":
            return k._replace(one_minus_b2=f32(1) - k.b2, one_minus_b1=f32(1) - k.b1)
        if fault == "no eps":
            return k._replace(eps=f32(0))
        return k

    return constants


def planted_update(fault):
    def update(p, g, m, v, k):
        g = g + k.coupled * p
        old, m = m, k.b1 * m + k.one_minus_b1 * g
        v = k.b2 * v + (k.one_minus_b2 * g) * g
        if fault == "eps inside the root":
            divisor = np.sqrt(v / k.c2 + k.eps)
        elif fault == "eps before the correction":
            divisor = (np.sqrt(v) + k.eps) / np.sqrt(k.c2)
        else:
            divisor = np.sqrt(v / k.c2) + k.eps
        if fault == "the old m is used":
            return p * k.kept - k.lr * ((old / k.c1) / divisor), m, v
        if fault == "decay after the update":
            return (p - k.lr * ((m / k.c1) / divisor)) * k.kept, m, v
        if fault == "no decay":
            return p - k.lr * ((m / k.c1) / divisor), m, v
        if fault == "v in bfloat16":
            v = v.astype(ml_dtypes.bfloat16).astype(f32)
        return p * k.kept - k.lr * ((m / k.c1) / divisor), m, v

    return update


OF_CONSTANTS = ["no bias correction", "the step is off by one", "float32 betas", "no eps"]
OF_THE_UPDATE = [
    "eps inside the root",
    "eps before the correction",
    "the old m is used",
    "decay after the update",
    "no decay",
    "v in bfloat16",
]


def plant(monkeypatch, fault):
    if fault in OF_CONSTANTS:
        monkeypatch.setattr(adam, "_constants", planted_constants(fault))
    else:
        monkeypatch.setattr(adam, "_update", planted_update(fault))


@pytest.mark.parametrize("fault", [*OF_CONSTANTS, *OF_THE_UPDATE])
def test_a_fault_is_found(monkeypatch, fault):
    assert_each_operation(**CASE, wd=0.5, decoupled=True)
    plant(monkeypatch, fault)
    with pytest.raises(AssertionError):
        assert_each_operation(**CASE, wd=0.5, decoupled=True)


def test_the_planted_update_is_right_but_for_its_faults(monkeypatch):
    monkeypatch.setattr(adam, "_update", planted_update("none"))
    assert_each_operation(**CASE, wd=0.5, decoupled=True)


def run_beside(name, wd, step, seed):
    """One step of torch.optim and one of ours, from the same state that is not zero."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(400) < 0.3, 0, rng.standard_normal(400)).astype(f32)
    g = (rng.standard_normal(400) * 10 ** rng.uniform(-9, 1, 400)).astype(f32)
    m = (g * rng.uniform(-1, 2, 400)).astype(f32)
    v = (g * g * rng.uniform(0.1, 2, 400)).astype(f32)
    tensor = torch.nn.Parameter(torch.tensor(p))
    optimizer = getattr(torch.optim, name)([tensor], lr=0.03, weight_decay=wd)
    optimizer.state[tensor] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": torch.tensor(m),
        "exp_avg_sq": torch.tensor(v),
    }
    tensor.grad = torch.tensor(g)
    optimizer.step()
    state = optimizer.state[tensor]
    theirs = [each.detach().numpy() for each in (tensor, state["exp_avg"], state["exp_avg_sq"])]
    options = {"step": step, "lr": 0.03, "weight_decay": wd}
    ours = q.adam_step(p, g, m, v, decoupled_weight_decay=name == "AdamW", **options)
    return (p, g, m, v), options, ours, theirs


def assert_within_s11(state, options, got, decoupled):
    """S11's bounds around the formula in float64, each stage on the given m' and v'."""
    p, g, m, v = (each.astype(np.float64) for each in state)
    new_p, new_m, new_v = (each.astype(np.float64) for each in got)
    b1, b2, lr, wd, t = 0.9, 0.999, options["lr"], options["weight_decay"], options["step"]
    added, kept = (0, 1 - lr * wd) if decoupled else (wd, 1)
    h = g + added * p
    delta = U * (np.abs(h) + 2 * np.abs(added * p)) * (added > 0)
    tiny = 3 * 2.0**-149
    due_m, due_v = b1 * m + (1 - b1) * h, b2 * v + (1 - b2) * h * h
    bound_m = U * (3 * b1 * np.abs(m) + 3 * (1 - b1) * np.abs(h) + np.abs(due_m)) + tiny
    bound_v = 4 * U * due_v + (1 - b2) * (2 * np.abs(h) * delta + delta**2) + tiny
    step = lr * (new_m / (1 - b1**t)) / (np.sqrt(new_v / (1 - b2**t)) + 1e-8)
    due_p = p * kept - step
    bound_p = U * (8 * np.abs(step) + 2 * np.abs(p) * (kept != 1) + np.abs(due_p)) + tiny
    assert (np.abs(new_m - due_m) <= bound_m + (1 - b1) * delta).all()
    assert (np.abs(new_v - due_v) <= bound_v).all()
    assert (np.abs(new_p - due_p) <= bound_p).all()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("wd", [0.0, 0.4])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_ours_and_torch_are_within_the_bound(name, wd, step):
    state, options, ours, theirs = run_beside(name, wd, step, seed=0)
    assert_within_s11(state, options, ours, name == "AdamW")
    assert_within_s11(state, options, theirs, name == "AdamW")


@pytest.mark.parametrize("fault", [*OF_CONSTANTS, *OF_THE_UPDATE])
def test_the_bound_finds_a_fault(monkeypatch, fault):
    plant(monkeypatch, fault)
    state, options, ours, _ = run_beside("AdamW", 0.4, 3, seed=0)
    with pytest.raises(AssertionError):
        assert_within_s11(state, options, ours, decoupled=True)


def test_the_decays_are_two_methods():
    state, options, ours, _ = run_beside("Adam", 0.4, 3, seed=0)
    with pytest.raises(AssertionError):
        assert_within_s11(state, options, ours, decoupled=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_may_be_float32_and_shapes_are_kept(dtype):
    p = np.ones((2, 3, 1), dtype)
    g, zero = np.full(p.shape, 1 + 2**-12, f32), np.zeros(p.shape, f32)
    new, m, v = q.adam_step(p, g, zero, zero, step=1, lr=0.1)
    assert (new.dtype, new.shape, m.shape, v.shape) == (p.dtype, p.shape, p.shape, p.shape)
    _, rounded_m, _ = q.adam_step(p, g.astype(dtype), zero, zero, step=1, lr=0.1)
    assert (m == rounded_m).all() == (dtype == np.float32)
    nothing = np.zeros((0, 4), f32)
    assert q.adam_step(nothing, nothing, nothing, nothing, step=1, lr=0.1)[0].shape == (0, 4)
    scalar = np.array(1, f32)
    assert q.adam_step(scalar, scalar, scalar, scalar, step=1, lr=0.1)[0].shape == ()


def test_no_gradient_and_no_eps():
    zero = np.zeros(3, f32)
    p, m, v = q.adam_step(np.ones(3, f32), zero, zero, zero, step=1, lr=0.1)
    assert (p.tolist(), m.any(), v.any()) == ([1, 1, 1], False, False)
    g = np.array([1e-3, -5, 1e-12], f32)
    p, _, _ = q.adam_step(zero, g, zero, zero, step=1, lr=0.5, eps=0.0)
    np.testing.assert_allclose(p, -0.5 * np.sign(g), rtol=8 * U)


def state_8bit(seed, n, blocksize=256):
    rng = np.random.default_rng(seed)
    m, v = rng.standard_normal(n).astype(f32), rng.random(n, dtype=f32)
    coded_m = q.quantize_blockwise(m, q.dynamic_codebook(), blocksize=blocksize)
    coded_v = q.quantize_blockwise(v, q.dynamic_codebook(signed=False), blocksize=blocksize)
    return (*coded_m, *coded_v)


@fixed
@given(st.integers(0, 99), st.integers(0, 600), st.integers(1, 300), st.sampled_from(FLOATS))
def test_8_bits_are_decode_step_code(seed, n, blocksize, dtype):
    assert_decode_step_code(seed, n, blocksize, dtype)


def assert_decode_step_code(seed, n, blocksize, dtype):
    rng = np.random.default_rng(seed)
    p, g = rng.standard_normal(n).astype(dtype), rng.standard_normal(n).astype(dtype)
    state = state_8bit(seed, n, blocksize)
    options = {"step": 5, "lr": 0.02, "weight_decay": 0.5}
    got = q.adam_step_8bit(p, g, *state, blocksize=blocksize, **options)
    signed, unsigned = q.dynamic_codebook(), q.dynamic_codebook(signed=False)
    blocks = {"shape": (n,), "blocksize": blocksize}
    m = q.dequantize_blockwise(*state[:2], signed, **blocks)
    v = q.dequantize_blockwise(*state[2:], unsigned, **blocks)
    numbers = adam._constants(5, 0.02, 0.9, 0.999, 1e-8, 0.5, True)
    new, m, v = planted_update("none")(p.astype(f32), g.astype(f32), m, v, numbers)
    coded_m = q.quantize_blockwise(m, signed, blocksize=blocksize)
    coded_v = q.quantize_blockwise(v, unsigned, blocksize=blocksize)
    for result, expected in zip(got, (new.astype(dtype), *coded_m, *coded_v), strict=True):
        assert (result.dtype, result.tolist()) == (expected.dtype, expected.tolist())


def test_a_parameter_moved_by_rounded_means_is_found(monkeypatch):
    right = adam._update

    def update(p, g, m, v, k):
        _, m, v = right(p, g, m, v, k)
        coded = q.quantize_blockwise(m, q.dynamic_codebook())
        stored = q.dequantize_blockwise(*coded, q.dynamic_codebook(), shape=m.shape)
        return p * k.kept - k.lr * ((stored / k.c1) / (np.sqrt(v / k.c2) + k.eps)), m, v

    monkeypatch.setattr(adam, "_update", update)
    with pytest.raises(AssertionError):
        assert_decode_step_code(0, 300, 256, np.float32)


def drift(steps=100):
    """Half of the gradients are always zero: how far do their parameters get?"""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(1000).astype(f32)
    state = (
        np.full(1000, 127, np.uint8), np.zeros(4, f32), np.zeros(1000, np.uint8), np.zeros(4, f32),
    )  # fmt: skip
    moved = p
    for step in range(1, steps + 1):
        g = np.where(np.arange(1000) % 2, rng.standard_normal(1000), 0).astype(f32)
        moved, *state = q.adam_step_8bit(moved, g, *state, step=step, lr=1e-3)
    return np.abs(moved - p)[::2], np.abs(moved - p)[1::2]


def test_zero_gradients_never_move_a_parameter():
    still, moved = drift()
    assert not still.any()
    assert moved.min() > 0


def test_a_coder_without_a_code_of_zero_is_found(monkeypatch):
    """bitsandbytes 0.50.2 on CPU: zero becomes 2.1e-5 of the absmax (code 131)."""
    right = adam.quantize_blockwise

    def lossy(x, codebook, *, blocksize):
        codes, absmax = right(x, codebook, blocksize=blocksize)
        return np.where((codes > 123) & (codes < 131), np.uint8(131), codes), absmax

    monkeypatch.setattr(adam, "quantize_blockwise", lossy)
    still, _ = drift()
    assert still.max() > 1e-4


def test_maps_can_be_passed():
    n = 40
    m_map, v_map = np.linspace(-1, 1, 255).astype(f32), np.linspace(0, 1, 256).astype(f32)
    m, v = np.linspace(-2, 2, n).astype(f32), np.linspace(0, 3, n).astype(f32)
    state = (*q.quantize_blockwise(m, m_map), *q.quantize_blockwise(v, v_map))
    g, maps = np.ones(n, f32), {"m_codebook": m_map, "v_codebook": v_map}
    got = q.adam_step_8bit(g, g, *state, step=2, lr=0.1, **maps)
    new = q.dequantize_blockwise(*got[1:3], m_map, shape=(n,))
    np.testing.assert_allclose(new, 0.9 * m + 0.1, atol=2 * 2 / 254)
    other = q.adam_step_8bit(g, g, *state, step=2, lr=0.1)
    assert other[1].tolist() != got[1].tolist()
    assert other[3].tolist() != got[3].tolist()


def test_arguments_stay_and_warnings_stay_inside():
    p = np.array([65504, 1e-7, -1, 0], np.float16)
    g = np.array([3e38, 1e-45, -1e-30, 0], f32)
    m, v = g.copy(), np.array([3e38, 1e-45, 0, 0], f32)
    state = state_8bit(0, 4)
    held = (p, g, m, v, *state)
    for each in held:
        each.flags.writeable = False
    before = [hashlib.sha256(each.tobytes()).digest() for each in held]
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        q.adam_step(p, g, m, v, step=1, lr=0.1, weight_decay=0.1)
        q.adam_step_8bit(p, f32(1e-18) * np.ones(4, f32), *state, step=1, lr=0.1)
    assert [hashlib.sha256(each.tobytes()).digest() for each in held] == before
