"""The kernels' road of torch_backend, on the stand-in for a card of `conftest.py`.

CPU tensors are sent down the road of CUDA tensors, operators, gradients and compilers included; the
kernels run on the CPU.  What needs a real card is in `test_gpu_only.py`.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import qloracle as q

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import library  # noqa: E402

from qloracle_gpu import operations, torch_backend  # noqa: E402
from qloracle_gpu.devices import Addresses  # noqa: E402
from qloracle_gpu.operations.arguments import BLOCKSIZES  # noqa: E402
from qloracle_gpu.torch_backend import cuda, values  # noqa: E402

ops = torch.ops.qloracle
STREAM = 0x5EED
CPU = torch.device("cpu")


def unpinned(real, asked):
    """`torch.tensor` where no memory can be pinned; notes whether that was asked for."""

    def tensor(*arguments, pin_memory=False, **options):
        asked.append(pin_memory)
        return real(*arguments, **options)

    return tensor


@pytest.fixture
def road(stand_in, monkeypatch):
    """CPU tensors taken for those of a card; what it yields knows what was launched."""
    place = CPU
    monkeypatch.setattr(
        cuda,
        "takes",
        lambda values, blocksize: isinstance(values, torch.Tensor) and blocksize in BLOCKSIZES,
    )
    monkeypatch.setattr(values, "looked_at", lambda values: False)
    kept = operations.implementation(cuda.CudaTensors(place))
    monkeypatch.setattr(cuda, "on", lambda place: kept)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda place: SimpleNamespace(cuda_stream=STREAM)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "tensor", unpinned(torch.tensor, []))
    return stand_in


def launched(cupy):
    return [name for module in cupy.modules for name in module.launches]


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plainly(function, *arguments, **options):
    """What the backend returns when nothing takes the kernels' road."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "takes", lambda values, blocksize: False)
        return function(*arguments, **options)


def same(got, expected):
    pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


# ---- which calls take it -------------------------------------------------------------------------


class Tensor(torch.Tensor):
    """A tensor that says it lies on a card."""

    is_cuda = True


@pytest.mark.parametrize(("kernels", "taken"), [(True, True), (False, False)])
def test_cuda_tensors_take_it_where_cupy_is(monkeypatch, kernels, taken):
    monkeypatch.setattr(values, "KERNELS", kernels)
    x = torch.zeros(3).as_subclass(Tensor)
    assert cuda.takes(x, 64) is taken
    assert not cuda.takes(torch.zeros(3), 64)
    assert not cuda.takes(np.zeros(3), 64)
    assert not any(cuda.takes(x, size) for size in (1, 16, 48, 8192, -64))
    assert all(cuda.takes(x, size) for size in BLOCKSIZES) is taken


def test_values_on_a_card_are_looked_at_only_without_kernels(monkeypatch):
    monkeypatch.setattr(values, "can_wait", lambda values: True)
    on_a_card, here = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    for kernels in (False, True):
        monkeypatch.setattr(values, "KERNELS", kernels)
        assert values.looked_at(here)
        assert values.looked_at(on_a_card) is not kernels


def test_without_a_card_nothing_takes_it():
    assert not cuda.takes(torch.zeros(3), 64)
    assert "cupy" not in vars(cuda)


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_codes_and_values_are_the_same_bits(road, dtype):
    x = normal(1, 3, 501, dtype=dtype)
    coded = torch_backend.quantize_4bit(x)
    assert same(coded, plainly(torch_backend.quantize_4bit, x))
    form = {"shape": (3, 501), "dtype": dtype}
    values = torch_backend.dequantize_4bit(*coded, **form)
    assert same(values, plainly(torch_backend.dequantize_4bit, *coded, **form))
    name = str(dtype).removeprefix("torch.")
    assert launched(road) == [f"quantize_4bit_{name}", f"dequantize_4bit_{name}"]


