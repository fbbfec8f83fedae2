"""Numbers printed in the papers, beside what the arithmetic gives."""

from typing import NamedTuple

from qloracle.memory.models import MODELS, lora_parameters
from qloracle.memory.parts import memory_parts, weight_bytes
from qloracle.nested import bits_per_weight


class Claim(NamedTuple):
    """A published number, ours, and whether ours reproduces it."""

    what: str
    published: str
    ours: str
    reproduced: bool
    source: str


def claims() -> list[Claim]:
    """Return the published numbers that can be computed, the one not reproduced included.

    A number counts as reproduced if ours, rounded as in the paper (which truncates GPT-3's 18 M),
    has the same digits, or lies on the side of it that the paper says.

    >>> [claim.what for claim in claims() if not claim.reproduced]
    ['base of a 7B model, QLoRA']
    """
    return [*_of_qlora(), *_of_lora()]


def _of_qlora() -> list[Claim]:
    llama, scales = MODELS["llama-65b"], bits_per_weight() - 4
    full, qlora = (memory_parts(llama, method).static / 1e9 for method in ("full", "qlora"))
    saved = bits_per_weight(nested_blocksize=None) - bits_per_weight()
    base = weight_bytes(MODELS["llama-7b"], "qlora") / 1e6
    rows = [
        ("full fine-tuning of a 65B model", "over 780 GB", f"{full:.1f} GB", full > 780),
        ("QLoRA of a 65B model", "under 48 GB", f"{qlora:.1f} GB", qlora < 48),
        ("bits a weight", "4.127", f"{4 + scales:.6f}", f"{4 + scales:.3f}" == "4.127"),
        ("saved by nested scales, bits", "0.373", f"{saved:.6f}", f"{saved:.3f}" == "0.373"),
        ("base of a 7B model, QLoRA", "5,048 MB", f"{base:,.0f} MB", f"{base:.0f}" == "5048"),
    ]
    return [Claim(*row, "arXiv:2305.14314") for row in rows]


def _of_lora() -> list[Claim]:
    targets = ["q_proj", "v_proj"]
    of_4, of_8 = (
        lora_parameters(MODELS["gpt-3"], rank=rank, targets=targets) / 1e6 for rank in (4, 8)
    )
    rows = [
        ("parameters, GPT-3, q and v, r = 4", "18 M", f"{of_4:.2f} M", int(of_4) == 18),
        ("parameters, GPT-3, q and v, r = 8", "37.7 M", f"{of_8:.2f} M", f"{of_8:.1f}" == "37.7"),
    ]
    return [Claim(*row, "arXiv:2106.09685") for row in rows]
