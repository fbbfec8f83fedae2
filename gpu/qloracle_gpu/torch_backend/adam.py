"""Adam in the words of torch: the reference's operations in the reference's order, so its bits.

The rules are told in `qloracle.adam`. What is particular here:

* Each operation is one of torch's, so it rounds once: no `addcmul`, no `alpha`, which torch may
  carry out as fused multiply-add.
* A number that divides is a tensor on the device. Where it is a number, torch on CUDA multiplies by
  its reciprocal, which rounds twice.
* A root is torch's own, except on a CPU: there it comes from a library that rounds one root in five
  to the wrong neighbour (MKL, in torch 2.13). The root in float64 is good enough to be rounded.
* The constants are formed by Python in float64. But for that root no float64 is used.
* The functions are operators of torch, as those of `lora`: a compiler would fuse what is written
  here, and change the last bits. They have no gradient.

>>> param, zero = torch.zeros(4), torch.zeros(4)
>>> grad = torch.tensor([10, 1e-3, -1e-8, 0])
>>> adam_step(param, grad, zero, zero, step=1, lr=0.5)[0].tolist()
[-0.5, -0.49999499320983887, 0.2499999850988388, 0.0]
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, library

from qloracle import arguments as plain
from qloracle_gpu.torch_backend import _arguments as check
from qloracle_gpu.torch_backend import cuda, tables
from qloracle_gpu.torch_backend.blockwise import dequantize_by, edges_of, levels_of, quantize_by
from qloracle_gpu.torch_backend.lora import like

ANY_BLOCK = 64  # where there are no blocks
LAST_STEP = 2**24  # the last count that float32 holds exactly
State: TypeAlias = tuple[Tensor, Tensor, Tensor]  # param, m, v
Coded: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # m and v as codes and scales


def adam_step(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
) -> State:
    """Return the new param in its type, and the new m and v, float32; the old ones stay.

    param: float32, float16 or bfloat16 of any shape; grad: the same shape, param's type or float32;
    m, v: the same shape, float32, v not negative; all finite. step: 1 to 2**24, counted from 1;
    lr, eps, weight_decay: at least 0; beta1, beta2: in [0, 1). TypeError or ValueError otherwise,
    also where eps and v' are both 0.

    Source: rule S11; `qloracle.adam_step`.

    >>> p, g, m, v = torch.tensor([[1.0], [2.0], [0.5], [1.0]])
    >>> adam_step(p, g, m, v, step=1, lr=1.0, beta1=0.5, beta2=0.5, eps=0.0)
    (tensor([-0.1180]), tensor([1.2500]), tensor([2.5000]))
    """
    decay = plain.boolean("decoupled_weight_decay", decoupled_weight_decay)
    numbers = _numbers(step, lr, beta1, beta2, eps, weight_decay)
    p, g = _param_and_grad(param, grad)
    beside = f"param of shape {tuple(p.shape)}"
    states = []
    for name, state in (("m", m), ("v", v)):
        check.same_type(name, check.tensor(name, state, p.device), torch.float32)
        states.append(check.shaped(name, state, tuple(p.shape), beside, p.device))
    new: State = _step_op(p, g, *states, *numbers, decay)
    return new


def adam_step_8bit(
    param: Tensor,
    grad: Tensor,
    m_codes: Tensor,
    m_absmax: Tensor,
    v_codes: Tensor,
    v_absmax: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    blocksize: int = 256,
    m_codebook: Tensor | None = None,
    v_codebook: Tensor | None = None,
) -> Coded:
    """Return the new param in its type, and the new codes and scales of m and of v.

    m_codes, v_codes: uint8[n], n the elements of param; m_absmax, v_absmax: finite
    float32[ceil(n / blocksize)]; m_codebook, v_codebook: None for the signed and the unsigned
    dynamic map, else 2 to 256 finite float32 that never decrease; v must decode to no negative
    value. The decay is decoupled. The rest and the errors as in `adam_step`.

    Source: rule S11b; `qloracle.adam_step_8bit`.

    >>> codes, absmax = torch.tensor([255, 127], dtype=torch.uint8), torch.tensor([4.0])  # 4 and 0
    >>> zero, state = torch.zeros(2), (codes, absmax)
    >>> param, m_codes, *_ = adam_step_8bit(zero, zero, *state, *state, step=1, lr=1.0)
    >>> m_codes.tolist()
    [255, 127]
    """
    numbers = _numbers(step, lr, beta1, beta2, eps, weight_decay)
    p, g = _param_and_grad(param, grad)
    m = _state("m", m_codes, m_absmax, m_codebook, p, blocksize)
    v = _state("v", v_codes, v_absmax, v_codebook, p, blocksize)
    new: Coded = _step_8bit_op(p, g, *m, *v, *numbers, blocksize, m_codebook, v_codebook)
    return new


# ---- the step, as operators of torch -------------------------------------------------------------


@library.custom_op("qloracle::adam_step", mutates_args=())
def _step_op(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    numbers = step, lr, beta1, beta2, eps
    if cuda.takes(param, ANY_BLOCK):
        form = _named(*numbers, weight_decay) | {"decoupled_weight_decay": decoupled_weight_decay}
        new: State = cuda.on(param).adam_step(param, grad, m, v, **form)
        return new
    decays = _decays(lr, weight_decay, decoupled_weight_decay)
    p, m_new, v_new = _update(_flat(param), _flat(grad), _flat(m), _flat(v), *numbers, *decays)
    return p.to(param.dtype).view(param.shape), m_new.view(m.shape), v_new.view(v.shape)


@library.custom_op("qloracle::adam_step_8bit", mutates_args=())
def _step_8bit_op(
    param: Tensor,
    grad: Tensor,
    m_codes: Tensor,
    m_absmax: Tensor,
    v_codes: Tensor,
    v_absmax: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    blocksize: int,
    m_codebook: Tensor | None,
    v_codebook: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if cuda.takes(param, blocksize):
        form = _named(step, lr, beta1, beta2, eps, weight_decay) | {
            "blocksize": blocksize, "m_codebook": m_codebook, "v_codebook": v_codebook,
        }  # fmt: skip
        moments = m_codes, m_absmax, v_codes, v_absmax
        new: Coded = cuda.on(param).adam_step_8bit(param, grad, *moments, **form)
        return new
    m_map, m_edges = _map(m_codebook, "dynamic", param.device)
    v_map, v_edges = _map(v_codebook, "unsigned", param.device)
    m = dequantize_by(m_map, m_codes, m_absmax, blocksize, torch.float32)
    v = dequantize_by(v_map, v_codes, v_absmax, blocksize, torch.float32)
    numbers, decays = (step, lr, beta1, beta2, eps), _decays(lr, weight_decay, True)
    p, m, v = _update(_flat(param), _flat(grad), m, v, *numbers, *decays)
    coded_m, coded_v = quantize_by(m_edges, m, blocksize), quantize_by(v_edges, v, blocksize)
    return p.to(param.dtype).view(param.shape), *coded_m, *coded_v


def _update(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    coupled: float,
    kept: float,
) -> State:
    """Carry out S11 on float32[n]: the new p, m and v, before p is rounded to its own type.

    A number that meets a tensor is rounded to float32 once, which is what S11 asks.
    """
    _not_negative(v)
    if coupled:
        g = g + p * coupled
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * (1 - beta2) * g
    c1, c2 = (p.new_full((), 1 - beta**step) for beta in (beta1, beta2))
    denominator = _root(v / c2) + eps
    _not_zero(denominator, eps)
    return p * kept - m / c1 / denominator * lr, m, v


def _root(values: Tensor) -> Tensor:
    """Return the root, rounded to nearest.

    >>> numbers = torch.arange(1000.0)
    >>> bool((_root(numbers).numpy() == np.sqrt(numbers.numpy())).all())
    True
    """
    return values.double().sqrt().float() if values.is_cpu else values.sqrt()


def _named(
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    numbers = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2}
    return {**numbers, "eps": eps, "weight_decay": weight_decay}


def _decays(lr: float, weight_decay: float, decoupled: bool) -> tuple[float, float]:
    """Return the share of p that joins the gradient, and the share of p that is kept."""
    return (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1).float()


def _map(codebook: Tensor | None, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return levels and thresholds: of a codebook that was passed in, or of ours."""
    if codebook is None:
        return tables.levels(name, device), tables.edges(name, device)
    return levels_of(codebook, device), edges_of(codebook, device)


