"""S12 and S12b: programs on pagers, what they find, how small it becomes, and the scripts."""

import json
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import qloracle
from qloracle import paging
from qloracle_conformance.calling.callers import LocalCaller
from qloracle_conformance.calling.calls import Calls
from qloracle_conformance.calling.loading import load
from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.plain_arrays import Nonsense
from qloracle_conformance.engine import Engine
from qloracle_conformance.engine.verdicts import function_rows
from qloracle_conformance.families.paging import counted as counted_programs
from qloracle_conformance.families.paging import directed as inputs
from qloracle_conformance.families.paging import s12_paging as s12
from qloracle_conformance.families.paging import s12b_books as s12b
from qloracle_conformance.families.paging.drafts import Draft, programs_of
from qloracle_conformance.families.paging.smaller import _measure, smaller
from qloracle_conformance.judging.checks import Plan
from qloracle_conformance.judging.expected import f32
from qloracle_conformance.judging.views import View
from qloracle_conformance.reports import files, repro
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running.verify import verify

VIEW = View("make_pager", "", {}, f32(1))
PLAN = Plan(VIEW, "smoke", 1)

# A pager that needs nothing but NumPy; a fault is one line of it replaced.
PAGER = """
import contextlib
import pickle

import numpy as np


class View:
    def __init__(self, pager, key, shape, dtype, side):
        self.pager, self.key, self.side = pager, key, side
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    def span(self, where):
        if self.key not in self.pager.home:
            raise ValueError("the array was freed")
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        if where is ...:
            return 0, size, self.shape
        low, high, _ = where.indices(self.shape[0])
        row, high = size // max(self.shape[0], 1), max(low, high)
        return low * row, high * row, (high - low, *self.shape[1:])

    def __getitem__(self, where):
        low, high, shape = self.span(where)
        return self.pager.read(self.key, low, high, self.side).view(self.dtype).reshape(shape)

    def __setitem__(self, where, values):
        low, high, shape = self.span(where)
        new = np.empty(shape, self.dtype)
        new[...] = values
        self.pager.write(self.key, low, new.reshape(-1).view(np.uint8), self.side)


NAMES = "faults prefetched evictions host_faults host_prefetched bytes_to_device bytes_to_host"


class Pager:
    def __init__(self, capacity, page):
        self.capacity, self.page_bytes = capacity, page
        self.home, self.device, self.made = {}, {}, 0
        self.counters = dict.fromkeys(NAMES.split(), 0)

    @property
    def resident_bytes(self):
        return len(self.device) * self.page_bytes

    def empty(self, shape, dtype):
        size = int(np.prod([float(n) for n in shape])) * np.dtype(dtype).itemsize
        if size > 2**40:
            raise MemoryError(f"{size} bytes are too many")
        self.made += 1
        self.home[self.made] = np.zeros(size, np.uint8)
        return View(self, self.made, shape, dtype, "host")

    def free(self, handle):
        handle.span(...)
        for page in [page for page in self.device if page[0] == handle.key]:
            del self.device[page]
        del self.home[handle.key]

    @contextlib.contextmanager
    def use(self, *handles):
        for handle in handles:
            handle.span(...)
        yield tuple(View(self, h.key, h.shape, h.dtype, "device") for h in handles)

    def prefetch(self, handle):
        handle.span(...)
        count = -(-self.home[handle.key].size // self.page_bytes)
        pages = [(handle.key, i) for i in range(min(count, self.frames()))]
        for page in sorted(pages, key=lambda page: page not in self.device):
            self.bring(page, "prefetched")

    def shrink(self, capacity):
        self.capacity = capacity
        while len(self.device) > self.frames():
            self.send_home(next(iter(self.device)), "evictions")

    def frames(self):
        return 2**40 if self.capacity is None else self.capacity // self.page_bytes

    def at(self, page):
        return slice(page[1] * self.page_bytes, (page[1] + 1) * self.page_bytes)

    def bring(self, page, why):
        if page in self.device:
            self.device[page] = self.device.pop(page)
            return
        while len(self.device) >= self.frames():
            self.send_home(next(iter(self.device)), "evictions")
        self.device[page] = self.home[page[0]][self.at(page)].copy()
        self.counters[why] += 1
        self.counters["bytes_to_device"] += self.device[page].size

    def send_home(self, page, why):
        values = self.device.pop(page)
        self.home[page[0]][self.at(page)] = values
        self.counters[why] += 1
        self.counters["bytes_to_host"] += values.size

    def pieces(self, key, low, high, side):
        for i in range(low // self.page_bytes, -(-high // self.page_bytes)):
            page, start = (key, i), i * self.page_bytes
            if side == "device":
                self.bring(page, "faults")
            elif page in self.device:
                self.send_home(page, "host_faults")
            bytes_of = self.device[page] if side == "device" else self.home[key][self.at(page)]
            first, last = max(low, start), min(high, start + self.page_bytes)
            yield bytes_of[first - start : last - start], slice(first - low, last - low)

    def read(self, key, low, high, side):
        found = np.empty(high - low, np.uint8)
        for piece, where in self.pieces(key, low, high, side):
            found[where] = piece
        return found

    def write(self, key, low, values, side):
        for piece, where in self.pieces(key, low, low + values.size, side):
            piece[...] = values[where]


def make_pager(capacity_bytes=None, page_bytes=None):
    return Pager(capacity_bytes, page_bytes or 4096)


def save_paged(path, arrays, metadata=None):
    with open(path, "wb") as file:
        pickle.dump(({name: array[...] for name, array in arrays.items()}, metadata), file)


def load_paged(path, pager):
    with open(path, "rb") as file:
        plain, words = pickle.load(file)
    arrays = {}
    for name, values in plain.items():
        arrays[name] = pager.empty(values.shape, values.dtype)
        arrays[name][...] = values
    return arrays, words
"""

