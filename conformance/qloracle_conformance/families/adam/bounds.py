"""Rules S11 and S11b in numbers: one step of Adam, and how far a lawful one may lie from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import Dialect
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.judging import bounds, expected
from qloracle_conformance.judging.bounds import UNDERFLOW, Bounded, Float64, U, gamma, rounded
from qloracle_conformance.judging.expected import Coder, Float32
from qloracle_conformance.judging.views import specified_levels

KIT = 2.0**-12  # of a bound: the kit's own float64, and products of errors
UNDERFLOWS = 3 * UNDERFLOW  # products that may leave the normal numbers
STEP = 8  # roundings of lr (m'/c1) / (sqrt(v'/c2) + eps)
MAPS = {"m": "signed", "v": "unsigned"}


@dataclass(frozen=True)
class Numbers:
    """The numbers of a step under a dialect; `loose` is what float32 bias corrections add."""

    beta1: float
    beta2: float
    c1: float
    c2: float
    lr: float
    eps: float
    decay: float  # lr wd where the decay is decoupled
    coupled: float  # wd where it is coupled
    after: bool
    loose: float


def numbers(case: Case, dialect: Dialect) -> Numbers:
    """Read the options of a call."""
    options = {**FUNCTIONS[case.function].options, **case.options}
    kind = np.float32 if dialect["betas"] == "float32" else np.float64
    b1, b2 = (float(kind(options[name])) for name in ("beta1", "beta2"))
    t, lr, wd = options["step"], options["lr"], options["weight_decay"]
    asked = "decoupled" if options.get("decoupled_weight_decay", True) else "coupled"
    coupled = dialect.get("decay_mode", "as_asked").replace("as_asked", asked) == "coupled"
    power1, power2 = b1**t, b2**t
    loose = (t + 2) * U["float32"] * (power1 / (1 - power1) + power2 / (2 * (1 - power2)))
    return Numbers(
        b1, b2, 1 - power1, 1 - power2, lr, options["eps"],
        0.0 if coupled else lr * wd, wd if coupled else 0.0,
        dialect["decay_order"] == "after",
        loose if dialect["bias_correction"] == "float32" else 0.0,
    )  # fmt: skip


def wide(array: NDArray[np.generic]) -> Float64:
    """A flat float64 copy."""
    return array.reshape(-1).astype(np.float32).astype(np.float64)


# ---- the moments ---------------------------------------------------------------------------------


@np.errstate(all="ignore")
def moments(case: Case, dialect: Dialect) -> dict[str, Bounded]:
    """The new m and v, from the state that the call was given."""
    k = numbers(case, dialect)
    m, v = state(case, "m"), state(case, "v")
    grad, slack = gradient(case, k)
    w1, w2 = 1 - k.beta1, 1 - k.beta2
    size = np.abs(grad)
    of_m = np.maximum(gamma(2) * k.beta1, gamma(3) * w1) * np.abs(m)
    of_m += w1 * (gamma(3) * size + slack)
    of_v = gamma(2) * k.beta2 * v + w2 * (gamma(3) * size**2 + 2 * size * slack + slack**2)
    return {
        "m": demanded(k.beta1 * m + w1 * grad, of_m, "float32"),
        "v": demanded(k.beta2 * v + w2 * grad**2, of_v, "float32"),
    }


def gradient(case: Case, k: Numbers) -> tuple[Float64, Float64]:
    """The gradient, with a coupled decay added, and what adding it may cost."""
    grad = wide(case.arrays["grad"])
    if not k.coupled:
        return grad, np.zeros(grad.shape)
    decay = k.coupled * wide(case.arrays["param"])
    return grad + decay, gamma(2) * np.abs(decay) + gamma(1) * np.abs(grad + decay)


def demanded(exact: Float64, error: Float64, dtype: str) -> Bounded:
    """The bound of a result; where nothing can go wrong, the one number that is right."""
    error = np.where(error > 0, error * (1 + KIT) + UNDERFLOWS, error)
    correct = rounded(exact, error, "float32")
    if dtype != "float32":
        correct = rounded(exact, correct.bound, dtype)
    only = bounds.nearest(exact, dtype)
    still = error == 0
    return Bounded(np.where(still, only.exact, exact), np.where(still, 0.0, correct.bound))


# ---- the parameter -------------------------------------------------------------------------------


@np.errstate(all="ignore")
def parameter(case: Case, m: Bounded, v: Bounded, dialect: Dialect) -> Bounded:
    """The new parameter, from new moments that are known to lie within bounds."""
    k, param = numbers(case, dialect), wide(case.arrays["param"])
    step, error = direction(m, v, k)
    before = param - step if k.after else param
    cost = (gamma(2) * abs(1 - k.decay) + gamma(3) * k.decay) * np.abs(before) if k.decay else 0.0
    kept = 1 - k.decay
    exact = before * kept - (0.0 if k.after else step)
    error = cost + error * (kept if k.after else 1.0)
    return demanded(exact, error, case.arrays["param"].dtype.name)


def direction(m: Bounded, v: Bounded, k: Numbers) -> tuple[Float64, Float64]:
    """The step lr (m'/c1) / (sqrt(v'/c2) + eps), and how far it may be off.

    The step grows with |m'| and falls with v', and faster where v' is small: no m' and v' within
    their bounds are further from the middle than the largest |m'| over the smallest v'.
    """
    middle = k.lr * m.exact / k.c1 / (np.sqrt(v.exact / k.c2) + k.eps)
    least = np.maximum(v.exact - v.bound, 0.0)
    worst = k.lr * (np.abs(m.exact) + m.bound) / k.c1 / (np.sqrt(least / k.c2) + k.eps)
    roundings = gamma(STEP + (k.decay > 0)) + k.loose
    return middle, roundings * worst + (worst - np.abs(middle))


def known(values: NDArray[np.generic]) -> Bounded:
    """Moments that the implementation returned: exact, whatever they are."""
    return Bounded(wide(values), np.zeros(values.size))


# ---- eight bits ----------------------------------------------------------------------------------


def levels_of(case: Case, kind: str) -> Float32:
    """The map of m or of v: the one passed in, or the dynamic one."""
    return case.arrays.get(f"{kind}_codebook", specified_levels(MAPS[kind]))


def coder_of(case: Case, kind: str) -> Coder:
    """Levels and midpoints by which the codes of m or of v are judged."""
    return expected.coder(levels_of(case, kind), {"thresholds": "midpoint"})


def spread(case: Case, scale: NDArray[np.generic]) -> NDArray[np.generic]:
    """A number for each block, given to each of its elements."""
    return scale.reshape(-1)[_blocks(case).index]


def _blocks(case: Case) -> expected.Blocks:
    return expected.blocks_of(case.arrays["param"].shape, case.option("blocksize"))


@np.errstate(all="ignore")
def decoded(
    case: Case, kind: str, codes: NDArray[np.generic], absmax: NDArray[np.generic]
) -> Float64:
    """S7: level * absmax in float32; a code outside the table reads its last level."""
    levels = levels_of(case, kind)
    level = levels[np.minimum(codes.reshape(-1).astype(np.int64), levels.size - 1)]
    return wide(level * spread(case, absmax).astype(np.float32))


def state(case: Case, kind: str) -> Float64:
    """m or v before the step: as it is, or decoded."""
    if kind in case.arrays:
        return wide(case.arrays[kind])
    return decoded(case, kind, case.arrays[f"{kind}_codes"], case.arrays[f"{kind}_absmax"])


def largest(case: Case, correct: Bounded) -> Bounded:
    """The absmax of each block: the largest magnitude that its elements may have."""
    blocks = _blocks(case)
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    low = np.maximum.reduceat(np.maximum(np.abs(correct.exact) - correct.bound, 0.0), starts)
    high = np.maximum.reduceat(np.abs(correct.exact) + correct.bound, starts)
    return Bounded((high + low) / 2, (high - low) / 2)


@np.errstate(all="ignore")
def ranks(
    case: Case, kind: str, correct: Bounded, absmax: Float32, dialect: Dialect
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest level that S5 gives for some moment within its bound.

    q is the moment over absmax, by a float32 division (one rounding) or times the float32
    reciprocal (two): gamma_2 of itself wider at both ends.  0 over 0 is 0.
    """
    coder, scale = coder_of(case, kind), wide(spread(case, absmax))
    ends = []
    for sign in (-1, 1):
        value = correct.exact + sign * correct.bound
        q = np.where(scale > 0, value / scale, 0.0)
        rank = np.searchsorted(coder.thresholds, q + sign * gamma(2) * np.abs(q), side="left")
        ends.append(_nudged(rank, value, coder, dialect) if kind == "m" else rank)
    return ends[0].astype(np.int64), ends[1].astype(np.int64)


def _nudged(
    rank: NDArray[np.intp], value: Float64, coder: Coder, dialect: Dialect
) -> NDArray[np.intp]:
    """Move a code of m by one where its level has not m's sign, if the dialect does."""
    if dialect["sign_nudge"] != "yes":
        return rank
    level = coder.levels[rank]
    rank = np.where((value < 0) & (level >= 0), rank - 1, rank)
    rank = np.where((value > 0) & (level < 0), rank + 1, rank)
    return np.clip(rank, 0, coder.levels.size - 1)
