"""Arrays of torch and JAX, in and out, in every form (rule P5).  CuPy needs a GPU: not tried."""

import contextlib
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from qloracle_conformance.calling import frameworks
from qloracle_conformance.calling.callers import LocalCaller
from qloracle_conformance.calling.calls import Calls
from qloracle_conformance.calling.loading import load
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.running.verify import verify

TORCH_KERNEL = (Path(__file__).with_name("data") / "torch_kernel.py").read_text()

JAX_KERNEL = """\
import jax.numpy as jnp, math, qloracle
arrays = "jax"
NF4 = jnp.array(qloracle.nf4_codebook())
def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=jnp.float32):
    n = math.prod(shape)
    codes = jnp.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    return (NF4[codes] * jnp.repeat(absmax, blocksize)[:n]).astype(dtype).reshape(shape)
"""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture
def kernel(tmp_path):
    def write(text):
        path = tmp_path / "kernel.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def judged(kernel):
    """Judge a text in this process, in which its framework is loaded already."""

    def judge(text, **options):
        return verify([load(kernel(text))], causes=False, **options)

    return judge


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def odd_values(dtype):
    """Both zeros, subnormals, infinities and a NaN with a payload among ordinary numbers."""
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[np.dtype(dtype).itemsize]
    return np.random.default_rng(3).integers(0, 1 << 31, (3, 5, 4)).astype(unsigned).view(dtype)


def statuses(report):
    return {check.id: check.status for check in report.judgements[0].checks}


@pytest.mark.parametrize("form", ["", *frameworks.VIEWS])
@pytest.mark.parametrize("dtype", [*FLOAT_TYPES.values(), np.dtype(np.uint8)])
def test_torch_takes_and_gives_back_every_bit(dtype, form):
    array = odd_values(dtype)
    argument, whole = frameworks.give(array.copy(), "torch", "cpu", form)
    assert isinstance(argument, torch.Tensor)
    assert bits(frameworks.take(argument)) == bits(array)
    assert whole.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [*FLOAT_TYPES.values(), np.dtype(np.uint8)])
def test_jax_takes_and_gives_back_every_bit(dtype):
    array = odd_values(dtype)
    argument, _ = frameworks.give(array.copy(), "jax", "cpu")
    assert isinstance(argument, jax.Array)
    assert bits(frameworks.take(argument)) == bits(array)


def test_each_form_is_what_it_says():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    given = {f: frameworks.give(array, "torch", "cpu", f)[0] for f in ("", *frameworks.VIEWS)}
    assert given["strided"].stride() == (24, 8, 2)
    assert given["transposed"].stride() == (1, 2, 6)
    assert [given[f].storage_offset() for f in ("", "offset", "unaligned")] == [0, 64, 1]
    assert all(given[f].is_contiguous() for f in ("", "offset", "unaligned"))
    ones = frameworks.give(np.ones((2, 3), np.float32), "torch", "cpu", "expanded")[0]
    assert (ones.stride(), given["expanded"].stride()) == ((0, 0), (12, 4, 1))
    assert given["unaligned"].data_ptr() % 16 == 4


@pytest.mark.parametrize("form", ["strided", "offset", "unaligned"])
def test_the_memory_around_a_view_holds_no_element(form):
    array = np.ones((2, 4), np.float32)
    _, whole = frameworks.give(array, "torch", "cpu", form)
    around = whole[whole != 1]
    assert around.numel() == whole.numel() - array.size > 0
    assert (around > 1e38).all()


@pytest.mark.parametrize("form", ["", *frameworks.VIEWS])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3)])
def test_small_arrays_have_every_form(shape, form):
    array = np.ones(shape, ml_dtypes.bfloat16)
    argument, _ = frameworks.give(array, "torch", "cpu", form)
    assert bits(frameworks.take(argument)) == bits(array)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (torch.ones(2, requires_grad=True), [1, 1]),
        (torch.ones(2, dtype=torch.bfloat16, requires_grad=True) * 3, [3, 3]),
        (torch.ones(2, dtype=torch.complex64).mul(1j).conj().imag, [-1, -1]),  # a lazy negation
        (torch.arange(4.0)[::2], [0, 2]),
        (torch.nn.Parameter(torch.ones(1, dtype=torch.float16)), [1]),
    ],
    ids=["requires_grad", "bfloat16 with grad", "negated view", "strided", "parameter"],
)
def test_results_are_read_whatever_they_drag_along(result, expected):
    assert frameworks.take(result).astype(np.float32).tolist() == expected


def test_a_reading_is_a_copy():
    tensor = torch.ones(2)
    read = frameworks.take(tensor)
    tensor.zero_()
    assert read.tolist() == [1, 1]


@pytest.mark.parametrize("text", [TORCH_KERNEL, JAX_KERNEL], ids=["torch", "jax"])
def test_a_kernel_of_eight_lines_passes_in_all_three_types(kernel, text):
    report = verify([kernel(text)], only="S1,S7,P5")
    judgement = report.judgements[0]
    assert report.exit_code == 0
    assert judgement.device == "cpu"
    types = {c.status for c in judgement.checks if c.id.startswith("S1/dequantize_4bit[nf4]")}
    assert types == {"PASS"}
    assert statuses(report)["S7/dequantize_4bit[nf4]/extremes"] == "PASS"


