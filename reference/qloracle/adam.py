"""Adam: the steadier the gradient, the longer the step.

Two running means are kept for each parameter, of the gradient and of its square. Their ratio is
near 1 where the gradient keeps its sign and near 0 where it flips, whatever its size, so lr is
roughly the length of a step (arXiv:1412.6980). Everything is float32, in this order, each operation
rounded:

    g  = g + wd p                              if the decay is coupled                      (S11)
    m' = b1 m + (1 - b1) g
    v' = b2 v + ((1 - b2) g) g
    p  = p (1 - lr wd)                         if the decay is decoupled (arXiv:1711.05101)
    p' = p - lr ((m' / c1) / (sqrt(v' / c2) + eps))

and p' is rounded once more, to the parameter's type. The means start at zero, so at first they are
too small; c1 = 1 - b1**t and c2 = 1 - b2**t correct that. b1, 1 - b1, c1, c2, 1 - lr wd and the
other constants are formed in float64, from the betas as given, and each is rounded to float32 once.

Step 1 from zero: m' / c1 = g and sqrt(v' / c2) = |g|, so each gradient moves its parameter by lr.
Two exceptions: one of 1e-8, as small as eps, moves it by half of that, and zero does not move it.

>>> param, zero = np.zeros(4, np.float32), np.zeros(4, np.float32)
>>> grad = np.array([10, 1e-3, -1e-8, 0], np.float32)
>>> adam_step(param, grad, zero, zero, step=1, lr=0.5)[0].tolist()
[-0.5, -0.49999499320983887, 0.2499999850988388, 0.0]

The two decays are two methods. The coupled one passes through the ratio: at step 1 it can flip the
sign of a step, and nothing else. The decoupled one takes lr wd of the parameter.

>>> one, grad = np.ones(4, np.float32), np.ones(4, np.float32)
>>> for decoupled in (False, True):
...     kw = {"weight_decay": 0.5, "decoupled_weight_decay": decoupled}
...     print(adam_step(one, grad, zero, zero, step=1, lr=0.25, **kw)[0][0])
0.75
0.625

An implementation that orders these operations differently ends a few roundings away; how many each
term can meet is counted in `qloracle explain S11`.

8 bits. Eight bytes of moments per parameter become two (arXiv:2110.02861): m is kept as codes of
the signed dynamic map, v of the unsigned one, in blocks of 256 (S11b). A step decodes them,
computes as above, moves the parameter by the means just computed, and only then codes those again.

>>> codes, absmax = np.full(4, 127, np.uint8), np.zeros(1, np.float32)  # code 127 is zero
>>> state = (codes, absmax, np.zeros(4, np.uint8), absmax)
>>> param, m_codes, m_absmax, v_codes, v_absmax = adam_step_8bit(zero, grad, *state, step=1, lr=0.5)
>>> param.tolist(), m_codes.tolist(), m_absmax.tolist()
([-0.5, -0.5, -0.5, -0.5], [255, 255, 255, 255], [0.10000000149011612])

Where implementations differ, this is what the specification chooses.

* eps is added to the root of the corrected mean. Added inside the root, or before the correction,
  it makes another method.
* The decay comes before the update. bitsandbytes on CUDA decays p' instead, and shrinks the update
  too.
* The betas stay in float64 until the constants are formed. With float32 betas, 1 - b2 is off by a
  relative 1e-5.
* Zero keeps the code of zero, so a gradient that was always zero never moves its parameter.
* The 8-bit step decays decoupled, as bitsandbytes does under both names, Adam and AdamW.
"""

from typing import NamedTuple

import numpy as np

from qloracle import arguments as check
from qloracle.arguments import Array, Float32, UInt8
from qloracle.blockwise import dequantize_blockwise, quantize_blockwise
from qloracle.codebook import dynamic_codebook

LAST_STEP = 2**24  # the last count that float32 holds exactly


class Constants(NamedTuple):
    """What a step multiplies, divides and adds: each formed in float64, rounded to float32 once."""

    b1: np.float32
    one_minus_b1: np.float32
    b2: np.float32
    one_minus_b2: np.float32
    c1: np.float32
    c2: np.float32
    lr: np.float32
    eps: np.float32
    coupled: np.float32
    kept: np.float32


@np.errstate(all="ignore")  # squares underflow and overflow, in silence whatever the caller has set
def _update(
    p: Float32, g: Float32, m: Float32, v: Float32, k: Constants
) -> tuple[Float32, Float32, Float32]:
    """Carry out S11 on float32[n]: the new p, m and v, before p is rounded to its own type."""
    if k.coupled:
        g = g + k.coupled * p
    m = k.b1 * m + k.one_minus_b1 * g
    v = k.b2 * v + (k.one_minus_b2 * g) * g
    denominator = _not_zero(np.sqrt(v / k.c2) + k.eps)
    return p * k.kept - k.lr * ((m / k.c1) / denominator), m, v


