"""What only a GPU can show: streams, graphs, a compiler, long arrays, the kernels against NumPy.

Every test here is skipped, with its reason, where there is no GPU.  None of them has been run so
far.  `qloracle bench --device cuda` runs the checks of `qloracle_gpu.bench.checks` as well.
"""

import numpy as np
import pytest

import qloracle as q
from qloracle_gpu import cupy_backend
from qloracle_gpu.bench import checks
from qloracle_gpu.bench.cases import normal

reason = cupy_backend.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=reason or "there is a GPU")]


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch", reason="torch is not installed")
    if not found.cuda.is_available():
        pytest.skip("this build of torch has no CUDA")
    return found


@pytest.fixture(scope="module")
def backend(torch):
    from qloracle_gpu import torch_backend
    from qloracle_gpu.torch_backend import cuda

    assert cuda.takes(torch.zeros(1, device="cuda"), 64), "CUDA tensors do not take the kernels"
    return torch_backend


def same(torch, got, expected):
    pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    return all(
        a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


# ---- CuPy ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", checks.CHECKS)
def test_checks_of_the_bench(name):
    try:
        checks.CHECKS[name]()
    except checks.Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["quantize_4bit float32", "matmul_4bit bfloat16"])
def test_a_call_waits_for_nothing(name):
    """It returns before the work that was queued in front of it has ended."""
    import cupy

    call = checks.calls()[name]
    call()
    weight, end = cupy.zeros(1 << 28, np.uint8), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    for _ in range(64):
        weight.copy()
    end.record()
    call()
    assert not end.done


def test_a_tensor_of_torch_is_taken_without_a_copy(torch):
    import cupy

    x = torch.randn(4096, device="cuda")
    taken = cupy_backend.CupyDevice().array("x", x)
    assert taken.data.ptr == x.data_ptr()
    packed, _ = cupy_backend.quantize_4bit(x)
    assert torch.from_dlpack(packed).data_ptr() == packed.data.ptr
    assert isinstance(packed, cupy.ndarray)


def test_an_array_of_the_host_is_refused():
    with pytest.raises(TypeError, match=r"^x must be an array on a CUDA device"):
        cupy_backend.quantize_4bit(np.zeros(4, np.float32))


@pytest.mark.parametrize("dtype", checks.TYPES)
def test_products_keep_within_the_bound(dtype):
    """A row times a weight: within (K + 1) float32 roundings of the exact sum, and one of y."""
    w, x = normal(256, 512), normal(3, 512, dtype=dtype)
    packed, absmax = cupy_backend.quantize_4bit(w)
    y = cupy_backend.matmul_4bit(x, packed, absmax, shape=(256, 512))
    wide = q.dequantize_4bit(packed.get(), absmax.get(), shape=(256, 512)).astype(np.float64)
    rows = checks._host(x).astype(np.float64)
    exact, size = rows @ wide.T, np.abs(rows) @ np.abs(wide).T
    unit = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    bound = 513 * 2.0**-24 * size + unit * np.abs(exact) + 2.0**-24
    assert (np.abs(checks._host(y).astype(np.float64) - exact) <= bound).all()


# ---- torch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.TYPES)
def test_the_kernels_and_the_tensors_of_a_cpu_agree(torch, backend, dtype):
    x = torch.randn(100_003, device="cuda").to(getattr(torch, dtype))
    coded = backend.quantize_4bit(x)
    assert same(torch, tuple(part.cpu() for part in coded), backend.quantize_4bit(x.cpu()))
    form = {"shape": (100_003,), "dtype": x.dtype}
    expected = backend.dequantize_4bit(*[part.cpu() for part in coded], **form)
    assert same(torch, backend.dequantize_4bit(*coded, **form).cpu(), expected)


def test_adam_and_a_cpu_agree(torch, backend):
    p, g, m = (torch.randn(10_007, device="cuda") for _ in range(3))
    state, form = (p, g, m, m * m), {"step": 3, "lr": 0.1, "weight_decay": 0.01}
    expected = backend.adam_step(*[t.cpu() for t in state], **form)
    assert same(torch, tuple(t.cpu() for t in backend.adam_step(*state, **form)), expected)


def test_a_side_stream_of_torch_is_kept_to(torch, backend):
    """Late inputs on a side stream, and no synchronization before the result is read."""
    x = torch.randn(1 << 20, device="cuda")
    expected = backend.quantize_4bit(x)
    late, stream = torch.full_like(x, 3e38), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        got = backend.quantize_4bit(late)
    stream.synchronize()
    assert same(torch, got, expected)


def weight(torch, backend, shape=(256, 512)):
    return backend.quantize_4bit(torch.randn(shape, device="cuda"))


def test_a_graph_replays_what_it_captured(torch, backend):
    """Decode, multiply and step in one graph, replayed on other numbers."""
    shape = 256, 512
    packed, absmax = weight(torch, backend, shape)
    x, m = torch.randn(3, 512, device="cuda"), torch.zeros(3, 256, device="cuda")

    def work():
        y = backend.matmul_4bit(x, packed, absmax, shape=shape)
        w = backend.dequantize_4bit(packed, absmax, shape=shape)
        return y, w, *backend.adam_step(y, y, m, m, step=1, lr=0.1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert same(torch, captured, work())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_layer_gives_the_same_bits(torch, backend, mode):
    """The very first call of all is a compiled one: it sends the codebooks."""
    from qloracle_gpu.torch_backend import cuda

    packed, absmax = weight(torch, backend)
    cuda._on.cache_clear()

    def layer(x, a, b):
        return backend.qlora_forward(x, packed, absmax, a, b, shape=(256, 512), scaling=0.5)

    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    a, b = torch.randn(8, 512, device="cuda"), torch.randn(256, 8, device="cuda")
    for _ in range(3):
        x = torch.randn(4, 512, device="cuda")
        assert same(torch, compiled(x, a, b).clone(), layer(x, a, b))


def test_gradients_come_by_the_kernels(torch, backend):
    packed, absmax = weight(torch, backend)
    x, a, b, dy = (torch.randn(s, device="cuda") for s in ((4, 512), (8, 512), (256, 8), (4, 256)))
    learnt = [t.clone().requires_grad_() for t in (x, a, b)]
    form = {"shape": (256, 512), "scaling": 0.5}
    backend.qlora_forward(learnt[0], packed, absmax, *learnt[1:], **form).backward(dy)
    expected = backend.qlora_backward(dy, x, packed, absmax, a, b, **form)
    assert same(torch, tuple(t.grad for t in learnt), expected)


def test_torch_is_told_of_no_wait(torch, backend):
    """torch's own watch for synchronization raises at none of these."""
    packed, absmax = weight(torch, backend)
    x = torch.randn(3, 512, device="cuda")
    form = {"shape": (256, 512)}

    def work():
        backend.quantize_4bit(x)
        backend.dequantize_4bit(packed, absmax, **form)
        backend.matmul_4bit(x, packed, absmax, **form)
        backend.quantize_absmax(absmax)
        backend.adam_step(x, x, x, x * x, step=1, lr=0.1)

    work()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_second_device_is_used(torch, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    x = torch.randn(4096, device="cuda:1")
    got = backend.quantize_4bit(x)
    assert {part.device.index for part in got} == {1}
    assert same(torch, tuple(part.cpu() for part in got), backend.quantize_4bit(x.cpu()))
