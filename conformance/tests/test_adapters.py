"""The adapters of products, LoRA and Adam, on the real libraries.

Each function is compared with the formula in float64, within the bounds of S9 to S11; what a
library rounds beyond them is added by name.  Each comparison is also seen failing, on a call whose
arguments are slightly wrong.  Then the faults that are known of these releases.
"""

import ast
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import qloracle
from qloracle_conformance import adapters
from qloracle_conformance.calling import frameworks
from qloracle_conformance.calling.calls import offered
from qloracle_conformance.calling.loading import load, parse
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports.repro import loaders

torch = pytest.importorskip("torch", reason="torch is not installed")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
for library in ("peft", "jax", "optax"):  # found, not imported: peft takes seconds
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)

OFFERED = {
    "bitsandbytes.train": {"matmul_4bit", "matmul_4bit_backward"},
    "bitsandbytes.eval": {"matmul_4bit"},
    "peft": {"lora_forward", "lora_backward", "qlora_forward", "qlora_backward"},
    "torch.optim": {"adam_step"},
    "torch.optim.foreach": {"adam_step"},
    "torch.optim.fused": {"adam_step"},
    "optax": {"adam_step"},
}
OURS = [a for a in adapters.ADAPTERS if a.module.startswith(adapters.__name__) and a.installed]
BF16_CPU = bitsandbytes.functional.has_avx512bf16()
known_release = pytest.mark.skipif(
    bitsandbytes.__version__ != "0.50.2", reason="the findings are those of bitsandbytes 0.50.2"
)
needs_bf16_cpu = pytest.mark.skipif(
    not BF16_CPU, reason="the fault is in the path of CPUs with AVX512-BF16, which this one is not"
)

U = 2.0**-24
UNIT = {"float32": U, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float32": 2.0**-150, "bfloat16": 2.0**-134, "float16": 2.0**-25}
TYPES = list(UNIT)
TYPE = frameworks.FLOAT_TYPES


# ---- calling, and comparing ----------------------------------------------------------------------


def call(name, function, *arrays, **options):
    """Call a function of an implementation: inputs stay as they are, results are new memory."""
    target = load(name)
    framework = target.arrays
    named = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    given = [*arrays, *named.values()]
    passed = [frameworks.convert(array.copy(), framework, "cpu") for array in given]
    keywords = dict(zip(named, passed[len(arrays) :], strict=True))
    results = getattr(target, function)(*passed[: len(arrays)], **{**options, **keywords})
    results = results if isinstance(results, tuple) else (results,)
    for array, tensor in zip(given, passed, strict=True):
        assert frameworks.take(tensor).tobytes() == array.tobytes(), "an input was changed"
    if framework == "torch":
        held = {tensor.untyped_storage().data_ptr() for tensor in passed if tensor.numel()}
        assert not any(r.untyped_storage().data_ptr() in held for r in results if r.numel())
        assert not any(r.requires_grad for r in results)
    return tuple(frameworks.take(result) for result in results)


def worst(got, exact, error):
    """The largest error over its bound; `error` holds what comes before the result's rounding."""
    kind = got.dtype.name
    bound = error + UNIT[kind] * (np.abs(exact) + error) + TINY[kind]
    assert got.shape == exact.shape
    assert np.isfinite(got.astype(np.float64)).all()
    return float((np.abs(got.astype(np.float64) - exact) / bound).max())


def gamma(k, unit=U):
    """The relative error of k roundings."""
    return k * unit / (1 - k * unit)


def wide(*arrays):
    return tuple(np.asarray(array, np.float64) for array in arrays)


def normal(seed, shape, kind="float32", scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32).astype(TYPE[kind])


def packed_weight(shape, kind):
    """Packed bytes and scales of a weight, and its values in a type."""
    packed, absmax = qloracle.quantize_4bit(normal(7, shape))
    return packed, absmax, qloracle.dequantize_4bit(packed, absmax, shape=shape, dtype=TYPE[kind])


# ---- names, and what becomes of them -------------------------------------------------------------


@pytest.mark.parametrize("name", OFFERED)
def test_short_names_resolve(name):
    assert set(offered(load(name))) == OFFERED[name]


def test_bitsandbytes_has_products_and_adam_beside_its_codes():
    more = {"matmul_4bit", "matmul_4bit_backward", "adam_step", "adam_step_8bit"}
    assert more < set(offered(load("bitsandbytes")))


def test_the_three_roads_of_torch_are_three():
    roads = [load(name) for name in OFFERED if name.startswith("torch.optim")]
    assert [road.adam_step.keywords for road in roads] == [
        {"foreach": False, "fused": False},
        {"foreach": True, "fused": False},
        {"foreach": False, "fused": True},
    ]


def test_what_is_not_installed_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(UsageError) as error:
        parse("peft")
    assert str(error.value) == "peft: not installed here (needs torch, bitsandbytes, peft)"
    assert parse("torch.optim.fused").member == "fused"


@pytest.mark.parametrize("adapter", OURS, ids=lambda adapter: adapter.name)
def test_a_repro_script_carries_the_adapter_along_whole(adapter):
    source = Path(find_spec(adapter.module).origin).read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in found if node.level or node.module.startswith("qloracle")]
    assert "import qloracle" not in source
    script = {"sys": sys, "types": types}
    exec(loaders.load(Judgement(adapter.name)).replace(loaders.RUN, ""), script)
    carried = script["load"]()
    assert offered(carried) == offered(load(adapter.name))
    assert getattr(carried, "fused", None) == getattr(load(adapter.name), "fused", None)


