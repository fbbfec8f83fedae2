"""Managed memory on the stand-in: real page faults, and bits that do not depend on them."""

import contextlib
import ctypes
import errno
import functools
import gc
import os
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

import qloracle as q
from qloracle import paging
from qloracle_gpu import managed, operations
from qloracle_gpu.devices.gcc import Host
from qloracle_gpu.managed import capability, standin
from qloracle_gpu.managed import memory as memories
from qloracle_gpu.managed import runtime as cuda
from qloracle_gpu.managed.memory import ManagedMemory, PlainMemory, block_of
from qloracle_gpu.managed.pager import Pager
from qloracle_gpu.managed.standin import StandinMemory, StandinPager, make_pager, runtimes
from qloracle_gpu.managed.standin.runtimes import Device
from qloracle_gpu.proof import sanitized

f32 = np.float32
PAGE = 4096
MIB = 2**20
HOST, DEVICE = "host", "device"

ask_machine = capability.of_machine.__wrapped__  # the cache must not meet another machine

reason = standin.unavailable()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason or "the stand-in is there")


def random_bytes(seed, shape, dtype):
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8).view(dtype).reshape(shape)


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(f32)


def on_standin(**options):
    """Memory of a new device."""
    return StandinMemory(Device(runtimes.runtime(), **options))


def python(text, timeout=60):
    """Run a text in a process of its own."""
    command = [sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


# ---- what the issue asks to be shown -------------------------------------------------------------


@pytest.mark.parametrize("version", [12, 13])
def test_12_mib_of_state_under_a_budget_of_4_mib(version):
    n, step = MIB, operations.implementation(Host()).adam_step
    param, grad = numbers(2, n)
    state = {"param": param, "m": 0.1 * grad, "v": grad * grad}
    expected = step(param, grad, state["m"], state["v"], step=3, lr=0.1)

    def paged(capacity, prefetched):
        pager = make_pager(capacity, version=version)
        handles = [pager.empty(values.shape, f32) for values in state.values()]
        for handle, values in zip(handles, state.values(), strict=True):
            handle[...] = values
            if prefetched:
                pager.prefetch(handle)
        with pager.use(*handles) as arrays:
            new = step(arrays[0][...], grad, arrays[1][...], arrays[2][...], step=3, lr=0.1)
            read = pager.counters
            for array, values in zip(arrays, new, strict=True):
                array[...] = values
        assert all(same(*pair) for pair in zip(handles, expected, strict=True))
        return read

    read = paged(4 * MIB, prefetched=False)
    assert (read.faults, read.evictions) == (192, 128)
    assert read.bytes_to_device == 12 * MIB
    assert read.bytes_to_host == 8 * MIB
    read = paged(12 * MIB, prefetched=True)
    assert (read.faults, read.prefetched, read.evictions) == (0, 192, 0)


# ---- any history ---------------------------------------------------------------------------------


class AgainstPlainArrays(RuleBasedStateMachine):
    """Whatever is done to managed arrays, they hold what plain arrays would hold."""

    runtime = None

    def __init__(self):
        super().__init__()
        device = Device(self.runtime or runtimes.runtime(), 3 * PAGE, PAGE)
        self.pager = StandinPager(StandinMemory(device), PAGE)
        self.arrays = []  # handle, plain array
        self.departed = 0  # pages that left the device's memory because they were freed

    def pick(self, data):
        return data.draw(st.sampled_from(self.arrays))

    def part(self, data, plain):
        i = data.draw(st.integers(0, len(plain)))
        return slice(i, data.draw(st.integers(i, len(plain))))

    @rule(
        shape=st.sampled_from([(0,), (1,), (1024,), (1025,), (5000,), (700, 3), (9, 200, 2)]),
        dtype=st.sampled_from([np.uint8, np.float16, ml_dtypes.bfloat16, f32, np.float64]),
        seed=st.integers(0, 999),
    )
    def allocate(self, shape, dtype, seed):
        handle = self.pager.empty(shape, dtype)
        assert same(handle, np.full(handle.nbytes, 0xFF, np.uint8))
        plain = random_bytes(seed, shape, dtype)
        handle[...] = plain
        self.arrays.append((handle, plain))

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), by_device=st.booleans(), seed=st.integers(0, 999))
    def write(self, data, by_device, seed):
        handle, plain = self.pick(data)
        part = self.part(data, plain)
        plain[part] = random_bytes(seed, plain[part].shape, plain.dtype)
        with self.pager.use(handle) as (array,):
            (array if by_device else handle)[part] = plain[part]

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), by_device=st.booleans())
    def read(self, data, by_device):
        handle, plain = self.pick(data)
        part = self.part(data, plain)
        with self.pager.use(handle) as (array,):
            assert same((array if by_device else handle)[part], plain[part])

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def add_one_array_to_another(self, data):
        (first, a), (second, b) = self.pick(data), self.pick(data)
        n = min(a.nbytes, b.nbytes)
        with self.pager.use(first, second) as (x, y):
            total = x[...].reshape(-1).view(np.uint8)[:n] + y[...].reshape(-1).view(np.uint8)[:n]
            new = y[...].copy()
            new.reshape(-1).view(np.uint8)[:n] = total
            y[...] = new
        mine = b.reshape(-1).view(np.uint8)
        mine[:n] += a.reshape(-1).view(np.uint8)[:n]

    @rule(seed=st.integers(0, 99), n=st.integers(1, 3000))
    def run_a_step(self, seed, n):
        param, grad = numbers(2, n, seed=seed)
        plain = [param, 0.1 * grad, grad * grad]
        expected = q.adam_step(plain[0], grad, *plain[1:], step=2, lr=0.1)
        handles = [self.pager.empty((n,), f32) for _ in plain]
        for handle, values in zip(handles, plain, strict=True):
            handle[...] = values
        with self.pager.use(*handles) as (p, m, v):
            new = q.adam_step(p[...], grad, m[...], v[...], step=2, lr=0.1)
            for array, values in zip((p, m, v), new, strict=True):
                array[...] = values
        self.arrays += zip(handles, expected, strict=True)

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), to=st.sampled_from([HOST, DEVICE]))
    def prefetch(self, data, to):
        handle, plain = self.pick(data)
        self.pager.prefetch(handle, to)
        before = self.pager.counters
        if to == DEVICE and self.pages(plain) * PAGE <= self.pager.capacity:
            with self.pager.use(handle) as (array,):
                assert same(array[...], plain)
            assert self.pager.counters == before

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), where=st.sampled_from([None, HOST, DEVICE]), mostly=st.booleans())
    def advise(self, data, where, mostly):
        self.pager.advise(self.pick(data)[0], preferred=where, read_mostly=mostly)

    @rule(frames=st.integers(1, 12))
    def shrink(self, frames):
        self.pager.shrink(frames * PAGE)

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def free(self, data):
        i = data.draw(st.integers(0, len(self.arrays) - 1))
        handle, _ = self.arrays.pop(i)
        before = self.pager.resident_bytes
        self.pager.free(handle)
        self.departed += (before - self.pager.resident_bytes) // PAGE
        with pytest.raises(ValueError, match="was freed"):
            self.pager.free(handle)

    def pages(self, plain):
        return -(-plain.nbytes // PAGE)

    @invariant()
    def the_device_holds_no_more_than_it_can(self):
        assert self.pager.resident_bytes <= self.pager.capacity
        held = sum(self.pages(plain) for _, plain in self.arrays) * PAGE
        assert self.pager.resident_bytes <= held

    @invariant()
    def counters_add_up(self):
        c = self.pager.counters
        came = c.faults + c.prefetched
        went = c.evictions + c.host_faults + c.host_prefetched
        assert c.bytes_to_device == came * PAGE
        assert c.bytes_to_host == went * PAGE
        assert self.pager.resident_bytes == (came - went - self.departed) * PAGE

    def teardown(self):
        for handle, plain in self.arrays:
            assert same(handle, plain)


machine_settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=30, database=None
)


