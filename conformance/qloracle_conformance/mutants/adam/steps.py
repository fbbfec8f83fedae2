"""One step of Adam in steps of its own: a mutant replaces one and tells why.

`stepper` and `stepper_8bit` build the two functions out of the steps of S11 and S11b.  Each step is
handed the numbers of the call and what is known so far: p, g, the old m0 and v0, the new m and v.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import (
    Array,
    encoder_8bit,
    spread,
)

Moments = tuple[Array, Array, Array]
States = tuple[Array, Array, Array, Array, Array]
Step = Callable[..., Any]
K = Any  # the numbers of a call, float32
S = Any  # what is known so far, float32

ZERO = 127  # the code of zero in the signed map


# ---- the steps -----------------------------------------------------------------------------------


def numbers(
    *, step: int, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = True,
) -> K:  # fmt: skip
    """S11's constants: in float64, then each rounded to float32 once."""
    coupled = not decoupled_weight_decay
    exact = {
        "b1": beta1, "w1": 1 - beta1, "c1": 1 - beta1**step, "lr": lr,
        "b2": beta2, "w2": 1 - beta2, "c2": 1 - beta2**step, "eps": eps,
        "wd": weight_decay * coupled, "kept": 1 - lr * weight_decay * decoupled_weight_decay,
    }  # fmt: skip
    return SimpleNamespace(**{name: np.float32(value) for name, value in exact.items()})


def gradient(k: K, s: S) -> Array:
    """G, with a coupled decay added."""
    return np.asarray(s.g + k.wd * s.p) if k.wd else np.asarray(s.g)


def first(k: K, s: S) -> Array:
    """M'."""
    return np.asarray(k.b1 * s.m0 + k.w1 * s.g)


def second(k: K, s: S) -> Array:
    """V'."""
    return np.asarray(k.b2 * s.v0 + k.w2 * s.g * s.g)


def direction(k: K, s: S) -> Array:
    """The step over lr."""
    return np.asarray((s.m / k.c1) / (np.sqrt(s.v / k.c2) + k.eps))


def moved(k: K, s: S) -> Array:
    """P'."""
    return np.asarray(s.p * k.kept - k.lr * s.d)


STEPS = {"read": gradient, "first": first, "second": second, "direct": direction, "move": moved}


def after(k: K, s: S) -> Array:
    """P', decayed after the update."""
    return np.asarray((s.p - k.lr * s.d) * k.kept)


def _carry_out(k: K, s: S, steps: dict[str, Step]) -> None:
    """One step in float32, in place."""
    with np.errstate(all="ignore"):
        s.g = steps["read"](k, s)
        s.m, s.v = steps["first"](k, s), steps["second"](k, s)
        s.d = steps["direct"](k, s)
        s.p = steps["move"](k, s)


def _given(param: Array, grad: Array, m: Array, v: Array) -> S:
    p, g, m0, v0 = (x.reshape(-1).astype(np.float32) for x in (param, grad, m, v))
    return SimpleNamespace(p=p, g=g, m0=m0, v0=v0, p0=p, g0=g, dtype=param.dtype)


def stepper(*, count: Step = numbers, **steps: Step) -> Step:
    """Build adam_step from its steps; `count` makes the numbers of a call."""

    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        s = _given(param, grad, m, v)
        with np.errstate(all="ignore"):
            _carry_out(count(**options), s, {**STEPS, **steps})
            new = s.p.astype(param.dtype).reshape(param.shape)
        return new, s.m.reshape(param.shape), s.v.reshape(param.shape)

    return adam_step


def decoded(codes: Array, absmax: Array, levels: Array, blocksize: int) -> Array:
    """S7."""
    return np.asarray(levels[codes] * spread(absmax, codes.size, blocksize))


quantized = encoder_8bit()


def coded_by(s: S, maps: tuple[Array, Array], blocksize: int, quantize: Step) -> tuple[Array, ...]:
    """Both moments, coded by a quantizer."""
    m, v = (quantize(x, y, blocksize=blocksize) for x, y in zip((s.m, s.v), maps, strict=True))
    return (*m, *v)


def coded(s: S, maps: tuple[Array, Array], blocksize: int) -> tuple[Array, ...]:
    """S4 and S5 of both moments."""
    return coded_by(s, maps, blocksize, quantized)


def stepper_8bit(
    *, count: Step = numbers, decode: Step = decoded, code: Step = coded, **steps: Step
) -> Step:
    """Build adam_step_8bit from its steps."""

    def adam_step_8bit(
        param: Array, grad: Array, m_codes: Array, m_absmax: Array, v_codes: Array,
        v_absmax: Array, *, blocksize: int = 256, m_codebook: Array | None = None,
        v_codebook: Array | None = None, **options: Any,
    ) -> States:  # fmt: skip
        maps = (
            qloracle.dynamic_codebook() if m_codebook is None else m_codebook,
            qloracle.dynamic_codebook(signed=False) if v_codebook is None else v_codebook,
        )
        with np.errstate(all="ignore"):
            m = decode(m_codes, m_absmax, maps[0], blocksize)
            v = decode(v_codes, v_absmax, maps[1], blocksize)
            s = _given(param, grad, m, v)
            s.old = (m_codes, m_absmax, v_codes, v_absmax)
            _carry_out(count(**options), s, {**STEPS, **steps})
            states = code(s, maps, blocksize)
            return (s.p.astype(param.dtype).reshape(param.shape), *states)

    return adam_step_8bit


def changed(**new: Callable[[Any], float]) -> Step:
    """`numbers` with some options replaced by a function of the options."""

    def count(**options: Any) -> K:
        asked = SimpleNamespace(**options)
        return numbers(**options | {name: make(asked) for name, make in new.items()})

    return count


def without(*names: str) -> Step:
    """`numbers` with some constants at 1."""

    def count(**options: Any) -> K:
        ones = dict.fromkeys(names, np.float32(1))
        return SimpleNamespace(**{**vars(numbers(**options)), **ones})

    return count
