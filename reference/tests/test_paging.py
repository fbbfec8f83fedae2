"""Rule S12: the bits of a paged step, and the books that the pager keeps."""

import functools
import os
import signal
import subprocess
import sys

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

import qloracle as q
from qloracle import paging
from qloracle.paging import make_pager
from qloracle.paging.pages import DEVICE, HOST, OTHER, Page, Pages

f32 = np.float32
PAGE = 16
DTYPES = (np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def random_bytes(seed, shape, dtype):
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8).view(dtype).reshape(shape)


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


class AgainstPlainArrays(RuleBasedStateMachine):
    """Whatever is done to managed arrays, they hold what plain arrays would hold."""

    page_bytes = PAGE

    def __init__(self):
        super().__init__()
        self.pager = make_pager(3 * self.page_bytes, self.page_bytes)
        self.arrays = []  # handle, plain array
        self.departed = 0  # pages that left the device's memory because they were freed
        self.advised = False

    def pick(self, data):
        return data.draw(st.sampled_from(self.arrays))

    def part(self, data, plain):
        i = data.draw(st.integers(0, len(plain)))
        return slice(i, data.draw(st.integers(i, len(plain))))

    @rule(
        shape=st.sampled_from([(0,), (1,), (7,), (33,), (64,), (5, 3), (9, 2, 2)]),
        dtype=st.sampled_from(DTYPES),
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
        if not by_device:
            handle[part] = plain[part]
            return
        with self.pager.use(handle) as (array,):
            array[part] = plain[part]

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

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), to=st.sampled_from([HOST, DEVICE]))
    def prefetch(self, data, to):
        handle, plain = self.pick(data)
        self.pager.prefetch(handle, to)
        before = self.pager.counters
        if to == DEVICE and self.pages(plain) * self.page_bytes <= self.pager.capacity:
            with self.pager.use(handle) as (array,):
                assert same(array, plain)
            assert self.pager.counters == before

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), where=st.sampled_from([None, HOST, DEVICE]), mostly=st.booleans())
    def advise(self, data, where, mostly):
        self.pager.advise(self.pick(data)[0], preferred=where, read_mostly=mostly)
        self.advised = True

    @rule(frames=st.integers(1, 12))
    def shrink(self, frames):
        self.pager.shrink(frames * self.page_bytes)

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def free(self, data):
        i = data.draw(st.integers(0, len(self.arrays) - 1))
        handle, _ = self.arrays.pop(i)
        before = self.pager.resident_bytes
        self.pager.free(handle)
        self.departed += (before - self.pager.resident_bytes) // self.page_bytes
        with pytest.raises(ValueError, match="was freed"):
            self.pager.free(handle)

    def pages(self, plain):
        return -(-plain.nbytes // self.page_bytes)

    @invariant()
    def the_device_holds_no_more_than_it_can(self):
        assert self.pager.resident_bytes <= self.pager.capacity
        held = sum(self.pages(plain) for _, plain in self.arrays) * self.page_bytes
        assert self.pager.resident_bytes <= held

    @invariant()
    def counters_add_up(self):
        c, size = self.pager.counters, self.page_bytes
        if not self.advised:
            came = c.faults + c.prefetched
            went = c.evictions + c.host_faults + c.host_prefetched
            assert c.bytes_to_device == came * size
            assert c.bytes_to_host == went * size
            assert self.pager.resident_bytes == (came - went - self.departed) * size

    def teardown(self):
        for handle, plain in self.arrays:
            assert same(handle, plain)


class WithOddPages(AgainstPlainArrays):
    page_bytes = 7  # numbers lie across two pages


class WithPagesOfOneByte(AgainstPlainArrays):
    page_bytes = 1


MACHINES = (
    AgainstPlainArrays,
    WithOddPages,
    pytest.param(WithPagesOfOneByte, marks=pytest.mark.slow),
)
machine_settings = settings(
    derandomize=True, deadline=None, max_examples=60, stateful_step_count=30, database=None
)


@pytest.mark.parametrize("machine", MACHINES)
def test_any_history_leaves_what_plain_arrays_hold(machine):
    run_machine(machine, settings=machine_settings)


def planted(monkeypatch, name):
    """Put one fault into the pages."""
    right = {key: getattr(Pages, key) for key in vars(Pages) if callable(getattr(Pages, key))}

    def evict(self, *, copied=True, kept=False, counted=True):
        page = next(iter(self._memory[DEVICE]))
        if page not in self._memory[HOST] and copied:
            self._copy(page, HOST)
        if not kept:
            del self._memory[DEVICE][page]
        self._count(evictions=int(counted))

    def touch_without_invalidation(self, page, part, side, *, write):
        copy = self._memory[OTHER[side]].get(page)
        frame = right["_touch"](self, page, part, side, write=write)
        if copy is not None and write and self.allocations[page.allocation].read_mostly:
            self._memory[OTHER[side]][page] = copy
        return frame

    def prefetch_from_fresh(self, number, side):
        for page in [page for page in self._memory[HOST] if page.allocation == number]:
            self._memory[HOST][page][:] = 0xFF
        right["bring"](self, number, side)

    def free_on_one_side(self, number):
        device = dict(self._memory[DEVICE])
        right["free"](self, number)
        self._memory[DEVICE].update(device)

    def wrong_offset(self, number, start, stop):
        for page, of_page, of_range in right["_pieces"](self, number, start, stop):
            moved = slice(0, of_page.stop - of_page.start)
            yield page, moved if page.i == 1 else of_page, of_range

    def second_page_is_the_first(self, number, start, stop):
        for page, of_page, of_range in right["_pieces"](self, number, start, stop):
            yield Page(number, 0 if page.i == 2 else page.i), of_page, of_range

    def no_partial_last_page(self, number, start, stop):
        last = self.allocations[number].nbytes // self.page_bytes
        for page, of_page, of_range in right["_pieces"](self, number, start, stop):
            if page.i < max(last, 1):
                yield page, of_page, of_range

    def aliased_copy(self, page, to):
        self._memory[to][page] = self._memory[OTHER[to]][page][::-1][::-1]
        self._count_bytes(to, self.page_bytes)
        self._memory[OTHER[to]][page].fill(0)

    def prefetch_of_a_page_less(self, number, side):
        self.allocations[number].nbytes -= self.page_bytes
        right["bring"](self, number, side)
        self.allocations[number].nbytes += self.page_bytes

    faults = {
        "a dirty page is lost": {"_evict_oldest": lambda self: evict(self, copied=False)},
        "a page is copied home before it is written": {
            "_evict_oldest": lambda self: (evict(self), self._memory[HOST].popitem())
        },
        "an eviction is not counted": {"_evict_oldest": lambda self: evict(self, counted=False)},
        "a copy stays stale after a write": {"_touch": touch_without_invalidation},
        "a prefetch drops what was written": {"bring": prefetch_from_fresh},
        "a prefetch leaves the last page": {"bring": prefetch_of_a_page_less},
        "the capacity is a page too large": {
            "frames": lambda self: self.capacity_bytes // self.page_bytes + 1
        },
        "shrinking evicts nothing": {
            "shrink": lambda self, capacity: setattr(self, "capacity_bytes", capacity)
        },
        "free keeps pages on the device": {"free": free_on_one_side},
        "a wrong offset in the second page": {"_pieces": wrong_offset},
        "one page serves for two": {"_pieces": second_page_is_the_first},
        "a partial last page is left out": {"_pieces": no_partial_last_page},
        "the copy is a view": {"_copy": aliased_copy},
        "bytes are counted twice": {
            "_count_bytes": lambda self, to, n: self._count(**{f"bytes_to_{to}": 2 * n})
        },
    }
    if name is None:
        return list(faults)
    for method, fault in faults[name].items():
        monkeypatch.setattr(Pages, method, fault)
    return None


@pytest.mark.parametrize("fault", planted(None, None))
def test_a_planted_fault_is_found(monkeypatch, fault):
    planted(monkeypatch, fault)
    quick = settings(machine_settings, phases=[Phase.generate])  # it need not be made smaller
    with pytest.raises((AssertionError, KeyError, ExceptionGroup)):
        run_machine(AgainstPlainArrays, settings=quick)


# ---------------------------------------------------------------- steps

N = 700  # elements: 3 blocks of 256, the last one short
STEPS = 200
OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


@functools.cache
def gradient(step):
    return np.random.default_rng(step).standard_normal(N).astype(f32)


def fresh_state(kind, dtype=f32):
    param = np.random.default_rng(7).standard_normal(N).astype(dtype)
    if kind == "adam":
        return {"param": param, "m": np.zeros(N, f32), "v": np.zeros(N, f32)}
    coded = {"param": param}
    for name, codebook in (("m", q.dynamic_codebook()), ("v", q.dynamic_codebook(signed=False))):
        codes, absmax = q.quantize_blockwise(np.zeros(N, f32), codebook)
        coded |= {f"{name}_codes": codes, f"{name}_absmax": absmax}
    return coded


STEP_OF = {"adam": q.adam_step, "adam 8 bit": q.adam_step_8bit}


def plain_steps(kind, state, steps):
    state = dict(state)
    for step in steps:
        param, *rest = state.values()
        new = STEP_OF[kind](param, gradient(step), *rest, step=step, **OPTIONS)
        state = dict(zip(state, new, strict=True))
    return state


def paged_steps(kind, pager, handles, steps, part=256):
    for step in steps:
        grad = gradient(step)
        with pager.use(*handles.values()) as arrays:
            for i in range(0, N, part):
                sizes = [256 if name.endswith("absmax") else 1 for name in handles]
                parts = [slice(i // size, -(-min(i + part, N) // size)) for size in sizes]
                param, *rest = (array[p] for array, p in zip(arrays, parts, strict=True))
                new = STEP_OF[kind](param, grad[i : i + part], *rest, step=step, **OPTIONS)
                for array, p, values in zip(arrays, parts, new, strict=True):
                    array[p] = values


def managed(pager, state):
    handles = {}
    for name, values in state.items():
        handles[name] = pager.empty(values.shape, values.dtype)
        handles[name][...] = values
    return handles


@pytest.fixture(scope="module")
def after_200_steps():
    return {
        (kind, dtype): plain_steps(kind, fresh_state(kind, dtype), range(1, STEPS + 1))
        for kind in STEP_OF
        for dtype in (f32, ml_dtypes.bfloat16)
    }


@pytest.mark.parametrize(
    ("pages", "page", "dtype"),
    [
        (1, 512, f32),
        (1, 512, ml_dtypes.bfloat16),
        (2, 256, f32),
        (3, 100, f32),
        (5, 1024, f32),
        (None, 64, f32),
    ],
)
@pytest.mark.parametrize("kind", STEP_OF)
def test_200_paged_steps_equal_plain_ones(after_200_steps, kind, dtype, pages, page):
    pager = make_pager(pages and pages * page, page)
    handles = managed(pager, fresh_state(kind, dtype))
    paged_steps(kind, pager, handles, range(1, STEPS + 1))
    assert pages is None or pager.counters.evictions > STEPS
    for name, expected in after_200_steps[kind, dtype].items():
        assert same(handles[name], expected), name


def test_a_step_may_read_everything_at_once(after_200_steps):
    pager = make_pager(64, 64)
    handles = managed(pager, fresh_state("adam"))
    paged_steps("adam", pager, handles, range(1, STEPS + 1), part=N)
    assert same(handles["m"], after_200_steps["adam", f32]["m"])


@pytest.mark.parametrize("fault", ["a dirty page is lost", "one page serves for two"])
def test_a_faulty_pager_changes_the_step(monkeypatch, after_200_steps, fault):
    planted(monkeypatch, fault)
    with pytest.raises((AssertionError, ValueError)):  # 0xFF in a float is NaN
        test_200_paged_steps_equal_plain_ones(after_200_steps, "adam", f32, 3, 100)


@pytest.mark.parametrize("kind", STEP_OF)
def test_resume_goes_on_bit_for_bit(tmp_path, after_200_steps, kind):
    pager = make_pager(1024, 512)
    handles = managed(pager, fresh_state(kind))
    paged_steps(kind, pager, handles, range(1, 101))
    paging.save(tmp_path / "state.safetensors", handles, {"step": "100"})

    pager = make_pager(300, 100)
    handles, words = paging.load(tmp_path / "state.safetensors", pager)
    handles = {name: handles[name] for name in fresh_state(kind)}
    paged_steps(kind, pager, handles, range(int(words["step"]) + 1, STEPS + 1))
    assert pager.counters.evictions > 100  # a resumed state is paged like the first
    for name, expected in after_200_steps[kind, f32].items():
        assert same(handles[name], expected), name


def test_12_mib_of_state_under_4_mib():
    n = 2**20  # param, m and v: 12 MiB
    rng = np.random.default_rng(0)
    state = {"param": rng.standard_normal(n), "m": rng.standard_normal(n), "v": rng.random(n)}
    state = {name: values.astype(f32) for name, values in state.items()}
    grad = rng.standard_normal(n).astype(f32)
    expected = q.adam_step(state["param"], grad, state["m"], state["v"], step=5, lr=0.1)

    pager = make_pager(4 * 2**20)  # pages of 64 KiB
    handles = managed(pager, state)
    with pager.use(*handles.values()) as arrays:
        for i in range(0, n, 2**14):
            old = [array[i : i + 2**14] for array in arrays]
            new = q.adam_step(old[0], grad[i : i + 2**14], *old[1:], step=5, lr=0.1)
            for array, values in zip(arrays, new, strict=True):
                array[i : i + 2**14] = values
    assert all(
        same(handle, values) for handle, values in zip(handles.values(), expected, strict=True)
    )
    counters = pager.counters
    assert (counters.faults, counters.evictions) == (192, 128)
    assert counters.bytes_to_device == 12 * 2**20


def test_no_fault_after_a_prefetch_that_fits(after_200_steps):
    pager = make_pager(33 * 256, 256)  # 3 times 2,800 bytes: 11 pages each
    handles = managed(pager, fresh_state("adam"))
    for handle in handles.values():
        pager.prefetch(handle)
    paged_steps("adam", pager, handles, range(1, STEPS + 1))
    counters = pager.counters
    assert (counters.prefetched, counters.faults, counters.evictions) == (33, 0, 0)
    assert same(handles["v"], after_200_steps["adam", f32]["v"])


def test_a_prefetch_that_does_not_fit_brings_the_first_pages():
    pager = make_pager(3 * PAGE, PAGE)
    handle = pager.empty((5 * PAGE,), np.uint8)
    pager.prefetch(handle)
    pager.prefetch(handle)
    assert pager.counters == (0, 3, 0, 0, 0, 3 * PAGE, 0)
    with pager.use(handle) as (array,):
        _ = array[: 3 * PAGE]
        assert pager.counters.faults == 0
        _ = array[...]
    assert pager.counters.faults == 2


# ---------------------------------------------------------------- who goes, and what moves


def filled(pager, pages):
    handle = pager.empty((pages * PAGE,), np.uint8)
    handle[...] = np.arange(pages * PAGE) % 251
    return handle


def test_the_least_recently_used_page_goes():
    pager = make_pager(2 * PAGE, PAGE)
    handle = filled(pager, 3)
    with pager.use(handle) as (array,):
        faults = []
        for page in (0, 1, 0, 2, 0, 1):  # 2 pushes 1 out, since 0 was touched after it
            before = pager.counters.faults
            _ = array[page * PAGE : page * PAGE + 1]
            faults.append(pager.counters.faults - before)
    assert faults == [1, 1, 0, 1, 0, 1]


def test_a_page_that_only_moves_is_always_copied_home():
    pager = make_pager(PAGE, PAGE)
    handle = filled(pager, 2)
    with pager.use(handle) as (array,):
        _ = array[...]
    assert (pager.counters.evictions, pager.counters.bytes_to_host) == (1, PAGE)


def test_a_read_mostly_page_is_dropped_without_a_copy_until_it_is_written():
    pager = make_pager(PAGE, PAGE)
    handle = filled(pager, 2)
    pager.advise(handle, read_mostly=True)
    with pager.use(handle) as (array,):
        for _ in range(3):
            _ = array[...]
        assert (pager.counters.evictions, pager.counters.bytes_to_host) == (5, 0)
        _ = handle[...]  # the host has copies of its own
        assert pager.counters.host_faults == 0
        array[PAGE:] = np.zeros(PAGE, np.uint8)  # dirty
        _ = array[:PAGE]
        assert (pager.counters.evictions, pager.counters.bytes_to_host) == (6, PAGE)
    assert not handle[PAGE:].any()


def test_a_page_stays_in_its_preferred_memory():
    pager = make_pager(PAGE, PAGE)
    handle = filled(pager, 2)
    pager.advise(handle, preferred="host")
    with pager.use(handle) as (array,):
        array[3:5] = array[1:3]
        assert pager.counters == (0, 0, 0, 0, 0, 2, 2)
        assert handle[3:5].tolist() == [1, 2]
    pager.advise(handle, preferred="device")
    pager.prefetch(handle)
    handle[:4] = handle[1:5]
    assert pager.resident_bytes == PAGE
    assert pager.counters == (0, 1, 0, 0, 0, 2 + PAGE + 4, 2 + 4)
    assert handle[:4].tolist() == [1, 2, 1, 2]


def test_the_host_calls_pages_home():
    pager = make_pager(4 * PAGE, PAGE)
    handle = filled(pager, 2)
    pager.prefetch(handle)
    assert pager.resident_bytes == 2 * PAGE
    _ = handle[:1]
    assert (pager.counters.host_faults, pager.resident_bytes) == (1, PAGE)
    pager.prefetch(handle, "host")
    assert (pager.counters.host_prefetched, pager.resident_bytes) == (1, 0)


def test_shrinking_evicts_and_gives_room_back():
    pager = make_pager(page_bytes=PAGE)
    handle = filled(pager, 4)
    pager.prefetch(handle)
    assert (pager.capacity, pager.resident_bytes) == (None, 4 * PAGE)
    pager.shrink(2 * PAGE + 5)
    assert (pager.capacity, pager.resident_bytes) == (2 * PAGE + 5, 2 * PAGE)
    assert pager.counters.evictions == 2
    pager.shrink(4 * PAGE)
    pager.prefetch(handle)
    assert pager.resident_bytes == 4 * PAGE
    assert same(handle, np.arange(4 * PAGE, dtype=np.uint8))


def test_the_same_array_twice_and_nested_is_one_array():
    pager = make_pager(PAGE, PAGE)
    handle = filled(pager, 3)
    with pager.use(handle, handle) as (a, b):
        with pager.use(handle) as (c,):
            a[:2] = np.array([8, 9], np.uint8)
            assert b[:2].tolist() == c[:2].tolist() == handle[:2].tolist() == [8, 9]
        with pytest.raises(ValueError, match="inside a `use` of it"):
            pager.free(handle)
    pager.free(handle)


def test_what_was_written_before_an_error_is_written():
    pager = make_pager(PAGE, PAGE)
    handle = filled(pager, 2)

    def step():
        with pager.use(handle) as (array,):
            array[:1] = [77]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert handle[:1].tolist() == [77]
    pager.free(handle)  # and the array is no longer in use


def test_memory_is_taken_when_it_is_touched():
    pager = make_pager(2 * PAGE, PAGE)
    handle = pager.empty((2**46,), np.uint8)
    handle[2**45 : 2**45 + 3] = [1, 2, 3]
    pager.prefetch(handle)
    assert handle[2**45 - 1 : 2**45 + 3].tolist() == [255, 1, 2, 3]
    pager.free(handle)
    assert pager.resident_bytes == 0


def test_forms():
    pager = make_pager()
    handle = pager.empty((4, 3), ml_dtypes.bfloat16)
    assert (handle.shape, handle.ndim, handle.size, handle.nbytes, len(handle)) == (
        (4, 3), 2, 12, 24, 4,
    )  # fmt: skip
    assert str(handle.dtype) == "bfloat16"
    handle[...] = np.arange(12).reshape(4, 3)
    assert handle[1:3].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert handle[-1:].tolist() == [[9, 10, 11]]
    assert handle[3:1].shape == (0, 3)
    handle[2:] = 1  # broadcast
    assert np.asarray(handle, np.float32).sum() == 15 + 6
    assert np.array(handle).flags.writeable
    with pytest.raises(ValueError, match="read-only"):  # a write to it would be lost
        handle[...][0] = 1
    number = pager.empty((), np.float32)
    number[...] = 2.5
    assert number[...] == 2.5
    assert repr(handle) == "<managed bfloat16[4, 3], seen by the host>"
    with pager.use() as arrays:
        assert arrays == ()


# ---------------------------------------------------------------- errors


def world():
    pager = make_pager(2 * PAGE, PAGE, host_bytes=6 * PAGE)
    handle = filled(pager, 3)
    pager.prefetch(handle)
    freed = filled(pager, 1)
    pager.free(freed)
    with pager.use(handle) as (closed,):
        pass
    return pager, handle, freed, closed


def use(pager, *handles):
    with pager.use(*handles):
        raise AssertionError("the context was entered")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, h, f, c: p.free(f), ValueError, r"uint8\[16\], seen by the host> was freed"),
        (lambda p, h, f, c: f[...], ValueError, "was freed"),
        (lambda p, h, f, c: f.__setitem__(..., 0), ValueError, "was freed"),
        (lambda p, h, f, c: use(p, h, f), ValueError, "was freed"),
        (lambda p, h, f, c: p.prefetch(f), ValueError, "was freed"),
        (lambda p, h, f, c: p.advise(f), ValueError, "was freed"),
        (lambda p, h, f, c: c[...], ValueError, "after the end of the `use` that yielded it"),
        (lambda p, h, f, c: c.__setitem__(..., 0), ValueError, "after the end of the `use`"),
        (lambda p, h, f, c: make_pager().free(h), ValueError, "belongs to another pager"),
        (lambda p, h, f, c: use(p, np.ones(3)), TypeError, "must come from `empty`, got ndarray"),
        (
            lambda p, h, f, c: p.empty((49,), np.uint8), ValueError,
            r"shape \(49,\) of uint8 takes 64 bytes in pages of 16; 48 of host_bytes, 96, are free",
        ),
        (lambda p, h, f, c: make_pager().empty((2**46,), f32), ValueError, "are free"),
        (lambda p, h, f, c: p.empty((2**70, 2**70), f32), ValueError, "are free"),
        (lambda p, h, f, c: p.empty(3, f32), TypeError, "shape must be a tuple of ints"),
        (lambda p, h, f, c: p.empty((-1,), f32), ValueError, "must be at least 0, got -1"),
        (lambda p, h, f, c: p.empty((1,), object), TypeError, "a fixed size in bytes, got object"),
        (lambda p, h, f, c: p.shrink(15), ValueError, "at least page_bytes, 16, got 15"),
        (lambda p, h, f, c: p.prefetch(h, "gpu"), ValueError, "to must be one of host, device"),
        (lambda p, h, f, c: p.advise(h, preferred="gpu"), ValueError, "must be one of host"),
        (lambda p, h, f, c: p.advise(h, read_mostly=1), TypeError, "must be a bool, got int 1"),
        (lambda p, h, f, c: h[0], TypeError, r"takes \[\.\.\.\] or, with an axis, \[i:j\] of it"),
        (lambda p, h, f, c: h[::2], TypeError, "takes"),
        (lambda p, h, f, c: h.__setitem__(slice(0, 3), np.ones(4)), ValueError, "broadcast"),
        (lambda p, h, f, c: np.asarray(h, copy=False), ValueError, "copy is False"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_leaves_the_state_whole(call, error, message):
    pager, handle, freed, closed = world()
    before = pager.counters, pager.resident_bytes, pager.capacity
    with pytest.raises(error, match=message):
        call(pager, handle, freed, closed)
    assert (pager.counters, pager.resident_bytes, pager.capacity) == before
    assert same(handle, np.arange(3 * PAGE, dtype=np.uint8))
    assert filled(pager, 3).nbytes == 3 * PAGE  # the room that was free still is
    pager.free(handle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "capacity_bytes must be at least page_bytes, 1, got 0"),
        ((100, 0), "page_bytes must be at least 1, got 0"),
        ((100,), "capacity_bytes must be at least page_bytes, 65536, got 100"),
    ],
)
def test_a_pager_needs_a_page(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pager(*arguments)


# ---------------------------------------------------------------- files


def test_a_file_is_plain_safetensors(tmp_path):
    pager = make_pager(PAGE, PAGE)
    plain = {"a": np.arange(9, dtype=f32).reshape(3, 3), "b": np.zeros(0, np.uint8)}
    paging.save(tmp_path / "x.safetensors", managed(pager, plain))
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert all(same(read[name], plain[name]) for name in plain)
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("dtype", [bool, *DTYPES])
def test_types_come_back(tmp_path, dtype):
    pager = make_pager(PAGE, PAGE)
    plain = (np.arange(30) % 2).astype(dtype).reshape(5, 6)
    paging.save(str(tmp_path / "x"), managed(pager, {"x": plain}))
    arrays, words = paging.load(str(tmp_path / "x"), pager)
    assert (arrays["x"].dtype, arrays["x"].shape, words) == (plain.dtype, plain.shape, {})
    assert same(arrays["x"], plain)


def test_a_file_that_does_not_fit_leaves_the_pager_as_it_was(tmp_path):
    pager = make_pager(PAGE, PAGE)
    arrays = managed(pager, {"x": np.ones(PAGE, np.uint8), "y": np.ones(PAGE, np.uint8)})
    paging.save(tmp_path / "x", arrays)
    small = make_pager(PAGE, PAGE, host_bytes=PAGE)
    with pytest.raises(ValueError, match="0 of host_bytes, 16, are free"):
        paging.load(tmp_path / "x", small)
    assert small.empty((PAGE,), np.uint8).nbytes == PAGE


def test_types_that_a_file_does_not_hold(tmp_path):
    pager = make_pager(PAGE, PAGE)
    with pytest.raises(TypeError, match="x has dtype complex64; a file holds bool, uint8"):
        paging.save(tmp_path / "x", managed(pager, {"x": np.ones(3, np.complex64)}))
    safetensors.numpy.save_file({"x": np.ones(3, np.uint16)}, tmp_path / "y")
    with pytest.raises(ValueError, match="x has type U16; allowed: BOOL, U8"):
        paging.load(tmp_path / "y", pager)
    (tmp_path / "z").write_bytes(b"nonsense")
    with pytest.raises(safetensors.SafetensorError):
        paging.load(tmp_path / "z", pager)


CHILD = """
import os, sys, time
from pathlib import Path
import numpy as np
from qloracle import paging

path, where = Path(sys.argv[1]), sys.argv[2]
pager = paging.make_pager(4096, 4096)
m = pager.empty((50_000,), np.float32)
m[...] = np.float32(1)
paging.save(path, {"m": m}, {"step": "1"})
m[...] = np.float32(2)

def stop(*_):
    print("now", flush=True)
    time.sleep(600)

if where == "in place":       # a saver as it should not be
    with path.open("wb") as file:
        file.write(path.name.encode() * 1000)
        file.flush()
        stop()
elif where == "half written":
    real = Path.open

    class Slow:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            stop()
    Path.open = lambda self, *a, **k: Slow(real(self, *a, **k))
elif where == "not yet on the disk":
    os.fsync = stop
elif where == "not yet renamed":
    Path.replace = stop
paging.save(path, {"m": m}, {"step": "2"})
"""


def killed(path, where):
    """Save once, and be killed in the middle of the second time."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), where], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    return path


def assert_whole(path):
    arrays, words = paging.load(path, make_pager())
    assert words == {"step": "1"}
    assert (arrays["m"][...] == 1).all()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("where", ["half written", "not yet on the disk", "not yet renamed"])
def test_a_process_killed_while_it_saves_leaves_the_old_file_whole(tmp_path, where):
    path = killed(tmp_path / "state.safetensors", where)
    assert path.with_name("state.safetensors.partial").exists()
    assert_whole(path)
    arrays, _ = paging.load(path, make_pager())
    paging.save(path, arrays, {"step": "1"})  # the next save takes the partial file over
    assert_whole(path)
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_saver_that_writes_in_place_is_found(tmp_path):
    path = killed(tmp_path / "state.safetensors", "in place")
    with pytest.raises(safetensors.SafetensorError):
        assert_whole(path)