# name: (the right line, the wrong one, the rule that finds it, what the script prints)
FAULTS = {
    "a dirty page is lost": (
        "self.home[page[0]][self.at(page)] = values", "pass", "S12", "expected 1",
    ),
    "a page holds another one's bytes": (
        "self.home[page[0]][self.at(page)].copy()", "self.home[page[0]][self.at((0, 0))].copy()",
        "S12", "expected ",
    ),
    "a part begins in the wrong place": (
        "piece[...] = values[where]", "piece[...] = values[: piece.size]", "S12", "expected ",
    ),
    "a write through a slice is lost": (
        "new[...] = values", "new[...] = values if where is ... else 0", "S12", "expected ",
    ),
    "a double free is silent": (
        "    def free(self, handle):\n        handle.span(...)",
        "    def free(self, handle):\n        if handle.key not in self.home:\n            return",
        "S12", "no error",
    ),
    "a freed array is used": (
        "        for handle in handles:\n            handle.span(...)\n", "", "S12", "no error",
    ),
    "an error destroys": (
        "            raise MemoryError",
        "            self.home.clear()\n            raise MemoryError", "S12", "freed",
    ),
    "an error says nothing": (
        'raise ValueError("the array was freed")', "raise ValueError", "S12", "no error, or",
    ),
    "a refusal": ("new[...] = values", "assert values.size != 33\n        new[...] = values",
                  "S12", "AssertionError"),
    "counters begin below 0": (
        "dict.fromkeys(NAMES.split(), 0)", "dict.fromkeys(NAMES.split(), -9)", "S12b counters",
        "expected at least 0",
    ),
    "a free counts as faults": (
        "        del self.home[handle.key]",
        '        del self.home[handle.key]\n        self.counters["faults"] += 5',
        "S12b freed", "faults is ",
    ),
    "the capacity is a page too large": (
        "self.capacity // self.page_bytes", "self.capacity // self.page_bytes + 1", "S12b",
        "resident_bytes is ",
    ),
    "an eviction is not counted": (
        '        self.counters[why] += 1\n        self.counters["bytes_to_host',
        '        self.counters[why] += why != "evictions"\n        self.counters["bytes_to_host',
        "S12b", "expected ",
    ),
    "freed pages stay": (
        "            del self.device[page]\n", "            pass\n", "S12b", "expected at most 0",
    ),
    "a prefetch leaves a page": (
        "range(min(count, self.frames()))", "range(1, min(count, self.frames()))", "S12b",
        "faults is ",
    ),
    "bytes are counted twice": (
        '["bytes_to_device"] += self.device[page].size',
        '["bytes_to_device"] += 2 * self.device[page].size', "S12b", "bytes_to_device is ",
    ),
    "bytes are not counted": (
        'self.counters["bytes_to_host"] += values.size', "pass", "S12b", "bytes_to_host is ",
    ),
    "what a step writes is lost": (
        '"device") for h in handles)', '"device")[...] for h in handles)', "S12 adam", "got ",
    ),
    "what an 8-bit step writes is lost": (
        '"device") for h in handles)', '"device")[...] for h in handles)', "S12 adam_8bit", "got ",
    ),
    "a row is not loaded": (
        "arrays[name][...] = values", "arrays[name][1:] = values[1:]", "S12 saving", "expected ",
    ),
    "words are lost": ("return arrays, words", "return arrays, {}", "S12 saving", "'file': "),
    "another type": (".view(self.dtype).reshape(shape)",
                     ".view(self.dtype).reshape(1, *shape)", "P1", "expected "),
    "an input is changed": (
        "        new = np.empty(shape",
        "        values[...] = 1\n        new = np.empty(shape", "P2", "the call changed its input",
    ),
}  # fmt: skip


