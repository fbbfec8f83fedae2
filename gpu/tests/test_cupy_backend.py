"""The CuPy backend without a card: what is imported, said, compiled and launched.

The tests that launch do so on the stand-in of `conftest.py`; those on a card are in
`test_gpu_only.py`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import qloracle as q
from qloracle_gpu import cupy_backend, kernels
from qloracle_gpu.devices import Addresses, launching
from qloracle_gpu.devices.on_cupy import CupyDevice

needs_cupy = pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")
no_driver = pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver")  # noqa: PTH110
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def cupy_array(stand_in, values):
    return stand_in.asarray(np.asarray(values))


def same(got, expected):
    parts = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    return all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in ((np.asarray(a), np.asarray(b)) for a, b in parts)
    )


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


# ---- without CuPy, without a driver -------------------------------------------------------------


def test_importing_loads_no_framework():
    code = "import sys, qloracle_gpu.cupy_backend; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"cupy", "torch"} & set(run.stdout.split())


def test_without_cupy_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    reason = "CuPy is not installed: pip install 'qloracle[cuda13]' (or cuda12)"
    assert cupy_backend.unavailable() == reason
    launching.ready.cache_clear()
    with pytest.raises(RuntimeError) as error:
        cupy_backend.quantize_4bit(np.zeros(4, np.float32))
    assert str(error.value) == reason


@needs_cupy
@no_driver
def test_without_a_driver_one_line_says_so():
    reason = "needs an NVIDIA GPU: this machine has no CUDA driver (libcuda.so.1)"
    assert cupy_backend.unavailable() == reason
    launching.ready.cache_clear()
    with pytest.raises(RuntimeError) as error:
        cupy_backend.dequantize_4bit(np.zeros(2, np.uint8), np.zeros(1, np.float32), shape=(4,))
    assert str(error.value) == reason


def broken(**changed):
    """CuPy where something is missing."""

    def refuse():
        raise RuntimeError("\n=====\nlibnvrtc.so.13: not found\nmore")

    runtime = SimpleNamespace(driverGetVersion=lambda: 13000, getDeviceCount=lambda: 1)
    vars(runtime).update(changed)
    nvrtc = SimpleNamespace(getVersion=refuse if changed.get("nvrtc") else lambda: (13, 0))
    cuda = SimpleNamespace(runtime=runtime, nvrtc=nvrtc)
    return SimpleNamespace(cuda=cuda, __version__=changed.get("release", "14.2.0")), refuse


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        (
            {"release": "13.6.0"},
            "CuPy 13.6.0 is too old, 14 is needed: pip install 'qloracle[cuda13]' (or cuda12)",
        ),
        ({"getDeviceCount": lambda: 0}, "needs an NVIDIA GPU: the driver finds none"),
        ({"getDeviceCount": broken()[1]}, "needs an NVIDIA GPU: libnvrtc.so.13: not found"),
        (
            {"nvrtc": True},
            "CuPy finds no NVRTC (libnvrtc.so.13: not found): "
            "pip install 'qloracle[cuda13]' (or cuda12)",
        ),
    ],
)
def test_what_is_missing_is_named(monkeypatch, changed, reason):
    monkeypatch.setattr(launching, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "cupy", broken(**changed)[0])
    assert cupy_backend.unavailable() == reason


# ---- the text ------------------------------------------------------------------------------------


@needs_cupy
def test_cupy_gets_the_text_byte_for_byte():
    """A module of the real CuPy, which can be made without a driver."""
    launching.module.cache_clear()
    module = launching.module()
    assert module.code.encode() == kernels.text().encode()
    assert module.options == kernels.OPTIONS
    assert (module.backend, module.enable_cooperative_groups) == ("nvrtc", False)


@needs_cupy
def test_nvrtc_gets_the_text_and_the_options(monkeypatch):
    """What CuPy hands to the library, up to the call that would compile it for a minute."""
    from cupy.cuda import compiler

    real, seen = compiler.nvrtc, []

    class Enough(Exception):
        pass

    class Recorder:
        def __getattr__(self, name):
            return getattr(real, name)

        def createProgram(self, source, *rest):
            seen.append(source)
            return real.createProgram(source, *rest)

        def compileProgram(self, program, options):
            seen.append(options)
            raise Enough

    monkeypatch.setattr(compiler, "nvrtc", Recorder())
    launching.module.cache_clear()
    module = launching.module()
    program = compiler._NVRTCProgram(module.code, "kernels.cu", method="cubin")
    with pytest.raises(Enough):
        program.compile((*module.options, "-arch=sm_90"))
    assert seen[0].encode() == kernels.text().encode()
    assert set(kernels.OPTIONS) <= set(seen[1])


# ---- launches, on the stand-in -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_codes_and_values_are_the_reference_s(stand_in, dtype):
    x = normal(1, 3, 701, dtype=dtype)
    expected = q.quantize_4bit(x)
    packed, absmax = cupy_backend.quantize_4bit(cupy_array(stand_in, x))
    assert same((packed, absmax), expected)
    back = cupy_backend.dequantize_4bit(packed, absmax, shape=x.shape, dtype=dtype)
    assert same(back, q.dequantize_4bit(*expected, shape=x.shape, dtype=dtype))
    assert type(back) is stand_in.ndarray
    (module,) = stand_in.modules
    assert (module.code, module.options) == (kernels.text(), kernels.OPTIONS)


def test_8_bits_and_nested_scales_are_the_reference_s(stand_in):
    x, book = normal(2, 3000), q.dynamic_codebook()
    codes, absmax = cupy_backend.quantize_blockwise(
        cupy_array(stand_in, x), cupy_array(stand_in, book)
    )
    assert same((codes, absmax), q.quantize_blockwise(x, book))
    scales = np.abs(normal(3, 700))
    nested = cupy_backend.quantize_absmax(cupy_array(stand_in, scales))
    expected = q.quantize_absmax(scales)
    assert same(nested[:2], expected[:2])
    assert same(
        cupy_backend.dequantize_absmax(*nested), q.dequantize_absmax(*map(np.asarray, nested))
    )


def test_a_step_of_adam_is_the_reference_s(stand_in):
    p, g, m = (normal(seed, 5, 77) for seed in (4, 5, 6))
    v = np.abs(normal(7, 5, 77))
    form = {"step": 3, "lr": 0.1, "weight_decay": 0.01}
    got = cupy_backend.adam_step(*[cupy_array(stand_in, a) for a in (p, g, m, v)], **form)
    assert same(got, q.adam_step(p, g, m, v, **form))


def test_products_are_close_and_leave_cupy_s_precision_alone(stand_in):
    w, x = normal(8, 24, 64), normal(9, 40, 64)
    packed, absmax = cupy_backend.quantize_4bit(cupy_array(stand_in, w))
    stand_in.types["compute"] = 7  # TF32
    y = cupy_backend.matmul_4bit(cupy_array(stand_in, x), packed, absmax, shape=w.shape)
    expected = q.matmul_4bit(x, np.asarray(packed), np.asarray(absmax), shape=w.shape)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-5)
    assert stand_in.types["compute"] == 7


def test_float32_products_are_made_without_tf32(stand_in, monkeypatch):
    seen = []
    monkeypatch.setattr(stand_in, "matmul", lambda a, b: seen.append(stand_in.types["compute"]))
    stand_in.types["compute"] = 7
    CupyDevice().product(None, None)
    assert seen == [1]


def test_an_empty_grid_launches_nothing(stand_in):
    CupyDevice().launch("no such kernel", 0, 256)
    assert stand_in.modules == []


def test_nothing_is_coded_of_nothing(stand_in):
    packed, absmax = cupy_backend.quantize_4bit(cupy_array(stand_in, np.zeros(0, np.float32)))
    assert (packed.shape, absmax.shape) == ((0,), (0,))


def test_a_table_is_sent_once_and_by_its_contents(stand_in):
    machine, levels = CupyDevice(), q.nf4_codebook()
    first = machine.table(levels)
    assert machine.table(levels.copy()) is first
    other = levels.copy()
    other[3] = 0
    assert machine.table(other) is not first
    assert same(first, levels)
    assert machine.table(levels.view(np.uint32)) is not first


def test_two_tables_of_addresses_of_one_launch_are_both_alive(stand_in, monkeypatch):
    """A table that was let go before the launch could be where the next one is written."""
    made, alive = [], []
    monkeypatch.setattr(
        stand_in, "asarray", lambda v: made.append(np.array(v).view(stand_in.ndarray)) or made[-1]
    )

    def launch(name, grid, block, arguments, address):
        counts = [sys.getrefcount(table) for table in made]
        alive.extend(count > 3 for count in counts)  # made, the loop, getrefcount: and the launch

    monkeypatch.setattr("qloracle_gpu.devices.on_cupy.launch", launch)
    array = np.zeros(4, np.float32).view(stand_in.ndarray)
    CupyDevice().launch("any", 1, 32, Addresses((array, None)), Addresses((array,)))
    assert made[0].tolist() == [array.data.ptr, 0]
    assert alive == [True, True]


# ---- what is taken, and what is refused ----------------------------------------------------------


def test_a_view_is_copied_and_a_whole_array_is_not(stand_in):
    machine, x = CupyDevice(), cupy_array(stand_in, np.arange(12, dtype=np.float32))
    assert machine.array("x", x) is x
    view = machine.array("x", x[::2])
    assert view.flags.c_contiguous
    assert view.tolist() == [0, 2, 4, 6, 8, 10]


def test_a_scalar_keeps_its_shape(stand_in):
    assert CupyDevice().array("x", cupy_array(stand_in, np.float32(3))).shape == ()


def test_arrays_of_others_are_read_where_they_lie(stand_in, monkeypatch):
    x = np.zeros(3, np.float32).view(stand_in.ndarray)
    monkeypatch.setattr(stand_in, "from_dlpack", lambda value: x, raising=False)
    by_dlpack = SimpleNamespace(__dlpack_device__=lambda: (2, 0))
    assert CupyDevice().array("x", by_dlpack) is x
    monkeypatch.setattr(stand_in, "asarray", lambda value: x)
    assert CupyDevice().array("x", SimpleNamespace(__cuda_array_interface__={})) is x


@pytest.mark.parametrize(
    ("value", "kind"), [([1.0], "list"), (np.zeros(2, np.float32), "numpy.ndarray"), (3, "int")]
)
def test_what_lies_on_no_gpu_is_refused_by_name(stand_in, value, kind):
    with pytest.raises(TypeError) as error:
        cupy_backend.quantize_4bit(value)
    assert str(error.value) == f"x must be an array on a CUDA device, got a {kind}"


def test_what_cannot_be_shared_is_refused_by_name(stand_in, monkeypatch):
    def refuse(value):
        raise BufferError("it requires a gradient")

    monkeypatch.setattr(stand_in, "from_dlpack", refuse, raising=False)
    with pytest.raises(TypeError, match=r"^x is a SimpleNamespace that CuPy cannot read: it req"):
        CupyDevice().array("x", SimpleNamespace(__dlpack_device__=lambda: (2, 0)))


def test_an_array_of_another_device_is_refused_by_name(stand_in):
    x = cupy_array(stand_in, np.zeros(4, np.float32))
    x.device = SimpleNamespace(id=1)
    with pytest.raises(ValueError, match=r"^x must lie on the current device.*cuda:0, got cuda:1$"):
        cupy_backend.quantize_4bit(x)


def test_every_function_of_the_protocol_is_offered():
    from qloracle_gpu import torch_backend

    offered = [name for name in torch_backend.__all__ if name != "arrays"]
    assert all(callable(getattr(cupy_backend, name)) for name in offered)
    assert cupy_backend.arrays == cupy_backend.implementation.arrays == "cupy"
    assert not hasattr(cupy_backend, "device")  # which would be a declaration