def test_any_history_leaves_what_plain_arrays_hold():
    run_machine(AgainstPlainArrays, settings=machine_settings)


def small_pager(runtime, frames):
    return StandinPager(StandinMemory(Device(runtime, frames * PAGE, PAGE)), PAGE)


def freed_pages_come_back_though_a_step_kept_an_array(runtime):
    pager = small_pager(runtime, 9)
    handle = pager.empty((4 * PAGE,), np.uint8)
    with pager.use(handle) as (array,):
        kept = array[...]
        assert kept.sum() == 255 * 4 * PAGE
    assert pager.resident_bytes == 4 * PAGE
    pager.free(handle)
    assert pager.resident_bytes == 0
    assert kept[0] == 255  # and no crash


def a_prefetch_keeps_what_is_there_already(runtime):
    pager = small_pager(runtime, 3)
    first, second = (pager.empty((3 * PAGE,), np.uint8) for _ in range(2))
    with pager.use(first, second) as (a, b):
        a[:1] = 0
        b[:1] = 0
    pager.prefetch(first)
    assert (pager.counters.prefetched, pager.counters.evictions) == (2, 1)
    with pager.use(first) as (a,):
        a[...] = 1
    assert pager.counters.faults == 2  # those of the first `use`


def the_host_touches_pages_while_a_step_runs(runtime):
    pager = small_pager(runtime, 9)
    handle = pager.empty((3 * PAGE,), np.uint8)
    with pager.use(handle) as (array,):
        array[...] = 1
        assert (handle[:PAGE] == 1).all()
        assert (pager.counters.host_faults, pager.resident_bytes) == (1, 2 * PAGE)
        array[:PAGE] = 2
    assert pager.counters.faults == 4
    assert handle[...].sum() == 4 * PAGE


HISTORIES = (
    freed_pages_come_back_though_a_step_kept_an_array,
    a_prefetch_keeps_what_is_there_already,
    the_host_touches_pages_while_a_step_runs,
)


@pytest.mark.parametrize("history", HISTORIES)
def test_one_history(history):
    history(runtimes.runtime())


FAULTS = {
    "a page that leaves the device is not copied": (
        "memcpy(a.bytes[to] + i * size, from, size);",
        "if (to == DEVICE) memcpy(a.bytes[to] + i * size, from, size);",
    ),
    "a page stays open after it has moved": ("close_pages(a, i * size, size);\n", "\n"),
    "the capacity is a page too large": (
        "device.resident + device.page_bytes > device.capacity",
        "device.resident > device.capacity",
    ),
    "a prefetch leaves the last page": (
        "for (size_t i = first; i < last; ++i) {",
        "for (size_t i = first; i + 1 < last; ++i) {",
    ),
    "a prefetch pushes out what it has brought": (
        "if (a->pages[i].place == to) a->pages[i].touched = ++touches;",
        "",
    ),
    "a fault is not counted": ("++device.counters.faults;", ""),
    "an eviction is not counted": ("++devices[number].counters.evictions;", ""),
    "freed pages stay resident": (
        "if (page.place == DEVICE) device.resident -= device.page_bytes;\n    page = Page();",
        "",
    ),
    "shrinking evicts nothing": ("while (device.resident > capacity) evict_oldest(number, 0);", ""),
    "a page is opened at the wrong place": (
        "char *from = a.bytes[a.pages[i].place] + i * size, *at",
        "char *from = a.bytes[a.pages[i].place] + (i == 1 ? 0 : i) * size, *at",
    ),
    "all pages are open to the host": ("if (a.pages[i].place == HOST) open_pages", "open_pages"),
}


def planted(name):
    right, wrong = FAULTS[name]
    text = runtimes.text()
    assert text.count(right) == 1
    return runtimes.load(text.replace(right, wrong), 13)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_the_stand_in_is_found(fault):
    runtime = planted(fault)
    machine = type("Planted", (AgainstPlainArrays,), {"runtime": runtime})
    quick = settings(machine_settings, phases=[Phase.generate])  # it need not be made smaller
    with pytest.raises((AssertionError, ExceptionGroup)):  # noqa: PT012 (any of these)
        for history in HISTORIES:
            history(runtime)
        run_machine(machine, settings=quick)


# ---- steps ---------------------------------------------------------------------------------------

N = 5000  # elements: 20 blocks of 256, the last one short; five pages of float32


def gradient(step):
    return numbers(N, seed=step)


def fresh_state(kind):
    param = numbers(N, seed=7)
    if kind == "adam_step":
        return [param, np.zeros(N, f32), np.zeros(N, f32)]
    coded = [param]
    for codebook in (q.dynamic_codebook(), q.dynamic_codebook(signed=False)):
        coded += q.quantize_blockwise(np.zeros(N, f32), codebook)
    return coded


STEPS, FORM = range(1, 9), {"lr": 0.01, "weight_decay": 0.1}


@functools.cache
def after_plain_steps(kind):
    state = fresh_state(kind)
    for step in STEPS:
        step_of = getattr(managed.implementation, kind)
        state = step_of(state[0], gradient(step), *state[1:], step=step, **FORM)
    return state


