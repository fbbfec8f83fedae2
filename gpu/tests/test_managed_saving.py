"""Managed arrays in a file, on the stand-in: whole after a kill, and resumed bit for bit."""

import functools
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors

import qloracle as q
from qloracle.paging.saving import TYPES
from qloracle_gpu import managed
from qloracle_gpu.managed import memory as memories
from qloracle_gpu.managed import standin
from qloracle_gpu.managed.standin import make_pager

f32, bf16 = np.float32, ml_dtypes.bfloat16
PAGE = 4096
N = 5000  # elements: five pages of float32, the last one partial
FORM = {"lr": 0.01, "weight_decay": 0.1}

reason = standin.unavailable()
if not reason and managed.implementation.arrays != "numpy":
    reason = "judged by verify on the GPU"
pytestmark = pytest.mark.skipif(bool(reason), reason=reason or "the stand-in is there")


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def gradient(step, dtype=f32):
    return np.random.default_rng(step).standard_normal(N).astype(dtype)


def fresh_state(kind, dtype=f32):
    param = np.random.default_rng(7).standard_normal(N).astype(dtype)
    if kind == "adam_step":
        return {"param": param, "m": np.zeros(N, f32), "v": np.zeros(N, f32)}
    state = {"param": param}
    for name, signed in (("m", True), ("v", False)):
        codes, absmax = q.quantize_blockwise(np.zeros(N, f32), q.dynamic_codebook(signed=signed))
        state |= {f"{name}_codes": codes, f"{name}_absmax": absmax}
    return state


def step_once(kind, values, step):
    values = list(values)
    grad = gradient(step, values[0].dtype)
    return getattr(managed.implementation, kind)(values[0], grad, *values[1:], step=step, **FORM)


@functools.cache
def after_plain_steps(kind, dtype):
    state = fresh_state(kind, dtype)
    for step in range(1, 11):
        state = dict(zip(state, step_once(kind, state.values(), step), strict=True))
    return state


def paged_steps(kind, pager, handles, steps):
    for step in steps:
        with pager.use(*handles.values()) as arrays:
            new = step_once(kind, [array[...] for array in arrays], step)
            for array, values in zip(arrays, new, strict=True):
                array[...] = values


def held(pager, state):
    handles = {name: pager.empty(values.shape, values.dtype) for name, values in state.items()}
    for name, values in state.items():
        handles[name][...] = values
    return handles


# ---- what a file holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(N,), (700, 3), (), (0, 3)])
def test_bytes_go_to_a_file_and_come_back(tmp_path, dtype, shape):
    count = int(np.prod(shape)) * dtype.itemsize
    values = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 256, count, np.uint8)
    expected = values.view(dtype).reshape(shape)  # NaN and infinities among them
    pager = managed.implementation.make_pager(2 * PAGE, PAGE)
    handles = held(pager, {"x": expected})
    pager.prefetch(handles["x"])  # as many pages as there is room for are away when it is saved
    managed.implementation.save_paged(tmp_path / "x", handles)
    arrays, words = managed.implementation.load_paged(tmp_path / "x", make_pager(PAGE, PAGE))
    assert (arrays["x"].shape, arrays["x"].dtype, words) == (expected.shape, expected.dtype, {})
    assert same(arrays["x"], expected)