def adam_step(
    param: Array,
    grad: Array,
    m: Float32,
    v: Float32,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
) -> tuple[Array, Float32, Float32]:
    """Return the new param in its type, and the new m and v, float32; the old ones stay.

    param: float32, float16 or bfloat16 of any shape; grad: the same shape, param's type or float32;
    m, v: the same shape, float32, v not negative; all finite. step: 1 to 2**24, counted from 1;
    lr, eps, weight_decay: at least 0; beta1, beta2: in [0, 1). TypeError or ValueError otherwise,
    also where eps and v' are both 0.

    Source: rule S11; arXiv:1412.6980, algorithm 1; arXiv:1711.05101, algorithm 2.

    >>> p, g = np.array([1.0], np.float32), np.array([2.0], np.float32)
    >>> m, v = np.array([0.5], np.float32), np.array([1.0], np.float32)
    >>> adam_step(p, g, m, v, step=1, lr=1.0, beta1=0.5, beta2=0.5, eps=0.0)
    (array([-0.11803401], dtype=float32), array([1.25], dtype=float32), array([2.5], dtype=float32))
    """
    numbers = _constants(step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)
    p, g = _param_and_grad(param, grad)  # n
    for name, state in (("m", m), ("v", v)):
        check.same_type(name, state, np.dtype(np.float32))
        check.shaped(name, state, param.shape, f"param of shape {param.shape}")
    m, v = check.as_flat_float32("m", m), _not_negative(check.as_flat_float32("v", v))
    p, m, v = _update(p, g, m, v, numbers)
    return _narrowed(p, param), m.reshape(param.shape), v.reshape(param.shape)


def adam_step_8bit(
    param: Array,
    grad: Array,
    m_codes: UInt8,
    m_absmax: Float32,
    v_codes: UInt8,
    v_absmax: Float32,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    blocksize: int = 256,
    m_codebook: Float32 | None = None,
    v_codebook: Float32 | None = None,
) -> tuple[Array, UInt8, Float32, UInt8, Float32]:
    """Return the new param in its type, and the new codes and scales of m and of v.

    m_codes, v_codes: uint8[n], n the elements of param; m_absmax, v_absmax: finite
    float32[ceil(n / blocksize)]; m_codebook, v_codebook: None for the signed and the unsigned
    dynamic map, else 2 to 256 finite float32 that never decrease; v must not decode to negative
    values. The decay is decoupled. The rest and the errors as in `adam_step`.

    Source: rule S11b; arXiv:2110.02861, section 2; bitsandbytes 0.50.2, `AdamW8bit`.

    >>> codes, absmax = np.array([255, 127], np.uint8), np.array([4], np.float32)  # 4 and 0
    >>> zero = np.zeros(2, np.float32)
    >>> state = (codes, absmax, codes, absmax)
    >>> param, m_codes, *_ = adam_step_8bit(zero, zero, *state, step=1, lr=1.0, m_codebook=None)
    >>> m_codes.tolist()
    [255, 127]
    """
    numbers = _constants(step, lr, beta1, beta2, eps, weight_decay, True)
    p, g = _param_and_grad(param, grad)  # n
    m_map = dynamic_codebook() if m_codebook is None else m_codebook
    v_map = dynamic_codebook(signed=False) if v_codebook is None else v_codebook
    m = _decoded("m", m_codes, m_absmax, m_map, p.size, blocksize)
    v = _not_negative(_decoded("v", v_codes, v_absmax, v_map, p.size, blocksize))
    p, m, v = _update(p, g, m, v, numbers)
    coded_m = quantize_blockwise(m, m_map, blocksize=blocksize)
    coded_v = quantize_blockwise(v, v_map, blocksize=blocksize)
    return _narrowed(p, param), *coded_m, *coded_v


def _constants(
    step: int, lr: float, beta1: float, beta2: float, eps: float, wd: float, decoupled: bool
) -> Constants:
    """Check the numbers of a step, and form its constants."""
    t = check.integer("step", step, least=1)
    if t > LAST_STEP:
        raise ValueError(f"step must be at most 2**24, got {t}")
    rate, floor = check.at_least("lr", lr, 0), check.at_least("eps", eps, 0)
    decay = check.at_least("weight_decay", wd, 0)
    apart = check.boolean("decoupled_weight_decay", decoupled)
    b1, b2 = check.fraction("beta1", beta1), check.fraction("beta2", beta2)
    numbers = (b1, 1 - b1, b2, 1 - b2, 1 - b1**t, 1 - b2**t, rate, floor)
    decays = (0.0, 1 - rate * decay) if apart else (decay, 1.0)
    return Constants(*np.array([*numbers, *decays], np.float32))


def _param_and_grad(param: Array, grad: Array) -> tuple[Float32, Float32]:
    """Return param and grad as float32[n]."""
    p = check.as_flat_float32("param", param)
    check.shaped("grad", grad, param.shape, f"param of shape {param.shape}")
    check.same_type("grad", grad, param.dtype, np.dtype(np.float32))
    return p, check.as_flat_float32("grad", grad)


def _decoded(
    name: str, codes: UInt8, absmax: Float32, levels: Float32, n: int, blocksize: int
) -> Float32:
    """Decode m or v, float32[n], with errors that name which of them (S7)."""
    check.vector(f"{name}_codes", codes, np.uint8, n)
    blocks = -(-n // check.integer("blocksize", blocksize, least=1))
    scales = check.vector(f"{name}_absmax", absmax, np.float32, blocks)
    check.finite(f"{name}_absmax", scales)
    check.codes_below(f"{name}_codes", codes, check.codebook(f"{name}_codebook", levels).size)
    return dequantize_blockwise(codes, absmax, levels, shape=(n,), blocksize=blocksize)


def _not_negative(v: Float32) -> Float32:
    if (v < 0).any():
        first = int((v < 0).argmax())
        raise ValueError(f"v must not be negative, got {v[first]} at flat index {first}")
    return v


def _not_zero(denominator: Float32) -> Float32:
    if not denominator.all():
        first = int((denominator == 0).argmax())
        raise ValueError(f"eps must be above 0 in float32 where v' is 0, as at flat index {first}")
    return denominator


@np.errstate(all="ignore")  # overflow to inf is the right result
def _narrowed(p: Float32, param: Array) -> Array:
    """Return p in param's type and shape."""
    return p.astype(param.dtype).reshape(param.shape)
