"""The example: it learns, by right gradients, and what is frozen stays frozen."""

import re

import ml_dtypes
import numpy as np
import pytest

import qloracle as q
from qloracle import lora
from qloracle.examples import finetune
from qloracle.linear4bit import Packed

RNG = np.random.default_rng


def some_data(seed=0):
    rng = RNG(seed)
    return finetune.Data(rng.random((40, 65)).astype(np.float32), rng.integers(0, 10, 40))


def adapted(method):
    """A small step from a fresh network, so that B is not zero."""
    data = some_data()
    model = finetune.fresh_network(RNG(1))
    return finetune.finetune(model, method, data, data, epochs=2).model


def by_autograd(model, data):
    """The loss and the gradients of every array, from torch, in float64."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    leaves, h = {}, torch.tensor(data.x, dtype=torch.float64)
    for name, layer in model.items():
        w = layer.weight
        if isinstance(w, Packed):
            w = q.dequantize_4bit(w.packed, w.absmax, shape=w.shape)
        arrays = {"weight": w, "a": layer.adapter[0], "b": layer.adapter[1]}
        for field, values in arrays.items():
            leaves[name, field] = torch.tensor(values.astype(np.float64), requires_grad=True)
        w, a, b = (leaves[name, field] for field in arrays)
        h = h @ w.T + layer.scaling * (h @ a.T) @ b.T
        h = torch.relu(h) if name != finetune.HEAD else h
    loss = torch.nn.functional.cross_entropy(h, torch.tensor(data.labels))
    loss.backward()
    return loss.item(), {key: leaf.grad.numpy() for key, leaf in leaves.items()}


def assert_gradients(method, bound):
    model, data = adapted(method), some_data(3)
    dtype = np.asarray(model[finetune.HEAD].weight).dtype
    logits, inputs = finetune.forward(model, data.x.astype(dtype))
    loss, dy = finetune.cross_entropy(logits, data.labels)
    gradients = finetune.backward(model, dy, inputs, full=method == "full")
    expected_loss, expected = by_autograd(model, data)
    assert abs(loss - expected_loss) <= bound * expected_loss
    fields = ("weight",) if method == "full" else ("a", "b")
    names = list(model) if method == "full" else ["layers.0", "layers.1"]
    assert set(gradients) == {(name, field) for name in names for field in fields}
    for key, gradient in gradients.items():
        size = np.linalg.norm(expected[key])
        assert size > 0
        assert np.linalg.norm(gradient - expected[key]) <= bound * size


# The bounds are on norms: float32 and bfloat16 round some twenty times between x and a gradient,
# and bfloat16 now and then rounds a number near zero to the other side of max(x, 0).
@pytest.mark.parametrize(("method", "bound"), [("full", 1e-5), ("lora", 0.05), ("qlora", 0.05)])
def test_gradients_agree_with_autograd(method, bound):
    assert_gradients(method, bound)


def test_wrong_gradients_are_found(monkeypatch):
    right = lora.branch_backward
    faults = [
        lambda *args: (right(*args)[0] * 2, *right(*args)[1:]),
        lambda *args: (right(*args)[0], right(*args)[1] * 1.2, right(*args)[2]),
        lambda *args: (*right(*args)[:2], right(*args)[2] * 0),
    ]
    for fault in faults:
        with monkeypatch.context() as patch:
            patch.setattr(lora, "branch_backward", fault)
            with pytest.raises(AssertionError):
                assert_gradients("lora", 0.05)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_is_frozen_stays_frozen(method):
    data, network = some_data(), finetune.fresh_network(RNG(1))
    base = finetune.in_16_bits(network) if method == "lora" else finetune.in_4_bits(network)
    model = finetune.finetune(network, method, data, data, epochs=2).model
    for name, layer in model.items():
        before, after = base[name].weight, layer.weight
        if isinstance(before, Packed):
            assert after.packed.tolist() == before.packed.tolist()
            assert after.absmax.tolist() == before.absmax.tolist()
        else:
            assert after.astype(np.float32).tolist() == before.astype(np.float32).tolist()
            assert after.dtype == ml_dtypes.bfloat16
        assert (layer.a is None) == (name == finetune.HEAD)
    assert isinstance(model["layers.0"].weight, Packed) == (method == "qlora")


def test_what_is_trained_and_stored():
    network = finetune.fresh_network(RNG(0))
    weights = 65 * 256 + 256 * 256 + 256 * 10
    assert finetune.trained_and_stored(network, full=True) == (weights, 4 * weights)
    trained, stored = finetune.trained_and_stored(finetune.in_4_bits(network), full=False)
    frozen = weights - 2560
    assert (trained, stored) == (0, frozen * q.bits_per_weight() / 8 + 2 * 2560)
    adapters = 16 * (65 + 256) + 16 * (256 + 256)
    assert finetune.trained_and_stored(adapted("lora"), full=False) == (adapters, 2 * weights)


def run(capsys, *arguments):
    """Run the example, return its table: method to loss and accuracy, and the accuracy before."""
    finetune.main(list(arguments))
    text = capsys.readouterr().out
    before = float(re.search(r"turned digits, before: +([\d.]+)%", text)[1])
    rows = re.findall(r"^(\w+) +[\d,]+ +[\d,]+ +[\d,]+ +([\d.]+) +([\d.]+)%$", text, re.M)
    return {method: (float(loss), float(share)) for method, loss, share in rows}, before


@pytest.mark.slow
def test_the_whole_example(capsys, tmp_path):
    table, before = run(capsys, "--out", str(tmp_path / "new"))
    assert before < 20
    assert list(table) == ["full", "lora", "qlora"]
    assert all(loss < 0.1 and share > 95 for loss, share in table.values())
    assert abs(table["qlora"][1] - table["lora"][1]) < 2
    picture = (tmp_path / "new" / "finetune.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_a_short_run_learns(capsys):
    table, before = run(capsys, "--epochs", "3")
    assert before < 20
    assert all(share > 60 for _, share in table.values())


def test_a_network_that_cannot_learn_is_found(capsys, monkeypatch):
    monkeypatch.setattr(finetune, "adam_step", lambda param, grad, m, v, **kw: (param, m, v))
    with pytest.raises(AssertionError):
        test_a_short_run_learns(capsys)


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (["--epochs", "0"], None, "--epochs must be at least 1, got 0"),
        ([], "sklearn", r"sklearn is not installed: pip install 'qloracle\[examples\]'"),
    ],
)
def test_usage(capsys, monkeypatch, arguments, missing, message):
    monkeypatch.setattr(finetune, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(SystemExit) as stopped:
        finetune.main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
