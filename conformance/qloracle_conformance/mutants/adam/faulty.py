"""Faulty implementations of Adam: how a step goes wrong."""

import itertools
from typing import Any

import numpy as np

from qloracle_conformance.mutants.adam import steps
from qloracle_conformance.mutants.adam.steps import Adam, first, moved, numbers, second
from qloracle_conformance.mutants.parts import BFLOAT16, Array, fault, rounded

ROUGH = np.float32(1 + 2.0**-16)
CALLS = itertools.count(1)


@np.errstate(all="ignore")
def _squared_in_its_type(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Any:
    square = (grad * grad).reshape(-1).astype(np.float32)
    step = Adam(v=lambda k, s: second(k, s) if k.wd else k.b2 * s.v0 + k.w2 * square).step
    return step(param, grad, m, v, **options)


# fmt: off
# ---- the bias correction -------------------------------------------------------------------------

NoBiasCorrection = fault("S11", "The moments are used as they are, too small at first.",
    adam_step=Adam(k=lambda o: numbers(o)._replace(c1=1, c2=1)).step)
OnlyTheMeanCorrected = fault("S11", "The bias correction of v is missing.",
    adam_step=Adam(k=lambda o: numbers(o)._replace(c2=1)).step)
OnlyTheSquaresCorrected = fault("S11", "The bias correction of m is missing.",
    adam_step=Adam(k=lambda o: numbers(o)._replace(c1=1)).step)
StepAhead = fault("S11",
    "The bias correction counts one step too many (DeepSpeed #1823: a step in two calls).",
    adam_step=Adam(k=lambda o: numbers(o._replace(step=o.step + 1))).step)
StepBehind = fault("S11", "The bias correction counts from zero: the first step divides by zero.",
    adam_step=Adam(k=lambda o: numbers(o._replace(step=o.step - 1))).step)
StepIn16Bits = fault("S11", "The step is kept in 16 bits and starts again after 65,535.",
    adam_step=Adam(k=lambda o: numbers(o._replace(step=o.step % 65536))).step)
CountedByCalls = fault("S11",
    "The optimizer counts its calls and ignores the step (DeepSpeed #7982).",
    adam_step=lambda *arrays, **options:
        Adam().step(*arrays, **options | {"step": next(CALLS)}))
CorrectionWithoutRoot = fault("S11", "sqrt(v) is divided by 1 - b2^t itself instead of its root.",
    adam_step=Adam(d=lambda k, s: (s.m / k.c1) / (np.sqrt(s.v) / k.c2 + k.eps)).step)

# ---- eps -----------------------------------------------------------------------------------------

EpsInsideRoot = fault("S11", "eps stands inside the root (tensorflow #9047).",
    adam_step=Adam(d=lambda k, s: (s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps)).step)
SquareOfEpsInsideRoot = fault("S11",
    "The square of eps stands inside the root: the same for large gradients only.",
    adam_step=Adam(d=lambda k, s: (s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps * k.eps)).step)
EpsBeforeCorrection = fault("S11",
    "eps is added before the bias correction, as the paper's short form does (keras #315).",
    adam_step=Adam(
        d=lambda k, s: (s.m / k.c1) / ((np.sqrt(s.v) + k.eps) / np.sqrt(k.c2))).step)
NoEps = fault("S11", "Nothing is added to the root; 0 over 0 is taken as 0.",
    adam_step=Adam(d=lambda k, s: np.nan_to_num((s.m / k.c1) / np.sqrt(s.v / k.c2))).step)
RoughRoot = fault("S11", "The root is good to 16 bits, as an unrefined approximation is.",
    adam_step=Adam(d=lambda k, s: (s.m / k.c1) / (np.sqrt(s.v / k.c2) * ROUGH + k.eps)).step)
EpsInHalf = fault("S11",
    "eps is rounded to float16, where 1e-8 is 0: a zero gradient gives NaN (optax #1754).",
    adam_step=Adam(k=lambda o: numbers(o._replace(eps=float(np.float16(o.eps))))).step)

# ---- the moments ---------------------------------------------------------------------------------

OldMeanUsed = fault("S11", "The parameter moves by the m of the step before.",
    adam_step=Adam(d=lambda k, s: steps.direction(k, s._replace(m=s.m0))).step)
OldSquaresUsed = fault("S11", "The parameter moves over the v of the step before.",
    adam_step=Adam(d=lambda k, s: steps.direction(k, s._replace(v=s.v0))).step)
LargestSquaresUsed = fault("S11", "AMSGrad is left on: the larger of old and new v is used.",
    adam_step=Adam(d=lambda k, s: steps.direction(k, s._replace(v=np.maximum(s.v, s.v0)))).step)
SquaresInBFloat16 = fault("S11",
    "v is kept in bfloat16: b2 v rounds back to v, which never shrinks.",
    adam_step=Adam(v=lambda k, s: rounded(second(k, s), BFLOAT16)).step)
MeanInBFloat16 = fault("S11", "m is kept in bfloat16.",
    adam_step=Adam(m=lambda k, s: rounded(first(k, s), BFLOAT16)).step)
NotSquared = fault("S11", "v is a mean of |g| instead of g^2.",
    adam_step=Adam(v=lambda k, s: k.b2 * s.v0 + k.w2 * np.abs(s.g)).step)
SquaredInItsType = fault("S11", "A 16-bit gradient is squared in 16 bits.",
    adam_step=_squared_in_its_type)
BetasSwapped = fault("S11", "beta1 and beta2 are swapped.",
    adam_step=Adam(k=lambda o: numbers(o._replace(beta1=o.beta2, beta2=o.beta1))).step)
GradientInBFloat16 = fault("S11", "The gradient is rounded to bfloat16 before it is used.",
    adam_step=Adam(g=lambda k, s: steps.gradient(k, s._replace(g=rounded(s.g, BFLOAT16)))).step)

# ---- the rate and the decay ----------------------------------------------------------------------

RateInDenominator = fault("S11",
    "The step size is folded into the denominator: lr = 0 gives NaN (pytorch #97004).",
    adam_step=Adam(p=lambda k, s: s.p * k.kept - s.m / (
        np.sqrt(s.v) / (np.sqrt(k.c2) * (k.lr / k.c1)) + k.eps / (k.lr / k.c1))).step)
RateInBFloat16 = fault("S11", "lr travels as a bfloat16.",
    adam_step=Adam(
        k=lambda o: numbers(o._replace(lr=float(rounded(np.array(o.lr), BFLOAT16))))).step)
CoupledForDecoupled = fault("S11",
    "Weight decay goes through the gradient, whatever is asked for (bitsandbytes #1992).",
    adam_step=Adam(k=lambda o: numbers(o._replace(decoupled_weight_decay=False))).step)
DecoupledForCoupled = fault("S11",
    "Weight decay is decoupled, whatever is asked for (bitsandbytes' Adam; DeepSpeed #8307).",
    adam_step=Adam(k=lambda o: numbers(o._replace(decoupled_weight_decay=True))).step)
DecayInMeanOnly = fault("S11", "Coupled decay enters m and not v.",
    adam_step=Adam(v=lambda k, s: second(k, s._replace(g=s.g0))).step)
DecayedTwice = fault("S11", "The decay is applied before the update and to its result again.",
    adam_step=Adam(p=lambda k, s: moved(k, s) * k.kept).step)
NoDecay = fault("S11", "Decoupled weight decay is ignored (bitsandbytes #1261 of other options).",
    adam_step=Adam(k=lambda o: numbers(o)._replace(kept=1)).step)
DecayAfterUndeclared = fault("S11",
    "The update is decayed too, and the declaration says that it is not (bitsandbytes #2010).",
    {"dialect": {"decay_order": "before"}}, adam_step=Adam(p=steps.after).step)
ParameterRoundedTwice = fault("S11",
    "A 16-bit parameter is rounded after the decay and again after the update (bitsandbytes).",
    adam_step=Adam(p=lambda k, s: rounded(s.p * k.kept, s.dtype) - k.lr * s.d).step)
UpdateInItsType = fault("S11", "The update is rounded to the parameter's 16 bits, then subtracted.",
    adam_step=Adam(p=lambda k, s: s.p * k.kept - rounded(k.lr * s.d, s.dtype)).step)

# ---- what is left out ----------------------------------------------------------------------------

LastNotWritten = fault("S11", "The loop ends one early: the last of several parameters stays.",
    adam_step=Adam(p=lambda k, s:
        np.where(np.arange(s.p.size) == max(s.p.size - 1, 1), s.p, moved(k, s))).step)
TailLeft = fault("S11", "What is left over from vectors of four keeps its moments.",
    adam_step=Adam(
        m=lambda k, s: np.where(np.arange(s.p.size) >= s.g.size // 4 * 4, s.m0, first(k, s))).step)
