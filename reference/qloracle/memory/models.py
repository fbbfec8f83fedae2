"""A transformer as a few numbers, and how many weights they amount to."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from qloracle import arguments as check
from qloracle.targets import ALL, target_modules


class Configuration(NamedTuple):
    """The sizes of a decoder. The defaults are LLaMA's; GPT-3 has biases and no gate."""

    name: str
    hidden: int
    layers: int
    ffn: int
    vocabulary: int
    gated: bool = True  # three matrices in the MLP, or two
    biases: bool = False  # in linear layers and norms
    tied: bool = False  # whether the head is the embedding
    positions: int = 0  # rows of learnt positions


MODELS = {
    model.name: model
    for model in (
        Configuration("llama-7b", 4096, 32, 11008, 32000),
        Configuration("llama-13b", 5120, 40, 13824, 32000),
        Configuration("llama-33b", 6656, 60, 17920, 32000),
        Configuration("llama-65b", 8192, 80, 22016, 32000),
        Configuration("gpt-3", 12288, 96, 4 * 12288, 50257, False, True, True, 2048),
    )
}  # arXiv:2302.13971, table 2; arXiv:2005.14165, table 2.1


def linears(config: Configuration) -> dict[str, tuple[int, int]]:
    """Return the linear layers of one block, (out, in) under their names.

    >>> linears(MODELS["llama-7b"])["down_proj"]
    (4096, 11008)
    """
    h, f = config.hidden, config.ffn
    shapes = {f"{name}_proj": (h, h) for name in "qkvo"}
    mlp = ("gate_proj", "up_proj") if config.gated else ("up_proj",)
    return shapes | dict.fromkeys(mlp, (f, h)) | {"down_proj": (h, f)}


def linear_weights(config: Configuration) -> int:
    """Count the weights of all linear layers but the head: those that QLoRA keeps in 4 bits."""
    return config.layers * sum(math.prod(shape) for shape in linears(config).values())


def other_weights(config: Configuration) -> int:
    """Count the rest: embedding, head, positions, norms, biases.

    >>> llama, gpt = MODELS["llama-65b"], MODELS["gpt-3"]
    >>> linear_weights(llama) + other_weights(llama), linear_weights(gpt) + other_weights(gpt)
    (65285660672, 174604259328)
    """
    tables = config.vocabulary * (1 if config.tied else 2) + config.positions
    norms = (2 * config.layers + 1) * (2 if config.biases else 1)
    biases = config.layers * sum(out for out, _ in linears(config).values())
    return (tables + norms) * config.hidden + (biases if config.biases else 0)


def lora_parameters(config: Configuration, *, rank: int, targets: str | Sequence[str] = ALL) -> int:
    """Count the parameters of adapters of this rank: rank (out + in) for each matching layer.

    targets: names of `linears` or "all-linear", as in `qloracle.targets.target_modules`.

    >>> lora_parameters(MODELS["gpt-3"], rank=4, targets=["q_proj", "v_proj"])  # arXiv:2106.09685
    18874368
    """
    shapes = linears(config)
    names = target_modules(shapes, targets)
    per_block = check.integer("rank", rank, least=1) * sum(sum(shapes[name]) for name in names)
    return config.layers * per_block
