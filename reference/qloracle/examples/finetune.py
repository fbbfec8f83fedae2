"""QLoRA fine-tuning from beginning to end, in NumPy alone.

    python -m qloracle.examples.finetune --out .

A small network learns to read handwritten digits (scikit-learn's 1,797 images of 8 x 8 pixels).
Then the images are rotated by 90 degrees, and it reads them hardly better than chance. Three ways
to teach it again, from the same weights, over the same batches:

    full       every weight is trained, in float32
    lora       the weights are frozen in bfloat16, adapters beside them learn
    qlora      the weights are frozen in 4 bits, their scales in 8, adapters beside them learn

It prints what each of them trains and stores, and how well it reads images it has not seen; the
loss curves go into a picture, `finetune.png`. Every product, gradient and step is a function of
this package: `Linear` (S9, S10), `adam_step` (S11), `quantize_4bit` and `quantize_absmax` (S3-S8).

The extra `qloracle[examples]` brings scikit-learn, for the digits, and matplotlib. All draws have a
fixed seed; the last digits of the table depend on the machine's linear algebra library.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qloracle import adam_step, bits_per_weight, dequantize_absmax, quantize_4bit, quantize_absmax
from qloracle.arguments import Array, Float32, Float64
from qloracle.layers import Linear
from qloracle.linear4bit import Packed
from qloracle.targets import HEAD, with_adapters

Model: TypeAlias = dict[str, Linear]
Labels: TypeAlias = NDArray[np.int64]
Parameter: TypeAlias = tuple[str, str]  # a layer's name, and which of its arrays: weight, a or b

HIDDEN, RANK, ALPHA = 256, 16, 32
BATCH, EPOCHS = 64, 30
LINES = {"full": ("#333333", "-"), "lora": ("#0072b2", "-"), "qlora": ("#d55e00", "--")}
RATES = {"full": 1e-3, "lora": 2e-3, "qlora": 2e-3}  # adapters tolerate, and need, a larger one


class Data(NamedTuple):
    """Images, float32[n, 65], and the digits they show."""

    x: Float32
    labels: Labels


class Curve(NamedTuple):
    """What fine-tuning leaves behind: the model, and loss and accuracy after each epoch."""

    model: Model
    losses: list[float]
    accuracies: list[float]


def digits(rng: np.random.Generator, *, turned: bool) -> tuple[Data, Data]:
    """Return images to train on and a quarter held out; the last input is a constant 1."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    if turned:
        images = np.rot90(images, axes=(1, 2))
    x = np.concatenate([images.reshape(-1, 64), np.ones((len(images), 1))], axis=1)
    order = rng.permutation(len(x))
    held_out, learnt = np.split(order, [len(x) // 4])
    pick = (Data(x[part].astype(np.float32), labels[part]) for part in (learnt, held_out))
    return next(pick), next(pick)


def fresh_network(rng: np.random.Generator) -> Model:
    """Return three layers, 65 to 256 to 256 to 10, without adapters."""
    shapes = {"layers.0": (HIDDEN, 65), "layers.1": (HIDDEN, HIDDEN), HEAD: (10, HIDDEN)}
    return {
        name: Linear((rng.standard_normal(shape) * np.sqrt(2 / shape[1])).astype(np.float32))
        for name, shape in shapes.items()
    }


def forward(model: Model, x: Array) -> tuple[Array, list[Array]]:
    """Return the logits [M, 10] and the input of each layer; max(x, 0) stands between layers."""
    inputs = []
    for name, layer in model.items():
        inputs.append(x)
        x = layer.forward(x)
        if name != HEAD:
            x = np.maximum(x, x.dtype.type(0))
    return x, inputs


def backward(model: Model, dy: Array, inputs: list[Array], *, full: bool) -> dict[Parameter, Array]:
    """Return the gradient of each trained array: all weights, or all adapters."""
    gradients: dict[Parameter, Array] = {}
    for (name, layer), x in zip(reversed(model.items()), reversed(inputs), strict=True):
        dx, (da, db) = layer.backward(dy, x)
        if full:
            gradients[name, "weight"] = dy.T @ x
        elif layer.a is not None:
            gradients |= {(name, "a"): da, (name, "b"): db}
        dy = np.where(x > 0, dx, x.dtype.type(0))  # of the layer before, through its max(x, 0)
    return gradients


def cross_entropy(logits: Array, labels: Labels) -> tuple[float, Array]:
    """Return the mean of -log softmax at the labels, and its gradient in the logits' type."""
    wide: Float64 = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    softmax = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)  # M, 10
    rows = np.arange(len(labels))
    loss = float(-np.log(softmax[rows, labels]).mean())
    softmax[rows, labels] -= 1
    return loss, (softmax / len(labels)).astype(logits.dtype)


def accuracy(model: Model, data: Data, dtype: np.dtype[np.generic]) -> float:
    """Return the fraction of images that are read correctly."""
    logits, _ = forward(model, data.x.astype(dtype))
    return float((logits.argmax(axis=1) == data.labels).mean())


def train(
    model: Model, data: Data, held_out: Data, *, lr: float, epochs: int, full: bool, seed: int = 1
) -> Curve:
    """Train the weights or the adapters with AdamW; activations have the type of the head."""
    dtype = np.asarray(model[HEAD].weight).dtype
    moments: dict[Parameter, tuple[Float32, Float32]] = {}
    losses, accuracies = [], []
    step = 0
    for epoch in range(epochs):
        of_epoch = []
        for x, labels in _batches(data, np.random.default_rng([seed, epoch])):
            step += 1
            logits, inputs = forward(model, x.astype(dtype))
            loss, dy = cross_entropy(logits, labels)
            of_epoch.append(loss)
            gradients = backward(model, dy, inputs, full=full)
            model = _stepped(model, gradients, moments, step=step, lr=lr)
        losses.append(float(np.mean(of_epoch)))
        accuracies.append(accuracy(model, held_out, dtype))
    return Curve(model, losses, accuracies)


def _batches(data: Data, rng: np.random.Generator) -> Iterator[Data]:
    order = rng.permutation(len(data.x))
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        yield Data(data.x[rows], data.labels[rows])


def _stepped(
    model: Model,
    gradients: dict[Parameter, Array],
    moments: dict[Parameter, tuple[Float32, Float32]],
    *,
    step: int,
    lr: float,
) -> Model:
    """Return the model after one step of each trained array, and update the moments."""
    model = dict(model)
    for (name, field), gradient in gradients.items():
        zero = np.zeros(gradient.shape, np.float32)
        m, v = moments.get((name, field), (zero, zero))
        param = getattr(model[name], field)
        param, m, v = adam_step(param, gradient, m, v, step=step, lr=lr, weight_decay=0.01)
        moments[name, field] = m, v
        changed: dict[str, Any] = {field: param}
        model[name] = replace(model[name], **changed)
    return model


def in_16_bits(model: Model) -> Model:
    """Return the model with its weights rounded to bfloat16."""
    return {
        name: Linear(np.asarray(layer.weight).astype(ml_dtypes.bfloat16))
        for name, layer in model.items()
    }


def in_4_bits(model: Model) -> Model:
    """Return the model with its weights in NF4 and their scales in 8 bits; the head in bfloat16."""
    return {
        name: layer if name == HEAD else _packed(layer) for name, layer in in_16_bits(model).items()
    }


def _packed(layer: Linear) -> Linear:
    packed, absmax = quantize_4bit(np.asarray(layer.weight))
    absmax = dequantize_absmax(*quantize_absmax(absmax))  # what a layer in 4 bits decodes with
    return Linear(Packed(packed, absmax, layer.shape))


def finetune(pretrained: Model, method: str, data: Data, held_out: Data, *, epochs: int) -> Curve:
    """Teach the pretrained network again; method is full, lora or qlora."""
    full = method == "full"
    model = pretrained
    if not full:
        base = in_16_bits(pretrained) if method == "lora" else in_4_bits(pretrained)
        model = with_adapters(base, "all-linear", np.random.default_rng(2), r=RANK, alpha=ALPHA)
    return train(model, data, held_out, lr=RATES[method], epochs=epochs, full=full)


def trained_and_stored(model: Model, *, full: bool) -> tuple[int, float]:
    """Count the trained parameters, and the bytes of the weights without adapters."""
    trained, stored = 0, 0.0
    for layer in model.values():
        n = layer.shape[0] * layer.shape[1]
        trained += n if full else sum(each.size for each in layer.adapter)
        packed = isinstance(layer.weight, Packed)
        stored += n * bits_per_weight() / 8 if packed else np.asarray(layer.weight).nbytes
    return trained, stored


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw loss and held-out accuracy against the epoch, each line with its name at its end."""
    from matplotlib.figure import Figure

    # its own white background: a page may be dark
    figure = Figure(figsize=(9, 3.8), dpi=110, facecolor="white", layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for axes, title in ((losses, "training loss"), (accuracies, "held-out accuracy, %")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd")
    losses.set_yscale("log")
    for method, curve in curves.items():
        percent = [100 * each for each in curve.accuracies]
        # lora and qlora end side by side: their names are moved apart by this many points
        _line(losses, curve.losses, method, method, {"lora": 5, "qlora": -6}.get(method, 0))
        named = f"{method} {percent[-1]:.1f}"
        _line(accuracies, percent, method, named, {"full": 7, "qlora": -10}.get(method, 0))
    figure.savefig(path)


def _line(axes: Any, values: list[float], method: str, name: str, lift: float) -> None:
    color, style = LINES[method]
    axes.plot(range(1, len(values) + 1), values, style, color=color, linewidth=1.8)
    axes.annotate(
        name, (len(values), values[-1]), (5, lift), textcoords="offset points",
        color=color, va="center", annotation_clip=False,
    )  # fmt: skip


def report(curves: dict[str, Curve], before: tuple[float, float]) -> str:
    """Return the table of what was trained, stored and reached."""
    lines = [
        f"upright digits, before: {before[0]:.1%} held-out accuracy",
        f"turned digits, before:  {before[1]:.1%}",
        "",
        "          trained  Adam, bytes  weights, bytes  last loss  held-out accuracy",
    ]
    for method, curve in curves.items():
        trained, stored = trained_and_stored(curve.model, full=method == "full")
        lines.append(
            f"{method:8} {trained:8,} {8 * trained:12,} {stored:15,.0f} {curve.losses[-1]:10.4f} "
            f"{curve.accuracies[-1]:18.1%}"
        )
    return "\n".join(lines)


def compare(epochs: int) -> tuple[dict[str, Curve], tuple[float, float]]:
    """Pretrain on upright digits, fine-tune on turned ones in three ways.

    Return the curves, and the accuracy before on upright and on turned digits.
    """
    upright, turned = (digits(np.random.default_rng(0), turned=turn) for turn in (False, True))
    network = fresh_network(np.random.default_rng(0))
    pretrained = train(network, *upright, lr=1e-3, epochs=epochs, full=True)
    before = (pretrained.accuracies[-1], accuracy(pretrained.model, turned[1], np.dtype("f4")))
    curves = {
        method: finetune(pretrained.model, method, *turned, epochs=epochs) for method in RATES
    }
    return curves, before


def main(arguments: list[str] | None = None) -> None:
    """Fine-tune in three ways, print the table, draw the curves."""
    parser = argparse.ArgumentParser(prog="python -m qloracle.examples.finetune")
    parser.add_argument("--out", type=Path, help="folder for finetune.png; none: no picture")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each of the four runs")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    for needed in ("sklearn", "threadpoolctl", "matplotlib"):
        if find_spec(needed) is None:
            parser.error(f"{needed} is not installed: pip install 'qloracle[examples]'")
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    with threadpool_limits(1):  # products this small take longer on two threads than on one
        curves, before = compare(options.epochs)
    print(report(curves, before))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(curves, options.out / "finetune.png")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
