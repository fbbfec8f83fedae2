"""Implementations of Adam that differ from the reference and are right."""

from typing import Any

import numpy as np

from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.adam import steps
from qloracle_conformance.mutants.adam.steps import Adam, coded, numbers
from qloracle_conformance.mutants.parts import Array, Encoder, inverted, variant

# ---- other ways to the same step -----------------------------------------------------------------


def _fused(a: Any, b: Array, c: Any) -> Array:
    return expected.fused(np.broadcast_to(a, b.shape), b, c)


FUSED = Adam(
    m=lambda k, s: _fused(k.w1, s.g, k.b1 * s.m0),
    v=lambda k, s: _fused(k.b2, s.v0, k.w2 * s.g * s.g),
    p=lambda k, s: _fused(-k.lr, s.d, s.p * k.kept),
)


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
    **FUSED.both())
MeanByLerp = variant("",
    "m + (1 - b1) (g - m), as torch interpolates; from the other end where 1 - b1 is above 1/2.",
    **Adam(m=lambda k, s: s.m0 + k.w1 * (s.g - s.m0)
        if k.w1 < 0.5 else s.g - (s.g - s.m0) * (1 - k.w1)).both())
CorrectedRate = variant("",
    "lr c/c1 m / (sqrt(v) + eps c) with c = sqrt(1 - b2^t): bitsandbytes' form, c in float64.",
    adam_step=Adam(k=lambda o: numbers(o)._replace(
        lr=np.float32(o.lr * np.sqrt(1 - o.beta2**o.step) / (1 - o.beta1**o.step)),
        eps=np.float32(o.eps * np.sqrt(1 - o.beta2**o.step))),
        d=lambda k, s: s.m / (np.sqrt(s.v) + k.eps)).step)
RateRoundedOnce = variant("",
    "lr / c1 is formed in float64 and rounded once, and v is divided after its root (torch).",
    adam_step=Adam(k=lambda o: numbers(o)._replace(
        lr=np.float32(o.lr / (1 - o.beta1**o.step)),
        c2=np.float32(np.sqrt(1 - o.beta2**o.step))),
        d=lambda k, s: s.m / (np.sqrt(s.v) / k.c2 + k.eps)).step)
DecayBesideDirection = variant("",
    "Decoupled decay is added to the direction, and lr multiplies both (optax).",
    adam_step=Adam(
        k=lambda o: numbers(o)._replace(
            kept=np.float32(o.weight_decay * o.decoupled_weight_decay)),  # the decay itself
        p=lambda k, s: s.p - k.lr * (s.d + k.kept * s.p)).step)
DecayAfterDeclared = variant("decay_order: after",
    "The decay comes after the update, declared (bitsandbytes on CUDA).",
    {"dialect": {"decay_order": "after"}},
    **Adam(p=steps.after).both())
DecoupledDeclared = variant("decay_mode: decoupled",
    "Decay is decoupled whatever is asked for, declared (bitsandbytes' Adam).",
    {"dialect": {"decay_mode": "decoupled"}},
    adam_step=Adam(k=lambda o: numbers(o._replace(decoupled_weight_decay=True))).step)
Float32Betas = variant("betas: float32",
    "The betas come as float32, and 1 - beta is exact from there (bitsandbytes on CUDA).",
    **Adam(k=steps.float32_betas).both())
Float32Corrections = variant("bias_correction: float32", "1 - beta^t computed in float32 (optax).",
    **Adam(k=lambda o: numbers(o)._replace(
        c1=1 - np.power(np.float32(o.beta1), np.float32(o.step)),
        c2=1 - np.power(np.float32(o.beta2), np.float32(o.step)))).both())
SignNudged = variant("sign_nudge: yes",
    "A code of m whose level has not the sign of m is moved by one (bitsandbytes on CUDA).",
    adam_step_8bit=Adam(code=_sign_nudged).step_8bit)
RoundedStateUsed = variant("state_used: rounded",
    "The parameter moves by the new moments as their codes say them.",
    adam_step_8bit=Adam(d=lambda k, s: steps.direction(k, _as_coded(s))).step_8bit)
CodedByReciprocal = variant("", "The new moments are scaled by 1 / absmax, as kernels do.",
    adam_step_8bit=Adam(code=steps.coded_by(Encoder(scale=inverted).eight_bit)).step_8bit)
