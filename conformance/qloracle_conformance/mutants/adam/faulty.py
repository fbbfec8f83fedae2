"""Faulty implementations of Adam: how a step goes wrong."""
# ruff: noqa: D102 (the class tells the story of its functions)

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from qloracle_conformance.mutants.adam.steps import (
    K,
    Moments,
    S,
    after,
    changed,
    first,
    gradient,
    moved,
    second,
    stepper,
    without,
)
from qloracle_conformance.mutants.parts import (
    BFLOAT16,
    Array,
    Right,
    rounded,
)

# ---- the bias correction -------------------------------------------------------------------------


class NoBiasCorrection(Right):
    """The moments are used as they are, too small at first (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=without("c1", "c2")))


class OnlyTheMeanCorrected(Right):
    """The bias correction of v is missing (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=without("c2")))


class OnlyTheSquaresCorrected(Right):
    """The bias correction of m is missing (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=without("c1")))


class StepAhead(Right):
    """The bias correction counts one step too many (DeepSpeed #1823: a step in two calls)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=changed(step=lambda o: o.step + 1)))


class StepBehind(Right):
    """The bias correction counts from zero: the first step is divided by nothing (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=changed(step=lambda o: o.step - 1)))


class StepIn16Bits(Right):
    """The step is kept in 16 bits and starts again after 65,535 (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=changed(step=lambda o: o.step % 65536)))


class CountedByCalls(Right):
    """The optimizer counts its calls instead of taking the step (DeepSpeed #7982)."""

    kills = "S11"
    calls: ClassVar[list[int]] = [0]

    @staticmethod
    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        CountedByCalls.calls[0] += 1
        options["step"] = CountedByCalls.calls[0]
        new: Moments = stepper()(param, grad, m, v, **options)
        return new