# ---- products (S9) -------------------------------------------------------------------------------

EXACT_PRODUCTS = ("bitsandbytes", "bitsandbytes.train")
SHAPES = [(64, 256), (33, 100), (5, 33)]


def product(x, weight, bias=None):
    """Y = x W' + bias, and the error that d roundings in any order may make."""
    x, weight, bias = wide(x, weight, 0.0 if bias is None else bias)
    d = x.shape[-1] + 1
    return x @ weight.T + bias, gamma(d) * (np.abs(x) @ np.abs(weight).T + np.abs(bias))


@pytest.mark.parametrize("name", EXACT_PRODUCTS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_their_gradients_are_within_s9(name, kind, shape):
    packed, absmax, weight = packed_weight(shape, kind)
    bias = normal(1, shape[0], kind)
    for rows in ((1,), (33,), (2, 3)):
        x, dy = normal(2, (*rows, shape[1]), kind), normal(3, (*rows, shape[0]), kind)
        (y,) = call(name, "matmul_4bit", x, packed, absmax, shape=shape, bias=bias)
        (dx,) = call(name, "matmul_4bit_backward", dy, packed, absmax, shape=shape)
        assert y.dtype == dx.dtype == TYPE[kind]
        assert worst(y, *product(x, weight, bias)) <= 1
        assert worst(dx, *product(dy, weight.T)) <= 1


@pytest.mark.parametrize("name", EXACT_PRODUCTS)
def test_a_wrong_product_is_seen(name):
    shape = (64, 256)
    packed, absmax, weight = packed_weight(shape, "float32")
    x, bias, wrong = normal(2, (3, 256)), normal(1, 64), absmax * np.float32(1 + 2**-12)
    for changed in ({"absmax": wrong}, {"x": x[::-1].copy()}, {"bias": bias * 2}):
        given = {"x": x, "absmax": absmax, "bias": bias} | changed
        (y,) = call(
            name, "matmul_4bit", given["x"], packed, given["absmax"],
            shape=shape, bias=given["bias"],
        )  # fmt: skip
        assert worst(y, *product(x, weight, bias)) > 1
    (dx,) = call(name, "matmul_4bit_backward", x[:, :64].copy(), packed, wrong, shape=shape)
    assert worst(dx, *product(x[:, :64], weight.T)) > 1


def test_fp4_goes_through_and_what_is_unknown_is_refused():
    x, (packed, absmax) = (
        normal(2, (3, 64)),
        qloracle.quantize_4bit(normal(7, (32, 64)), quant_type="fp4"),
    )
    weight = qloracle.dequantize_4bit(packed, absmax, shape=(32, 64), quant_type="fp4")
    options = {"shape": (32, 64), "quant_type": "fp4"}
    for name in EXACT_PRODUCTS:
        (y,) = call(name, "matmul_4bit", x, packed, absmax, **options)
        assert worst(y, *product(x, weight)) <= 1
    for name in (*EXACT_PRODUCTS, "bitsandbytes.eval"):
        with pytest.raises(NotImplementedError, match="no quant_type 'int4'"):
            call(name, "matmul_4bit", x, packed, absmax, shape=(32, 64), quant_type="int4")


def test_a_bias_of_another_type_is_refused_by_the_function_and_rounded_by_the_layer():
    shape, bias = (32, 64), np.full(32, 1 + 2**-12, np.float32)
    packed, absmax, _ = packed_weight(shape, "bfloat16")
    x = np.zeros((1, 64), TYPE["bfloat16"])
    with pytest.raises(NotImplementedError, match=r"float32 bias with torch\.bfloat16 x"):
        call("bitsandbytes", "matmul_4bit", x, packed, absmax, shape=shape, bias=bias)
    (y,) = call("bitsandbytes.train", "matmul_4bit", x, packed, absmax, shape=shape, bias=bias)
    assert (y == 1).all()


@known_release
@needs_bf16_cpu
@pytest.mark.parametrize("kind", TYPES)
def test_evaluation_computes_with_bfloat16_scales(kind):
    """A float32 layer is wrong in the third digit as soon as it is put into eval()."""
    shape = (64, 256)
    packed, absmax, weight = packed_weight(shape, kind)
    x = normal(2, (5, 256), kind)
    (y,) = call("bitsandbytes.eval", "matmul_4bit", x, packed, absmax, shape=shape)
    exact, error = product(x, weight)
    off = np.abs(wide(y)[0] - exact).max() / np.abs(exact).max()
    assert 1e-3 < off < 8e-3
    assert worst(y, exact, error) > {"float32": 50, "float16": 5, "bfloat16": 1}[kind]
    ones = np.full(packed.shape, 0xFF, np.uint8)  # every level is 1: each weight is its scale
    full = np.full(absmax.shape, 1 + 2**-9, np.float32)  # which bfloat16 does not hold
    (row,) = call("bitsandbytes.eval", "matmul_4bit", np.eye(1, 256, dtype=TYPE[kind]), ones, full,
                  shape=shape)  # fmt: skip
    assert (row == 1).all()


@known_release
@needs_bf16_cpu
def test_evaluation_refuses_what_it_cannot_pack_and_breaks_where_rows_hold_no_whole_blocks():
    for shape, message in (((33, 64), "N must be divisible"), ((32, 33), "K must be even")):
        packed, absmax, _ = packed_weight(shape, "float32")
        x = normal(2, (2, shape[1]))
        with pytest.raises(NotImplementedError, match=message):
            call("bitsandbytes.eval", "matmul_4bit", x, packed, absmax, shape=shape)
    packed, absmax, _ = packed_weight((32, 96), "float32")
    with pytest.raises(RuntimeError, match="invalid for input of size 48"):
        call("bitsandbytes.eval", "matmul_4bit", normal(2, (2, 96)), packed, absmax, shape=(32, 96))


EMPTY = """
import torch
from qloracle_conformance.calling.loading import load
layer = load("bitsandbytes.eval")
weight = torch.zeros(1024, dtype=torch.uint8), torch.ones(32)
print(layer.matmul_4bit(torch.ones(1, 64), *weight, shape=(32, 64)).shape, flush=True)
layer.matmul_4bit(torch.ones(0, 64), *weight, shape=(32, 64))
"""


@known_release
@needs_bf16_cpu
@pytest.mark.slow
def test_evaluation_of_an_empty_batch_kills_the_process():
    run = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, text=True, check=False)
    assert run.stdout.startswith("torch.Size([1, 32])")
    assert run.returncode == -8, run.stderr  # SIGFPE