ONLY = {
    "S12": "S12/*/pages,S12/*/types,S12/*/errors",
    "S12b": "S12b/*/prefetch,S12b/*/freed",
    "P1": "P1,S12/*/types",
    "P2": "P2,S12/*/types",
}


def written(tmp_path, name=None):
    right, wrong = FAULTS[name][:2] if name else ("", "")
    assert right in PAGER
    path = tmp_path / "pager.py"
    path.write_text(PAGER.replace(right, wrong))
    return path


def engine(target, **options):
    made = Engine(LocalCaller(target), functions=("make_pager",), **options)
    made.probe()
    return made


def runs(target, **options):
    return {run.id.replace("/make_pager", ""): run for run in engine(target, **options).run()}


def failing(found):
    return {run.rule for run in found.values() if run.status not in ("PASS", "UNSUPPORTED")}


# ---- pagers --------------------------------------------------------------------------------------


def test_the_reference_and_a_stranger_pass(tmp_path):
    for target in (qloracle, load(str(written(tmp_path)))):
        found = runs(target)
        assert {run.status for run in found.values()} == {"PASS"}
        assert not any(run.unsupported for run in found.values() if run.rule[0] == "S")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_script_shows_it(tmp_path, run_script, name):
    *_, rule, said = FAULTS[name]
    path = written(tmp_path, name)
    rule, _, layer = rule.partition(" ")
    only = f"{rule}/*/{layer}" if layer else ONLY[rule]
    (judgement,) = verify([load(str(path))], only=only, causes=False).judgements
    judgement.name = str(path)
    found = [run for run in judgement.checks if run.rule == rule and run.status == "FAIL"]
    assert found, [(run.id, run.status) for run in judgement.checks]
    scripts = scripts_of(judgement, tmp_path)
    run = min(found, key=lambda run: len(run.failure.case.options["program"]))
    code, text = run_script(scripts[run.id])
    assert (code, said in text) == (1, True), text
    written(tmp_path)
    assert run_script(scripts[run.id])[0] == 0


# One on tensors, which has no optimizer either; nothing of it pages.
TENSORS = """
import contextlib, math, torch
arrays = "torch"

class Handle:
    def __init__(self, values):
        self.values = values
    def alive(self):
        if self.values is None:
            raise ValueError("the array was freed")
    def __getitem__(self, where):
        self.alive()
        return self.values[where].clone()
    def __setitem__(self, where, values):
        self.alive()
        if self.values[where].shape != values.shape:
            raise ValueError("sizes differ")
        self.values[where] = values

class Pager:
    def empty(self, shape, dtype):
        if math.prod(shape) > 2**40:
            raise ValueError("too many")
        return Handle(torch.empty(shape, dtype=dtype))
    @contextlib.contextmanager
    def use(self, *handles):
        for handle in handles:
            handle.alive()
        yield handles
    def prefetch(self, handle):
        handle.alive()
    def free(self, handle):
        handle.alive()
        handle.values = None

def make_pager(capacity_bytes=None, page_bytes=None):
    return Pager()
"""
A_LOST_MOMENT = ("yield handles", "yield tuple(Handle(h.values.clone()) for h in handles[:1]) "
                 "+ handles[1:]")  # fmt: skip