class CorrectionWithoutRoot(Right):
    """The root of v is divided by 1 - b2^t itself and not by its root (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m / k.c1) / (np.sqrt(s.v) / k.c2 + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


# ---- eps -----------------------------------------------------------------------------------------


class EpsInsideRoot(Right):
    """eps stands inside the root (tensorflow #9047)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class SquareOfEpsInsideRoot(Right):
    """The square of eps stands inside the root: the same for large gradients only (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps * k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class EpsBeforeCorrection(Right):
    """eps is added before the bias correction, as the paper's short form does (keras #315)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m / k.c1) / ((np.sqrt(s.v) + k.eps) / np.sqrt(k.c2)))

    adam_step = staticmethod(stepper(direct=_direct))


class NoEps(Right):
    """Nothing is added to the root; 0 over 0 is taken as 0 (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray(np.nan_to_num((s.m / k.c1) / np.sqrt(s.v / k.c2)))

    adam_step = staticmethod(stepper(direct=_direct))


class RoughRoot(Right):
    """The root is good to 16 bits, as an unrefined approximation is (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        root = np.sqrt(s.v / k.c2) * np.float32(1 + 2.0**-16)
        return np.asarray((s.m / k.c1) / (root + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class EpsInHalf(Right):
    """eps is rounded to float16, where 1e-8 is 0: a zero gradient gives NaN (optax #1754)."""

    kills = "S11"
    adam_step = staticmethod(
        stepper(count=changed(eps=lambda o: float(np.float16(getattr(o, "eps", 1e-8)))))
    )


# ---- the moments ---------------------------------------------------------------------------------


class OldMeanUsed(Right):
    """The parameter moves by the m of the step before (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m0 / k.c1) / (np.sqrt(s.v / k.c2) + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class OldSquaresUsed(Right):
    """The parameter moves over the v of the step before (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        return np.asarray((s.m / k.c1) / (np.sqrt(s.v0 / k.c2) + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class LargestSquaresUsed(Right):
    """AMSGrad is left on: the larger of the old and the new v is used (rule S11)."""

    kills = "S11"

    @staticmethod
    def _direct(k: K, s: S) -> Array:
        largest = np.maximum(s.v, s.v0)
        return np.asarray((s.m / k.c1) / (np.sqrt(largest / k.c2) + k.eps))

    adam_step = staticmethod(stepper(direct=_direct))


class SquaresInBFloat16(Right):
    """v is kept in bfloat16: b2 v rounds back to v, and v never shrinks (rule S11)."""

    kills = "S11"

    @staticmethod
    def _second(k: K, s: S) -> Array:
        return rounded(second(k, s), BFLOAT16)

    adam_step = staticmethod(stepper(second=_second))


class MeanInBFloat16(Right):
    """m is kept in bfloat16 (rule S11)."""

    kills = "S11"

    @staticmethod
    def _first(k: K, s: S) -> Array:
        return rounded(first(k, s), BFLOAT16)

    adam_step = staticmethod(stepper(first=_first))


class NotSquared(Right):
    """v is a mean of |g| (rule S11)."""

    kills = "S11"

    @staticmethod
    def _second(k: K, s: S) -> Array:
        return np.asarray(k.b2 * s.v0 + k.w2 * np.abs(s.g))

    adam_step = staticmethod(stepper(second=_second))


class SquaredInItsType(Right):
    """A 16-bit gradient is squared in 16 bits (rule S11)."""

    kills = "S11"

    @staticmethod
    def adam_step(param: Array, grad: Array, m: Array, v: Array, **options: Any) -> Moments:
        with np.errstate(all="ignore"):
            square = (grad * grad).reshape(-1).astype(np.float32)

        def squares(k: K, s: S) -> Array:
            return np.asarray(k.b2 * s.v0 + k.w2 * square) if not k.wd else second(k, s)

        new: Moments = stepper(second=squares)(param, grad, m, v, **options)
        return new


class BetasSwapped(Right):
    """beta1 and beta2 are swapped (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(
        stepper(
            count=changed(
                beta1=lambda o: getattr(o, "beta2", 0.999), beta2=lambda o: getattr(o, "beta1", 0.9)
            )
        )
    )


class GradientInBFloat16(Right):
    """The gradient is rounded to bfloat16 before it is used (rule S11)."""

    kills = "S11"

    @staticmethod
    def _read(k: K, s: S) -> Array:
        s.g = rounded(s.g, BFLOAT16)
        return gradient(k, s)

    adam_step = staticmethod(stepper(read=_read))


# ---- the rate and the decay ----------------------------------------------------------------------


class RateInDenominator(Right):
    """The step size is folded into the denominator: lr = 0 gives NaN (pytorch #97004)."""

    kills = "S11"

    @staticmethod
    def _move(k: K, s: S) -> Array:
        size = -k.lr / k.c1
        least = np.sqrt(s.v) / (np.sqrt(k.c2) * size) + k.eps / size
        return np.asarray(s.p * k.kept + s.m / least)

    adam_step = staticmethod(stepper(move=_move))


class RateInBFloat16(Right):
    """lr travels as a bfloat16 (rule S11)."""

    kills = "S11"
    adam_step = staticmethod(
        stepper(count=changed(lr=lambda o: float(rounded(np.array(o.lr), BFLOAT16))))
    )


class CoupledForDecoupled(Right):
    """Weight decay goes through the gradient, whatever is asked for (bitsandbytes #1992)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=changed(decoupled_weight_decay=lambda _: False)))


class DecoupledForCoupled(Right):
    """Weight decay is decoupled, whatever is asked for (bitsandbytes' Adam; DeepSpeed #8307)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=changed(decoupled_weight_decay=lambda _: True)))


class DecayInMeanOnly(Right):
    """Coupled decay enters m and not v (rule S11)."""

    kills = "S11"

    @staticmethod
    def _second(k: K, s: S) -> Array:
        return np.asarray(k.b2 * s.v0 + k.w2 * s.g0 * s.g0)

    adam_step = staticmethod(stepper(second=_second))


class DecayedTwice(Right):
    """The decay is applied before the update and to its result again (rule S11)."""

    kills = "S11"

    @staticmethod
    def _move(k: K, s: S) -> Array:
        return np.asarray((s.p * k.kept - k.lr * s.d) * k.kept)

    adam_step = staticmethod(stepper(move=_move))


class NoDecay(Right):
    """Decoupled weight decay is taken and ignored (bitsandbytes #1261 of other options)."""

    kills = "S11"
    adam_step = staticmethod(stepper(count=without("kept")))


class DecayAfterUndeclared(Right):
    """The update is decayed too, and the declaration says that it is not (bitsandbytes #2010)."""

    kills = "S11"
    dialect: ClassVar = {"decay_order": "before"}
    adam_step = staticmethod(stepper(move=after))


class ParameterRoundedTwice(Right):
    """A 16-bit parameter is rounded after the decay and again after the update (bitsandbytes)."""

    kills = "S11"

    @staticmethod
    def _move(k: K, s: S) -> Array:
        return np.asarray(rounded(s.p * k.kept, s.dtype) - k.lr * s.d)

    adam_step = staticmethod(stepper(move=_move))


class UpdateInItsType(Right):
    """The update is rounded to the parameter's 16 bits before it is subtracted (rule S11)."""

    kills = "S11"

    @staticmethod
    def _move(k: K, s: S) -> Array:
        return np.asarray(s.p * k.kept - rounded(k.lr * s.d, s.dtype))

    adam_step = staticmethod(stepper(move=_move))


# ---- what is left out ----------------------------------------------------------------------------


class LastNotWritten(Right):
    """The last of several elements keeps its parameter: the loop ends one early (rule S11)."""

    kills = "S11"

    @staticmethod
    def _move(k: K, s: S) -> Array:
        last = np.arange(s.p.size) == max(s.p.size - 1, 1)
        return np.where(last, s.p, moved(k, s))

    adam_step = staticmethod(stepper(move=_move))


class TailLeft(Right):
    """What is left over from vectors of four keeps its moments (rule S11)."""

    kills = "S11"

    @staticmethod
    def _first(k: K, s: S) -> Array:
        tail = np.arange(s.g.size) >= s.g.size // 4 * 4
        return np.where(tail, s.m0, first(k, s))

    adam_step = staticmethod(stepper(first=_first))