@pytest.mark.skipif(BF16_CPU, reason="this CPU has AVX512-BF16: evaluation takes another road")
def test_evaluation_is_within_s9_elsewhere():
    packed, absmax, weight = packed_weight((64, 256), "float32")
    x = normal(2, (5, 256))
    (y,) = call("bitsandbytes.eval", "matmul_4bit", x, packed, absmax, shape=(64, 256))
    assert worst(y, *product(x, weight)) <= 1


# ---- LoRA (S10) ----------------------------------------------------------------------------------

M, N, K, RANK, SCALING = 7, 33, 100, 4, 1 / 3
FORWARD, BACKWARD = ("lora_forward", "qlora_forward"), ("lora_backward", "qlora_backward")


def lora_case(kind, adapter_kind):
    mask = np.random.default_rng(5).choice([0.0, 2.0], (M, K)).astype(TYPE[kind])
    return {
        "dy": normal(3, (M, N), kind), "x": normal(2, (M, K), kind),
        "a": normal(4, (RANK, K), adapter_kind), "b": normal(6, (N, RANK), adapter_kind),
        "mask": mask, "scaling": SCALING, "kind": kind,
    }  # fmt: skip


def adapted(case, function):
    """Call one of PEFT's four functions; -> its results, and the weight it had."""
    packed, absmax, weight = packed_weight((N, K), case["kind"])
    four_bit = function.startswith("qlora")
    base = (packed, absmax) if four_bit else (weight,)
    rows = (case["dy"], case["x"]) if function.endswith("backward") else (case["x"],)
    options = {"scaling": case["scaling"], "dropout_mask": case["mask"]}
    options |= {"shape": (N, K)} if four_bit else {}
    return call("peft", function, *rows, *base, case["a"], case["b"], **options), weight