@pytest.mark.parametrize("frames", [1, 2, 7, None])
@pytest.mark.parametrize("kind", ["adam_step", "adam_step_8bit"])
def test_steps_of_the_implementation_are_those_without_pages(kind, frames):
    """On the implementation that verify judges; whole arrays, and a part at a time."""
    implementation = managed.implementation
    if implementation.arrays != "numpy":
        pytest.skip("judged by verify on the GPU")
    step_of = getattr(implementation, kind)
    pager = implementation.make_pager(None if frames is None else frames * PAGE, PAGE)
    fresh = fresh_state(kind)
    handles = [pager.empty(values.shape, values.dtype) for values in fresh]
    for handle, values in zip(handles, fresh, strict=True):
        handle[...] = values
    for step in STEPS:
        with pager.use(*handles) as arrays:
            old = [array[...] for array in arrays]
            new = step_of(old[0], gradient(step), *old[1:], step=step, **FORM)
            for array, values in zip(arrays, new, strict=True):
                array[...] = values
    expected = after_plain_steps(kind)
    assert all(same(*pair) for pair in zip(handles, expected, strict=True))
    assert pager.counters.faults > 0


def test_the_reference_saves_and_loads_what_a_pager_of_this_package_holds(tmp_path):
    pager = make_pager(2 * PAGE, PAGE)
    m = pager.empty((5000,), f32)
    m[...] = expected = numbers(5000)
    pager.prefetch(m)
    paging.save(tmp_path / "state", {"m": m}, {"step": "7"})
    arrays, words = paging.load(tmp_path / "state", make_pager(PAGE, PAGE))
    assert same(arrays["m"], expected)
    assert words == {"step": "7"}


def test_the_implementation_says_what_it_runs_on():
    if managed.implementation.arrays == "numpy":
        assert "stand-in" in managed.implementation.versions["managed memory"]
        assert managed.implementation.unavailable() == ""


# ---- errors leave the state whole ----------------------------------------------------------------


@pytest.fixture(params=["stand-in", "plain"])
def pager(request):
    if request.param == "stand-in":
        return make_pager(3 * PAGE, PAGE, host_bytes=64 * PAGE)
    return Pager(PlainMemory("a test"))


def test_errors_leave_the_state_whole(pager):
    m = pager.empty((1000,), f32)
    m[...] = expected = numbers(1000)
    gone = pager.empty((5,), f32)
    pager.free(gone)
    for call in (
        pager.free,
        pager.prefetch,
        pager.advise,
        lambda gone: pager.use(gone).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"<managed float32\[5\], seen by the host> was freed"):
            call(gone)
    with pytest.raises(ValueError, match="was freed"):
        gone[...]
    with pytest.raises(ValueError, match="was freed"):
        gone[:] = 0
    with (
        pager.use(m) as (array,),
        pytest.raises(ValueError, match="cannot be freed inside a `use`"),
    ):
        pager.free(m)
    with pytest.raises(ValueError, match="after the end of the `use`"):
        array[...]
    with pytest.raises(ValueError, match="takes 4611686018427387904 bytes"):
        pager.empty((2**60,), f32)
    with pytest.raises(ValueError, match="belongs to another pager"):
        make_pager().free(m)
    with pytest.raises(TypeError, match="handle must come from `empty`, got ndarray"):
        pager.free(expected)
    with pytest.raises(ValueError, match="to must be one of device, host, got 'moon'"):
        pager.prefetch(m, "moon")
    with pytest.raises(ValueError, match="preferred must be one of device, host, got 'moon'"):
        pager.advise(m, preferred="moon")
    with pytest.raises(
        TypeError, match=r"takes \[...\] or, with an axis, \[i:j\] of it, got \[3\]"
    ):
        m[3]
    with pytest.raises(ValueError, match="could not broadcast"):
        m[:3] = np.zeros(4)
    for shape, dtype in (((-1,), f32), ((2.0,), f32), ((2,), object)):
        with pytest.raises((TypeError, ValueError)):
            pager.empty(shape, dtype)
    assert same(m, expected)


def test_a_request_over_the_limit_says_what_is_free():
    pager = make_pager(host_bytes=4 * PAGE)
    kept = pager.empty((PAGE,), np.uint8)
    kept[...] = 7
    with pytest.raises(ValueError, match=r"\(4096,\) of float32 takes 16384 bytes; 12288 of host"):
        pager.empty((PAGE,), f32)
    assert (kept[...] == 7).all()
    pager.empty((3 * PAGE,), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((PAGE - 1, PAGE), ValueError), ((None, 16), NotImplementedError), ((1.5,), TypeError)],
)
def test_a_capacity_or_a_page_that_cannot_be(arguments, error):
    with pytest.raises(error):
        make_pager(*arguments)


