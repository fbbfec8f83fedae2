"""Bytes by part: what must be in memory at once, for three ways to fine-tune."""

from collections.abc import Sequence
from typing import NamedTuple

from qloracle import arguments as check
from qloracle.memory.models import (
    Configuration,
    linear_weights,
    linears,
    lora_parameters,
    other_weights,
)
from qloracle.nested import bits_per_weight
from qloracle.targets import ALL

METHODS = ("full", "lora", "qlora")
BF16, FLOAT32 = 2, 4  # bytes
RANK = 64  # of the adapters in arXiv:2305.14314


class Parts(NamedTuple):
    """Bytes of each part. The first four are always in memory, the others come and go."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    decode: int

    @property
    def static(self) -> int:
        """Bytes of the four parts that are always in memory."""
        return sum(self[:4])


def memory_parts(
    config: Configuration,
    method: str,
    *,
    tokens: int = 512,
    rank: int = RANK,
    targets: str | Sequence[str] = ALL,
    checkpointing: bool = True,
    fused: bool = False,
    embedding_bytes: int = BF16,
    moment_bytes: int = 8,
) -> Parts:
    """Return the bytes of each part: an arithmetic lower bound.

    method: "full", "lora" or "qlora"; tokens: of one micro-batch, sequence by batch; rank, targets:
    of the adapters; fused: no buffer for decoded weights; embedding_bytes: of each weight outside
    the linear layers under "qlora" (4 if the preparation for k-bit training widens them);
    moment_bytes: of Adam's two together, 8, or 2 for 8-bit Adam. ValueError otherwise.

    The parts that come and go are not all in memory at once: see `timeline`. Activations and
    gradients of the adapters' own products, a framework's buffers and the gaps of its allocator are
    not counted.

    Source: arXiv:2305.14314, sections 2 and 3.

    >>> from qloracle.memory import MODELS
    >>> llama = MODELS["llama-65b"]
    >>> for method in METHODS:
    ...     print(method, f"{memory_parts(llama, method).static / 1e9:.1f} GB")
    full 783.4 GB
    lora 140.2 GB
    qlora 44.1 GB
    """
    method = check.choice("method", method, METHODS)
    n = check.integer("tokens", tokens)
    frozen = weight_bytes(config, method, embedding_bytes)
    adapted = lora_parameters(config, rank=rank, targets=targets)
    trained = linear_weights(config) + other_weights(config) if method == "full" else adapted
    return Parts(
        weights=frozen,
        adapters=0 if method == "full" else BF16 * adapted,
        gradients=BF16 * trained,
        optimizer=check.integer("moment_bytes", moment_bytes) * trained,
        activations=activation_bytes(config, n, checkpointing=checkpointing),
        logits=logit_bytes(config, n),
        decode=0 if fused or method != "qlora" else decode_bytes(config),
    )


def weight_bytes(config: Configuration, method: str, embedding_bytes: int = BF16) -> int:
    """Return the bytes of the weights: 16 bits, or under "qlora" 4.127 of the linear ones."""
    linear, other = linear_weights(config), other_weights(config)
    if check.choice("method", method, METHODS) != "qlora":
        return BF16 * (linear + other)
    bits = round(linear * bits_per_weight())
    return -(-bits // 8) + check.integer("embedding_bytes", embedding_bytes) * other


def stored_bytes(config: Configuration, tokens: int, *, checkpointing: bool) -> int:
    """Return what a forward pass leaves for the backward pass, in 16 bits.

    With checkpoints that is the input of each block.
    """
    if check.boolean("checkpointing", checkpointing):
        return BF16 * tokens * config.layers * config.hidden
    return config.layers * block_bytes(config, tokens)


def block_bytes(config: Configuration, tokens: int) -> int:
    """Return the activations that the backward pass of one block needs, in 16 bits.

    Eight of the hidden size: the block's input, its norm, q, k, v, the output of attention, the sum
    and its norm; then gate, up and their product (without a gate: up and its activation). Attention
    scores are left out: they can be computed again in tiles.
    """
    return BF16 * tokens * (8 * config.hidden + (3 if config.gated else 2) * config.ffn)


def activation_bytes(config: Configuration, tokens: int, *, checkpointing: bool) -> int:
    """Return the activations at their peak: with checkpoints, those of one block come on top.

    >>> from qloracle.memory import MODELS
    >>> llama = MODELS["llama-7b"]
    >>> [activation_bytes(llama, 512, checkpointing=on) / 1e9 for on in (False, True)]
    [2.155872256, 0.201588736]
    """
    again = block_bytes(config, tokens) if checkpointing else 0
    return stored_bytes(config, tokens, checkpointing=checkpointing) + again


def logit_bytes(config: Configuration, tokens: int) -> int:
    """Return the logits and their gradient, in float32."""
    return 2 * FLOAT32 * tokens * config.vocabulary


def decode_bytes(config: Configuration) -> int:
    """Return the largest linear layer decoded to 16 bits: the buffer of an unfused product."""
    return BF16 * max(out * width for out, width in linears(config).values())