def test_what_a_step_has_just_written_is_saved(tmp_path):
    """The pages that are dirty on the device, while a step goes on."""
    pager = managed.implementation.make_pager(3 * PAGE, PAGE)
    handles = held(pager, {"m": np.zeros(N, bf16)})
    with pager.use(handles["m"]) as (array,):
        array[N // 2 :] = 3
        managed.implementation.save_paged(tmp_path / "m", handles, {"step": "7"})
        array[...] = 4
    arrays, words = managed.implementation.load_paged(tmp_path / "m", pager)
    assert words == {"step": "7"}
    assert arrays["m"][...].tolist() == [0] * (N // 2) + [3] * (N - N // 2)


@pytest.mark.parametrize("dtype", [f32, bf16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adam_step", "adam_step_8bit"])
def test_a_resumed_state_pages_and_goes_on_bit_for_bit(tmp_path, kind, dtype):
    pager = managed.implementation.make_pager(3 * PAGE, PAGE)
    handles = held(pager, fresh_state(kind, dtype))
    paged_steps(kind, pager, handles, range(1, 5))
    managed.implementation.save_paged(tmp_path / "state", handles, {"step": "4"})

    pager = managed.implementation.make_pager(2 * PAGE, PAGE)
    arrays, words = managed.implementation.load_paged(tmp_path / "state", pager)
    handles = {name: arrays[name] for name in handles}
    paged_steps(kind, pager, handles, range(int(words["step"]) + 1, 11))
    for name, expected in after_plain_steps(kind, dtype).items():
        assert same(handles[name], expected), name
    assert pager.counters.faults > 20
    assert pager.counters.evictions > 20


def test_a_resume_that_forgets_a_page_is_found(tmp_path, monkeypatch):
    """The planted fault of the test above."""
    load = managed.implementation.load_paged

    def forgetful(path, pager):
        arrays, words = load(path, pager)
        arrays["v"][N - N % 1024 :] = 0
        return arrays, words

    changed = SimpleNamespace(**vars(managed.implementation) | {"load_paged": forgetful})
    monkeypatch.setattr(managed, "implementation", changed)
    with pytest.raises(AssertionError, match="param"):
        test_a_resumed_state_pages_and_goes_on_bit_for_bit(tmp_path, "adam_step", f32)


def test_arrays_come_in_the_order_of_their_names(tmp_path):
    """Not in that of a hash: a state is often handed on as `arrays.values()`."""
    pager, names = make_pager(), "abcdefghijklmnopqrst"
    managed.implementation.save_paged(
        tmp_path / "state", held(pager, {name: np.ones(3, f32) for name in reversed(names)})
    )
    arrays, _ = managed.implementation.load_paged(tmp_path / "state", pager)
    assert "".join(arrays) == names


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_file_that_is_damaged_or_too_large_leaves_the_pager_as_it_was(tmp_path):
    save, load = managed.implementation.save_paged, managed.implementation.load_paged
    pager = make_pager(host_bytes=8 * PAGE)
    handles = held(pager, {"a": np.ones(N, f32), "b": np.ones(PAGE, np.uint8)})
    save(tmp_path / "state", handles)
    key = pager.memory.runtime, pager.memory.device
    before = memories._live[key]
    with pytest.raises(ValueError, match=r"shape \(5000,\) of float32 takes 20000 bytes; 8672 of"):
        load(tmp_path / "state", pager)
    assert memories._live[key] == before
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(safetensors.SafetensorError):
        load(tmp_path / "half", make_pager())
    with pytest.raises(TypeError, match="c has dtype complex64; a file holds bool"):
        save(tmp_path / "state", held(make_pager(), {"c": np.ones(3, np.complex64)}))
    gone = held(pager, {"d": np.ones(3, f32)})
    pager.free(gone["d"])
    with pytest.raises(ValueError, match="was freed"):
        save(tmp_path / "state", gone)
    assert (tmp_path / "state").read_bytes() == whole
    assert sorted(each.name for each in tmp_path.iterdir()) == ["half", "state"]


CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import test_managed_saving as t

path, where = Path(sys.argv[1]), sys.argv[2]
pager = t.make_pager(3 * t.PAGE, t.PAGE)
handles = t.held(pager, t.fresh_state("adam_step", t.bf16))
t.paged_steps("adam_step", pager, handles, range(1, 5))
t.managed.implementation.save_paged(path, handles, {{"step": "4"}})
t.paged_steps("adam_step", pager, handles, range(5, 7))

def stop(*_):
    print("now", flush=True)
    time.sleep(600)

class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        stop()

if where == "half written":
    real = Path.open
    Path.open = lambda self, *a, **k: Slow(real(self, *a, **k))
elif where == "not yet on the disk":
    os.fsync = stop
elif where == "in place":       # a saver as it should not be
    path.write_bytes(path.read_bytes()[:1000])
    stop()
t.managed.implementation.save_paged(path, handles, {{"step": "6"}})
"""


def killed_while_saving(path, where):
    text = CHILD.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", text, str(path), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def resumed(path):
    """Go on to step 10 from what a killed process left."""
    pager = managed.implementation.make_pager(2 * PAGE, PAGE)
    arrays, words = managed.implementation.load_paged(path, pager)
    handles = {name: arrays[name] for name in fresh_state("adam_step")}
    paged_steps("adam_step", pager, handles, range(int(words["step"]) + 1, 11))
    return words, handles, pager


@pytest.mark.parametrize("where", ["half written", "not yet on the disk"])
def test_a_run_killed_while_it_saves_leaves_the_last_checkpoint_and_resumes_bit_equal(
    tmp_path, where
):
    path = tmp_path / "state"
    killed_while_saving(path, where)
    assert path.with_name("state.partial").exists()
    words, handles, pager = resumed(path)
    assert words == {"step": "4"}
    for name, expected in after_plain_steps("adam_step", bf16).items():
        assert same(handles[name], expected), name
    assert pager.counters.evictions > 20
    managed.implementation.save_paged(path, handles, {"step": "10"})  # takes the partial file over
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_saver_that_writes_in_place_is_found(tmp_path):
    """The planted fault of the test above."""
    killed_while_saving(tmp_path / "state", "in place")
    with pytest.raises(safetensors.SafetensorError):
        resumed(tmp_path / "state")