def test_never_more_managed_memory_than_a_device_has_free():
    """The policy for a GPU, on a device of the stand-in with 1 MiB."""
    device = Device(runtimes.runtime(), MIB)
    memory = ManagedMemory(device.runtime, device.number)
    first = memory.empty((MIB // 2,), np.uint8)
    with pytest.raises(ValueError, match=f"takes {MIB} bytes beside {MIB // 2} in managed memory"):
        memory.empty((MIB,), np.uint8)
    del first
    second = memory.empty((MIB,), np.uint8)
    del second  # before its device


def test_pages_on_the_device_are_not_counted_twice():
    """What is free already lacks them."""
    device = Device(runtimes.runtime(), MIB, PAGE)
    memory = ManagedMemory(device.runtime, device.number)
    first = memory.empty((MIB * 3 // 8,), np.uint8)
    memory.prefetch(first)
    assert device.runtime.room(device.number).free == MIB * 5 // 8
    second = memory.empty((MIB * 3 // 8,), np.uint8)
    memory.prefetch(second)
    with pytest.raises(ValueError, match=f"{MIB * 6 // 8} in managed memory; .* {MIB} of {MIB}"):
        memory.empty((MIB * 3 // 8,), np.uint8)
    del first, second  # before their device


def test_a_prefetch_is_asked_of_its_own_device(monkeypatch):
    """Stream 0 is the default stream of whatever device is the current one."""
    ours, other = (Device(runtimes.runtime(), MIB, PAGE) for _ in range(2))
    memory = ManagedMemory(ours.runtime, ours.number)
    m = memory.empty((PAGE,), np.uint8)
    asked, prefetch = [], cuda.Runtime.prefetch
    monkeypatch.setattr(
        cuda.Runtime, "prefetch", lambda self, *a: asked.append(self.device()) or prefetch(self, *a)
    )
    with ours.runtime.on(other.number):
        memory.prefetch(m)
    assert asked == [ours.number]
    del m  # before its device


# ---- arrays --------------------------------------------------------------------------------------


def test_memory_is_freed_when_the_last_array_dies():
    memory = on_standin()
    key = memory.runtime, memory.device
    m = memory.empty((3, 5), f32)
    view = m[1:, 2:].T
    assert memories._live[key] == 60
    del m
    gc.collect()
    view[...] = 5
    assert memories._live[key] == 60
    assert view.sum() == 30
    del view
    assert memories._live[key] == 0
    with pytest.raises(cuda.CudaError):
        memory.runtime.free(4096)


def test_a_device_goes_with_its_last_array():
    memory = on_standin()
    number, runtime = memory.device, memory.runtime
    m = memory.empty((3,), f32)
    del memory
    assert runtime.attribute(cuda.CONCURRENT, number) == 1
    del m
    with pytest.raises(cuda.CudaError, match=r"cudaErrorInvalidDevice \(101\)"):
        runtime.attribute(cuda.CONCURRENT, number)


def test_numpy_itself_faults_on_raw_memory():
    memory = on_standin(capacity=2 * PAGE, page_bytes=PAGE)
    a, b = (memory.empty((10 * PAGE,), np.uint8) for _ in range(2))
    a[...] = expected = random_bytes(1, a.shape, np.uint8)
    with memory.kernel():
        b[...] = a  # from managed to managed memory
        a[...] = b[::-1]
    books = memory.standin.books()
    assert same(b, expected)
    assert same(a, expected[::-1])
    assert books.counters.faults >= 40
    assert books.resident <= 2 * PAGE


def test_an_instruction_that_needs_two_pages_where_the_device_holds_one():
    memory = on_standin(capacity=PAGE, page_bytes=PAGE)
    a, b = (memory.empty((64 * PAGE,), np.uint8) for _ in range(2))
    a[...] = expected = random_bytes(1, a.shape, np.uint8)
    across = a[PAGE - 4 : PAGE + 4].view(np.float64)
    with memory.kernel():
        value = across[0]
        ctypes.memmove(b.ctypes.data, a.ctypes.data, a.nbytes)
    assert value.tobytes() == expected[PAGE - 4 : PAGE + 4].tobytes()
    assert memory.standin.books().counters.remote > 0
    assert same(b, expected)


def test_threads_fault_at_the_same_time():
    memory = on_standin(capacity=3 * PAGE, page_bytes=PAGE)
    arrays = [memory.empty((6 * PAGE,), np.uint8) for _ in range(4)]
    for array in arrays:
        array[...] = 0

    def count(array):
        for _ in range(20):
            np.add(array, 1, out=array)

    with memory.kernel():
        threads = [threading.Thread(target=count, args=(array,)) for array in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((array == 20).all() for array in arrays)
    assert memory.standin.books().resident <= 3 * PAGE


def test_pages_that_prefer_the_host_stay_there():
    pager = make_pager(page_bytes=PAGE)
    handle = pager.empty((3 * PAGE,), np.uint8)
    pager.advise(handle, preferred=HOST)
    with pager.use(handle) as (array,):
        array[...] = 3
    assert (pager.counters.remote, pager.counters.faults, pager.resident_bytes) == (3, 0, 0)
    pager.advise(handle)
    with pager.use(handle) as (array,):
        assert (array[...] == 3).all()
    assert pager.counters.faults == 3


def test_a_system_call_on_a_page_of_the_device_fails_and_a_pager_reads_copies():
    pager = make_pager(page_bytes=PAGE)
    handle = pager.empty((PAGE,), np.uint8)
    handle[...] = 9
    read, write = os.pipe()
    try:
        with pager.use(handle) as (array,):
            array[...] = 8
        with pytest.raises(OSError, match=rf"\[Errno {errno.EFAULT}\] Bad address"):
            os.write(write, handle._held.array)
        assert os.write(write, handle[...]) == PAGE
        assert os.read(read, PAGE) == bytes([8]) * PAGE
        pager.prefetch(handle)
        pager.prefetch(handle, HOST)
        assert os.write(write, handle._held.array) == PAGE
    finally:
        os.close(read)
        os.close(write)


# ---- the runtime's two sets of signatures --------------------------------------------------------


@pytest.mark.parametrize("version", [12, 13])
def test_prefetch_and_advice_in_both_versions(version):
    device = Device(runtimes.runtime(version), page_bytes=PAGE)
    runtime, number = device.runtime, device.number
    assert runtime.version // 1000 == version
    pointer = runtime.malloc(3 * PAGE, number)
    runtime.prefetch(pointer, 3 * PAGE, number, 0)
    assert device.books().resident == 3 * PAGE
    runtime.prefetch(pointer + PAGE, PAGE, cuda.HOST)
    assert device.books().counters.host_prefetched == 1
    runtime.advise(pointer, 3 * PAGE, cuda.PREFERRED, cuda.HOST)
    runtime.advise(pointer, 3 * PAGE, cuda.READ_MOSTLY, number)
    for nbytes, place in ((4 * PAGE, number), (PAGE, 99), (0, number)):
        with pytest.raises(cuda.CudaError):
            runtime.prefetch(pointer, nbytes, place)
    assert device.books().resident == 2 * PAGE
    runtime.free(pointer)
    with pytest.raises(cuda.CudaError, match=r"cudaFree: cudaErrorInvalidValue \(1\)"):
        runtime.free(pointer)
    assert device.books().resident == 0


def test_the_number_of_the_host_in_cuda_12_is_no_device_in_cuda_13():
    """What bitsandbytes 0.50.2 passes to bring pages home: a device, -1."""
    device = Device(runtimes.runtime(13), page_bytes=PAGE)
    pointer = ctypes.c_void_p(device.runtime.malloc(PAGE, device.number))
    location = cuda.Location(1, -1)
    arguments = pointer, ctypes.c_size_t(PAGE), location, ctypes.c_int(0), ctypes.c_void_p()
    with pytest.raises(cuda.CudaError, match=r"cudaErrorInvalidDevice \(101\)"):
        device.runtime.call("cudaMemPrefetchAsync", *arguments)
    device.runtime.free(pointer.value)


class Library:
    """A CUDA runtime that writes down what it is called with."""

    def __init__(self, version):
        self.version, self.calls = version, []
        self.cudaGetErrorName = lambda code: b"cudaErrorNobody"

    def __getattr__(self, name):
        def call(*arguments):
            if name == "cudaRuntimeGetVersion":
                arguments[0]._obj.value = self.version
            self.calls.append((name, *map(plain, arguments)))
            return 0

        return call


def plain(argument):
    if isinstance(argument, cuda.Location):
        return argument.type, argument.id
    return getattr(argument, "value", argument)


def test_what_is_passed_to_the_runtime():
    old, new = Library(12080), Library(13000)
    for library_ in (old, new):
        runtime = cuda.Runtime(library_)
        runtime.prefetch(64, 5, 1, 77)
        runtime.advise(64, 5, cuda.PREFERRED, cuda.HOST)
    assert old.calls[1:] == [
        ("cudaMemPrefetchAsync", 64, 5, 1, 77),
        ("cudaMemAdvise", 64, 5, 3, -1),
    ]
    assert new.calls[1:] == [
        ("cudaMemPrefetchAsync", 64, 5, (1, 1), 0, 77),
        ("cudaMemAdvise", 64, 5, 3, (2, 0)),
    ]


def test_the_current_device_is_kept():
    device = Device(runtimes.runtime())
    before = device.runtime.device()
    device.runtime.free(device.runtime.malloc(5, device.number))
    with pytest.raises(cuda.CudaError):
        device.runtime.malloc(0, device.number)
    assert device.runtime.room(device.number).total > 0
    assert device.runtime.device() == before != device.number


def test_a_failure_is_taken_out_of_the_library():
    """Else torch, which asks the same library after its own launch, would take it for its own."""
    library_ = Library(13000)
    runtime = cuda.Runtime(library_)
    library_.cudaFree = lambda pointer: 700
    with pytest.raises(cuda.CudaError, match=r"cudaFree: cudaErrorNobody \(700\)"):
        runtime.free(64)
    assert library_.calls[-1] == ("cudaGetLastError",)


# ---- machines without ----------------------------------------------------------------------------


@pytest.fixture
def not_yet_warned(monkeypatch):
    monkeypatch.setattr(capability, "_warned", set())


@pytest.fixture
def this_machine(monkeypatch, not_yet_warned):
    """Let this machine's CUDA be a device of the stand-in, by its attributes."""

    def become(**attributes):
        device = Device(runtimes.runtime(), page_bytes=PAGE)
        for name, value in attributes.items():
            device.set_attribute({"managed": 83, "concurrent": 89}[name], value)
        memories._of.cache_clear()
        monkeypatch.setattr(capability, "of_machine", lambda: device.runtime)
        current.enter_context(device.runtime.on(device.number))
        return device

    with contextlib.ExitStack() as current:
        yield become


def test_where_pages_follow_memory_is_managed(this_machine):
    device = this_machine()
    found = capability.query()
    assert (found.managed, found.concurrent, found.reason) == (True, True, "")
    assert str(found) == f"managed memory pages on cuda:{device.number} (CUDA runtime 13.0)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = managed.best()
    assert isinstance(memory, ManagedMemory)
    assert managed.best() is memory  # or an array of the one would be foreign to the other
    assert block_of(memory.empty((3,), f32)).owner is memory


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"concurrent": 0}, "concurrentManagedAccess is 0"),
        ({"managed": 0, "concurrent": 0}, "has no managed memory"),
    ],
)
def test_where_they_do_not_memory_is_plain_and_one_warning_says_why(
    this_machine, attributes, words
):
    device = this_machine(**attributes)
    with pytest.warns(UserWarning, match=f"ordinary memory and does not page: .*{words}"):
        pager = managed.make_pager(3 * PAGE, PAGE)
    assert isinstance(managed.best(), PlainMemory)  # and no second warning
    m = pager.empty((5,), f32)
    m[...] = 1
    pager.prefetch(m)
    with pager.use(m) as (array,):
        array[1:3] = array[1:3] + 1
    assert m[...].tolist() == [1, 2, 2, 1, 1]
    with pytest.raises(RuntimeError, match=words):
        ManagedMemory(device.runtime, device.number)


def test_a_prefetch_without_concurrent_access_is_refused_as_on_windows():
    device = Device(runtimes.runtime(), page_bytes=PAGE)
    device.set_attribute(cuda.CONCURRENT, 0)
    pointer = device.runtime.malloc(PAGE, device.number)
    for place in (device.number, cuda.HOST):
        with pytest.raises(cuda.CudaError, match=r"cudaErrorInvalidDevice \(101\)"):
            device.runtime.prefetch(pointer, PAGE, place)
    device.runtime.free(pointer)
    device.set_attribute(cuda.MANAGED, 0)
    with pytest.raises(cuda.CudaError, match=r"cudaErrorNotSupported \(801\)"):
        device.runtime.malloc(PAGE, device.number)


@pytest.mark.parametrize(
    ("code", "words"), [(35, "driver is missing, or too old"), (100, "finds no NVIDIA GPU")]
)
def test_no_gpu_is_a_reason(monkeypatch, not_yet_warned, code, words):
    library_ = Library(13000)
    runtime = cuda.Runtime(library_)
    library_.cudaGetDevice = lambda pointer: code
    monkeypatch.setattr(capability, "of_machine", lambda: runtime)
    assert words in capability.query().reason
    with pytest.warns(UserWarning, match=words):
        assert isinstance(managed.best(), PlainMemory)


def test_other_systems_are_named(monkeypatch, this_machine):
    this_machine(concurrent=0)
    monkeypatch.setattr(capability.platform, "release", lambda: "5.15.90.1-microsoft-standard-WSL2")
    assert "as in all of WSL2" in capability.query().reason
    monkeypatch.setattr(capability.sys, "platform", "win32")
    assert "as on all of Windows" in capability.query().reason
    monkeypatch.setattr(capability.sys, "platform", "linux")
    monkeypatch.setattr(capability.platform, "release", lambda: "5.10.104-tegra")
    monkeypatch.setattr(capability, "Path", lambda path: SimpleNamespace(exists=lambda: True))
    assert "as on all of Tegra" in capability.query().reason
    monkeypatch.setattr(cuda, "NAMES", ())
    assert "only with page retry (XNACK)" in ask_machine()
    monkeypatch.undo()
    monkeypatch.setattr(capability.sys, "platform", "darwin")
    assert "MPS" in ask_machine()


@pytest.mark.parametrize(
    ("answers", "version"),
    [((35, 0), 12080), ((0, 0), 13000), ((35, 35), 13000), ((100, 0), 13000)],
)
def test_the_runtime_that_suits_the_driver_is_taken(monkeypatch, answers, version):
    libraries = dict(zip(("13", "12"), (Library(13000), Library(12080)), strict=True))
    for library_, code in zip(libraries.values(), answers, strict=True):
        library_.cudaGetDeviceCount = lambda pointer, code=code: code
    monkeypatch.setattr(cuda, "NAMES", tuple(libraries))
    monkeypatch.setattr(cuda.ctypes, "CDLL", libraries.get)
    assert cuda.load().version == version


def test_a_machine_without_the_runtime_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "NAMES", ("libnobody.so.1",))
    assert ask_machine() == "no CUDA runtime was found (libnobody.so.1)"


# ---- the handler of SIGSEGV ----------------------------------------------------------------------

BEGIN = """
import ctypes, faulthandler, os, signal, sys
import numpy as np
from qloracle_gpu.managed.standin import make_pager
{first}
pager = make_pager(4096, 4096)
m = pager.empty((20000,), np.uint8)
m[...] = 3
def total():
    with pager.use(m) as (array,):
        return int(array[...].sum())
assert total() == 60000
{then}
"""


def crash(first, then):
    return python(BEGIN.format(first=first, then=then))


@pytest.mark.parametrize("first", ["", "faulthandler.enable()"])
def test_a_segfault_elsewhere_is_still_a_crash(first):
    done = crash(first, "print('alive', flush=True); ctypes.string_at(8)")
    assert done.returncode == -11
    assert "alive" in done.stdout
    assert ("Fatal Python error: Segmentation fault" in done.stderr) == bool(first)
    assert ("<module>" in done.stderr) == bool(first)


def test_a_handler_that_comes_later_still_sees_crashes_and_no_page_faults():
    done = crash("", "faulthandler.enable(); print(total(), flush=True); ctypes.string_at(8)")
    assert done.returncode == -11
    assert done.stdout == "60000\n"
    assert done.stderr.count("Fatal Python error: Segmentation fault") == 1


def test_the_signal_itself_is_still_a_crash():
    done = crash("faulthandler.enable()", "os.kill(os.getpid(), signal.SIGSEGV)")
    assert done.returncode == -11
    assert "Fatal Python error" in done.stderr


def test_freed_memory_is_no_memory():
    done = crash("", "at = m._held.array.ctypes.data; del m; ctypes.string_at(at)")
    assert done.returncode == -11


@pytest.mark.parametrize(
    ("touch", "status"), [("m._held.array[0]", -11), ("m[...]", 3), ("del m", 0)]
)
def test_a_child_by_fork_does_not_have_the_memory(touch, status):
    """A touch of it crashes, and a call into the runtime fails as CUDA's does after a fork."""
    child = (
        f"try:\n        {touch}\n    except RuntimeError as error:\n        os._exit(error.code)"
    )
    done = crash(
        "",
        f"child = os.fork()\nif not child:\n    {child}\n    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), total())",
    )
    assert done.stdout.split() == [str(status), "60000"], done.stderr
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("then", ["", "ctypes.string_at(8)"])
def test_under_address_sanitizer_pages_fault_and_crashes_are_reported(tmp_path, then):
    if reason := sanitized.unavailable("address"):
        pytest.skip(reason)
    text = BEGIN.format(first="", then=f"total()\n{then}")
    (tmp_path / "work.py").write_text(text)
    result = sanitized.run("address", str(tmp_path / "work.py"))
    assert result.clean != bool(then), result.text
    assert [finding.kind for finding in result.findings] == ["SEGV"] * bool(then)


@pytest.mark.slow
def test_without_its_guard_the_stand_in_would_hang(tmp_path):
    """The planted fault of `an instruction that needs two pages`."""
    right = "a.preferred == HOST || page.evicted_by == cause"
    text = f"""
import numpy as np
from qloracle_gpu.managed.standin import StandinMemory, runtimes
text = runtimes.text()
assert {right!r} in text
text = text.replace({right!r}, "a.preferred == HOST")
memory = StandinMemory(runtimes.Device(runtimes.load(text, 13), 4096, 4096))
a = memory.empty((8192,), np.uint8)
a[...] = 1
print("begin", flush=True)
with memory.kernel():
    a[4092:4100].view(np.float64)[0]
"""
    python(text.partition("print")[0])  # compiles it
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        python(text, timeout=5)
    assert b"begin" in raised.value.stdout


# ---- torch ---------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


SHAPES = ((300, 7), (5000,), (), (0, 3))
OPTIONS = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}


def module_parameters(torch, dtype="float32"):
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(shape).astype(f32) for shape in SHAPES]
    return [torch.nn.Parameter(torch.tensor(v, dtype=getattr(torch, dtype))) for v in values]


def set_gradients(torch, params, step):
    rng = np.random.default_rng(100 + step)
    for param in params:
        grad = rng.standard_normal(tuple(param.shape)).astype(f32)
        param.grad = torch.tensor(grad, dtype=param.dtype)


def train(torch, params, optimizer, steps):
    for step in steps:
        set_gradients(torch, params, step)
        optimizer.step()


def paged_adamw(params, memory, **options):
    from qloracle_gpu.managed.torch_adamw import PagedAdamW

    return PagedAdamW(params, memory=memory, **OPTIONS | options)


def small_device():
    return on_standin(capacity=2 * PAGE, page_bytes=PAGE)


def bits(tensors):
    return [t.detach().flatten().contiguous().cpu().clone().view(-1).numpy().tobytes()
            if t.dtype.itemsize != 2 else t.detach().float().numpy().tobytes()
            for t in tensors]  # fmt: skip


def all_state(params, optimizer):
    moments = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
    return bits([*params, *moments])


def test_a_tensor_is_the_same_memory(torch):
    memory = on_standin()
    for dtype in ("float32", "float16", "bfloat16", "uint8"):
        m = memory.empty((4, 3), dtype)
        m[...] = 0
        tensor = managed.in_torch(m)
        assert tensor.data_ptr() == m.ctypes.data
        assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, dtype), (4, 3))
        tensor[1, 2] = 5
        assert m[1, 2] == 5
    key = memory.runtime, memory.device
    taken = memories._live[key]
    del m
    assert memories._live[key] == taken
    del tensor
    assert memories._live[key] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_paged_adamw_is_adam_step_bit_for_bit(torch, dtype):
    params, memory = module_parameters(torch, dtype), small_device()
    optimizer = paged_adamw(params, memory)
    numpy_type = np.dtype(dtype)
    expected = [[p.detach().float().numpy().astype(numpy_type)] for p in params]
    for state in expected:
        state.extend([np.zeros(state[0].shape, f32)] * 2)
    for step in range(1, 6):
        set_gradients(torch, params, step)
        optimizer.step()
        for i, param in enumerate(params):
            grad = param.grad.float().numpy().astype(numpy_type)
            form = {"lr": 0.01, "beta1": 0.8, "beta2": 0.99, "eps": 1e-7, "weight_decay": 0.1}
            expected[i] = q.adam_step(expected[i][0], grad, *expected[i][1:], step=step, **form)
    for param, state in zip(params, expected, strict=True):
        assert param.detach().float().numpy().tobytes() == state[0].astype(f32).tobytes()
        for name, values in zip(("exp_avg", "exp_avg_sq"), state[1:], strict=True):
            assert same(optimizer.state[param][name].numpy().copy(), values)
            assert optimizer.state[param][name].dtype == torch.float32
    counters = memory.standin.books().counters
    assert counters.prefetched > 0
    assert counters.evictions > 0


