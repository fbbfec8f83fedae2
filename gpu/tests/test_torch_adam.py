"""Adam in `qloracle_gpu.torch_backend`: the reference's bits, in 32 bits and in 8."""

import re

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import library  # noqa: E402
from torch._library.custom_ops import OPDEFS  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from qloracle_gpu import torch_backend  # noqa: E402
from qloracle_gpu.torch_backend import adam  # noqa: E402

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
STEPS = (1, 2, 10, 1000, 2**24)
fixed = settings(derandomize=True, deadline=None, max_examples=150)


# ---- from NumPy to torch and back, by the bits ---------------------------------------------------


def give(value):
    """An argument of the reference as one of torch: arrays, the rest as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def bits(results):
    """Results of either side as (type, shape, bytes); those of torch must be plain."""
    found = []
    for part in results:
        if isinstance(part, torch.Tensor):
            assert part.is_contiguous()
            assert not part.requires_grad
            name, raw = str(part.dtype).removeprefix("torch."), part.reshape(-1).view(torch.uint8)
            found.append((name, tuple(part.shape), bytes(raw.numpy())))
        else:
            found.append((part.dtype.name, part.shape, part.tobytes()))
    return found


def agree(backend, name, *arguments, **options):
    """Tell whether the backend returns what the reference returns."""
    expected = getattr(q, name)(*arguments, **options)
    tensors, options = [give(a) for a in arguments], {k: give(v) for k, v in options.items()}
    return bits(getattr(backend, name)(*tensors, **options)) == bits(expected)


# ---- any state, any step -------------------------------------------------------------------------


def state(rng, shape, dtype, wide):
    """Parameters, gradients of 1e-9 to 10 and of zero, and moments from zero up."""
    sizes = 10.0 ** rng.uniform(-9, 1, shape) * rng.choice([-1, 0, 1], shape, p=[0.4, 0.2, 0.4])
    param = rng.standard_normal(shape) * rng.choice([0, 1], shape)
    m, v = rng.standard_normal(shape) * sizes, sizes**2 * rng.uniform(0, 2, shape)
    types = dtype, np.float32 if wide else dtype, np.float32, np.float32
    arrays = zip((param, sizes, m, v), types, strict=True)
    return [np.array(numbers, kind) for numbers, kind in arrays]


def state_8bit(rng, shape, dtype, wide, blocksize, maps):
    """The same, with moments in any codes that S11b allows."""
    param, grad, *_ = state(rng, shape, dtype, wide)
    arrays = [param, grad]
    for levels in maps:
        codes = rng.integers(0, levels.size, param.size).astype(np.uint8)
        scales = 10.0 ** rng.uniform(-6, 1, -(-param.size // blocksize))
        arrays += [codes, scales.astype(np.float32)]
    return arrays


shapes = st.sampled_from([(), (0,), (1,), (7,), (3, 5), (2, 3, 33), (600,)])
floats = st.sampled_from(FLOATS)
shares = st.one_of(st.sampled_from([0.0, 0.9, 0.999, 0.95]), st.floats(0, 0.9999))
numbers = st.fixed_dictionaries(
    {
        "step": st.one_of(st.sampled_from(STEPS), st.integers(1, 2**24)),
        "lr": st.sampled_from([0.0, 1e-3, 0.1, 1 / 3]),
        "beta1": shares,
        "beta2": shares,
        "eps": st.sampled_from([1e-8, 1e-3, 1e-30]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    }
)
seeds = st.integers(0, 2**32 - 1)


@fixed
@given(seeds, shapes, floats, st.booleans(), st.booleans(), numbers)
def test_adam_step(seed, shape, dtype, wide, decoupled, options):
    arrays = state(np.random.default_rng(seed), shape, dtype, wide)
    options = {**options, "decoupled_weight_decay": decoupled}
    assert agree(torch_backend, "adam_step", *arrays, **options)


OWN_MAPS = (np.linspace(-1, 1, 17, dtype=np.float32), np.linspace(0, 1, 9, dtype=np.float32))
MAPS = (q.dynamic_codebook(), q.dynamic_codebook(signed=False))


@fixed
@given(seeds, shapes, floats, st.booleans(), st.booleans(), st.integers(1, 300), numbers)
def test_adam_step_8bit(seed, shape, dtype, wide, own, blocksize, options):
    rng, maps = np.random.default_rng(seed), OWN_MAPS if own else MAPS
    arrays = state_8bit(rng, shape, dtype, wide, blocksize, maps)
    books = dict(zip(("m_codebook", "v_codebook"), maps, strict=True)) if own else {}
    options = {**options, **books, "blocksize": blocksize}
    assert agree(torch_backend, "adam_step_8bit", *arrays, **options)


def test_a_root_is_rounded_to_nearest():
    """All mantissas of two powers of two, and so all there are."""
    numbers = torch.arange(2**23, 2**25, 7, dtype=torch.int32).float() * 2.0**-23
    assert np.array_equal(adam._root(numbers).numpy(), np.sqrt(numbers.numpy()))


def test_steps_in_a_row_stay_equal():
    rng = np.random.default_rng(0)
    param, grad, m, v = state(rng, (100,), np.float32, True)
    theirs, ours = (param, m * 0, v * 0), [give(t) for t in (param, m * 0, v * 0)]
    for step in range(1, 30):
        options = {"step": step, "lr": 0.01, "weight_decay": 0.1}
        grad = (grad + 0.3 * rng.standard_normal(100)).astype(np.float32)
        theirs = q.adam_step(theirs[0], grad, *theirs[1:], **options)
        ours = torch_backend.adam_step(ours[0], give(grad), *ours[1:], **options)
        assert bits(ours) == bits(theirs)


# ---- planted faults ------------------------------------------------------------------------------


def differences(backend):
    """The functions in which a backend differs from the reference on a fixed set of arrays."""
    rng, found = np.random.default_rng(0), set()

    def compare(name, *arguments, **options):
        found.update([] if agree(backend, name, *arguments, **options) else [name])

    for dtype, step in zip(FLOATS * 2, (*STEPS, 3), strict=True):
        options = {"step": step, "lr": 0.1, "beta2": 0.95, "weight_decay": 0.3}
        arrays = state(rng, (5, 120), dtype, step > 2)
        compare("adam_step", *arrays, **options)
        compare("adam_step", *arrays, **options, decoupled_weight_decay=False)
        arrays = state_8bit(rng, (5, 120), dtype, step > 2, 256, MAPS)
        compare("adam_step_8bit", *arrays, **options)
    return found


NEW_M = "m = m * k.b1.item() + g * k.one_minus_b1.item()"
NEW_V = "v = v * k.b2.item() + g * k.one_minus_b2.item() * g"
DENOMINATOR = "_root(v / c2) + k.eps.item()"
UPDATE = "p * k.kept.item() - m / c1 / denominator * k.lr.item()"
NEW_P = "return p.to(param.dtype).view(param.shape), m_new"
CORRECTIONS = "1 - b1**t, 1 - b2**t, rate"
ROUNDED = "1 - float(np.float32(b1)) ** t, 1 - float(np.float32(b2)) ** t, rate"
IN_8_BITS = "adam.constants(step, lr, beta1, beta2, eps, weight_decay)"
ROOT = "values.double().sqrt().float() if values.is_cpu else values.sqrt()"
ALL, IN_8, IN_32 = {"adam_step", "adam_step_8bit"}, {"adam_step_8bit"}, {"adam_step"}
FAULTS = {
    "the root of a library": (ROOT, "values.sqrt()", ALL),
    "no bias correction": (CORRECTIONS, "1.0, 1.0, rate", ALL),
    "the step off by one": (CORRECTIONS, CORRECTIONS.replace("t,", "(t + 1),"), ALL),
    "float32 betas": (CORRECTIONS, ROUNDED, ALL),
    "eps inside the root": (DENOMINATOR, "_root(v / c2 + k.eps.item())", ALL),
    "eps before the correction": (DENOMINATOR, "(_root(v) + k.eps.item()) / _root(c2)", ALL),
    "a fused multiply-add": (NEW_M, "m = torch.lerp(m, g, k.one_minus_b1.item())", ALL),
    "the square first": (NEW_V, "v = v * k.b2.item() + g * g * k.one_minus_b2.item()", ALL),
    "the old m": (NEW_M, f"old = m.clone(); {NEW_M}; m = old", ALL),
    "the decay after": (UPDATE, "(p - m / c1 / denominator * k.lr.item()) * k.kept.item()", ALL),
    "lr joined early": (UPDATE, "p * k.kept.item() - m / c1 * k.lr.item() / denominator", ALL),
    "the other decay": ("if decoupled else", "if not decoupled else", ALL),
    "no decay in 8 bits": (IN_8_BITS, IN_8_BITS.replace("weight_decay", "0.0"), IN_8),
    "m by the map of v": ('"dynamic", here, "m_', '"unsigned", here, "m_', IN_8),
    "m coded as v": ("quantize_by(v_thresholds, v,", "quantize_by(v_thresholds, m,", IN_8),
    "p rounded twice": (NEW_P, NEW_P.replace("p.to", "p.half().to"), IN_32),
    "v in bfloat16": ("v_new.view(v.shape)", "v_new.bfloat16().float().view(v.shape)", IN_32),
}


def test_what_is_right_has_no_difference():
    assert differences(torch_backend) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(mutant, fault):
    old, new, where = FAULTS[fault]
    backend = mutant(f"adam_mutant_{list(FAULTS).index(fault)}", old, new)
    assert differences(backend) == where


# ---- however a tensor lies in memory, and wherever -----------------------------------------------

VIEWS = {
    "strided": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim == 2 else t,
    "offset": lambda t: torch.cat([t.new_ones(64), t.reshape(-1)])[64:].view(t.shape),
    "unaligned": lambda t: torch.cat([t.new_ones(1), t.reshape(-1)])[1:].view(t.shape),
    "requires_grad": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "of inference mode": lambda t: torch.inference_mode()(t.clone)(),
}
RNG = np.random.default_rng(1)
STATE = [give(t) for t in state(RNG, (4, 75), np.float32, True)]
CODED = [give(t) for t in state_8bit(RNG, (4, 75), np.float32, True, 256, MAPS)]
OPTIONS = {"step": 3, "lr": 0.1, "weight_decay": 0.1}


def calls():
    yield torch_backend.adam_step, STATE
    yield torch_backend.adam_step_8bit, CODED


@pytest.mark.parametrize("view", VIEWS)
def test_views_change_nothing_and_are_not_changed(view):
    for function, tensors in calls():
        seen = [VIEWS[view](t) for t in tensors]
        before = [t.detach().clone() for t in seen]
        assert bits(function(*seen, **OPTIONS)) == bits(function(*tensors, **OPTIONS))
        assert all(torch.equal(t, b) for t, b in zip(seen, before, strict=True))


def test_results_are_new_where_nothing_changes():
    zero = torch.zeros(4)
    for new, old in zip(torch_backend.adam_step(*[zero] * 4, **OPTIONS), [zero] * 3, strict=True):
        assert torch.equal(new, old)
        assert new.data_ptr() != old.data_ptr()


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as mps. It looks into operators of ours."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "qloracle":
            with self:
                return OPDEFS[function.name()]._init_fn(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, function
        return result


def test_nothing_but_the_root_on_a_cpu_needs_float64(monkeypatch):
    with NoFloat64(), pytest.raises(AssertionError, match="float64"):
        torch_backend.adam_step(*STATE, **OPTIONS)
    monkeypatch.setattr(adam, "_root", torch.sqrt)
    for function, tensors in calls():
        with NoFloat64():
            function(*tensors, **OPTIONS)


# ---- operators -----------------------------------------------------------------------------------


def test_operators_pass_torch_s_own_check():
    numbers = 3, 0.1, 0.9, 0.999, 1e-8, 0.1
    transposed = [t.mT.contiguous().mT for t in STATE]
    for tensors in (STATE, transposed):
        library.opcheck(torch.ops.qloracle.adam_step.default, (*tensors, *numbers, True))
    books = [give(book) for book in MAPS]
    for maps in ([None, None], books):
        arguments = (*CODED, *numbers, 256, *maps)
        library.opcheck(torch.ops.qloracle.adam_step_8bit.default, arguments)


def test_torch_s_own_check_fails_on_a_fault(mutant):
    mutant("adam_operator_mutant", "like(param, m, v)", "like(m, param, m[:1])")
    arguments = *STATE, 3, 0.1, 0.9, 0.999, 1e-8, 0.1, True
    with pytest.raises(Exception, match=r"(?i)opcheck"):
        library.opcheck(torch.ops.adam_operator_mutant.adam_step.default, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_step_compiles_to_one_graph(dynamic):
    for function, tensors in calls():
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
        for step in (1, 2, 1000):
            options = {**OPTIONS, "step": step}
            got, expected = compiled(*tensors, **options), function(*tensors, **options)
            assert bits(got) == bits(expected)


# ---- bad input -----------------------------------------------------------------------------------

P = np.array([1, 2, -3], np.float32)
GOOD = {"param": P, "grad": P, "m": P, "v": abs(P), "step": 1, "lr": 0.1}
CODES, SCALES = np.array([1, 2, 3], np.uint8), np.ones(1, np.float32)
STATE_8BIT = {"m_codes": CODES, "m_absmax": SCALES, "v_codes": CODES, "v_absmax": SCALES}
GOOD_8BIT = {"param": P, "grad": P, **STATE_8BIT, "step": 1, "lr": 0.1}
NAN = np.float32(np.nan)
NUMBERS = [
    *[{"step": step} for step in (0, -1, 2**24 + 1, 1.0, True, None)],
    *[{"lr": lr} for lr in (-0.1, np.nan, "1", None)],
    *[{"eps": eps} for eps in (-1e-8, np.inf, None)],
    *[{"weight_decay": decay} for decay in (-0.1, np.nan, None)],
    *[{name: beta} for name in ("beta1", "beta2") for beta in (1, -0.1, 1.5, np.nan, None)],
]
ARRAYS = [
    *[{"param": p} for p in (P[:2], P.astype(float), [1.0], P * NAN)],
    *[{"grad": g} for g in (P[:2], P[None], P.astype(np.float16), [1.0], P * NAN)],
]
BAD = [
    *NUMBERS,
    *ARRAYS,
    *[{"m": m} for m in (P[:2], P.astype(np.float16), [1.0], P * NAN)],
    *[{"v": v} for v in (P[:2], P[None], P, np.array([0.5, -0.1, 0], np.float32), P * NAN)],
    *[{"decoupled_weight_decay": d} for d in (1, None)],
    *[{"eps": eps, "grad": P * 0, "v": P * 0} for eps in (0, 1e-50)],
]
BAD_8BIT = [
    *NUMBERS,
    *ARRAYS,
    *[
        {f"{name}_codes": codes}
        for name in "mv"
        for codes in (CODES[:2], CODES[None], CODES.astype(np.int8), [1])
    ],
    *[
        {f"{name}_absmax": scales}
        for name in "mv"
        for scales in (SCALES[:0], P, SCALES.astype(float), SCALES * NAN, [1.0])
    ],
    *[{f"{name}_codebook": np.array([0, 1], np.float32)} for name in "mv"],
    *[{f"{name}_codebook": np.array([1, 0], np.float32)} for name in "mv"],
    {"v_absmax": -SCALES},
    {"v_codebook": q.dynamic_codebook()},
    *[{"blocksize": size} for size in (0, 2, 2.5, None)],
    {"eps": 0, "grad": P * 0, "v_absmax": SCALES * 0},
]


def refused(backend, name, values, send=lambda value: value):
    """The type and the words of what a call raises."""
    values = {key: send(value) for key, value in values.items()}
    known = {"adam_step": 4, "adam_step_8bit": 6}[name]
    arrays = list(values.values())[:known]
    options = dict(list(values.items())[known:])
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(backend, name)(*arrays, **options)
    text = str(caught.value)
    assert "\n" not in text
    return caught.type, re.sub("a NumPy array", "a torch tensor", text)


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_raises_what_the_reference_raises(case):
    values = {**GOOD, **BAD[case]}
    expected = refused(q, "adam_step", values)
    assert refused(torch_backend, "adam_step", values, give) == expected


@pytest.mark.parametrize("case", range(len(BAD_8BIT)))
def test_bad_input_in_8_bits_raises_what_the_reference_raises(case):
    values = {**GOOD_8BIT, **BAD_8BIT[case]}
    expected = refused(q, "adam_step_8bit", values)
    assert refused(torch_backend, "adam_step_8bit", values, give) == expected


def test_tensors_on_two_devices_are_refused_by_name():
    names = {"adam_step": "grad m v", "adam_step_8bit": "grad m_codes m_absmax v_codes v_absmax"}
    for function, tensors in calls():
        for i, name in enumerate(names[function.__name__].split(), start=1):
            moved = [t.to("meta") if i == j else t for j, t in enumerate(tensors)]
            with pytest.raises(ValueError, match=f"^{name} must lie on cpu like"):
                function(*moved, **OPTIONS)
