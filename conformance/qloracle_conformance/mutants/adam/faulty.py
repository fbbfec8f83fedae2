"""Faulty implementations of Adam: how a step goes wrong."""

import itertools
from typing import Any

import numpy as np

from qloracle_conformance.mutants.adam import steps
from qloracle_conformance.mutants.adam.steps import first, moved, numbers, second, stepper
from qloracle_conformance.mutants.parts import BFLOAT16, Array, Step, fault, rounded

ROUGH = np.float32(1 + 2.0**-16)


def _counted_by_calls() -> Step:
    step, calls = stepper(), itertools.count(1)
    return lambda *arrays, **options: step(*arrays, **options | {"step": next(calls)})


def _rate_in_denominator(k: steps.Numbers, s: steps.State) -> Array:
    size = -k.lr / k.c1
    least = np.sqrt(s.v) / (np.sqrt(k.c2) * size) + k.eps / size
    return np.asarray(s.p * k.kept + s.m / least)


@np.errstate(all="ignore")
def _squared_in_its_type(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Any:
    square = (grad * grad).reshape(-1).astype(np.float32)
    step = stepper(second=lambda k, s: second(k, s) if k.wd else k.b2 * s.v0 + k.w2 * square)
    return step(param, grad, m, v, **options)


# fmt: off
# ---- the bias correction -------------------------------------------------------------------------

NoBiasCorrection = fault("S11", "The moments are used as they are, too small at first.",
    adam_step=stepper(count=lambda o: numbers(o)._replace(c1=1, c2=1)))
OnlyTheMeanCorrected = fault("S11", "The bias correction of v is missing.",
    adam_step=stepper(count=lambda o: numbers(o)._replace(c2=1)))
OnlyTheSquaresCorrected = fault("S11", "The bias correction of m is missing.",
    adam_step=stepper(count=lambda o: numbers(o)._replace(c1=1)))
StepAhead = fault("S11",
    "The bias correction counts one step too many (DeepSpeed #1823: a step in two calls).",
    adam_step=stepper(count=lambda o: numbers(o._replace(step=o.step + 1))))
StepBehind = fault("S11", "The bias correction counts from zero: the first step divides by zero.",
    adam_step=stepper(count=lambda o: numbers(o._replace(step=o.step - 1))))
StepIn16Bits = fault("S11", "The step is kept in 16 bits and starts again after 65,535.",
    adam_step=stepper(count=lambda o: numbers(o._replace(step=o.step % 65536))))
CountedByCalls = fault("S11",
    "The optimizer counts its calls and ignores the step (DeepSpeed #7982).",
    adam_step=_counted_by_calls())
CorrectionWithoutRoot = fault("S11", "sqrt(v) is divided by 1 - b2^t itself instead of its root.",
    adam_step=stepper(direct=lambda k, s: (s.m / k.c1) / (np.sqrt(s.v) / k.c2 + k.eps)))

# ---- eps -----------------------------------------------------------------------------------------

EpsInsideRoot = fault("S11", "eps stands inside the root (tensorflow #9047).",
    adam_step=stepper(direct=lambda k, s: (s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps)))
SquareOfEpsInsideRoot = fault("S11",
    "The square of eps stands inside the root: the same for large gradients only.",
    adam_step=stepper(direct=lambda k, s: (s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps * k.eps)))
EpsBeforeCorrection = fault("S11",
    "eps is added before the bias correction, as the paper's short form does (keras #315).",
    adam_step=stepper(
        direct=lambda k, s: (s.m / k.c1) / ((np.sqrt(s.v) + k.eps) / np.sqrt(k.c2))))
NoEps = fault("S11", "Nothing is added to the root; 0 over 0 is taken as 0.",
    adam_step=stepper(direct=lambda k, s: np.nan_to_num((s.m / k.c1) / np.sqrt(s.v / k.c2))))
RoughRoot = fault("S11", "The root is good to 16 bits, as an unrefined approximation is.",
    adam_step=stepper(direct=lambda k, s: (s.m / k.c1) / (np.sqrt(s.v / k.c2) * ROUGH + k.eps)))
EpsInHalf = fault("S11",
    "eps is rounded to float16, where 1e-8 is 0: a zero gradient gives NaN (optax #1754).",
    adam_step=stepper(count=lambda o: numbers(o._replace(eps=float(np.float16(o.eps))))))

# ---- the moments ---------------------------------------------------------------------------------

OldMeanUsed = fault("S11", "The parameter moves by the m of the step before.",
    adam_step=stepper(direct=lambda k, s: steps.direction(k, s._replace(m=s.m0))))
OldSquaresUsed = fault("S11", "The parameter moves over the v of the step before.",
    adam_step=stepper(direct=lambda k, s: steps.direction(k, s._replace(v=s.v0))))
LargestSquaresUsed = fault("S11", "AMSGrad is left on: the larger of old and new v is used.",
    adam_step=stepper(direct=lambda k, s: steps.direction(k, s._replace(v=np.maximum(s.v, s.v0)))))
SquaresInBFloat16 = fault("S11",
    "v is kept in bfloat16: b2 v rounds back to v, which never shrinks.",
    adam_step=stepper(second=lambda k, s: rounded(second(k, s), BFLOAT16)))
MeanInBFloat16 = fault("S11", "m is kept in bfloat16.",
    adam_step=stepper(first=lambda k, s: rounded(first(k, s), BFLOAT16)))
NotSquared = fault("S11", "v is a mean of |g| instead of g^2.",
    adam_step=stepper(second=lambda k, s: k.b2 * s.v0 + k.w2 * np.abs(s.g)))
SquaredInItsType = fault("S11", "A 16-bit gradient is squared in 16 bits.",
    adam_step=_squared_in_its_type)
BetasSwapped = fault("S11", "beta1 and beta2 are swapped.",
    adam_step=stepper(count=lambda o: numbers(o._replace(beta1=o.beta2, beta2=o.beta1))))
GradientInBFloat16 = fault("S11", "The gradient is rounded to bfloat16 before it is used.",
    adam_step=stepper(read=lambda k, s: steps.gradient(k, s._replace(g=rounded(s.g, BFLOAT16)))))

# ---- the rate and the decay ----------------------------------------------------------------------

RateInDenominator = fault("S11",
    "The step size is folded into the denominator: lr = 0 gives NaN (pytorch #97004).",
    adam_step=stepper(move=_rate_in_denominator))
RateInBFloat16 = fault("S11", "lr travels as a bfloat16.",
    adam_step=stepper(
        count=lambda o: numbers(o._replace(lr=float(rounded(np.array(o.lr), BFLOAT16))))))
CoupledForDecoupled = fault("S11",
    "Weight decay goes through the gradient, whatever is asked for (bitsandbytes #1992).",
    adam_step=stepper(count=lambda o: numbers(o._replace(decoupled_weight_decay=False))))
DecoupledForCoupled = fault("S11",
    "Weight decay is decoupled, whatever is asked for (bitsandbytes' Adam; DeepSpeed #8307).",
    adam_step=stepper(count=lambda o: numbers(o._replace(decoupled_weight_decay=True))))
DecayInMeanOnly = fault("S11", "Coupled decay enters m and not v.",
    adam_step=stepper(second=lambda k, s: second(k, s._replace(g=s.g0))))
DecayedTwice = fault("S11", "The decay is applied before the update and to its result again.",
    adam_step=stepper(move=lambda k, s: moved(k, s) * k.kept))
NoDecay = fault("S11", "Decoupled weight decay is ignored (bitsandbytes #1261 of other options).",
    adam_step=stepper(count=lambda o: numbers(o)._replace(kept=1)))
DecayAfterUndeclared = fault("S11",
    "The update is decayed too, and the declaration says that it is not (bitsandbytes #2010).",
    {"dialect": {"decay_order": "before"}}, adam_step=stepper(move=steps.after))
ParameterRoundedTwice = fault("S11",
    "A 16-bit parameter is rounded after the decay and again after the update (bitsandbytes).",
    adam_step=stepper(move=lambda k, s: rounded(s.p * k.kept, s.dtype) - k.lr * s.d))
UpdateInItsType = fault("S11", "The update is rounded to the parameter's 16 bits, then subtracted.",
    adam_step=stepper(move=lambda k, s: s.p * k.kept - rounded(k.lr * s.d, s.dtype)))

# ---- what is left out ----------------------------------------------------------------------------

LastNotWritten = fault("S11", "The loop ends one early: the last of several parameters stays.",
    adam_step=stepper(
        move=lambda k, s: np.where(np.arange(s.p.size) == max(s.p.size - 1, 1), s.p, moved(k, s))))
TailLeft = fault("S11", "What is left over from vectors of four keeps its moments.",
    adam_step=stepper(
        first=lambda k, s: np.where(np.arange(s.p.size) >= s.g.size // 4 * 4, s.m0, first(k, s))))
