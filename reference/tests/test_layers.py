"""Layers that share an input, against autograd and central differences in float64."""

import ml_dtypes
import numpy as np
import pytest

import qloracle as q
from qloracle import layers as sharing
from qloracle.layers import GatedMLP, Linear, shared_input_backward
from qloracle.linear4bit import Packed

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
UNIT = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}


def linear(seed, out, width, *, r=2, packed=False, dtype=np.float32):
    rng = np.random.default_rng(seed)
    w, a, b = (rng.standard_normal(s) / 2 for s in [(out, width), (r, width), (out, r)])
    weight = w.astype(dtype)
    if packed:
        weight = Packed(*q.quantize_4bit(w.astype(np.float32), blocksize=16), (out, width), 16)
    return Linear(weight, a.astype(np.float32), b.astype(np.float32), scaling=0.7)


def dense(layer):
    """W, A and B of a layer in float64."""
    w = layer.weight
    if isinstance(w, Packed):
        w = q.dequantize_4bit(w.packed, w.absmax, shape=w.shape, blocksize=w.blocksize)
    return [each.astype(np.float64) for each in (w, *layer.adapter)]


def as_torch(values):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def apply(x, w, a, b):
    return x @ w.T + 0.7 * (x @ a.T) @ b.T


@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_is_the_function_of_the_protocol(packed):
    layer = linear(0, 6, 5, packed=packed)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((3, 5)).astype("f4"), rng.standard_normal((3, 6)).astype("f4")
    mask = q.draw_dropout_mask(rng, x.shape, 0.5)
    w, a, b = layer.weight, layer.a, layer.b
    options = {"scaling": 0.7, "dropout_mask": mask}
    if packed:
        operands, options = (w.packed, w.absmax, a, b), options | {"shape": (6, 5), "blocksize": 16}
        y = q.qlora_forward(x, *operands, **options)
        dx, da, db = q.qlora_backward(dy, x, *operands, **options)
    else:
        y = q.lora_forward(x, w, a, b, **options)
        dx, da, db = q.lora_backward(dy, x, w, a, b, **options)
    assert layer.forward(x, mask).tolist() == y.tolist()
    got, (got_a, got_b) = layer.backward(dy, x, mask)
    assert (got.tolist(), got_a.tolist(), got_b.tolist()) == (dx.tolist(), da.tolist(), db.tolist())


def test_a_layer_without_an_adapter_is_a_product():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = np.ones((4, 3), np.float32)
    assert Linear(w).forward(x).tolist() == (x @ w.T).tolist()
    dx, (da, db) = Linear(w).backward(np.ones((4, 2), np.float32), x)
    assert dx.tolist() == (np.ones((4, 2)) @ w).tolist()
    assert (da.shape, db.shape) == ((0, 3), (2, 0))


def projections(dtype):
    layers = [linear(0, 6, 5), linear(1, 4, 5, r=1, packed=True), linear(2, 3, 5)]
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 5)).astype(dtype)
    dys = [rng.standard_normal((2, 3, layer.shape[0])).astype(dtype) for layer in layers]
    return layers, dys, x