def lora_y(case, weight, base_roundings, roundings):
    """The value of y and its error; PEFT rounds to x's type on the way, so many times."""
    x, w, a, b, mask = wide(case["x"], weight, case["a"], case["b"], case["mask"])
    s, t = case["scaling"], UNIT[case["kind"]]
    parts = np.abs(x) @ np.abs(w).T, abs(s) * np.abs(x * mask) @ np.abs(a).T @ np.abs(b).T
    factors = gamma(K + 1) + gamma(base_roundings, t), gamma(K + RANK + 5) + gamma(roundings, t)
    exact = x @ w.T + s * ((x * mask) @ a.T) @ b.T
    return exact, factors[0] * parts[0] + factors[1] * parts[1]


def lora_gradients(case, weight, base_roundings, dx_roundings, roundings):
    """dx, dA and dB with their errors."""
    dy, x, w, a, b, mask = wide(case["dy"], case["x"], weight, case["a"], case["b"], case["mask"])
    s, t, xm = case["scaling"], UNIT[case["kind"]], x * mask
    size = np.abs
    dx = gamma(N + 1) + gamma(base_roundings, t), gamma(N + RANK + 5) + gamma(dx_roundings, t)
    return (
        (
            dy @ w + s * (dy @ b) @ a * mask,
            dx[0] * size(dy) @ size(w) + dx[1] * abs(s) * (size(dy) @ size(b)) @ size(a) * mask,
        ),
        (
            s * (dy @ b).T @ xm,
            (gamma(N + M + 4) + gamma(roundings, t)) * abs(s) * (size(dy) @ size(b)).T @ size(xm),
        ),
        (
            s * dy.T @ (xm @ a.T),
            (gamma(K + M + 4) + gamma(roundings, t)) * abs(s) * size(dy).T @ (size(xm) @ size(a).T),
        ),
    )


@pytest.mark.parametrize("function", FORWARD)
def test_peft_in_float32_is_within_s10(function):
    case = lora_case("float32", "float32")
    (y,), weight = adapted(case, function)
    assert worst(y, *lora_y(case, weight, 0, 0)) <= 1


@pytest.mark.parametrize("function", BACKWARD)
def test_the_gradients_of_peft_in_float32_are_within_s10(function):
    case = lora_case("float32", "float32")
    found, weight = adapted(case, function)
    for got, expected in zip(found, lora_gradients(case, weight, 0, 0, 0), strict=True):
        assert worst(got, *expected) <= 1


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("function", FORWARD)
def test_peft_rounds_each_step_to_a_16_bit_type(kind, function):
    """To x's type: the base product, x * mask, h, h B', and that times s."""
    case = lora_case(kind, kind)
    (y,), weight = adapted(case, function)
    assert y.dtype == TYPE[kind]
    assert worst(y, *lora_y(case, weight, 1, 4)) <= 1


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("function", BACKWARD)
def test_the_gradients_of_peft_in_a_16_bit_type(kind, function):
    """Rounded: dy W, dy s, (dy s) B, times A, times the mask; x * mask and h for dA and dB."""
    case = lora_case(kind, kind)
    found, weight = adapted(case, function)
    for got, expected in zip(found, lora_gradients(case, weight, 1, 4, 3), strict=True):
        assert got.dtype == TYPE[kind]
        assert worst(got, *expected) <= 1


@pytest.mark.parametrize("function", [*FORWARD, *BACKWARD])
def test_float32_adapters_on_a_bfloat16_layer(function):
    """The branch is computed in float32; its sum with the base product is rounded to bfloat16."""
    case = lora_case("bfloat16", "float32")
    found, weight = adapted(case, function)
    back = lora_gradients(case, weight, 1, 1, 0)
    due = back if function in BACKWARD else [lora_y(case, weight, 1, 1)]
    kinds = ["bfloat16", "float32", "float32"][: len(found)]
    assert [got.dtype.name for got in found] == kinds
    assert max(worst(got, *expected) for got, expected in zip(found, due, strict=True)) <= 1