@_step_op.register_fake
def _(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, *_: object) -> Any:
    return like(param, m, v)


@_step_8bit_op.register_fake
def _(
    param: Tensor,
    grad: Tensor,
    m_codes: Tensor,
    m_absmax: Tensor,
    v_codes: Tensor,
    v_absmax: Tensor,
    *_: object,
) -> Any:
    return like(param, m_codes, m_absmax, v_codes, v_absmax)


# ---- what is checked -----------------------------------------------------------------------------


def _numbers(
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> tuple[int, float, float, float, float, float]:
    if torch.compiler.is_compiling():  # they may be symbols, of which nothing is known
        return step, lr, beta1, beta2, eps, weight_decay
    t = plain.integer("step", step, least=1)
    if t > LAST_STEP:
        raise ValueError(f"step must be at most 2**24, got {t}")
    rate, floor = plain.at_least("lr", lr, 0), plain.at_least("eps", eps, 0)
    decay = plain.at_least("weight_decay", weight_decay, 0)
    return t, rate, plain.fraction("beta1", beta1), plain.fraction("beta2", beta2), floor, decay


def _param_and_grad(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    p = check.numbers("param", param)
    shape = tuple(p.shape)
    g = check.shaped("grad", grad, shape, f"param of shape {shape}", p.device)
    check.same_type("grad", g, p.dtype, torch.float32)
    return p, g


def _state(
    name: str,
    codes: Tensor,
    absmax: Tensor,
    codebook: Tensor | None,
    param: Tensor,
    blocksize: int,
) -> tuple[Tensor, Tensor]:
    """Return codes and scales, once they are those of a state of this parameter."""
    n, device = param.numel(), param.device
    known = check.vector(f"{name}_codes", codes, torch.uint8, n, device)
    blocks = -(-n // check.integer("blocksize", blocksize, least=1))
    scales = check.vector(f"{name}_absmax", absmax, torch.float32, blocks, device)
    check.finite(f"{name}_absmax", scales)
    if codebook is not None and cuda.takes(param, blocksize):
        check.vector(f"{name}_codebook", codebook, torch.float32, None, device)
    elif codebook is not None:
        size = check.table(f"{name}_codebook", codebook, device).size
        check.codes_below(f"{name}_codes", known, size)
    return known, scales


def _not_negative(v: Tensor) -> None:
    if check.can_wait(v) and (v < 0).any():
        first = int((v < 0).nonzero()[0])
        raise ValueError(f"v must not be negative, got {float(v[first])} at flat index {first}")


def _not_zero(denominator: Tensor, eps: float) -> None:
    if np.float32(eps) == 0 and check.can_wait(denominator) and not denominator.all():
        first = int((denominator == 0).nonzero()[0])
        raise ValueError(f"eps must be above 0 in float32 where v' is 0, as at flat index {first}")
