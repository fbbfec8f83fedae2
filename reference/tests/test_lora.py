"""Rule S10: the adapter beside the weight, and gradients that three judges agree on."""

import hashlib
import warnings
from fractions import Fraction

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle import linear4bit, lora

bfloat16 = ml_dtypes.bfloat16
FLOATS = (np.float32, np.float16, bfloat16)
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11, np.dtype(bfloat16): 2.0**-8}
TINY = {np.dtype(np.float32): 2.0**-150, np.dtype(np.float16): 2.0**-25, np.dtype(bfloat16): 0.0}
fixed = settings(derandomize=True, deadline=None, max_examples=60)
SCALINGS = (0.7, 1 / 3, 16 / np.sqrt(8), -0.3)


def layer(seed, rows, out, width, r, dtype=np.float32, adapter=np.float32, dropout=True):
    """Draw x, dy, w, a, b and a mask that keeps something in every row."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, width), (rows, out), (out, width), (r, width), (out, r)]
    x, dy, w, a, b = (rng.standard_normal(shape) for shape in shapes)
    mask = q.draw_dropout_mask(rng, x.shape, 0.3, dtype=dtype) if dropout else None
    if mask is not None:
        mask[:, 0] = mask.max(initial=1)
    return (
        x.astype(dtype),
        dy.astype(dtype),
        w.astype(dtype),
        a.astype(adapter),
        b.astype(adapter),
        mask,
    )


def fractions(values):
    return np.array([Fraction(float(v)) for v in values.flat], object).reshape(values.shape)


def formula(x, dy, w, a, b, s, mask):
    """S10 in whatever numbers it is given: y, dx, da, db."""
    xm = x * mask
    return (
        x @ w.T + s * (xm @ a.T @ b.T),
        dy @ w + s * (dy @ b @ a) * mask,
        s * (dy @ b).T @ xm,
        s * dy.T @ (xm @ a.T),
    )


def assert_rounded_once(got, exact, size):
    """`size` is the formula on absolute values; float64 loses less than 2^-45 of it here."""
    bound = UNIT[got.dtype] * np.abs(exact) + TINY[got.dtype] + size * Fraction(2) ** -45
    assert (np.abs(fractions(got) - exact) <= bound).all()


def assert_the_rule(seed, rows, out, width, r, dtype, adapter, s, dropout=True):
    x, dy, w, a, b, mask = layer(seed, rows, out, width, r, dtype, adapter, dropout)
    options = {"scaling": s, "dropout_mask": mask}
    got = (q.lora_forward(x, w, a, b, **options), *q.lora_backward(dy, x, w, a, b, **options))
    ones = np.ones_like(x) if mask is None else mask
    operands = [fractions(each) for each in (x, dy, w, a, b)]
    exact = formula(*operands, Fraction(s), fractions(ones))
    sizes = formula(*map(np.abs, operands), abs(Fraction(s)), fractions(ones))
    types = (x.dtype, x.dtype, a.dtype, a.dtype)
    for result, expected, size, kind in zip(got, exact, sizes, types, strict=True):
        assert (result.dtype, result.shape) == (kind, expected.shape)
        assert_rounded_once(result, expected, size)


@fixed
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.sampled_from(SCALINGS),
    st.booleans(),
)
def test_it_is_the_rule_rounded_once(seed, rows, out, width, r, dtype, same, s, dropout):
    adapter = dtype if same else np.float32
    assert_the_rule(seed, rows, out, width, r, dtype, adapter, s, dropout)


FAULTS = {
    "no scaling forward": ("branch", lambda m, a, b, s: m @ a.T @ b.T),
    "scaling twice": ("branch", lambda m, a, b, s: s * s * (m @ a.T @ b.T)),
    "h in bfloat16": ("branch", lambda m, a, b, s: s * (narrow(m @ a.T) @ b.T)),
    "no scaling backward": (
        "branch_backward",
        lambda dy, m, a, b, s: (dy @ b @ a, (dy @ b).T @ m, dy.T @ (m @ a.T)),
    ),
    "dx without scaling": (
        "branch_backward",
        lambda dy, m, a, b, s: (dy @ b @ a, s * (dy @ b).T @ m, s * dy.T @ (m @ a.T)),
    ),
    "mask ignored": ("mask_rows", lambda mask, x: np.ones(x.shape)),
    "mask inverted": ("mask_rows", lambda mask, x: (mask == 0) * np.float64(mask.max())),
    "mask not enlarged": ("mask_rows", lambda mask, x: np.float64(mask != 0)),
}


def narrow(values):
    return values.astype(np.float32).astype(bfloat16).astype(np.float64)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(monkeypatch, fault):
    monkeypatch.setattr(lora, *FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_the_rule(0, 3, 7, 5, 2, np.float32, np.float32, 0.7)


@pytest.mark.parametrize(("out", "width", "r"), [(2, 1, 2), (1, 1, 16), (3, 5, 7), (4, 4, 4)])
def test_no_rank_is_too_large(out, width, r):
    assert_the_rule(0, 2, out, width, r, bfloat16, np.float32, 0.5)
    x, dy, w, a, b, _ = layer(0, 2, out, width, r)
    packed, absmax = q.quantize_4bit(w)
    decoded = q.dequantize_4bit(packed, absmax, shape=w.shape)
    form = {"shape": w.shape, "scaling": 0.5}
    y = q.qlora_forward(x, packed, absmax, a, b, **form)
    assert y.tolist() == q.lora_forward(x, decoded, a, b, scaling=0.5).tolist()
    got = q.qlora_backward(dy, x, packed, absmax, a, b, **form)
    expected = q.lora_backward(dy, x, decoded, a, b, scaling=0.5)
    assert [each.tolist() for each in got] == [each.tolist() for each in expected]


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    shapes = [(6, 33), (6, 17), (17, 33), (4, 33), (17, 4)]
    x, dy, w, a, b = (rng.integers(-9, 10, shape).astype(np.float32) for shape in shapes)
    mask = q.draw_dropout_mask(rng, x.shape, 0.5)
    y = q.lora_forward(x, w, a, b, scaling=0.25, dropout_mask=mask)
    grads = q.lora_backward(dy, x, w, a, b, scaling=0.25, dropout_mask=mask)
    whole = [each.astype(np.int64) for each in (x, dy, w, a, b)]
    expected = formula(*whole, Fraction(1, 4), mask.astype(np.int64))
    for got, exact in zip((y, *grads), expected, strict=True):
        assert got.tolist() == exact.astype(np.float64).tolist()


def loss(x, dy, w, a, b, s, mask):
    """Sum of dy * y, written with einsum: its gradient is what `lora_backward` returns."""
    y = np.einsum("mk,nk->mn", x, w) + s * np.einsum("mk,mk,rk,nr->mn", x, mask, a, b)
    return float(np.einsum("mn,mn->", dy, y))


def central_difference(operands, position, h=0.5):
    """Differentiate the loss by one operand. It is linear in it, so any h is exact but rounding."""
    gradient = np.zeros(operands[position].shape)
    for index in np.ndindex(gradient.shape):
        up, down = (list(operands) for _ in range(2))
        for moved, sign in ((up, 1), (down, -1)):
            moved[position] = operands[position].copy()
            moved[position][index] += sign * h
        gradient[index] = (loss(*up) - loss(*down)) / (2 * h)
    return gradient


def judges_of(seed):
    """Return what the reference says, and two other judges, for dx, da, db."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, dy, w, a, b, mask = layer(seed, 3, 6, 5, 2)
    s = 0.7
    got = q.lora_backward(dy, x, w, a, b, scaling=s, dropout_mask=mask)
    wide = [each.astype(np.float64) for each in (x, dy, w, a, b)]
    operands = (*wide, s, mask.astype(np.float64))
    differences = [central_difference(operands, position) for position in (0, 3, 4)]
    tensors = [torch.tensor(each, requires_grad=True) for each in (wide[0], *wide[3:])]
    tx, ta, tb = tensors
    y = tx @ torch.tensor(wide[2]).T + s * ((tx * torch.tensor(mask)) @ ta.T @ tb.T)
    y.backward(torch.tensor(wide[1]))
    # the loss is a sum of fewer than 200 terms, each met by fewer than 64 roundings of 2^-53
    noise = 2 * 64 * 2.0**-53 * loss(*(np.abs(each) for each in operands)) / 0.5
    return got, differences, [each.grad.numpy() for each in tensors], noise