@pytest.mark.parametrize("function", ["adam", "adam_8bit"])
def test_a_pager_of_tensors_is_judged_and_its_script_steps_tensors(tmp_path, run_script, function):
    path = tmp_path / "tensors.py"
    path.write_text(TENSORS)
    right = runs(load(str(path)), searching=False)
    assert {run.status for run in right.values() if run.rule == "S12"} == {"PASS"}
    path.write_text(TENSORS.replace(*A_LOST_MOMENT))
    (judgement,) = verify([load(str(path))], only=f"S12/*/{function}", causes=False).judgements
    judgement.name = str(path)
    (run,) = [run for run in judgement.checks if run.status == "FAIL"]
    (script,) = scripts_of(judgement, tmp_path).values()
    code, said = run_script(script, framework="torch")
    assert (code, "expected " in said) == (1, True), said
    path.write_text(TENSORS)
    assert run_script(script, framework="torch")[0] == 0
    assert "step" in {operation[0] for operation in run.failure.case.options["program"]}


def scripts_of(judgement, folder):
    """The script of each failing check, written."""
    for name, text in repro.scripts(judgement).items():
        files.write(folder / name, text)
    return {run.id: folder / run.repro for run in judgement.checks if run.repro}


def test_a_failure_is_small_and_names_operation_array_and_element(tmp_path):
    found = runs(load(str(written(tmp_path, "a dirty page is lost"))), searching=False)
    run = found["S12/pages"]
    assert len(run.failure.case.options["program"]) <= 4
    assert sum(array.size for array in run.failure.case.arrays.values()) <= 4
    assert run.message == str(run.failure.mismatch)
    assert ", expected " in run.message
    assert "a[...]" in run.message
    assert "operation 2 of 3" in run.message


def test_a_pager_without_counters_is_not_judged_by_its_books():
    pager = types.SimpleNamespace(
        make_pager=lambda *args, **named: Hidden(paging.make_pager(*args, **named))
    )
    (judgement,) = verify([pager]).judgements
    books = [run for run in judgement.checks if run.rule == "S12b"]
    assert {run.status for run in books} == {"UNSUPPORTED"}
    assert books[0].message == "NotImplementedError: the pager shows no counters"
    (row,) = (row for row in function_rows(judgement) if row["name"] == "make_pager")
    assert row["status"] == "PASS"
    assert Report("smoke", 0, [judgement]).exit_code == 0


class Hidden:
    """A pager that offers what L5a asks for, and nothing else."""

    def __init__(self, pager):
        self.empty, self.use, self.free = pager.empty, pager.use, pager.free
        self.prefetch = pager.prefetch


class Grudging(Hidden):
    """One whose books cannot be read, and which has little of what it need not have."""

    capacity = float("inf")

    def __init__(self, pager):
        super().__init__(pager)
        self._empty, self.empty = pager.empty, self._or_memory_error

    def _or_memory_error(self, shape, dtype):
        try:
            return self._empty(shape, dtype)
        except ValueError:
            raise MemoryError from None

    @property
    def counters(self):
        raise NotImplementedError("nothing is counted here")

    @property
    def resident_bytes(self):
        raise RuntimeError("the driver does not tell")

    def shrink(self, capacity):
        raise NotImplementedError("a card has what it has")

    def advise(self, handle, advice):
        raise AssertionError("it was not asked in its own words")


def test_a_pager_is_judged_by_its_bytes_whatever_it_does_not_show():
    pager = types.SimpleNamespace(
        make_pager=lambda *args, **named: Grudging(paging.make_pager(*args, **named))
    )
    found = runs(pager, searching=False)
    assert {run.status for run in found.values() if run.rule == "S12"} == {"PASS"}
    assert {run.status for run in found.values() if run.rule == "S12b"} == {"UNSUPPORTED"}


