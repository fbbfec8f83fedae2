"""Adam in the words of torch: the reference's operations in the reference's order, so its bits.

The rules are those of `qloracle.adam`. What is particular here:

* Each operation is one of torch's, so it rounds once: no `addcmul`, no `alpha`, which torch may
  carry out as fused multiply-add.
* A number that divides is a tensor on the device. Where it is a number, torch on CUDA multiplies by
  its reciprocal, which rounds twice.
* A root is torch's own, except on a CPU: there it comes from a library that rounds one root in five
  to the wrong neighbour (MKL, in torch 2.13). The root in float64 is good enough to be rounded.
* The constants are formed by Python in float64. But for that root no float64 is used.
* The functions are operators of torch: a compiler would fuse what is written here, and change the
  last bits. They have no gradient.

>>> param, zero = torch.zeros(4), torch.zeros(4)
>>> grad = torch.tensor([10, 1e-3, -1e-8, 0])
>>> adam_step(param, grad, zero, zero, step=1, lr=0.5)[0].tolist()
[-0.5, -0.49999499320983887, 0.2499999850988388, 0.0]
"""

from typing import TypeAlias

import torch
from torch import Tensor

from qloracle import arguments as plain
from qloracle_gpu.operations import adam
from qloracle_gpu.operations.adam import Constants
from qloracle_gpu.torch_backend import values
from qloracle_gpu.torch_backend.blockwise import dequantize_by, map_or, quantize_by
from qloracle_gpu.torch_backend.operators import like, operator

State: TypeAlias = tuple[Tensor, Tensor, Tensor]  # param, m, v
Coded: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # m and v as codes and scales


@operator(lambda param, grad, m, v, *_: like(param, m, v))
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
    k = adam.constants(step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)
    param, grad, m, v = adam.state(values.beside(param), (param, grad, m, v))
    p, m_new, v_new = _update(_flat(param), _flat(grad), _flat(m), _flat(v), k)
    return p.to(param.dtype).view(param.shape), m_new.view(m.shape), v_new.view(v.shape)


@operator(lambda param, grad, mc, ms, vc, vs, *_: like(param, mc, ms, vc, vs))
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
    k = adam.constants(step, lr, beta1, beta2, eps, weight_decay)
    here, size = values.beside(param), plain.integer("blocksize", blocksize, least=1)
    old = adam.coded(here, (param, grad, m_codes, m_absmax, v_codes, v_absmax), size)
    m_levels, m_thresholds = map_or("dynamic", here, "m_codebook", m_codebook)
    v_levels, v_thresholds = map_or("unsigned", here, "v_codebook", v_codebook)
    m = dequantize_by(m_levels, old[2], old[3], size, torch.float32, "m_codes")
    v = dequantize_by(v_levels, old[4], old[5], size, torch.float32, "v_codes")
    p, m, v = _update(_flat(old[0]), _flat(old[1]), m, v, k)
    coded_m, coded_v = quantize_by(m_thresholds, m, size), quantize_by(v_thresholds, v, size)
    return p.to(param.dtype).view(param.shape), *coded_m, *coded_v


# ---- the step -----------------------------------------------------------------------------------


def _update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, k: Constants) -> State:
    """Carry out S11 on float32[n]: the new p, m and v, before p is rounded to its own type."""
    _not_negative(v)
    if k.coupled:
        g = g + p * k.coupled.item()
    m = m * k.b1.item() + g * k.one_minus_b1.item()
    v = v * k.b2.item() + g * k.one_minus_b2.item() * g
    c1, c2 = (p.new_full((), c.item()) for c in (k.c1, k.c2))
    denominator = _root(v / c2) + k.eps.item()
    if not k.eps:
        _not_zero(denominator)
    return p * k.kept.item() - m / c1 / denominator * k.lr.item(), m, v


def _root(values: Tensor) -> Tensor:
    """Return the root, rounded to nearest.

    >>> import numpy as np
    >>> numbers = torch.arange(1000.0)
    >>> bool((_root(numbers).numpy() == np.sqrt(numbers.numpy())).all())
    True
    """
    return values.double().sqrt().float() if values.is_cpu else values.sqrt()


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1).float()


def _not_negative(v: Tensor) -> None:
    if values.can_wait(v) and (v < 0).any():
        first = int((v < 0).nonzero()[0])
        raise ValueError(f"v must not be negative, got {float(v[first])} at flat index {first}")


def _not_zero(denominator: Tensor) -> None:
    if values.can_wait(denominator) and not denominator.all():
        first = int((denominator == 0).nonzero()[0])
        raise ValueError(f"eps must be above 0 in float32 where v' is 0, as at flat index {first}")