def test_what_is_called_expanded_is_expanded(monkeypatch):
    given, give = set(), frameworks.give

    def noted(array, framework, device, form=""):
        argument, whole = give(array, framework, device, form)
        if form == "expanded" and whole.numel() < array.size:
            given.add(id(array))
        return argument, whole

    monkeypatch.setattr(frameworks, "give", noted)
    tried = {}
    perform = Calls.perform

    def called(calls, case):
        given.clear()  # an array that is gone may lend its identity
        answer = perform(calls, case)
        if case.form == "expanded":
            names = {name for name, array in case.arrays.items() if id(array) in given}
            tried.setdefault(case.function, []).append(names)
        return answer

    monkeypatch.setattr(Calls, "perform", called)
    report = verify([load("torch")], only="P5/*/expanded")
    checks = report.judgements[0].checks
    assert {check.status for check in checks} == {"PASS"}
    assert len(tried) == len(checks)
    assert all(names for cases in tried.values() for names in cases)
    assert {"x", "w", "a", "b"} <= set.union(*tried["lora_forward"])


def test_views_are_tried_on_torch_and_not_on_arrays_that_have_none(judged):
    forms = {
        "P5/dequantize_4bit[nf4]/" + form for form in ("strided", "offset", "unaligned", "expanded")
    }
    assert statuses(judged(TORCH_KERNEL, only="P5")).keys() == forms
    assert statuses(judged(JAX_KERNEL, only="P5")) == {}


def test_a_bfloat16_fault_on_tensors_is_found(judged):
    wrong = TORCH_KERNEL.replace(".to(dtype)", ".half().to(dtype)")
    assert wrong != TORCH_KERNEL
    report = judged(wrong, only="S7")
    assert report.exit_code == 1


def test_a_kernel_that_needs_another_device_than_the_kit_gives_says_so(kernel):
    report = verify([kernel("arrays = 'tinygrad'\ndef quantize_4bit(x): ...\n")])
    assert report.judgements[0].status == "ERROR"
    assert report.judgements[0].message == (
        "declares arrays = 'tinygrad'; allowed: numpy, torch, cupy, jax"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_one_line(kernel):
    report = verify([kernel(TORCH_KERNEL)], device="cuda")
    (judgement,) = report.judgements
    assert (judgement.status, report.exit_code) == ("NOT_RUN", 3)
    assert judgement.message.startswith("no torch array on device 'cuda' here: ")


def test_the_device_asked_for_overrules_the_declared_one():
    class Kernel:
        arrays, device = "torch", "meta"

        @staticmethod
        def quantize_absmax(absmax):
            raise NotImplementedError

    assert LocalCaller(Kernel, "cpu").device == "cpu"


def test_limits_name_the_views_that_are_refused(judged):
    refusing = TORCH_KERNEL + textwrap.dedent("""
        whole, limits = dequantize_4bit, {"views": ["offset", "unaligned"]}
        def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=torch.float32):
            assert packed.is_contiguous()
            return whole(packed, absmax, shape=shape, blocksize=blocksize, dtype=dtype)
    """)
    report = judged(refusing, only="P5,S7")
    assert statuses(report)["P5/dequantize_4bit[nf4]/strided"] == "UNSUPPORTED"
    assert statuses(report)["P5/dequantize_4bit[nf4]/offset"] == "PASS"
    assert report.exit_code == 0
    undeclared = judged(refusing.replace("limits", "unread"), only="P5,S7")
    assert statuses(undeclared)["P5/dequantize_4bit[nf4]/strided"] == "ERROR"


def test_what_is_wrong_in_the_plain_form_is_not_blamed_on_the_views(judged):
    wrong = TORCH_KERNEL.replace("packed >> 4, packed & 15", "packed & 15, packed & 15")
    report = judged(wrong, only="P5")
    assert set(statuses(report).values()) == {"NOT_RUN"}


def test_a_call_that_raises_is_waited_for_on_its_stream(monkeypatch):
    """Else its late inputs could arrive in the memory of the next call (torch.cuda, played)."""
    done = []
    stream = SimpleNamespace(synchronize=lambda: done.append("waited"))
    played = SimpleNamespace(
        Stream=lambda _: stream, stream=lambda _: contextlib.nullcontext(),
        synchronize=lambda _: None, _sleep=lambda _: None,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", played)
    with (
        pytest.raises(NotImplementedError),
        frameworks.queue("side_stream", "cuda", [torch.ones(3)]),
    ):
        raise NotImplementedError
    assert done == ["waited"]


@pytest.mark.gpu
@needs_gpu
class TestOnAGpu:
    def test_the_same_file_passes_on_cuda(self, kernel):
        report = verify([kernel(TORCH_KERNEL)], device="cuda")
        assert report.judgements[0].device == "cuda"
        assert report.exit_code == 0
        assert statuses(report)["P5/dequantize_4bit[nf4]/side_stream"] == "PASS"

    def test_a_kernel_that_leaves_the_callers_stream_is_found(self, kernel):
        wrong = TORCH_KERNEL + textwrap.dedent("""
            whole = dequantize_4bit
            def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=torch.float32):
                with torch.cuda.stream(torch.cuda.default_stream()):
                    return whole(packed, absmax, shape=shape, blocksize=blocksize, dtype=dtype)
        """)
        report = verify([kernel(wrong)], device="cuda", only="P5,S7")
        assert statuses(report)["P5/dequantize_4bit[nf4]/side_stream"] == "FAIL"
