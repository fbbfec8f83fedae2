"""Checkpointing: the same bits, in less memory."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import qloracle as q
from qloracle import checkpointing
from qloracle.checkpointing import (
    backward_checkpointed,
    best_segment,
    forward_checkpointed,
    stored_inputs,
)
from qloracle.layers import GatedMLP, Linear
from qloracle.linear4bit import Packed

WIDTH = 16


class Residual:
    """x + block(x), so that a deep stack neither fades nor explodes."""

    def __init__(self, block):
        self.block = block

    def forward(self, x):
        return x + self.block.forward(x)

    def backward(self, dy, x):
        dx, of_block = self.block.backward(dy, x)
        return dy + dx, of_block


def block(seed):
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        w, a, b = (rng.standard_normal(s) / 4 for s in [(WIDTH, WIDTH), (2, WIDTH), (WIDTH, 2)])
        packed = Packed(*q.quantize_4bit(w.astype(np.float32)), shape=w.shape)
        parts.append(Linear(packed, a.astype(np.float32), b.astype(np.float32), 0.7))
    return Residual(GatedMLP(*parts))


def flat(dx, of_layers):
    arrays = [dx, *(g for layer in of_layers for pair in layer for g in pair)]
    return [each.astype(np.float32).tolist() for each in arrays]


def assert_same_bits(segment, dtype):
    layers = [block(seed) for seed in range(7)]
    x = np.random.default_rng(9).standard_normal((3, WIDTH)).astype(dtype)
    inputs = [x]
    for layer in layers:
        inputs.append(layer.forward(inputs[-1]))
    assert 1 < np.abs(inputs[-1].astype(np.float32)).max() < 1000
    dx, plain = inputs[-1], []  # dy = y: the loss is y * y / 2
    for layer, each in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        dx, of_layer = layer.backward(dx, each)
        plain.insert(0, of_layer)
    y, kept = forward_checkpointed(layers, x, segment=segment)
    assert y.tolist() == inputs[-1].tolist()
    assert len(kept) == -(-7 // segment)
    assert flat(*backward_checkpointed(layers, y, kept, segment=segment)) == flat(dx, plain)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("segment", [1, 2, 3, 7, 50])
def test_the_gradients_are_the_same_bits(segment, dtype):
    assert_same_bits(segment, dtype)


@pytest.mark.parametrize(
    "fault",
    [
        lambda layers, x: [x] * len(layers),  # nothing is computed again
        lambda layers, x: checkpointing_inputs(layers, x)[::-1],
        lambda layers, x: [
            np.nextafter(e, e.dtype.type(9)) for e in checkpointing_inputs(layers, x)
        ],
    ],
)
def test_wrong_inputs_are_found(monkeypatch, fault):
    monkeypatch.setattr(checkpointing, "_inputs", fault)
    with pytest.raises(AssertionError):
        assert_same_bits(3, np.float32)


checkpointing_inputs = checkpointing._inputs


class Scale:
    """A layer that holds nothing but its input: what is measured is the stack."""

    def forward(self, x):
        return x * np.float32(0.5)

    def backward(self, dy, x):
        return dy * np.float32(0.5), float(x[0, 0])


def peak_in_activations(layers, segment):
    """Bytes at the worst moment of a forward and a backward pass, in activations."""
    x = np.ones((512, 512), np.float32)
    tracemalloc.start()
    try:
        y, kept = forward_checkpointed(layers, x, segment=segment)
        backward_checkpointed(layers, y, kept, segment=segment)
        return tracemalloc.get_traced_memory()[1] / x.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("segment", [1, 4, 6, 36])
def test_memory_is_what_is_stored(segment):
    """Beside the stored inputs there are y, dy and the dx that is being made; x is the caller's."""
    peak = peak_in_activations([Scale()] * 36, segment)
    stored = stored_inputs(36, segment)
    assert stored - 1 <= peak <= stored + 2.1


def test_checkpointing_saves_memory():
    layers = [Scale()] * 36
    assert peak_in_activations(layers, best_segment(36)) < peak_in_activations(layers, 1) / 2.5


def test_a_stack_that_keeps_everything_is_found(monkeypatch):
    hoard = []

    def hoarding(layers, x):
        hoard.append(checkpointing_inputs(layers, x))
        return list(hoard[-1])

    monkeypatch.setattr(checkpointing, "_inputs", hoarding)
    with pytest.raises(AssertionError):
        test_memory_is_what_is_stored(6)


@pytest.mark.parametrize("layers", [1, 2, 3, 9, 10, 32, 36, 100, 101])
def test_the_best_segment_is_the_best_of_all(layers):
    counts = [stored_inputs(layers, k) for k in range(1, layers + 1)]
    assert stored_inputs(layers, best_segment(layers)) == min(counts)


def test_no_layers_and_bad_segments():
    x = np.ones((2, 3), np.float32)
    y, kept = forward_checkpointed([], x, segment=4)
    assert y is x
    assert backward_checkpointed([], x, kept, segment=4) == (x, [])
    with pytest.raises(ValueError, match="segment must be at least 1, got 0"):
        forward_checkpointed([], x, segment=0)
    with pytest.raises(
        ValueError, match="kept must hold 2 inputs of 3 layers in segments of 2, got"
    ):
        backward_checkpointed([Scale()] * 3, x, [x], segment=2)
