"""The engine's own defences: blind checks, empty checks, the second oracle, reduction, seeds."""

import collections
from types import SimpleNamespace

import numpy as np
import pytest

import qloracle
from qloracle_conformance import engine
from qloracle_conformance.calling.callers import ChildCaller, LocalCaller
from qloracle_conformance.contract.cases import Case, bits
from qloracle_conformance.contract.errors import LoadError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine import Engine, reduce
from qloracle_conformance.families import all_checks
from qloracle_conformance.families.codes.judge import judge_decoded
from qloracle_conformance.judging import checks
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.exact import rational


def only(*ids):
    return lambda check: check in ids


def decode_case(codes, scale):
    arrays = {"packed": np.array(codes, np.uint8), "absmax": np.array(scale, np.float32)}
    return Case("dequantize_4bit", arrays, {"shape": [2 * len(codes)], "quant_type": "nf4"})


def run_with(monkeypatch, cases, target=qloracle):
    """Run the engine with one check of our own."""
    check = Check("S7", "own", "dequantize_4bit", lambda plan: iter(cases), judge_decoded)
    monkeypatch.setattr(engine, "all_checks", lambda: [check])
    judged = Engine(LocalCaller(target), only=only("S7/dequantize_4bit[nf4]/own"))
    judged.probe()
    (run,) = judged.run()
    return run


@pytest.fixture(scope="module")
def runs_of_the_reference():
    """Every check of the kit, without a search."""
    judged = Engine(LocalCaller(qloracle), searching=False)
    judged.probe()
    return list(judged.run())


class TestSelfControl:
    def test_data_that_show_a_fault_pass(self, monkeypatch):
        run = run_with(monkeypatch, [decode_case([0x0F, 0x4C], [3.0]), decode_case([0x42], [2.0])])
        assert run.status == "PASS"

    def test_zeros_alone_prove_nothing(self, monkeypatch):
        run = run_with(monkeypatch, [decode_case([0x77] * 4, [1.0])])
        assert run.status == "NOT_RUN"
        assert run.message == "these data would accept constant, shuffled, zeros results"

    def test_one_constant_proves_little(self, monkeypatch):
        run = run_with(monkeypatch, [decode_case([0xFF] * 4, [2.0])])
        assert run.status == "NOT_RUN"
        assert "constant" in run.message

    def test_no_case_is_not_run(self, monkeypatch):
        run = run_with(monkeypatch, [])
        assert (run.status, run.message) == ("NOT_RUN", "nothing was compared")

    def test_every_check_of_the_kit_controls_itself(self, runs_of_the_reference):
        """On the reference no check is NOT_RUN: each would reject zeros, constants, shuffling."""
        assert len(runs_of_the_reference) > 200
        assert {run.status for run in runs_of_the_reference} == {"PASS"}


def test_the_floor_of_comparisons_is_far_below_what_is_compared(runs_of_the_reference):
    from qloracle_conformance.engine.verdicts import FLOORS

    counts = collections.Counter()
    for run in runs_of_the_reference:
        if run.rule[0] == "S":
            counts[run.function] += run.comparisons
    assert len(counts) >= 15
    for name, count in counts.items():
        if count:
            assert count > 2 * FLOORS["smoke"][FUNCTIONS[name].level], name


@pytest.mark.slow
def test_two_oracles_agree_on_every_directed_input():
    judged = Engine(LocalCaller(qloracle), searching=False, second=rational)
    judged.probe()
    runs = list(judged.run())
    assert {run.status for run in runs} == {"PASS"}
    assert sum(run.comparisons for run in runs) > 20_000_000


def test_the_second_oracle_sees_what_the_first_shares_with_the_reference(monkeypatch):
    """One level an ulp off in the shared table: only exact arithmetic does not agree."""
    from qloracle import codebook

    bits = list(codebook.__globals__["NF4_BITS"])
    bits[10] += 1
    monkeypatch.setitem(codebook.__globals__, "NF4_BITS", tuple(bits))
    name = "S6/dequantize_4bit[nf4]/bytes"
    for second, status in ((None, "PASS"), (rational, "FAIL")):
        judged = Engine(LocalCaller(qloracle), only=only(name), second=second)
        judged.probe()
        (run,) = judged.run()
        assert run.status == status
    assert "second oracle" in run.message


def test_seeds_are_fixed_and_differ():
    view = SimpleNamespace(function="f", name="f[t]", table="nf4")
    check = all_checks()[0]
    plans = [Engine(LocalCaller(qloracle), seed=s).plan(check, view) for s in (0, 0, 1)]
    draws = [plan.rng.integers(1 << 62) for plan in plans]
    assert draws[0] == draws[1] != draws[2]


def test_a_plan_gives_every_caller_a_fresh_generator():
    plan = Plan(SimpleNamespace(), "smoke", 7)
    assert plan.rng.integers(1 << 62) == plan.rng.integers(1 << 62)
    assert plan.pick(1, 2) == 1