def test_what_compared_nothing_is_named_in_the_scope():
    class OneAtATime(Hidden):
        def __init__(self, pager):
            super().__init__(pager)
            self._use, self.use = pager.use, self._one

        def _one(self, *handles):
            if len(handles) > 1:
                raise NotImplementedError("one at a time")
            return self._use(*handles)

    target = types.SimpleNamespace(
        make_pager=lambda *args, **named: OneAtATime(paging.make_pager(*args, **named))
    )
    (judgement,) = verify([target]).judgements
    (row,) = (row for row in function_rows(judgement) if row["name"] == "make_pager")
    assert row["scope"] == "all but sharing, adam, adam_8bit, resume"


def test_sizes_that_a_pager_cannot_have_are_unsupported():
    def make_pager(capacity_bytes=None, page_bytes=None):
        if page_bytes not in (None, 4096):
            raise NotImplementedError(f"pages of {page_bytes}")
        return paging.make_pager(capacity_bytes, page_bytes)

    found = runs(types.SimpleNamespace(make_pager=make_pager), searching=False)
    assert failing(found) == set()
    assert 0 < found["S12/pages"].unsupported < found["S12/pages"].cases * 4


def test_a_pager_that_takes_no_sizes_is_judged():
    target = types.SimpleNamespace(make_pager=lambda: paging.make_pager(None))
    found = runs(target, searching=False)
    assert failing(found) == set()
    assert found["S12/adam"].cases == 1


def test_a_pager_that_cannot_be_made_is_an_error():
    def make_pager(capacity_bytes=None, page_bytes=None):
        raise ValueError("no memory")

    found = runs(types.SimpleNamespace(make_pager=make_pager), searching=False)
    assert found["S12/pages"].status == "ERROR"
    assert found["S12/pages"].message == "raised ValueError: no memory"


def test_what_fails_only_sometimes_ends_no_search():
    rng = np.random.default_rng(1)

    def make_pager(capacity_bytes=None, page_bytes=None):
        pager = paging.make_pager(capacity_bytes, page_bytes)
        if rng.random() < 0.3:
            pager.prefetch = None
        return pager

    target = types.SimpleNamespace(make_pager=make_pager)
    only = {"only": lambda check: check.endswith("/search"), "searching": True}
    assert runs(target, reducing=False, **only)["S12/search"].status == "FAIL"


# ---- steps ---------------------------------------------------------------------------------------