def test_8_bits_and_nested_scales_are_the_same_bits(road):
    x, book = normal(2, 3000), torch.from_numpy(q.dynamic_codebook())
    coded = torch_backend.quantize_blockwise(x, book)
    assert same(coded, plainly(torch_backend.quantize_blockwise, x, book))
    values = torch_backend.dequantize_blockwise(*coded, book, shape=(3000,))
    assert same(values, plainly(torch_backend.dequantize_blockwise, *coded, book, shape=(3000,)))
    for form in ({}, {"codebook": torch.linspace(-1, 1, 33)}):
        nested = torch_backend.quantize_absmax(x.abs(), **form)
        assert same(nested[:2], plainly(torch_backend.quantize_absmax, x.abs(), **form)[:2])
        absmax = torch_backend.dequantize_absmax(*nested, **form)
        assert same(absmax, plainly(torch_backend.dequantize_absmax, *nested, **form))


def test_adam_is_the_same_bits(road):
    p, g, m = (normal(seed, 5, 77) for seed in (3, 4, 5))
    v, form = normal(6, 5, 77).abs(), {"step": 3, "lr": 0.1, "weight_decay": 0.01}
    got = torch_backend.adam_step(p, g, m, v, **form)
    assert same(got, plainly(torch_backend.adam_step, p, g, m, v, **form))
    codes = torch.randint(128, 256, (385,), dtype=torch.uint8)
    state = codes, torch.ones(2), codes, torch.ones(2)
    got = torch_backend.adam_step_8bit(p, g, *state, **form)
    assert same(got, plainly(torch_backend.adam_step_8bit, p, g, *state, **form))
    assert all("adam" in name for name in launched(road))


def layer(rows, out=24, width=64, r=4):
    """Tensors of a small layer: x, packed, absmax, a, b, dy; and the weight's form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "takes", lambda values, blocksize: False)
        packed, absmax = torch_backend.quantize_4bit(normal(7, out, width))
    a, b = normal(9, r, width), normal(10, out, r)
    dy = normal(11, rows, out)
    return normal(8, rows, width), packed, absmax, a, b, dy, {"shape": (out, width)}


@pytest.mark.parametrize("rows", [1, 16, 40])
def test_products_and_their_gradients_are_close(road, rows):
    x, packed, absmax, a, b, dy, form = layer(rows)
    bias = normal(12, form["shape"][0])
    close = torch.testing.assert_close
    calls = [
        (torch_backend.matmul_4bit, (x, packed, absmax), form | {"bias": bias}),
        (torch_backend.matmul_4bit_backward, (dy, packed, absmax), form),
        (torch_backend.qlora_forward, (x, packed, absmax, a, b), form | {"scaling": 0.5}),
        (torch_backend.qlora_backward, (dy, x, packed, absmax, a, b), form | {"scaling": 0.5}),
    ]
    for function, arguments, options in calls:
        close(function(*arguments, **options), plainly(function, *arguments, **options))
    assert road.modules[0].launches


def test_gradients_come_by_the_kernels(road):
    x, packed, absmax, a, b, dy, form = layer(3)
    learnt = [t.clone().requires_grad_() for t in (x, a, b)]
    y = torch_backend.qlora_forward(learnt[0], packed, absmax, *learnt[1:], scaling=0.5, **form)
    y.backward(dy)
    expected = torch_backend.qlora_backward(dy, x, packed, absmax, a, b, scaling=0.5, **form)
    assert same(tuple(t.grad for t in learnt), expected)


def test_nothing_requires_a_gradient_that_has_none(road):
    x = normal(1, 64).requires_grad_()
    assert not any(part.requires_grad for part in torch_backend.quantize_4bit(x))


# ---- operators -----------------------------------------------------------------------------------


def opchecks():
    """Each operator of the kernels' road, with arguments."""
    x, packed, absmax, a, b, dy, _ = layer(3)
    shape, book = [24, 64], torch.from_numpy(q.dynamic_codebook())
    codes, scales = torch.randint(0, 256, (300,), dtype=torch.uint8), torch.ones(2)
    g, v, numbers = normal(3, 5, 60), normal(4, 5, 60).abs(), (3, 0.1, 0.9, 0.999, 1e-8, 0.01)
    state = codes, scales, codes | 128, scales
    learnt = x.clone().requires_grad_()
    return {
        "quantize_4bit": (normal(1, 3, 67), 64, "nf4"),  # an odd number
        "dequantize_4bit": (packed, absmax, shape, 64, "nf4", torch.bfloat16),
        "quantize_blockwise": (x, book, 256),
        "dequantize_blockwise": (codes, scales, book, [3, 100], 256, torch.float16),
        "quantize_absmax": (absmax.abs(), None, 256),
        "dequantize_absmax": (codes, scales, torch.tensor(0.5), book, 256),
        "matmul_4bit": (learnt, packed, absmax, shape, 64, "nf4", None),
        "matmul_4bit_backward": (dy, packed, absmax, shape, 64, "nf4"),
        "qlora_forward": (learnt, packed, absmax, a, b, shape, 0.5, 64, "nf4", None),
        "qlora_backward": (dy, x, packed, absmax, a, b, shape, 0.5, 64, "nf4", None),
        "adam_step": (g, g, g, v, *numbers, True),
        "adam_step_8bit": (g, g, *state, *numbers, 256, None, None),
    }