def test_a_step_in_chunks_and_of_a_view_with_strides(torch, monkeypatch):
    from qloracle_gpu.managed import torch_adamw

    values = torch.tensor(numbers(60, 40))

    def run(chunk, strides):
        monkeypatch.setattr(torch_adamw, "CHUNK", chunk)
        param = torch.nn.Parameter(values.clone().T if strides else values.T.contiguous())
        assert param.is_contiguous() != strides
        optimizer = paged_adamw([param], small_device())
        for step in range(3):
            param.grad = torch.tensor(numbers(40, 60, seed=step))
            optimizer.step()
        return bits([param])

    expected = run(2**20, strides=False)
    assert run(100, strides=False) == expected
    assert run(100, strides=True) == expected


def test_torch_optim_steps_nearly_the_same(torch):
    ours, theirs = module_parameters(torch), module_parameters(torch)
    train(torch, ours, paged_adamw(ours, small_device()), range(5))
    train(torch, theirs, torch.optim.AdamW(theirs, **OPTIONS), range(5))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_optimizer_pages_and_goes_on_bit_for_bit(torch, tmp_path, dtype):
    params = module_parameters(torch, dtype)
    optimizer = paged_adamw(params, small_device())
    train(torch, params, optimizer, range(10))
    saved = {"params": [p.detach().clone() for p in params], "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    train(torch, params, optimizer, range(10, 20))

    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again = [torch.nn.Parameter(p) for p in loaded["params"]]
    memory = small_device()
    resumed = paged_adamw(again, memory, lr=1.0)
    resumed.load_state_dict(loaded["optimizer"])
    assert resumed.param_groups[0]["lr"] == OPTIONS["lr"]
    before = memory.standin.books().counters
    train(torch, again, resumed, range(10, 20))
    assert all_state(again, resumed) == all_state(params, optimizer)
    assert memory.standin.books().counters.prefetched > before.prefetched
    for param in again:
        m, _ = resumed._paged[param]
        pointer = resumed.state[param]["exp_avg"].data_ptr()
        assert pointer == m.ctypes.data or not param.numel()


def test_what_is_saved_does_not_change_with_later_steps(torch):
    params = module_parameters(torch)
    optimizer = paged_adamw(params, small_device())
    train(torch, params, optimizer, range(2))
    saved = optimizer.state_dict()
    kept = bits([saved["state"][0]["exp_avg"]])
    train(torch, params, optimizer, range(2, 4))
    assert bits([saved["state"][0]["exp_avg"]]) == kept
    assert bits([optimizer.state[params[0]]["exp_avg"]]) != kept


def test_a_state_of_torch_optim_is_taken(torch):
    params = module_parameters(torch)
    theirs = torch.optim.AdamW(params, **OPTIONS)
    train(torch, params, theirs, range(3))
    optimizer = paged_adamw(params, small_device())
    optimizer.load_state_dict(theirs.state_dict())
    for param in params:
        for name in ("exp_avg", "exp_avg_sq"):
            assert bits([optimizer.state[param][name]]) == bits([theirs.state[param][name]])
        assert optimizer.state[param]["step"] == 3


def test_a_state_that_does_not_fit_changes_nothing(torch):
    params = module_parameters(torch)
    optimizer = paged_adamw(params, small_device())
    train(torch, params, optimizer, range(3))
    expected, saved = all_state(params, optimizer), optimizer.state_dict()

    def broken(change):
        whole = optimizer.state_dict()
        change(whole)
        return whole

    wrong_shape = broken(lambda s: s["state"][1].update(exp_avg=torch.zeros(3)))
    missing = broken(lambda s: s["state"][1].pop("exp_avg_sq"))
    amsgrad = broken(lambda s: s["param_groups"][0].update(amsgrad=True))
    fewer = broken(lambda s: s["param_groups"][0].update(params=[0, 1]))
    for state, words in (
        (wrong_shape, r"exp_avg of shape \(3,\) for parameter 1, which has shape \(5000,\)"),
        (missing, "exp_avg_sq of shape None for parameter 1"),
        (amsgrad, "an optimizer with amsgrad"),
        (fewer, "doesn't match the size of optimizer's group"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(state)
        assert all_state(params, optimizer) == expected
    optimizer.load_state_dict(saved)
    assert all_state(params, optimizer) == expected


def test_a_state_for_which_there_is_no_room_changes_nothing(torch):
    params = module_parameters(torch)
    full = paged_adamw(params, small_device())
    train(torch, params, full, range(3))
    memory = StandinMemory(Device(runtimes.runtime(), 2 * PAGE, PAGE), host_bytes=20_000)
    optimizer = paged_adamw(params, memory)
    params[1].grad = None  # that of 5,000 elements
    optimizer.step()
    expected = bits([optimizer.state[params[0]]["exp_avg"]])
    with pytest.raises(ValueError, match=r"shape \(5000,\) of float32 takes 20000 bytes"):
        optimizer.load_state_dict(full.state_dict())
    assert bits([optimizer.state[params[0]]["exp_avg"]]) == expected
    assert optimizer.state[params[0]]["step"] == 1


def test_a_step_for_which_there_is_no_room_changes_nothing(torch):
    params = module_parameters(torch)
    memory = StandinMemory(Device(runtimes.runtime(), 2 * PAGE, PAGE), host_bytes=20_000)
    optimizer = paged_adamw(params, memory)
    set_gradients(torch, params, 1)
    expected = bits(params)
    with pytest.raises(ValueError, match=r"shape \(5000,\) of float32 takes 20000 bytes"):
        optimizer.step()
    assert bits(params) == expected


def test_a_copy_and_a_pickle_go_on_bit_for_bit(torch, monkeypatch):
    import copy
    import pickle

    from qloracle_gpu.managed import torch_adamw

    memory = small_device()
    monkeypatch.setattr(torch_adamw, "best", lambda index: memory)
    params = module_parameters(torch)
    optimizer = paged_adamw(params, None)
    train(torch, params, optimizer, range(3))
    others = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    train(torch, params, optimizer, range(3, 6))
    for again, other in others:
        assert set(other._paged) == set(again)
        train(torch, again, other, range(3, 6))
        assert all_state(again, other) == all_state(params, optimizer)


def test_plain_memory_gives_the_same_bits_with_one_warning(torch, this_machine):
    this_machine(concurrent=0)
    params, plain = module_parameters(torch), module_parameters(torch)
    train(torch, params, paged_adamw(params, small_device()), range(4))
    with pytest.warns(UserWarning, match="does not page") as caught:
        train(torch, plain, paged_adamw(plain, None), range(4))
    assert len(caught) == 1
    assert bits(params) == bits(plain)


def test_parameters_on_the_cpu_have_no_memory_of_a_gpu(torch, this_machine):
    this_machine()
    params = module_parameters(torch)
    with pytest.warns(
        UserWarning, match="the parameters are on cpu, and managed memory is for cuda"
    ):
        train(torch, params, paged_adamw(params, None), range(1))


def test_numbers_of_paged_adamw_are_checked(torch):
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        paged_adamw(module_parameters(torch), small_device(), lr=-1)
    with pytest.raises(ValueError, match=r"betas\[1\] must lie in \[0, 1\), got 1"):
        paged_adamw(module_parameters(torch), small_device(), betas=(0.9, 1.0))


def test_a_gradient_that_cannot_be_changes_nothing(torch):
    params = module_parameters(torch)
    optimizer = paged_adamw(params, small_device())
    train(torch, params, optimizer, range(2))
    expected = all_state(params, optimizer)
    for bad, words in (
        (torch.full((5000,), torch.nan), "grad must be finite, got 5000 non-finite values"),
        (torch.zeros(5000).to_sparse(), "grad must be dense"),
    ):
        params[1].grad = bad
        with pytest.raises(ValueError, match=words):
            optimizer.step()
        assert all_state(params, optimizer) == expected
    wide = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    wide.grad = torch.zeros_like(wide)
    with pytest.raises(TypeError, match="param must have dtype"):
        paged_adamw([wide], small_device()).step()


def test_a_closure_and_parameters_without_a_gradient(torch):
    params = module_parameters(torch)
    optimizer = paged_adamw(params, small_device())
    assert optimizer.step(lambda: "loss") == "loss"
    assert not optimizer.state


# ---- CuPy ----------------------------------------------------------------------------------------


def test_a_cupy_array_is_the_same_memory():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    memory = ManagedMemory(runtimes.runtime(), 0)  # CuPy wants a device that could be
    m = memory.empty((4, 3), f32)
    array = managed.in_cupy(m)
    assert array.data.ptr == m.ctypes.data
    assert (array.shape, array.dtype) == ((4, 3), np.dtype(f32))
    key = memory.runtime, 0
    taken = memories._live[key]
    del m
    assert memories._live[key] == taken
    del array
    assert memories._live[key] == taken - 48
    pointer = memory.cupy_malloc(100)
    assert pointer.mem.size == 100
    assert memories._live[key] == taken - 48 + 100
    assert isinstance(pointer, cupy.cuda.MemoryPointer)
    del pointer
    assert memories._live[key] == taken - 48


@pytest.fixture
def cupy_of_the_cpu(stand_in):
    """The stand-in for CuPy of conftest, with pointers that are NumPy arrays."""
    stand_in.cuda.UnownedMemory = lambda pointer, nbytes, owner, device: owner
    stand_in.cuda.MemoryPointer = lambda memory, offset: memory
    stand_in.cuda.get_current_stream = lambda: SimpleNamespace(ptr=77, synchronize=int)
    return stand_in


class WithStreams(StandinMemory):
    """Writes down on which streams is fetched."""

    streams = ()

    def prefetch(self, array, to="device", stream=0):
        self.streams += (stream,)
        super().prefetch(array, to, stream)


def test_a_step_on_a_gpu_gets_arrays_of_cupy(cupy_of_the_cpu):
    memory = ManagedMemory(runtimes.runtime(), 0)
    pager = managed.make_pager(memory=memory)
    handle = pager.empty((2, 3), f32)
    handle[...] = 1
    with pager.use(handle) as (array,):
        values = array[...]
        assert isinstance(values, cupy_of_the_cpu.ndarray)
        assert values.data.ptr == handle._held.array.ctypes.data
        array[1:] = values[:1] + 1
    assert handle[...].tolist() == [[1, 1, 1], [2, 2, 2]]


def cupy_adamw(params, memory):
    from qloracle_gpu.managed.cupy_adamw import PagedAdamW

    return PagedAdamW(params, memory=memory, **OPTIONS)


def test_paged_adamw_for_cupy_is_adam_step_and_resumes(cupy_of_the_cpu):
    memory = WithStreams(Device(runtimes.runtime(), 2 * PAGE, PAGE))
    shapes = (300, 7), (5000,)
    values = [numbers(*shape, seed=i) for i, shape in enumerate(shapes)]
    params = [cupy_of_the_cpu.asarray(v) for v in values]
    optimizer = cupy_adamw(params, memory)
    expected = [(v, np.zeros(v.shape, f32), np.zeros(v.shape, f32)) for v in values]
    form = {"lr": 0.01, "beta1": 0.8, "beta2": 0.99, "eps": 1e-7, "weight_decay": 0.1}
    for step in range(1, 9):
        grads = [numbers(*shape, seed=10 * step) for shape in shapes]
        if step == 5:  # resume
            saved = optimizer.state_dict()
            optimizer = cupy_adamw(params, memory)
            with pytest.raises(ValueError, match=r"m must have shapes \[\(300, 7\), \(5000,\)\]"):
                optimizer.load_state_dict(saved | {"m": saved["m"][::-1]})
            optimizer.load_state_dict(saved)
        optimizer.step([cupy_of_the_cpu.asarray(grad) for grad in grads])
        expected = [
            q.adam_step(p, grad, m, v, step=step, **form)
            for (p, m, v), grad in zip(expected, grads, strict=True)
        ]
    state = optimizer.state_dict()
    for i, (p, m, v) in enumerate(expected):
        assert same(params[i], p)
        assert same(state["m"][i], m)
        assert same(state["v"][i], v)
    assert memory.standin.books().counters.evictions > 0
    assert memory.standin.books().counters.prefetched > 0
    assert set(memory.streams) == {77}
    assert all(block_of(m).owner is memory for m in optimizer._moments[0])


def test_paged_adamw_for_cupy_without_managed_memory(cupy_of_the_cpu):
    params = [cupy_of_the_cpu.asarray(numbers(50))]
    expected = q.adam_step(params[0].get(), np.ones(50, f32), *np.zeros((2, 50), f32), step=1,
                      lr=0.01, beta1=0.8, beta2=0.99, eps=1e-7, weight_decay=0.1)  # fmt: skip
    optimizer = cupy_adamw(params, PlainMemory("a test"))
    optimizer.step([cupy_of_the_cpu.asarray(np.ones(50, f32))])
    assert same(params[0], expected[0])
    assert same(optimizer.state_dict()["v"][0], expected[2])


# ---- importing, and a real GPU -------------------------------------------------------------------


def test_importing_the_package_loads_no_framework():
    done = python(
        "import sys, qloracle_gpu.managed.standin\n"
        "print({'torch', 'cupy', 'jax'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr


no_gpu = capability.query().reason


@pytest.mark.gpu
@pytest.mark.skipif(bool(no_gpu), reason=no_gpu or "there is a GPU")
def test_a_real_gpu_with_a_few_mib(torch):
    """Values, attributes and prefetch only, far below what is free."""
    memory = managed.best()
    assert memory.runtime.attribute(cuda.CONCURRENT, memory.device) == 1
    params = [torch.nn.Parameter(p.detach().cuda()) for p in module_parameters(torch)]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    train(torch, params, paged_adamw(params, None), range(5))
    train(torch, plain, paged_adamw(plain, PlainMemory("a test")), range(5))
    assert bits(params) == bits(plain)