def assert_judges_agree(seed):
    got, differences, autograd, noise = judges_of(seed)
    for result, difference, grad in zip(got, differences, autograd, strict=True):
        assert np.abs(difference - grad).max() <= noise
        assert (np.abs(result - grad) <= 2.0**-24 * np.abs(grad) + noise).all()
        assert (np.abs(result - difference) <= 2.0**-24 * np.abs(difference) + noise).all()
    assert noise < 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_central_differences_and_autograd_agree(seed):
    assert_judges_agree(seed)


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if "forward" not in f and FAULTS[f][0] != "branch"]
)
def test_a_fault_of_the_gradient_is_found_by_them(monkeypatch, fault):
    monkeypatch.setattr(lora, *FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_judges_agree(0)


@fixed
@given(
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(2, 30),
    st.integers(2, 30),
    st.sampled_from(FLOATS),
)
def test_qlora_is_lora_on_the_decoded_weight(seed, rows, out, width, dtype):
    assert_qlora_is_lora(seed, rows, out, width, dtype)


def assert_qlora_is_lora(seed, rows, out, width, dtype):
    x, dy, w, a, b, mask = layer(seed, rows, out, width, 2, dtype)
    packed, absmax = q.quantize_4bit(w, blocksize=24)
    decoded = q.dequantize_4bit(packed, absmax, shape=w.shape, blocksize=24)
    options = {"scaling": 0.7, "dropout_mask": mask}
    packing = {"shape": w.shape, "blocksize": 24, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear4bit, "CHUNK", 64)
        y = q.qlora_forward(x, packed, absmax, a, b, **packing)
        grads = q.qlora_backward(dy, x, packed, absmax, a, b, **packing)
    plain = q.lora_forward(x, decoded, a, b, **options)
    expected = (plain, *q.lora_backward(dy, x, decoded, a, b, **options))
    sizes = formula(
        *(np.abs(np.float64(each)) for each in (x, dy, decoded, a, b)), 0.7, np.float64(mask)
    )
    for got, other, size in zip((y, *grads), expected, sizes, strict=True):
        assert (got.dtype, got.shape) == (other.dtype, other.shape)
        # two orders of one sum in float64, then the same rounding: an ulp at most
        slack = (
            2 * UNIT[got.dtype] * np.abs(np.float64(other)) + 2 * TINY[got.dtype] + 2.0**-45 * size
        )
        assert (np.abs(np.float64(got) - np.float64(other)) <= slack).all()


def test_qlora_on_another_weight_is_found(monkeypatch):
    right = linear4bit._decode
    monkeypatch.setattr(linear4bit, "_decode", lambda *args: right(*args) * np.float32(1.001))
    with pytest.raises(AssertionError):
        assert_qlora_is_lora(0, 3, 7, 9, np.float32)


@pytest.mark.parametrize("lead", [(), (2, 3), (0,), (2, 0, 1)])
def test_leading_dimensions_are_rows(lead):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((*lead, n)).astype(np.float32) for n in (5, 6))
    w, a, b = layer(0, 1, 6, 5, 2)[2:5]
    options = {"scaling": 0.5, "dropout_mask": np.full_like(x, 1.25)}
    y = q.lora_forward(x, w, a, b, **options)
    dx, da, db = q.lora_backward(dy, x, w, a, b, **options)
    assert (y.shape, dx.shape, da.shape, db.shape) == ((*lead, 6), x.shape, a.shape, b.shape)
    flat, mask = x.reshape(-1, 5), np.full((x.size // 5, 5), 1.25, np.float32)
    expected = formula(flat, dy.reshape(-1, 6), w, a, b, 0.5, mask)
    for got, other in zip((y, dx, da, db), expected, strict=True):
        np.testing.assert_allclose(got.reshape(other.shape), other, rtol=0, atol=1e-4)


def test_an_adapter_of_zeros_changes_nothing():
    x, dy, w, a, b, mask = layer(0, 3, 6, 5, 2)
    y = q.lora_forward(x, w, a, 0 * b, scaling=0.7, dropout_mask=mask)
    assert y.tolist() == q.lora_forward(x, w, 0 * a, b, scaling=0.7).tolist()
    _, da, db = q.lora_backward(dy, x, w, a, 0 * b, scaling=0.7, dropout_mask=mask)
    assert (da.any(), db.any()) == (False, True)
    _, da, db = q.lora_backward(dy, x, w, 0 * a, 0 * b, scaling=0.7)
    assert (da.any(), db.any()) == (False, False)


def test_scaling():
    assert q.lora_scaling(16, 64) == 0.25
    assert q.lora_scaling(16, 8, rank_stabilized=True) == float(np.float32(16 / np.sqrt(8)))
    assert q.lora_scaling(1, 3) == float(np.float32(1 / 3)) != 1 / 3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.9])
