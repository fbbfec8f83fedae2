"""The peers that ours stand beside, where they are installed: bitsandbytes, Marlin, torch.

Each function prepares a call; it raises where the peer is not installed or not made for this card.
Peers run on torch's default stream, which is the one on which ours run, too.
"""

from collections.abc import Sequence
from typing import Any

from qloracle_gpu.bench.timing import Call

BITSANDBYTES, MARLIN, FUSED = "bitsandbytes", "Marlin", "torch fused"
GROUP = 128  # of Marlin's scales


def _weight(side: tuple[int, int], dtype: str) -> Any:
    import torch

    return torch.randn(side, device="cuda", dtype=getattr(torch, dtype))


def bitsandbytes_dequantize(side: int, dtype: str, blocksize: int, nested: bool = False) -> Call:
    """Decode as bitsandbytes does."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        _weight((side, side), dtype),
        blocksize=blocksize,
        quant_type="nf4",
        compress_statistics=nested,
    )
    return lambda: functional.dequantize_4bit(packed, state)


def bitsandbytes_quantize(side: int, dtype: str, blocksize: int) -> Call:
    """Code as bitsandbytes does."""
    from bitsandbytes import functional

    x = _weight((side, side), dtype)
    return lambda: functional.quantize_4bit(x, blocksize=blocksize, quant_type="nf4")


def bitsandbytes_product(out: int, width: int, m: int, blocksize: int) -> Call:
    """Multiply as bitsandbytes does where nothing learns."""
    import bitsandbytes
    from bitsandbytes import functional

    w = _weight((out, width), "bfloat16")
    packed, state = functional.quantize_4bit(w, blocksize=blocksize, quant_type="nf4")
    x = _weight((m, width), "bfloat16")
    return lambda: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state)


def marlin_product(out: int, width: int, m: int) -> Call:
    """Multiply as Marlin does: int4 codes and float16; what the codes are changes no time."""
    import marlin
    import torch

    layer = marlin.Layer(width, out, groupsize=GROUP).cuda()
    x = torch.randn(m, width, device="cuda", dtype=torch.half)
    return lambda: layer(x)


def torch_adam(n: int) -> Call:
    """Take a step of torch's fused AdamW, float32."""
    import torch

    parameter = torch.nn.Parameter(torch.randn(n, device="cuda"))
    parameter.grad = torch.randn(n, device="cuda")
    return torch.optim.AdamW([parameter], fused=True).step


def bitsandbytes_adam(shapes: Sequence[tuple[int, ...]]) -> Call:
    """Take a step of bitsandbytes' 8-bit AdamW, bfloat16 parameters."""
    import bitsandbytes
    import torch

    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.randn(shape, device="cuda", dtype=torch.bfloat16))
        parameter.grad = torch.randn_like(parameter)
        parameters.append(parameter)
    step: Call = bitsandbytes.optim.AdamW8bit(parameters, min_8bit_size=0).step
    return step
