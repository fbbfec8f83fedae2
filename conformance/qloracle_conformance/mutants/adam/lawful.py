"""Implementations of Adam that differ from the reference and are right."""

from typing import Any

import numpy as np

from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.adam import steps
from qloracle_conformance.mutants.adam.steps import coded, numbers, stepper, stepper_8bit
from qloracle_conformance.mutants.parts import Array, encoder_8bit, inverted, variant

# ---- other ways to the same step -----------------------------------------------------------------


def _fused(a: Any, b: Array, c: Any) -> Array:
    return expected.fused(np.broadcast_to(a, b.shape), b, c)


FUSED = steps.Formulas(
    first=lambda k, s: _fused(k.w1, s.g, k.b1 * s.m0),
    second=lambda k, s: _fused(k.b2, s.v0, k.w2 * s.g * s.g),
    move=lambda k, s: _fused(-k.lr, s.d, s.p * k.kept),
)


def _interpolated(k: steps.Numbers, s: steps.State) -> Array:
    if k.w1 < 0.5:
        return np.asarray(s.m0 + k.w1 * (s.g - s.m0))
    return np.asarray(s.g - (s.g - s.m0) * (1 - k.w1))


def _corrected_rate(o: steps.Options) -> steps.Numbers:
    root, c1 = np.sqrt(1 - o.beta2**o.step), 1 - o.beta1**o.step
    return numbers(o)._replace(lr=np.float32(o.lr * root / c1), eps=np.float32(o.eps * root))


def _rate_rounded_once(o: steps.Options) -> steps.Numbers:
    size = np.float32(o.lr / (1 - o.beta1**o.step))
    return numbers(o)._replace(lr=size, c2=np.float32(np.sqrt(1 - o.beta2**o.step)))


def _decay_itself(o: steps.Options) -> steps.Numbers:  # as what is kept
    decay = o.weight_decay if o.decoupled_weight_decay else 0.0
    return numbers(o)._replace(kept=np.float32(decay))


def _float32_corrections(o: steps.Options) -> steps.Numbers:
    k, t = numbers(o), np.float32(o.step)
    return k._replace(c1=1 - np.power(k.b1, t), c2=1 - np.power(k.b2, t))


# ---- 8-bit states --------------------------------------------------------------------------------


def _sign_nudged(s: steps.State) -> steps.States:
    m_codes, *others = coded(s)
    level = s.maps[0][m_codes]
    move = ((s.m > 0) & (level < 0)).astype(int) - ((s.m < 0) & (level >= 0)).astype(int)
    return (np.clip(m_codes + move, 0, s.maps[0].size - 1).astype(np.uint8), *others)


def _as_coded(s: steps.State) -> steps.State:
    m_codes, m_absmax, v_codes, v_absmax = coded(s)
    m = steps.decoded(m_codes, m_absmax, s.maps[0], s.blocksize)
    return s._replace(m=m, v=steps.decoded(v_codes, v_absmax, s.maps[1], s.blocksize))


# fmt: off
# ---- the variants --------------------------------------------------------------------------------

FusedMoments = variant("",
    "Moments and parameter by fused multiply-adds: one rounding for each product and sum.",
    adam_step=stepper(**FUSED), adam_step_8bit=stepper_8bit(**FUSED))
MeanByLerp = variant("",
    "m + (1 - b1) (g - m), as torch interpolates; from the other end where 1 - b1 is above 1/2.",
    adam_step=stepper(first=_interpolated), adam_step_8bit=stepper_8bit(first=_interpolated))
CorrectedRate = variant("",
    "lr c/c1 m / (sqrt(v) + eps c) with c = sqrt(1 - b2^t): bitsandbytes' form, c in float64.",
    adam_step=stepper(count=_corrected_rate, direct=lambda k, s: s.m / (np.sqrt(s.v) + k.eps)))
RateRoundedOnce = variant("",
    "lr / c1 is formed in float64 and rounded once, and v is divided after its root (torch).",
    adam_step=stepper(count=_rate_rounded_once,
                      direct=lambda k, s: s.m / (np.sqrt(s.v) / k.c2 + k.eps)))
DecayBesideDirection = variant("",
    "Decoupled decay is added to the direction, and lr multiplies both (optax).",
    adam_step=stepper(count=_decay_itself, move=lambda k, s: s.p - k.lr * (s.d + k.kept * s.p)))
DecayAfterDeclared = variant("decay_order: after",
    "The decay comes after the update, declared (bitsandbytes on CUDA).",
    {"dialect": {"decay_order": "after"}},
    adam_step=stepper(move=steps.after), adam_step_8bit=stepper_8bit(move=steps.after))
DecoupledDeclared = variant("decay_mode: decoupled",
    "Decay is decoupled whatever is asked for, declared (bitsandbytes' Adam).",
    {"dialect": {"decay_mode": "decoupled"}},
    adam_step=stepper(count=lambda o: numbers(o._replace(decoupled_weight_decay=True))))
Float32Betas = variant("betas: float32",
    "The betas come as float32, and 1 - beta is exact from there (bitsandbytes on CUDA).",
    adam_step=stepper(count=steps.float32_betas),
    adam_step_8bit=stepper_8bit(count=steps.float32_betas))
Float32Corrections = variant("bias_correction: float32", "1 - beta^t computed in float32 (optax).",
    adam_step=stepper(count=_float32_corrections),
    adam_step_8bit=stepper_8bit(count=_float32_corrections))
SignNudged = variant("sign_nudge: yes",
    "A code of m whose level has not the sign of m is moved by one (bitsandbytes on CUDA).",
    adam_step_8bit=stepper_8bit(code=_sign_nudged))
RoundedStateUsed = variant("state_used: rounded",
    "The parameter moves by the new moments as their codes say them.",
    adam_step_8bit=stepper_8bit(direct=lambda k, s: steps.direction(k, _as_coded(s))))
CodedByReciprocal = variant("", "The new moments are scaled by 1 / absmax, as kernels do.",
    adam_step_8bit=stepper_8bit(code=steps.coded_by(encoder_8bit(scale=inverted))))