@pytest.mark.parametrize("function", [*FORWARD, *BACKWARD])
def test_a_wrong_branch_is_seen(function):
    case = lora_case("float32", "float32")
    _, weight = adapted(case, function)
    back = lora_gradients(case, weight, 0, 0, 0)
    due = back if function in BACKWARD else [lora_y(case, weight, 0, 0)]
    inverted, one = np.float32(2) - case["mask"], np.float32(1 + 2**-12)
    for changed in ({"mask": inverted}, {"scaling": 0.3333}, {"a": case["a"] * one}):
        found, _ = adapted(case | changed, function)
        assert max(worst(got, *expected) for got, expected in zip(found, due, strict=True)) > 1


@known_release
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_two_weights_raise_in_the_backward_pass_of_bitsandbytes_alone(shape):
    """Their one byte has one row: `dequantize_4bit` takes that for a transposed weight."""
    layer = bitsandbytes.nn.Linear4bit(*shape[::-1], bias=False, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(torch.ones(shape), quant_type="nf4", module=layer)
    x = torch.ones(1, shape[1], requires_grad=True)
    y = layer.to("cpu")(x)
    assert y.shape == (1, shape[0])
    decoded = bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
    assert decoded.shape == shape[::-1]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        y.sum().backward()


def test_a_mask_of_ones_is_no_mask():
    case = lora_case("float32", "float32")
    (plain,), weight = adapted(case | {"mask": None}, "lora_forward")
    (ones,), _ = adapted(case | {"mask": np.ones((M, K), np.float32)}, "lora_forward")
    assert (plain == ones).all()
    assert worst(plain, *lora_y(case | {"mask": np.ones((M, K))}, weight, 0, 0)) <= 1


# ---- Adam (S11) ----------------------------------------------------------------------------------

DECOUPLED = ("bitsandbytes", "torch.optim", "torch.optim.foreach", "torch.optim.fused", "optax")
COUPLED = DECOUPLED[1:]
STEPS = (1000, 1, 2, 10, 2**24)  # in no order: each call makes an optimizer at its own step
BETA1, BETA2, EPS, LR = 0.9, 0.999, 1e-8, 0.1


def adam_case(kind="float32"):
    """Gradients from 1e-9 to 10 and zeros among them, zero parameters, a state that is not zero."""
    size = 10.0 ** np.random.default_rng(8).uniform(-9, 1, 300)
    param, grad, m = normal(1, 300), normal(2, 300) * size, normal(3, 300, scale=0.1)
    param[:5], grad[5:9] = 0, 0
    v = np.abs(normal(4, 300, scale=0.01))
    return param.astype(TYPE[kind]), grad.astype(np.float32).astype(TYPE[kind]), m, v


def moments(case, decay, decoupled):
    """m' and v' with their errors."""
    p, g, m, v = wide(*case)
    g, delta = (g, 0.0) if decoupled else (g + decay * p, 1)
    delta = delta * U * (np.abs(g) + 2 * np.abs(decay * p))
    m, first = BETA1 * m + (1 - BETA1) * g, (np.abs(m), np.abs(g))
    v = BETA2 * v + (1 - BETA2) * g * g
    error = U * (3 * BETA1 * first[0] + 3 * (1 - BETA1) * first[1]) + (1 - BETA1) * delta
    return (
        (m, error + 2 * 2.0**-149),
        (v, 3 * U * v + (1 - BETA2) * (2 * np.abs(g) * delta + delta**2) + 2 * 2.0**-149),
    )


def moved(case, m, v, step, decay, decoupled, slack=0.0):
    """p' from the implementation's own m' and v', with its error; slack is relative to the move."""
    p, m, v = wide(case[0], m, v)
    corrections = 1 - BETA1**step, 1 - BETA2**step
    move = LR * (m / corrections[0]) / (np.sqrt(v / corrections[1]) + EPS)
    kept, error = p, (8 * U + slack) * np.abs(move) + 2 * 2.0**-149
    if decoupled and decay:
        kept, error = p * (1 - LR * decay), error + 2 * U * np.abs(p)
    return kept - move, error


def float32_correction(step):
    """What computing 1 - beta**t in float32 adds to the relative error of a move."""
    parts = BETA1**step / (1 - BETA1**step), BETA2**step / (1 - BETA2**step) / 2
    return (step + 2) * U * sum(parts)


def take_step(name, case, step, decay, decoupled, changed=()):
    options = {"step": step, "lr": LR, "weight_decay": decay} | dict(changed)
    return call(name, "adam_step", *case, decoupled_weight_decay=decoupled, **options)


def judge_step(name, case, step, decay, decoupled, changed=()):
    """Errors over bounds of p', m' and v'; `changed` is what the call has otherwise."""
    param, m, v = take_step(name, case, step, decay, decoupled, changed)
    due = moments(case, decay, decoupled)
    slack = float32_correction(step) if name == "optax" else 0.0
    place = moved(case, m, v, step, decay, decoupled, slack)
    return worst(param, *place), worst(m, *due[0]), worst(v, *due[1])


@pytest.mark.parametrize("name", DECOUPLED)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_is_within_s11(name, decay):
    for step in STEPS:
        assert max(judge_step(name, adam_case(), step, decay, True)) <= 1


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_decay_is_within_s11(name):
    for step in STEPS:
        assert max(judge_step(name, adam_case(), step, 0.1, False)) <= 1


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_bitsandbytes_has_float32_state_for_16_bit_parameters(kind):
    for step in STEPS:
        assert max(judge_step("bitsandbytes", adam_case(kind), step, 0.1, True)) <= 1


WRONG = {"step": 11, "lr": LR * (1 + 2**-13), "eps": 1e-3, "weight_decay": 0.1001}
WRONG |= {"beta1": 0.9001, "beta2": 0.9991}


@pytest.mark.parametrize("name", DECOUPLED)
@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_step_is_seen(name, option):
    for decoupled in (True, name == "bitsandbytes"):  # which has no coupled decay
        found = judge_step(name, adam_case(), 10, 0.1, decoupled, {option: WRONG[option]})
        place = {"beta1": 1, "beta2": 2}.get(option, 0)
        assert found[place] > 1 or (option == "weight_decay" and found[1] > 1)


def test_optax_corrects_in_float32():
    """Without that slack it would fail, and with it a step off by one is still seen."""
    param, m, v = take_step("optax", adam_case(), 2, 0.0, True)
    assert worst(param, *moved(adam_case(), m, v, 2, 0.0, True)) > 5
    assert worst(param, *moved(adam_case(), m, v, 3, 0.0, True, float32_correction(3))) > 1


@pytest.mark.parametrize("name", [*COUPLED])
def test_16_bit_parameters_are_refused_where_the_state_would_be_16_bit(name):
    with pytest.raises(NotImplementedError, match="in that type"):
        take_step(name, adam_case("bfloat16"), 1, 0.0, True)


def test_torch_takes_no_gradient_of_another_type():
    param, _, m, v = adam_case("bfloat16")
    with pytest.raises(NotImplementedError, match=r"takes no torch\.float32 gradient"):
        take_step("bitsandbytes", (param, adam_case()[1], m, v), 1, 0.0, True)


@known_release
def test_adam_of_bitsandbytes_decays_as_adamw_does():
    coupled = take_step("bitsandbytes", adam_case(), 3, 0.1, False)
    decoupled = take_step("bitsandbytes", adam_case(), 3, 0.1, True)
    assert [a.tobytes() for a in coupled] == [a.tobytes() for a in decoupled]
    assert judge_step("bitsandbytes", adam_case(), 3, 0.1, False)[1] > 1000


# ---- 8-bit Adam (S11b) ---------------------------------------------------------------------------


def maps():
    create = bitsandbytes.functional.create_dynamic_map
    return create(signed=True).numpy(), create(signed=False).numpy()


def state_8bit(n):
    """Codes and scales of m and of v, none of them near zero."""
    rng, blocks = np.random.default_rng(9), -(-n // 256)
    m_codes, v_codes = rng.integers(200, 256, (2, n), dtype=np.uint8)
    scales = np.linspace(0.1, 0.3, blocks, dtype=np.float32)
    return m_codes, scales, v_codes, scales / 10


def decoded(codes, absmax, codebook):
    return codebook[codes] * np.repeat(absmax, 256)[: codes.size]


def step_8bit(param, grad, state, **options):
    return call("bitsandbytes", "adam_step_8bit", param, grad, *state, lr=LR, **options)


def judge_8bit(options, weight_decay=0.1):
    """Errors over bounds: of p', and of the two new scales."""
    n, (signed, unsigned) = 600, maps()
    param, grad, state = normal(1, n), normal(2, n), state_8bit(n)
    found = step_8bit(param, grad, state, **{"step": 3, "weight_decay": 0.1} | options)
    case = param, grad, decoded(*state[:2], signed), decoded(*state[2:], unsigned)
    (m, m_error), (v, v_error) = moments(case, weight_decay, True)
    due, error = moved(case, m, v, 3, weight_decay, True)
    p, _ = wide(param, grad)
    move = due - p * (1 - LR * weight_decay)  # m' and v' stay within it: their errors move p', too
    error += np.abs(move) * ((m_error + U * np.abs(m)) / np.abs(m) + (v_error + U * v) / (2 * v))
    starts = range(0, n, 256)
    scales = [
        worst(got, np.array([np.abs(x[i : i + 256]).max() for i in starts]),
              np.array([e[i : i + 256].max() for i in starts]))
        for got, x, e in ((found[2], m, m_error), (found[4], v, v_error))
    ]  # fmt: skip
    return worst(found[0], due, error), *scales


def test_an_8_bit_step_is_within_s11b():
    assert max(judge_8bit({})) <= 1


@pytest.mark.parametrize(
    ("options", "place"), [({"step": 4}, 0), ({"beta1": 0.9001}, 1), ({"beta2": 0.9991}, 2)]
)
def test_a_wrong_8_bit_step_is_seen(options, place):
    assert judge_8bit(options)[place] > 1


def test_new_codes_are_those_of_the_new_moments():
    """Within the steps of 2^-15 in which bitsandbytes' CPU code looks up codes."""
    n, codebooks = 600, maps()
    state, case = state_8bit(n), (normal(1, n), normal(2, n))
    found = step_8bit(*case, state, step=3)
    old = [decoded(*state[i : i + 2], codebooks[i // 2]) for i in (0, 2)]
    new = [value for value, _ in moments((*case, *old), 0.0, True)]
    for i, value, codebook in zip((1, 3), new, codebooks, strict=True):
        ratio = value / np.repeat(found[i + 1], 256)[:n]
        middle = (codebook[1:] + codebook[:-1]) / 2
        low, high = (np.searchsorted(middle, ratio + 2.0**-15 * sign) for sign in (-1, 1))
        assert ((low <= found[i]) & (found[i] <= high)).all()
        assert ((low <= found[i][::-1]) & (found[i][::-1] <= high)).mean() < 0.1


def test_maps_that_are_passed_in_are_used():
    state, case = state_8bit(300), (normal(1, 300), normal(2, 300))
    options = {"step": 3, "m_codebook": maps()[0], "v_codebook": maps()[1]}
    plain, same = step_8bit(*case, state, step=3), step_8bit(*case, state, **options)
    assert [a.tobytes() for a in plain] == [a.tobytes() for a in same]
    halved = step_8bit(*case, state, **options | {"m_codebook": maps()[0] / 2})
    assert (halved[0] != plain[0]).any()


def test_blocks_of_another_size_are_refused():
    with pytest.raises(NotImplementedError, match="blocks of 256, not of 128"):
        step_8bit(normal(1, 300), normal(2, 300), state_8bit(300), step=3, blocksize=128)


@known_release
def test_8_bit_adam_moves_parameters_whose_gradient_is_always_zero():
    n = 600
    grad = np.where(np.arange(n) % 2, normal(2, n), 0).astype(np.float32)
    codes, scales = np.zeros(n, np.uint8), np.zeros(3, np.float32)
    found = np.zeros(n, np.float32), codes + np.uint8(127), scales, codes, scales
    found = step_8bit(found[0], grad, found[1:], step=1)
    assert (found[0][::2] == 0).all()
    assert (found[1][::2] == 131).all()  # 127 is the code of 0; 131 is 2.1e-5 of the scale
    found = step_8bit(found[0], grad, found[1:], step=2)
    assert (np.abs(found[0][::2]) > 1e-7).all()
    param, m, v = np.zeros((3, n), np.float32)
    for step in (1, 2):
        param, m, v = call("bitsandbytes", "adam_step", param, grad, m, v, step=step, lr=LR)
    assert (param[::2] == 0).all()
