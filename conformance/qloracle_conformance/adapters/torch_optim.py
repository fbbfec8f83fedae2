"""torch.optim's Adam and AdamW behind the protocol, in each of their three implementations.

Read with torch 2.13.0.  Each one is an object of this file: `for_loop` (one tensor after the
other), `foreach` (lists of tensors at once) and `fused` (one kernel).  A step is one `step()` of a
real optimizer whose state was put in.  torch keeps m and v in the parameter's type; so 16-bit
parameters have no float32 m and v here.  This file imports nothing of the kit's, so that a repro
script can carry it along whole.
"""

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor


def adam_step(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    foreach: bool,
    fused: bool,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.optim.AdamW`, and `Adam` where the decay is coupled."""
    if param.dtype != torch.float32:
        raise NotImplementedError(f"torch.optim keeps m and v of {param.dtype} in that type")
    kind = torch.optim.AdamW if decoupled_weight_decay else torch.optim.Adam
    weight = torch.nn.Parameter(param.clone())
    weight.grad = grad.clone()
    optimizer = kind([weight], lr, (beta1, beta2), eps, weight_decay, foreach=foreach, fused=fused)
    counted = torch.tensor(float(step - 1), device=param.device if fused else "cpu")
    state = {"step": counted, "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[weight] = state
    optimizer.step()
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


for_loop, foreach, fused = (
    SimpleNamespace(
        adam_step=partial(adam_step, foreach=several, fused=one),
        arrays="torch",
        device="cuda" if torch.cuda.is_available() else "cpu",
        limits={"dtype": ["float32"]},
    )
    for several, one in ((False, False), (True, False), (False, True))
)
