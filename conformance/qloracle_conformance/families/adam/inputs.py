"""Calls of Adam: parameters, gradients and states over the decades of real ones, and edits.

No number is subnormal, nor are the moments and steps that follow from it (except where a check says
so): whether a kernel flushes subnormals is not Adam's question.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Arrays, Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View

Array = NDArray[Any]
Shape = tuple[int, ...]

STEPS = (1, 2, 10, 1000, 2**24)
SHUFFLED = (1000, 1, 2, 10, 2**24, 1, 1000)
BETAS = (
    (0.9, 0.999), (0.95, 0.98), (0.87654321, 0.987654321), (0.5, 0.9), (0.0, 0.99), (0.1, 0.75),
)  # fmt: skip
LR = 0.00123456789  # a full mantissa, as 1e-3 has one
TYPES = [(param, grad) for param in FLOAT_TYPES for grad in dict.fromkeys((param, "float32"))]
N = 300
ZERO_CODES = {"m": 127, "v": 0}
HALVES = (("m", 1), ("v", 2))  # scales of edited states: by 2 and by 4 a block


def plain(ask: Asker, view: View) -> Case:
    """A call that every implementation should take: the first step of one full block."""
    one = np.ones(256, FLOAT_TYPES[ask.dtype(view)])
    return first(view, one, one, "", lr=0.001)


# ---- float32 states ------------------------------------------------------------------------------


def stepped(param: Array, grad: Array, m: Array, v: Array, note: str = "", **options: Any) -> Case:
    """A call of adam_step; m and v in float32, the options that are not given at their defaults."""
    state = {"m": np.asarray(m, np.float32), "v": np.asarray(v, np.float32)}
    arrays = {"param": param, "grad": grad, **state}
    return Case("adam_step", arrays, {"step": 1, "lr": LR, **options}, note)


def sized(rng: np.random.Generator, shape: Shape, low: float = -9, high: float = 1) -> Float32:
    """Numbers of both signs whose magnitudes are spread evenly over the decades low to high."""
    size = 10 ** rng.uniform(low, high, shape) * rng.choice([-1.0, 1.0], shape)
    return np.asarray(size, np.float32)


def old_state(rng: np.random.Generator, grad: Array) -> tuple[Float32, Float32]:
    """Moments that a few gradients of the size of `grad` leave, some of them near to cancelling."""
    size = np.abs(grad.astype(np.float64)) + 1e-9
    m = size * rng.normal(0, 1, grad.shape)
    m = np.where(rng.random(grad.shape) < 0.1, -grad.astype(np.float64) * rng.uniform(0.1, 0.12), m)
    v = size**2 * rng.uniform(0.1, 2, grad.shape)
    return np.asarray(m, np.float32), np.asarray(v, np.float32)


def ordinary(rng: np.random.Generator, shape: Shape, note: str, **options: Any) -> Case:
    """Parameters around 1, gradients of a few decades, states as they leave them."""
    grad = sized(rng, shape, -4, 0)
    m, v = old_state(rng, grad)
    param = np.asarray(rng.normal(0, 1, shape), np.float32)
    return stepped(param, grad, m, v, note, **options)


def typed(case: Case, param: str, grad: str) -> Case:
    """The case with its parameter and gradient in other types."""
    with np.errstate(all="ignore"):
        return case.with_arrays(
            param=case.arrays["param"].astype(FLOAT_TYPES[param]),
            grad=case.arrays["grad"].astype(FLOAT_TYPES[grad]),
        )


# ---- 8-bit states --------------------------------------------------------------------------------


def fresh(n: int, blocksize: int = 256) -> Arrays:
    """The state before the first step: the codes of zero under scales of zero."""
    blocks = -(-n // blocksize)
    return {
        "m_codes": np.full(n, ZERO_CODES["m"], np.uint8),
        "m_absmax": np.zeros(blocks, np.float32),
        "v_codes": np.full(n, ZERO_CODES["v"], np.uint8),
        "v_absmax": np.zeros(blocks, np.float32),
    }


def coded(param: Array, grad: Array, state: Arrays, note: str = "", **options: Any) -> Case:
    """A call of adam_step_8bit; maps to be passed in stand in the state."""
    arrays = {"param": param, "grad": grad, **state}
    return Case("adam_step_8bit", arrays, {"step": 1, "lr": LR, **options}, note)


def random_state(
    rng: np.random.Generator, n: int, blocksize: int = 256, size: float = 1.0
) -> dict[str, Array]:
    """Codes of all kinds, but not the largest; scales that differ from block to block by 2^k.

    A block without its largest level is one that coding again would change.
    """
    blocks = -(-n // blocksize)
    ramp = np.ldexp(rng.uniform(0.5, 1, blocks), -(np.arange(blocks) % 7))
    return {
        "m_codes": rng.integers(8, 250, n).astype(np.uint8),
        "m_absmax": (size * ramp).astype(np.float32),
        "v_codes": rng.integers(80, 250, n).astype(np.uint8),
        "v_absmax": (size**2 * ramp[::-1] ** 2).astype(np.float32),
    }


def ordinary_8bit(
    rng: np.random.Generator, shape: Shape, note: str, blocksize: int = 256, **options: Any
) -> Case:
    """Parameters around 1, and gradients about as large as the means of the element's block."""
    n = math.prod(shape)
    state = random_state(rng, n, blocksize)
    scale = np.repeat(state["m_absmax"], blocksize)[:n].reshape(shape)
    grad = np.asarray(scale * rng.normal(0, 1, shape), np.float32)
    param = np.asarray(rng.normal(0, 1, shape), np.float32)
    sizes = {} if blocksize == 256 else {"blocksize": blocksize}
    return coded(param, grad, state, note, **sizes, **options)


