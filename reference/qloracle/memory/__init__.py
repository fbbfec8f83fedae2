"""Memory: where it goes in fine-tuning, and why LoRA needs less of it.

Adam keeps two moments for each weight that it trains, 8 bytes, beside the 2 of the weight and the 2
of its gradient. Full fine-tuning costs those 12 bytes per weight. LoRA trains few weights; the
others cost 2 bytes and nothing else. QLoRA keeps those in 4.127 bits (arXiv:2305.14314).

>>> for method in ("full", "lora", "qlora"):
...     parts = memory_parts(MODELS["llama-65b"], method)
...     print(f"{method:5}", *(f"{part / 1e9:6.1f}" for part in parts[:4]))
full   130.6    0.0  130.6  522.3
lora   130.6    1.6    1.6    6.4
qlora   34.5    1.6    1.6    6.4

The rest grows with the tokens of a batch: logits, and activations kept for the backward pass.
Checkpointing computes most activations again instead (`qloracle.checkpointing`). What is left is
the occasional long sequence, a spike. Paging (`qloracle.paging`) moves optimizer state, which
nobody needs before the step, out of its way. A 33B model on 24 GB:

>>> lengths = (512, 512, 1024, 512)
>>> for paging in (False, True):
...     last = timeline(MODELS["llama-33b"], lengths, 24 * 10**9, paging=paging)[-1]
...     print(last.micro_batch, last.phase, last.fits)
3 forward False
4 step True

All of this is arithmetic on shapes, a lower bound. A card shows more: the framework's own buffers,
the gaps of its allocator, temporaries, the driver's context. When QLoRA needs more than LoRA, the
cause is what stays unquantized: the embeddings of a small model, widened to 32 bits; the logits of
a large vocabulary; a buffer for decoded weights; long sequences.

>>> small = MODELS["llama-7b"]
>>> [weight_bytes(small, "qlora", bytes_each) // 10**6 for bytes_each in (2, 4)]
[3865, 4390]

The paper gives 5,048 MB for the base of a 7B model; that number is not reproduced here.
`qloracle.examples.memory_pictures` draws the pictures.
"""

from qloracle.memory.models import (
    MODELS,
    Configuration,
    linear_weights,
    linears,
    lora_parameters,
    other_weights,
)
from qloracle.memory.parts import (
    METHODS,
    Parts,
    activation_bytes,
    block_bytes,
    decode_bytes,
    logit_bytes,
    memory_parts,
    stored_bytes,
    weight_bytes,
)
from qloracle.memory.published import Claim, claims
from qloracle.memory.spikes import Event, longest, timeline, transfer_seconds

__all__ = [
    "METHODS",
    "MODELS",
    "Claim",
    "Configuration",
    "Event",
    "Parts",
    "activation_bytes",
    "block_bytes",
    "claims",
    "decode_bytes",
    "linear_weights",
    "linears",
    "logit_bytes",
    "longest",
    "lora_parameters",
    "memory_parts",
    "other_weights",
    "stored_bytes",
    "timeline",
    "transfer_seconds",
    "weight_bytes",
]