def assert_shared(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layers, dys, x = projections(dtype)
    dx, of_layers = shared_input_backward(layers, dys, x)
    assert (dx.dtype, dx.shape) == (x.dtype, x.shape)
    inputs, parts = as_torch(x.astype(np.float64)), [map(as_torch, dense(la)) for la in layers]
    parts = [list(part) for part in parts]
    loss = sum(
        (torch.tensor(dy.astype(np.float64)) * apply(inputs, *part)).sum()
        for dy, part in zip(dys, parts, strict=True)
    )
    loss.backward()
    near(dx, inputs.grad.numpy(), roundings=1)
    for (da, db), (_, a, b) in zip(of_layers, parts, strict=True):
        near(da, a.grad.numpy(), roundings=1)
        near(db, b.grad.numpy(), roundings=1)


def near(got, expected, roundings):
    """Within so many roundings of the type, and of float64 beside numbers of size 100."""
    bound = roundings * UNIT[got.dtype] * np.abs(expected) + 1e-12
    assert (np.abs(got.astype(np.float64) - expected) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_shared_input_gets_the_sum_rounded_once(dtype):
    assert_shared(dtype)


def test_a_projection_left_out_and_a_sum_of_rounded_gradients_are_found(monkeypatch):
    def each_rounded(dxs, axis):
        narrow = [dx.astype(np.float32).astype(ml_dtypes.bfloat16) for dx in dxs]
        return sum(dx.astype(np.float64) for dx in narrow)

    for fault in (each_rounded, lambda dxs, axis: dxs[0] + dxs[1]):
        with monkeypatch.context() as patch:
            patch.setattr(np, "sum", fault)
            with pytest.raises(AssertionError):
                assert_shared(ml_dtypes.bfloat16)


def gated(packed):
    return GatedMLP(linear(0, 7, 5), linear(1, 7, 5, packed=packed), linear(2, 5, 7, packed=packed))


def value(block, dy, x):
    """Sum of dy * y in float64, from the formula, in NumPy."""
    (wg, ag, bg), (wu, au, bu), (wd, ad, bd) = (
        dense(part) for part in (block.gate, block.up, block.down)
    )
    g, u = apply(x, wg, ag, bg), apply(x, wu, au, bu)
    return float((dy * apply(g / (1 + np.exp(-g)) * u, wd, ad, bd)).sum())


def assert_gated(packed):
    """dx, da, db against autograd; dx also against central differences of the formula."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    block, rng = gated(packed), np.random.default_rng(4)
    x, dy = (rng.standard_normal((3, 5)).astype(np.float32) for _ in range(2))
    dx, of_layers = block.backward(dy, x)
    parts = [[as_torch(each) for each in dense(la)] for la in (block.gate, block.up, block.down)]
    inputs = as_torch(x)
    h = torch.nn.functional.silu(apply(inputs, *parts[0])) * apply(inputs, *parts[1])
    y = apply(h, *parts[2])
    y.backward(torch.tensor(dy, dtype=torch.float64))
    # g, u, h, dh, dg and du are rounded: each moves a result by u of a term, and the terms of
    # these sums are below 64
    rounding = 6 * 64 * 2.0**-24
    close(block.forward(x), y.detach().numpy(), rounding)
    close(dx, inputs.grad.numpy(), rounding)
    for (da, db), (_, a, b) in zip(of_layers, parts, strict=True):
        close(da, a.grad.numpy(), rounding)
        close(db, b.grad.numpy(), rounding)
    close(central(block, dy, x), inputs.grad.numpy(), 1e-7)


def close(got, expected, bound):
    assert np.abs(expected).max() > 0.5
    assert np.abs(got.astype(np.float64) - expected).max() <= bound


def central(block, dy, x, h=2.0**-17):
    """Error h^2 / 6 of a third derivative (below 1e3 here) and 2^-52 / h of sums below 100."""
    gradient, wide = np.zeros(x.shape), x.astype(np.float64)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        gradient[index] = (value(block, dy, wide + step) - value(block, dy, wide - step)) / (2 * h)
    return gradient


@pytest.mark.parametrize("packed", [False, True])
def test_the_gated_mlp_agrees_with_autograd_and_differences(packed):
    assert_gated(packed)


@pytest.mark.parametrize(
    "fault",
    [
        lambda dh, g, u, s: (dh * u * s, dh * g * s),  # silu' without its second term
        lambda dh, g, u, s: (dh * g * s, dh * u * s * (1 + g * (1 - s))),  # swapped
        lambda dh, g, u, s: (dh * u * s * (1 + g * s), dh * g * s),
        lambda dh, g, u, s: (dh * u * s * (1 + g * (1 - s)), dh * s),
    ],
)
def test_a_fault_of_the_gate_is_found(monkeypatch, fault):
    def planted(dh, g, u):
        s = 1 / (1 + np.exp(-g))
        return tuple(each.astype(np.float32) for each in fault(dh, g, u, s))

    monkeypatch.setattr(sharing, "_gated_backward", planted)
    with pytest.raises(AssertionError):
        assert_gated(packed=False)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gated_mlp_keeps_types_and_shapes(dtype):
    block = gated(packed=True)
    x = np.ones((2, 1, 5), dtype)
    y = block.forward(x)
    dx, of_layers = block.backward(y, x)
    assert (y.dtype, y.shape, dx.dtype, dx.shape) == (x.dtype, x.shape, x.dtype, x.shape)
    assert [(da.shape, db.shape) for da, db in of_layers] == [
        (layer.a.shape, layer.b.shape) for layer in (block.gate, block.up, block.down)
    ]
    with np.errstate(all="raise"):  # exp(-g) underflows
        block.forward(np.full((1, 5), 300, dtype))