# ---- for both kinds of state ---------------------------------------------------------------------


def drawn(view: View, rng: np.random.Generator, shape: Shape, note: str, **options: Any) -> Case:
    """An ordinary call of the view's function."""
    make = ordinary_8bit if view.function == "adam_step_8bit" else ordinary
    return make(rng, shape, note, **options)


def first(view: View, param: Array, grad: Array, note: str, **options: Any) -> Case:
    """A call on a state of zero."""
    if view.function == "adam_step_8bit":
        return coded(param, grad, fresh(grad.size), note, **options)
    zero = np.zeros(grad.shape, np.float32)
    return stepped(param, grad, zero, zero, note, **options)


def later(
    view: View, rng: np.random.Generator, param: Array, grad: Array, note: str, **options: Any
) -> Case:
    """A call on a state that other gradients have left, of the size of `grad` in float32."""
    if view.function == "adam_step_8bit":
        return coded(param, grad, random_state(rng, grad.size), note, **options)
    return stepped(param, grad, *old_state(rng, grad), note, **options)


def at_zero(
    view: View, rng: np.random.Generator, low: float, high: float, **options: Any
) -> Iterator[Case]:
    """At p = 0, where nothing hides the step: from nothing, and from a state."""
    zero, grad = np.zeros(N, np.float32), sized(rng, (N,), low, high)
    yield first(view, zero, grad, "p = 0, first moments", **options)
    yield later(view, rng, zero, grad, "p = 0, from a state", **options)


def steps(plan: Plan) -> Iterator[Case]:
    """At p = 0, from nothing and from a state, from the first step to the 2^24th."""
    view, rng = plan.view, plan.rng
    for step in STEPS:
        for beta1, beta2 in BETAS[:3]:
            yield from at_zero(view, rng, -3, 1, beta1=beta1, beta2=beta2, step=step)


def parameters(plan: Plan) -> Iterator[Case]:
    """Beside a parameter from 1e-3 to 1e3, from a state; small and large steps."""
    rng = plan.rng
    for step in STEPS:
        for lr in (LR, 0.3):
            case = drawn(plan.view, rng, (N,), "p from 1e-3 to 1e3", step=step, lr=lr)
            yield case.with_arrays(param=sized(rng, (N,), -3, 3))


def eps(plan: Plan) -> Iterator[Case]:
    """Gradients from 1e-9 to 10 beside three eps, where the root is smaller and where it is not."""
    rng = plan.rng
    for value in (1e-8, 1e-6, 1.234567e-3):
        for step in (1, 2, 1000):
            yield from at_zero(plan.view, rng, -9, 1, eps=value, step=step)


def decays(plan: Plan) -> Iterator[Case]:
    """lr wd from 1e-2 to 1/4, p from 1e-3 to 1e3, with and without a gradient; coupled as well."""
    view, rng, shape = plan.view, plan.rng, (600,)
    coupled = {"decoupled_weight_decay": False}
    for options in ({}, coupled) if view.function == "adam_step" else ({},):
        for lr, wd in ((0.1, 0.1), (0.03, 0.7), (0.5, 0.5)):
            case = drawn(view, rng, shape, "a decay", step=3, lr=lr, weight_decay=wd, **options)
            case = case.with_arrays(param=sized(rng, shape, -3, 3))
            yield case
            yield case.with_arrays(grad=np.zeros(shape, np.float32))