def test_dropout_masks(p, dtype):
    mask = q.draw_dropout_mask(np.random.default_rng(0), (50, 400), p, dtype=dtype)
    assert mask.dtype == dtype
    kept = mask != 0
    assert set(np.unique(mask[kept]).tolist()) == {np.array(1 / (1 - p)).astype(dtype).item()}
    # five standard deviations of 20,000 draws
    assert abs(kept.mean() - (1 - p)) <= 5 * np.sqrt(p * (1 - p) / kept.size)
    again = q.draw_dropout_mask(np.random.default_rng(0), (50, 400), p, dtype=dtype)
    assert mask.tolist() == again.tolist()


def test_arguments_stay_and_warnings_stay_inside():
    x, dy, w, a, b, mask = layer(0, 3, 6, 5, 2, np.float16)
    x[:, 0] = 6e4  # and the products overflow
    held = (x, dy, w, a, b, mask)
    before = [hashlib.sha256(each.tobytes()).digest() for each in held]
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        y = q.lora_forward(x, w, a, b, scaling=1e4, dropout_mask=mask)
        q.lora_backward(dy, x, w, a, b, scaling=1e4, dropout_mask=mask)
    assert np.isinf(y).any()
    assert [hashlib.sha256(each.tobytes()).digest() for each in held] == before