@pytest.mark.parametrize("name", opchecks())
def test_operators_pass_torch_s_own_check(name):
    """On a CPU, where they compute operation by operation: forms, aliases and gradients."""
    library.opcheck(getattr(ops, name).default, opchecks()[name])


@pytest.mark.parametrize("name", opchecks())
def test_operators_pass_torch_s_own_check_on_the_road(road, name):
    library.opcheck(getattr(ops, name).default, opchecks()[name])
    assert road.modules[0].launches


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiler_sees_one_graph(road, dynamic):
    """The whole of a small step: coded, decoded, multiplied, nothing that a compiler breaks at."""

    def step(x, w):
        packed, absmax = torch_backend.quantize_4bit(w)
        codes = torch_backend.quantize_absmax(absmax)
        scales = torch_backend.dequantize_absmax(*codes)
        y = torch_backend.matmul_4bit(x, packed, scales, shape=(24, 64))
        return y + torch_backend.dequantize_4bit(packed, scales, shape=(24, 64)).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 5):
        x, w = normal(1, rows, 64), normal(2, 24, 64)
        assert same(compiled(x, w), step(x, w))


# ---- the machine ---------------------------------------------------------------------------------


def test_a_launch_is_on_torch_s_stream(road):
    torch_backend.quantize_4bit(normal(1, 64))
    (module,) = road.modules
    assert len(module.launches) == 1
    assert road.cuda.Stream.entered == [STREAM]


def test_a_tensor_is_passed_where_it_lies(road, monkeypatch):
    seen = []
    monkeypatch.setattr(cuda.launching, "launch", lambda *launch: seen.append(launch))
    x = normal(1, 64)
    torch_backend.quantize_4bit(x)
    ((name, _, _, arguments, address),) = seen
    assert name == "quantize_4bit_float32"
    assert cuda.launching.by_value(arguments[0], address) == np.uint64(x.data_ptr())


def test_a_view_is_copied_and_left_alone(road):
    x = normal(1, 64, 40).T
    assert same(
        torch_backend.quantize_4bit(x), plainly(torch_backend.quantize_4bit, x.contiguous())
    )
    machine = cuda.CudaTensors(CPU)
    assert machine.array("x", x).is_contiguous()
    whole = normal(1, 64)
    assert machine.array("x", whole).data_ptr() == whole.data_ptr()


def test_codebooks_are_sent_once_and_never_while_a_graph_is_captured(road, monkeypatch):
    machine, levels = cuda.CudaTensors(CPU), q.nf4_codebook()
    sent = spied(monkeypatch, road, "asarray")
    first = machine.table(levels)
    assert first.tolist() == levels.tolist()
    (kept,) = sent  # in CuPy's memory: a graph's own pool of torch's must hold nothing that stays
    assert first.data_ptr() == kept.ctypes.data
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert machine.table(levels.copy()) is first
    with pytest.raises(RuntimeError, match="call once before the capture"):
        machine.table(q.fp4_codebook())