class TestReduce:
    def quantize(self, x, blocksize=64):
        options = {"blocksize": blocksize, "quant_type": "nf4"}
        return Case("quantize_4bit", {"x": x}, options)

    def test_one_bad_element_in_many_becomes_one_or_two(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 100)).astype(np.float32)
        x[17, 23] = 0.75

        def fails(case):
            found = np.flatnonzero(case.arrays["x"] == 0.75)
            return int(found[0]) if found.size else None

        small = reduce.reduce(self.quantize(x, 256), 17 * 100 + 23, fails, [])
        assert small.arrays["x"].tolist() == [0.75]
        assert small.options["blocksize"] == 64

    def test_a_fault_of_full_blocks_keeps_a_full_block(self):
        x = np.linspace(-1, 1, 640, dtype=np.float32)

        def fails(case):
            return 0 if case.arrays["x"].size >= 64 else None

        small = reduce.reduce(self.quantize(x), 5, fails, [])
        assert small.arrays["x"].size == 64
        assert np.count_nonzero(small.arrays["x"]) <= 1

    def test_a_shape_is_reduced_axis_by_axis(self):
        codes = np.full(8 * 96 // 2, 0xF0, np.uint8)
        arrays = {"packed": codes, "absmax": np.arange(1, 13, dtype=np.float32)}
        options = {"shape": [8, 96], "blocksize": 64, "quant_type": "nf4", "dtype": "float32"}

        def fails(case):
            shape = case.options["shape"]
            return 0 if len(shape) == 2 and shape[0] > 1 and shape[1] % 32 == 0 else None

        small = reduce.reduce(Case("dequantize_4bit", arrays, options), 70, fails, [])
        assert small.options["shape"] == [2, 32]
        assert small.arrays["packed"].size == 32

    def test_a_hint_that_fails_is_taken(self):
        hint = self.quantize(np.float32([1, 0]))
        big = self.quantize(np.ones(500, np.float32))
        assert reduce.reduce(big, 0, lambda case: 0, [hint]) is hint


class TestChild:
    def test_what_a_kernel_prints_does_not_disturb_the_protocol(self, tmp_path):
        path = tmp_path / "noisy.py"
        path.write_text(
            "import qloracle as q, sys\nprint('hello')\n"
            "def quantize_4bit(x, **k):\n    print('more'); sys.stdout.flush()\n"
            "    return q.quantize_4bit(x, **k)\n"
        )
        caller = ChildCaller(str(path))
        answer = caller.call(Case("quantize_4bit", {"x": np.ones(3, np.float32)}))
        caller.close()
        assert answer.status == "OK"

    def test_the_folder_of_a_file_is_not_importable(self, tmp_path):
        (tmp_path / "torch.py").write_text("SHADOW = True\n")
        path = tmp_path / "kernel.py"
        path.write_text(
            "import importlib.util as u\nspec = u.find_spec('torch')\n"
            f"assert spec is None or {str(tmp_path)!r} not in str(spec.origin)\n"
            "def quantize_4bit(x): ...\n"
        )
        caller = ChildCaller(str(path))
        assert list(caller.offers) == ["quantize_4bit"]
        caller.close()

    def test_a_file_is_read_as_it_is_now(self, tmp_path, monkeypatch):
        """Same length, same second: cached bytecode of the older text would be taken for it."""
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        path = tmp_path / "kernel.py"
        for name in ("quantize_4bit", "quantize_8bit"):
            path.write_text(f"def {name}(x): ...\n")
            caller = ChildCaller(str(path))
            assert list(caller.offers) == (["quantize_4bit"] if name == "quantize_4bit" else [])
            caller.close()
        assert not (tmp_path / "__pycache__").exists()

    def test_the_child_dies_with_its_parent(self):
        caller = ChildCaller("numpy")
        caller._process.stdin.close()
        assert caller._process.wait(10) == 0
        caller.close()

    def test_a_child_that_cannot_start_again_is_told(self, tmp_path):
        path = tmp_path / "once.py"
        flag = tmp_path / "flag"
        path.write_text(
            f"import os\nif os.path.exists({str(flag)!r}): raise OSError('gone')\n"
            f"def quantize_4bit(x):\n    open({str(flag)!r}, 'w').close(); os.abort()\n"
        )
        caller = ChildCaller(str(path))
        case = Case("quantize_4bit", {"x": np.ones(3, np.float32)})
        assert caller.call(case).status == "CRASH"
        with pytest.raises(LoadError, match="does not start again"):
            caller.call(case)


def test_profiles_have_names():
    assert checks.PROFILES == ("smoke", "standard", "exhaustive")
    assert set(engine.EXAMPLES) == set(checks.PROFILES)


def test_the_reducer_asks_nothing_twice():
    x = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    case, asked = Case("quantize_4bit", {"x": x}, {"blocksize": 64, "quant_type": "nf4"}), []

    def fails(candidate):
        asked.append((bits(candidate.arrays.values()), repr(candidate.options)))
        return 0 if np.count_nonzero(candidate.arrays["x"]) >= 3 else None

    reduce.reduce(case, 0, fails, [])
    assert len(asked) == len(set(asked)) > 20