def order(plan: Plan) -> Iterator[Case]:
    """Steps out of order and repeated, one tensor in two pieces: the count is the argument's."""
    view, rng, zero = plan.view, plan.rng, np.zeros(N, np.float32)
    for step in (*SHUFFLED, *SHUFFLED[::-1]):
        yield drawn(view, rng, (N,), f"step {step}", step=step).with_arrays(param=zero)
    for _ in range(2):
        yield first(view, zero[:1], zero[:1] + 1, "one tensor in two pieces", step=1)
    yield drawn(view, rng, (N,), "lr 0", lr=0.0, step=3)


def types(plan: Plan) -> Iterator[Case]:
    """Three types of parameters, gradients of the same type or float32; small and large steps."""
    rng = plan.rng
    for param, grad in TYPES:
        for lr, wd in itertools.product((LR, 0.1), (0.0, 0.5)):
            note, options = f"{param} with {grad}", {"step": 5, "lr": lr, "weight_decay": wd}
            yield typed(drawn(plan.view, rng, (1000,), note, **options), param, grad)


def volume(plan: Plan) -> Iterator[Case]:
    """Random steps of all kinds."""
    rng, shape = plan.rng, (plan.pick(1 << 13, 1 << 16),)
    for i in range(plan.pick(2, 24)):
        beta1, beta2 = BETAS[i % 3]
        options = {"beta1": beta1, "beta2": beta2, "weight_decay": i % 2 / 10}
        step = int(rng.integers(1, 2000))
        case = drawn(plan.view, rng, shape, "random volume", step=step, lr=0.01, **options)
        yield typed(case, *TYPES[i % len(TYPES)])


def forms(plan: Plan) -> Iterator[Case]:
    """Rule P5: a step on vectors, matrices and equal numbers."""
    rng = plan.rng
    for shape in ((257,), (33, 17), (4, 256)):
        for types in (("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")):
            case = drawn(plan.view, rng, shape, f"shape {shape}", step=3, weight_decay=0.1)
            yield typed(case, *types)
    one = np.ones((2, 256), np.float32)  # right in the plain form even where others fail
    yield first(plan.view, one, one, "all equal", step=3)


# ---- edits ---------------------------------------------------------------------------------------


def edited(plan: Plan) -> Any:
    """Hypothesis: zeros with up to four elements that are not, and ordinary options."""
    from hypothesis import strategies as st

    full = st.tuples(st.integers(1 << 23, (1 << 24) - 1), st.integers(-53, -15))
    number = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 10.0]), full.map(lambda pair: math.ldexp(*pair))
    )
    options = {
        "step": st.sampled_from((*STEPS, 3, 100)),
        "lr": st.sampled_from([1.0, 0.001, LR, 0.0]),
        "betas": st.sampled_from(BETAS),
        "eps": st.sampled_from([1e-8, 1e-6]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
    }
    float32_state = plan.view.function == "adam_step"
    if float32_state:
        options["decoupled_weight_decay"] = st.booleans()
    return st.builds(
        _edited if float32_state else _edited_8bit,
        st.integers(1, 600),
        st.lists(st.tuples(st.integers(0, 599), *[number] * 4), max_size=4),
        st.sampled_from(TYPES),
        st.fixed_dictionaries(options),
    )


def _edited(n: int, edits: list[Any], types: tuple[str, str], options: dict[str, Any]) -> Case:
    arrays = np.zeros((4, n), np.float32)
    for where, *numbers in edits:
        arrays[:, where % n] = numbers
    param, grad, m, v = arrays
    return typed(stepped(param, grad, m, np.abs(v), "edits", **_named(options)), *types)


def _edited_8bit(n: int, edits: list[Any], types: tuple[str, str], options: dict[str, Any]) -> Case:
    param, grad = np.zeros((2, n), np.float32)
    state, blocks = dict(fresh(n)), np.arange(-(-n // 256))
    state |= {f"{k}_absmax": np.ldexp(np.ones(blocks.size, "f4"), -p * blocks) for k, p in HALVES}
    for where, *numbers in edits:
        param[where % n], grad[where % n] = numbers[:2]
        state["m_codes"][where % n] = 7 * where % 256
        state["v_codes"][where % n] = 80 + where % 176
    return typed(coded(param, grad, state, "edits", **_named(options)), *types)


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call; a decay of zero is left out."""
    beta1, beta2 = options["betas"]
    others = {name: value for name, value in options.items() if name != "betas"}
    if not others["weight_decay"]:
        others = {k: v for k, v in others.items() if "decay" not in k}
    return {**others, "beta1": beta1, "beta2": beta2}