def spied(monkeypatch, owner, name):
    """Collect what a function returns from now on."""
    found, function = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: found.append(function(*given)) or found[-1])
    return found


@pytest.mark.parametrize("capturing", [False, True])
def test_addresses_are_sent_without_waiting(road, monkeypatch, capturing):
    pinned = []
    monkeypatch.setattr(torch, "tensor", unpinned(torch.tensor, pinned))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x, y = normal(1, 3), normal(2, 3)
    table = cuda.CudaTensors(CPU)._sent(Addresses((x, None, y)))
    assert table.tolist() == [x.data_ptr(), 0, y.data_ptr()]
    assert pinned == ([] if capturing else [True])  # a graph must read no memory of the host


def test_an_address_is_exact_however_high_it_is():
    high = (1 << 62) + 1
    table = torch.empty(1, dtype=torch.int64)
    table.unbind()[0].fill_(high)
    assert table.item() == high


def test_nothing_is_read_back(road, monkeypatch):
    """No call of the road asks for a value, which on a card would wait, nor looks for a NaN."""

    def refuse(*_, **__):
        raise AssertionError("a value was asked for")

    x, packed, absmax, a, b, dy, form = layer(3)
    book = torch.from_numpy(q.dynamic_codebook())
    codes = torch.full((192,), 200, dtype=torch.uint8)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("aminmax", "isfinite"):
        monkeypatch.setattr(torch, name, refuse)
    torch_backend.quantize_4bit(x)
    torch_backend.dequantize_4bit(packed, absmax, **form)
    torch_backend.dequantize_blockwise(
        *torch_backend.quantize_blockwise(x, book), book, shape=(192,)
    )
    torch_backend.dequantize_absmax(*torch_backend.quantize_absmax(absmax, codebook=book))
    torch_backend.matmul_4bit(x, packed, absmax, **form)
    torch_backend.qlora_backward(dy, x, packed, absmax, a, b, scaling=0.5, **form)
    torch_backend.adam_step(x, x, x, x * x, step=1, lr=0.1)
    state = codes, torch.ones(1), codes, torch.ones(1)
    torch_backend.adam_step_8bit(
        x, x, *state, step=1, lr=0.1, m_codebook=book, v_codebook=book.abs()
    )


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda b: b.quantize_4bit(torch.zeros(3, dtype=torch.int32)),
            TypeError,
            "x must have dty",
        ),
        (
            lambda b: b.quantize_4bit(torch.zeros(3), quant_type="nf5"),
            ValueError,
            "quant_type must",
        ),
        (
            lambda b: b.dequantize_4bit(torch.zeros(2, dtype=torch.uint8), [1.0], shape=(4,)),
            TypeError,
            "absmax must be a torch tensor, got list",
        ),
        (
            lambda b: b.dequantize_4bit(
                torch.zeros(2, dtype=torch.uint8), torch.zeros(1), shape=(4,), dtype=np.float32
            ),
            TypeError,
            "dtype must be",
        ),
        (
            lambda b: b.quantize_blockwise(torch.zeros(4), torch.zeros(2, device="meta")),
            ValueError,
            "codebook must lie on cpu",
        ),
        (
            lambda b: b.dequantize_absmax(
                torch.zeros(4, dtype=torch.uint8), torch.zeros(2), torch.tensor(0.0)
            ),
            ValueError,
            "nested_absmax must have shape (1,), got (2,)",
        ),
    ],
)
def test_bad_input_is_refused_by_name_as_on_a_cpu(road, call, kind, text):
    with pytest.raises(kind) as by_kernels:
        call(torch_backend)
    with pytest.raises(kind) as by_tensors:
        plainly(call, torch_backend)
    assert str(by_kernels.value).startswith(text)
    assert str(by_tensors.value) == str(by_kernels.value)


def test_without_cupy_the_reason_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(cuda.launching, "find_spec", lambda name: None)
    cuda.launching.ready.cache_clear()
    cuda.on.cache_clear()
    with pytest.raises(RuntimeError, match=r"^CuPy is not installed: pip install"):
        cuda.on(torch.device("cpu"))
