"""One step of Adam in steps: a mutant replaces one of them and says why.

A formula is given the numbers of the call, `k`, and what is known so far, `s`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import Array, Encoder, Step, spread

Moments = tuple[Array, Array, Array]
States = tuple[Array, ...]  # m_codes, m_absmax, v_codes, v_absmax


class Options(NamedTuple):
    """The options of a call, as the caller gives them."""

    step: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True


class Numbers(NamedTuple):
    """S11's constants, float32: betas, 1 - beta, 1 - beta^step, and the decay, coupled or not."""

    b1: Any
    w1: Any
    c1: Any
    b2: Any
    w2: Any
    c2: Any
    lr: Any
    eps: Any
    wd: Any
    kept: Any


class State(NamedTuple):
    """What is known so far, flat and float32; until they are made, m and v are the old ones."""

    p: Array
    g: Array  # with a coupled decay
    m: Array
    v: Array
    d: Array  # the step over lr, once it is made
    g0: Array  # what came in
    m0: Array
    v0: Array
    dtype: np.dtype[Any]  # of the parameter
    old: States = ()
    maps: tuple[Array, ...] = ()
    blocksize: int = 0


Count = Callable[[Options], Numbers]
Formula = Callable[[Numbers, State], Array]
Decode = Callable[[Array, Array, Array, int], Array]  # codes, absmax, levels, blocksize
Code = Callable[[State], States]


# ---- the steps -----------------------------------------------------------------------------------


def numbers(o: Options) -> Numbers:
    """S11's constants: in float64, then each rounded to float32 once."""
    exact = Numbers(
        b1=o.beta1, w1=1 - o.beta1, c1=1 - o.beta1**o.step, lr=o.lr,
        b2=o.beta2, w2=1 - o.beta2, c2=1 - o.beta2**o.step, eps=o.eps,
        wd=o.weight_decay * (not o.decoupled_weight_decay),
        kept=1 - o.lr * o.weight_decay * o.decoupled_weight_decay,
    )  # fmt: skip
    return Numbers(*map(np.float32, exact))


def float32_betas(o: Options) -> Numbers:
    """The betas come as float32, and 1 - beta is exact from there."""
    b1, b2 = float(np.float32(o.beta1)), float(np.float32(o.beta2))
    return numbers(o._replace(beta1=b1, beta2=b2))


def gradient(k: Numbers, s: State) -> Array:
    """The gradient, with a coupled decay added."""
    return np.asarray(s.g + k.wd * s.p) if k.wd else s.g


def first(k: Numbers, s: State) -> Array:
    """The new m."""
    return np.asarray(k.b1 * s.m0 + k.w1 * s.g)


def second(k: Numbers, s: State) -> Array:
    """The new v."""
    return np.asarray(k.b2 * s.v0 + k.w2 * s.g * s.g)


def direction(k: Numbers, s: State) -> Array:
    """The step over lr."""
    return np.asarray((s.m / k.c1) / (np.sqrt(s.v / k.c2) + k.eps))


def moved(k: Numbers, s: State) -> Array:
    """The new parameter."""
    return np.asarray(s.p * k.kept - k.lr * s.d)


def after(k: Numbers, s: State) -> Array:
    """The new parameter, decayed after the update."""
    return np.asarray((s.p - k.lr * s.d) * k.kept)


# ---- the state of 8 bits -------------------------------------------------------------------------

quantized = Encoder().eight_bit


def decoded(codes: Array, absmax: Array, levels: Array, blocksize: int) -> Array:
    """S7: level times absmax."""
    return np.asarray(levels[codes] * spread(absmax, codes.size, blocksize))


def coded_by(quantize: Step) -> Code:
    """Both moments, coded by a quantizer."""

    def code(s: State) -> States:
        signed, unsigned = s.maps
        m = quantize(s.m, signed, blocksize=s.blocksize)
        return (*m, *quantize(s.v, unsigned, blocksize=s.blocksize))

    return code


coded = coded_by(quantized)  # S4 and S5


# ---- both kinds of step --------------------------------------------------------------------------


class Adam(NamedTuple):
    """The steps of S11 and S11b."""

    k: Count = numbers
    g: Formula = gradient
    m: Formula = first
    v: Formula = second
    d: Formula = direction
    p: Formula = moved
    decode: Decode = decoded
    code: Code = coded

    @np.errstate(all="ignore")
    def step(self, param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        """adam_step."""
        s = self._moved(param, grad, m, v, options)
        new = s.p.astype(param.dtype).reshape(param.shape)
        return new, s.m.reshape(param.shape), s.v.reshape(param.shape)

    @np.errstate(all="ignore")
    def step_8bit(
        self, param: Array, grad: Array, m_codes: Array, m_absmax: Array, v_codes: Array,
        v_absmax: Array, *, blocksize: int = 256, m_codebook: Array | None = None,
        v_codebook: Array | None = None, **options: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        """adam_step_8bit."""
        signed = qloracle.dynamic_codebook() if m_codebook is None else m_codebook
        unsigned = qloracle.dynamic_codebook(signed=False) if v_codebook is None else v_codebook
        m = self.decode(m_codes, m_absmax, signed, blocksize)
        v = self.decode(v_codes, v_absmax, unsigned, blocksize)
        old = (m_codes, m_absmax, v_codes, v_absmax)
        s = self._moved(param, grad, m, v, options, old, (signed, unsigned), blocksize)
        return (s.p.astype(param.dtype).reshape(param.shape), *self.code(s))

    def both(self) -> dict[str, Step]:
        """The two functions."""
        return {"adam_step": self.step, "adam_step_8bit": self.step_8bit}

    def _moved(
        self, param: Array, grad: Array, m: Array, v: Array, options: dict[str, Any], *state: Any
    ) -> State:
        k = self.k(Options(**options))
        p, g, m, v = (x.reshape(-1).astype(np.float32) for x in (param, grad, m, v))
        s = State(p, g, m, v, g, g, m, v, param.dtype, *state)
        s = s._replace(g=self.g(k, s))
        s = s._replace(m=self.m(k, s), v=self.v(k, s))
        s = s._replace(d=self.d(k, s))
        return s._replace(p=self.p(k, s))