def test_the_implementations_own_step_runs_paged_and_plain():
    calls = []

    def adam_step(param, grad, m, v, *, step, lr):
        calls.append(step)
        return param - 1, m + grad, v * 2

    target = types.SimpleNamespace(make_pager=paging.make_pager, adam_step=adam_step)
    draft = Draft(PLAN.rng, 64, 64).state("adam_step", 300, 1)
    case = draft.steps("adam_step", 1, 3, 100).read("m").case("")
    values = Calls(target).perform(case).values
    assert calls == [1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    assert values[programs.READ].tobytes() == values[programs.PLAIN].tobytes()
    due = draft.arrays["g"][[1, 2, 0]].cumsum(axis=0, dtype=np.float32)[-1]
    assert values[programs.READ].tobytes() == due.tobytes()


def test_a_step_that_raises_fails_as_an_operation():
    def adam_step(param, grad, m, v, *, step, lr):
        raise ValueError("no step")

    target = types.SimpleNamespace(make_pager=paging.make_pager, adam_step=adam_step)
    draft = Draft(PLAN.rng, 64, 64).state("adam_step", 300, 1)
    case = draft.steps("adam_step", 1, 3, 100).read("m").case("")
    answer = Calls(target).perform(case)
    first = s12.judge(case, answer.values, VIEW).first
    assert (first.result, first.expected) == ("operation", "no error")
    assert first.got.endswith("ValueError: no step")


def test_what_a_program_reads_after_a_step_is_compared_with_plain_arrays():
    draft = Draft(PLAN.rng, 300, 100).state("adam_step_8bit", 300, 1)
    draft.steps("adam_step_8bit", 1, 2, 256)
    case = draft.read("param").read("m_absmax").case("")
    target = types.SimpleNamespace(make_pager=paging.make_pager)
    values = list(Calls(target).perform(case).values)
    outcome = s12.judge(case, tuple(values), VIEW)
    assert (outcome.compared, outcome.wrong) == (300 * 4 + 2 * 4, 0)
    values[programs.READ] = values[programs.READ].copy()
    values[programs.READ][-1] ^= 1
    first = s12.judge(case, tuple(values), VIEW).first
    assert (first.result, first.index) == ("m_absmax[...]", 1)


# ---- books ---------------------------------------------------------------------------------------


def counted():
    draft = Draft(PLAN.rng, 2 * 64, 64).new("a", 192).new("b", 192)
    draft.read("a", None, "device").write("b", None, "device").read("b")
    draft.do("prefetch", "a", "device").do("free", "a").do("prefetch", "b", "device")
    return draft.read_all("bb", "device").case("").with_options(counted=True)


@pytest.mark.parametrize("column", programs.LOG[1:])
@pytest.mark.parametrize("more", [-64, 64])
def test_every_column_is_judged(column, more):
    more *= 9 if "bytes_to" in column else 1  # a page may go without a copy, but not all of them
    case = counted()
    values = list(Calls(qloracle).perform(case).values)
    assert s12b.judge(case, tuple(values), VIEW).wrong == 0
    log = values[programs.LOGGED] = values[programs.LOGGED].copy()
    log[-1, programs.LOG.index(column)] += more
    if column == "page_bytes":
        log[:, programs.LOG.index(column)] += more
    broken = s12b.judge(case, tuple(values), VIEW)
    assert broken.wrong


def test_a_pager_that_tells_faults_only_is_judged_by_them():
    """What is not shown is not judged; that an operation was performed always is."""
    found = runs(load("qloracle_conformance.mutants.paging.lawful:TellsFaultsOnly"), reducing=False)
    assert {run.status for run in found.values() if run.rule == "S12b"} == {"PASS"}


def test_a_resumed_state_must_page_like_the_first():
    def load_paged(path, pager):
        plain, words = paging.load(path, paging.make_pager())
        return {name: Unpaged(array, pager) for name, array in plain.items()}, words

    class Unpaged:
        def __init__(self, array, pager):
            self.values, self.shape, self.dtype = array[...].copy(), array.shape, array.dtype

        def __getitem__(self, where):
            return self.values[where]

        def __setitem__(self, where, values):
            self.values[where] = values

    class Pager(paging.Pager):
        def use(self, *handles):
            if any(isinstance(handle, Unpaged) for handle in handles):
                return __import__("contextlib").nullcontext(handles)
            return super().use(*handles)

    def make_pager(capacity_bytes=None, page_bytes=None):
        pager = paging.make_pager(capacity_bytes, page_bytes)
        return Pager(pager._pages, pager._host_bytes)

    target = types.SimpleNamespace(
        make_pager=make_pager, load_paged=load_paged, save_paged=paging.save
    )
    found = runs(target, searching=False, reducing=False)
    assert found["S12/resume"].status == "PASS"  # the bits are right
    assert found["S12b/resume"].status == "FAIL"


# ---- programs ------------------------------------------------------------------------------------


def test_every_directed_program_makes_sense():
    kinds = {**inputs.DIRECTED, **counted_programs.DIRECTED}
    for cases in kinds.values():
        for profile in ("smoke", "standard"):
            for case in cases(Plan(VIEW, profile, 3)):
                assert plain_arrays.reads(case)
                json.dumps(case.options)


DRAWING = settings(
    max_examples=200, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@DRAWING
@given(programs_of(counted=False))
def test_every_drawn_program_makes_sense(case):
    plain_arrays.reads(case)


def test_every_verb_is_drawn():
    verbs = set()

    @DRAWING
    @given(programs_of(counted=False))
    def collect(case):
        verbs.update(operation[0] for operation in case.options["program"])

    collect()
    assert verbs == {
        "empty", "write", "read", "open", "close", "step", "prefetch", "advise", "shrink", "free",
        "save", "load", "must_fail",
    }  # fmt: skip


ONE = [["empty", "a", [4], "uint8"], ["write", "a", None, "x", "host"]]


@pytest.mark.parametrize(
    "program",
    [
        [["read", "a", None, "host"]],
        [["empty", "a", [4], "uint8"], ["read", "a", None, "host"]],
        [*ONE, ["empty", "a", [4], "uint8"]],
        [*ONE, ["free", "a"], ["free", "a"]],
        [*ONE, ["free", "a"], ["read", "a", None, "host"]],
        [*ONE, ["write", "a", [0, 2], "x", "host"]],
        [*ONE, ["open", "u", ["a"]], ["free", "a"]],
        [*ONE, ["must_fail", ["free", "a"]]],
        [*ONE, ["must_fail", ["write", "a", None, "x", "host"]]],
        [*ONE, ["shrink", 64]],
        [*ONE, ["open", "u", ["a"]], ["save", "f", ["a"]], ["load", "f", ["a"], None, None]],
        [*ONE, ["open", "u", ["a"]], ["read", "a", None, "host"]],
        [*ONE, ["open", "u", ["a"]], ["write", "a", None, "x", "host"]],
        [*ONE, ["open", "u", ["a"]], ["save", "f", ["a"]]],
        [*ONE, ["step", "adam_step", ["a", "a", "a"], "x", 1, 1, None]],
    ],
)
def test_programs_without_a_sense(program):
    case = Case("make_pager", {"x": np.ones(4, np.uint8)}, {"program": program})
    assert not plain_arrays.sensible(case)
    assert plain_arrays.sensible(case.with_options(program=ONE))
    assert issubclass(Nonsense, ValueError)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_step_takes_a_state_of_its_own_types(dtype):
    draft = Draft(PLAN.rng).state("adam_step", 4, 0).steps("adam_step", 1, 1, None)
    case = draft.case("")
    program = [[*op[:3], dtype] if op[:2] == ["empty", "m"] else op for op in draft.program]
    m = next(op[3] for op in draft.program if op[:2] == ["write", "m"])
    other = case.with_options(program=program).with_arrays(**{m: np.ones(4, dtype)})
    assert plain_arrays.sensible(other) == (dtype == "float32")


@pytest.mark.parametrize(
    "operation",
    [
        ["free", "a)\nimport os\n(a"],
        ["free", "__builtins__"],
        ["free", "a.b"],
        ["empty", "a", ["n"], "print()"],
        ["empty", "a", [4], "float33"],
        ["shrink", 1.5],
        ["step", "exec", ["a"], "g", 1, 1, None],
        ["copy", "a"],
        ["must_fail", ["exec", "a"]],
        ["save", "../f", ["a"]],
    ],
)
def test_nothing_but_names_and_numbers_becomes_code(operation):
    with pytest.raises((ValueError, TypeError)):
        programs.lines_of(operation)


def test_what_lines_say_is_what_people_read():
    draft = Draft(PLAN.rng, 64, 64).new("a", 4, side="device").save("f").load("f", None, 64)
    draft.do("open", "u", ["a"]).read("a", (0, 2), "u.0").do("close", "u")
    assert programs.text_of_case(draft.case("")) == "; ".join([
        "pager = make_pager(capacity_bytes=64, page_bytes=64)",
        "a = pager.empty((4,), uint8)",
        "with pager.use(a) as arrays: arrays[0][...] = x0",
        'files.save_paged(folder / "f", {"a": a}, {"file": "f"})',
        "pager = make_pager(page_bytes=64)",
        'loaded, words = files.load_paged(folder / "f", pager)',
        "[a] = map(loaded.get, ['a'])",
        'u = opened["u"].enter_context(pager.use(a))',
        "u[0][0:2]",
        'opened["u"].close()',
    ])  # fmt: skip


def test_smaller_programs_make_sense_and_are_smaller():
    cases = [next(cases(PLAN)) for cases in inputs.DIRECTED.values()]
    for case in (*cases, counted()):
        for small, _ in zip(smaller(case), range(300), strict=False):
            assert plain_arrays.sensible(small)
            assert _measure(small) < _measure(case)
