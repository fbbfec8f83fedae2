"""The bench without a card: what it computes of times, with a clock that is a stand-in.

No time in here is one of a GPU: a `ScriptedClock` reads times from a list or from the call.
"""

import json
import re
from importlib.resources import files
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from qloracle_gpu import bench, compiling, kernels
from qloracle_gpu.bench import cases, checks, goals, gpu
from qloracle_gpu.bench.timing import AGAIN, Reading, compare, ratio, self_ratio

SCHEMA = json.loads((files(bench) / "bench.schema.json").read_text(encoding="utf-8"))
ROOFS = {"triad": 3.0e12, **dict.fromkeys(gpu.MIXES, 3.2e12), "1_1": 2.5e12}
MACHINE = {"card": "none: a stand-in", "driver": "none", "compute_capability": "0"}


class ScriptedClock:
    """A stand-in for a clock: a call returns how long it took."""

    def __init__(self, queued=True):
        self.calls, self.queued = [], queued

    def __call__(self, call):
        seconds = call()
        self.calls.append(seconds)
        return Reading(seconds, 0.0, self.queued)


def case(**seconds):
    calls = {name.replace("_", " "): (lambda value=value: value) for name, value in seconds.items()}
    beside = {"longer than plain": "plain"} if "plain" in calls else {}
    theirs = {name: calls.pop(name) for name in ("bitsandbytes",) if name in calls}
    peers = {"Marlin": absent, **{name: lambda call=call: call for name, call in theirs.items()}}
    return cases.Case("dequantize nested", "1_4", 3.2e9, calls, beside, peers)


def absent():
    raise ImportError("No module\nnamed 'marlin'")


def measured(*prepared):
    found = {each.name: (lambda each=each: each) for each in prepared}
    lines = []
    timings = bench.timed(found, ScriptedClock(), ROOFS, lines.append, lambda: None)
    return timings, lines


# ---- statistics ---------------------------------------------------------------------------------


def test_the_median_and_the_quartiles_are_told():
    values = iter([9.9, 5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 7.0, 8.0])
    found = compare({"ours": lambda: next(values)}, ScriptedClock(), rounds=4)
    assert set(found) == {"ours", "ours" + AGAIN}
    ours = sorted([5.0, 2.0, 4.0, 8.0])  # rounds go forth and back
    assert found["ours"].median == np.median(ours)
    assert found["ours"].low <= found["ours"].median <= found["ours"].high
    assert found["ours"].rounds == 4


def test_calls_are_interleaved_in_both_orders():
    clock = ScriptedClock()
    compare({"ours": lambda: 1.0, "theirs": lambda: 2.0}, clock, rounds=2)
    assert clock.calls == [1.0, 2.0, *(1.0, 2.0, 1.0), *(1.0, 2.0, 1.0)]


def test_what_the_first_call_of_all_takes_is_not_counted():
    seconds = iter([100.0] + [1.0] * 6)
    found = compare({"ours": lambda: next(seconds)}, ScriptedClock(), rounds=3)
    assert found["ours"].high == found["ours" + AGAIN].high == 1.0


def test_a_drift_shows_in_the_self_pair():
    ticks = iter([9.0, *np.linspace(1, 2, 60)])
    found = compare({"ours": lambda: next(ticks)}, ScriptedClock(), rounds=30)
    assert abs(self_ratio(found) - 1) < 0.01  # a drift that goes on is the same for both
    noisy = iter([9.0, *[1.0, 1.3, 1.3, 1.0] * 15])
    found = compare({"ours": lambda: next(noisy)}, ScriptedClock(), rounds=30)
    assert self_ratio(found) == pytest.approx(1.3)


def test_a_host_that_was_too_slow_is_told():
    assert not compare({"ours": lambda: 1.0}, ScriptedClock(queued=False), rounds=3)["ours"].cold


def test_ratios_are_of_medians():
    found = compare({"ours": lambda: 2.0, "theirs": lambda: 3.0}, ScriptedClock())
    assert ratio(found, "theirs", "ours") == 1.5


# ---- a case -------------------------------------------------------------------------------------


def test_figures_of_a_case():
    ((timing,), (line,)) = measured(case(ours=2e-3, plain=1.6e-3, bitsandbytes=3e-3))
    assert timing["bytes_per_second"] == pytest.approx(1.6e12)
    assert timing["figures"] == pytest.approx(
        {
            "share of roof": 0.5,
            "share of copy": 0.64,
            "self ratio": 1,
            "longer than plain": 1.25,
            "faster than bitsandbytes": 1.5,
        }
    )
    assert timing["notes"] == ["Marlin not measured: ImportError: No module named 'marlin'"]
    assert "2000.0 us, 1600 GB/s" in line
    assert "Marlin not measured: ImportError: No module named 'marlin'" in line


def test_a_case_that_fails_says_why_and_the_rest_goes_on():
    def broken():
        raise MemoryError("8 GiB are\nnot there")

    let_go = []
    found = {"adam float32": broken, "dequantize nested": lambda: case(ours=1e-3, plain=1e-3)}
    timings = bench.timed(found, ScriptedClock(), ROOFS, str, lambda: let_go.append(1))
    assert timings[0]["not_measured"] == "MemoryError: 8 GiB are not there"
    assert "figures" in timings[1]
    assert len(let_go) == 2


def test_a_peer_that_cannot_run_leaves_a_note_too():
    def call():
        raise RuntimeError("not made\nfor this card")

    one = case(ours=1e-3)._replace(peers={"Marlin": lambda: call})
    ((timing,), _) = measured(one)
    assert timing["notes"] == ["Marlin not measured: RuntimeError: not made for this card"]
    assert set(timing["seconds"]) == {"ours", "ours" + AGAIN}


# ---- goals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sense", "value", "same", "verdict"),
    [
        (">=", 0.95, 1.0, "met"),
        (">=", 0.949, 1.0, "missed"),
        ("<=", 0.95, 1.0, "met"),
        ("<=", 0.951, 1.0, "missed"),
        (">=", 2.0, 1.06, "not measured"),
        (">=", 2.0, 0.94, "not measured"),
        (">=", float("nan"), 1.0, "not measured"),
        (">=", 2.0, float("nan"), "not measured"),
        ("<=", float("-inf"), 1.0, "not measured"),
    ],
)
def test_verdicts(sense, value, same, verdict):
    goal = goals.Goal("case", "figure", sense, 0.95)
    assert goal.verdict({"case": {"figure": value, "self ratio": same}}) == verdict


def test_what_has_no_self_ratio_was_not_measured():
    assert goals.Goal("c", "f", ">=", 0).verdict({"c": {"f": 1.0}}) == "not measured"


def test_without_a_measurement_no_goal_is_met():
    found = bench.report(MACHINE | gpu.facts(), ROOFS, [], [])
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}


def test_every_goal_names_a_case_and_a_figure_that_it_will_have():
    names = cases.cases()
    assert {goal.case for goal in goals.GOALS} <= set(names)
    figures = {goals.ROOF, goals.COPY, goals.BNB, "faster than torch fused"}
    beside = {
        "dequantize nested": "longer than plain",
        "lora r = 16": "longer than without",
        **{
            name: "longer than M = 1" for name in names if " M = " in name and name[-6:] != " M = 1"
        },
    }
    for goal in goals.GOALS:
        assert goal.figure in figures or goal.figure == beside[goal.case], goal


def test_the_goals_are_those_that_were_set():
    limits = {(goal.case, goal.figure): (goal.sense, goal.limit) for goal in goals.GOALS}
    roof = {name: limit for (name, figure), (_, limit) in limits.items() if figure == goals.ROOF}
    assert roof == {
        "dequantize bfloat16": 0.95, "quantize bfloat16": 0.90, "adam float32": 0.90,
        "adam 8 bits": 0.80, "product 8 MB, M = 1": 0.25, "product 33 MB, M = 1": 0.45,
        "product 67 MB, M = 1": 0.50, "product 256 MB, M = 1": 0.70,
    }  # fmt: skip
    assert limits["dequantize nested", "longer than plain"] == ("<=", 1.02)
    assert limits["adam 8 bits", goals.BNB] == (">=", 1.3)


# ---- bytes and mixes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.cases())
def test_the_bytes_and_the_mix_of_a_case(monkeypatch, name):
    """Cases prepared on stand-ins of shape alone: no array is made, no call is run."""
    monkeypatch.setattr(cases, "normal", lambda *shape, dtype="float32": Shape(shape))
    monkeypatch.setattr(cases, "OURS", SimpleNamespace(
        quantize_4bit=lambda *_, **__: ("packed", "absmax"),
        quantize_absmax=lambda *_: ("codes", "nested", "offset"),
        dequantize_4bit=len, matmul_4bit=len, qlora_forward=len,
    ))  # fmt: skip
    monkeypatch.setattr(cases, "_coded_state", lambda n: iter([f"part {i}" for i in range(6)]))
    found = cases.cases()[name]()
    assert found.name == name
    assert next(iter(found.calls)) == "ours"
    assert set(found.beside.values()) <= set(found.calls)
    expected, reads = moved(name)
    assert found.moved == pytest.approx(expected)
    if reads is not None:
        mix = [int(part) for part in found.mix.split("_")]
        assert mix[0] / sum(mix) == pytest.approx(reads, abs=0.06)


class Shape(tuple):
    def __abs__(self):
        return self


def moved(name):
    """Bytes and the share of reads, from the formats themselves and not from the bench's words."""
    n, scale = 1 << 28, 4 / 64
    wide = {"bfloat16": 2, "float32": 4}.get(name.split()[-1], 0)
    if name.startswith("dequantize") and wide:
        return n * (0.5 + scale + wide), (0.5 + scale) / (0.5 + scale + wide) if wide == 2 else None
    if name == "dequantize nested":
        read = 0.5 + 1 / 64 + 4 / (64 * 256)
        return n * (read + 2), read / (read + 2)
    if name.startswith("quantize"):
        return n * (0.5 + scale + 2), 2 / (2.5 + scale)
    if name.startswith("product"):
        out, width = cases.MATRICES[int(name.split()[1])]
        return out * width / 2, 1.0
    if name == "adam float32":
        return (1 << 27) * (4 * 4 + 3 * 4), 16 / 28
    coded = 1 + 4 / 256
    if name.startswith("adam"):
        count = 1 << 27 if "8 bits" in name else 224 * 16 * 4096
        return count * (4 + 2 * coded + 2 + 2 * coded), (4 + 2 * coded) / (6 + 4 * coded)
    return 8192 * 8192 / 2 + 16 * (8192 + 8192) * 2, 1.0  # lora


# ---- the JSON -----------------------------------------------------------------------------------


def whole():
    timings, _ = measured(case(ours=1e-3, plain=1e-3))
    timings.append({"case": "adam float32", "not_measured": "MemoryError: too large"})
    results = checks.run({"a": int, "b": lambda: 1 / 0})
    return bench.report(MACHINE | gpu.facts(), ROOFS, timings, results)


def test_the_json_is_of_its_published_form():
    found = json.loads(json.dumps(whole()))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(found, SCHEMA)
    assert found["machine"]["kernels"] == kernels.digest(kernels.text())
    assert [check["status"] for check in found["checks"]] == ["passed", "failed"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["machine"].pop("card"),
        lambda d: d["machine"].pop("commit"),
        lambda d: d["goals"][0].update(verdict="probably"),
        lambda d: d["timings"][0].pop("figures"),
        lambda d: d["timings"][0]["seconds"].pop("ours again"),
        lambda d: d["timings"][0]["seconds"]["ours"].update(median=0),
        lambda d: d["timings"][1].update(not_measured=""),
        lambda d: d["roofs_bytes_per_second"].pop("triad"),
        lambda d: d["checks"][0].update(status="skipped"),
        lambda d: d.pop("date"),
    ],
)
def test_a_json_that_says_less_is_refused(spoil):
    found = whole()
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMA)


def test_nothing_is_measured_without_a_card(monkeypatch):
    monkeypatch.setattr(bench, "unavailable", lambda: "needs an NVIDIA GPU: none")
    with pytest.raises(RuntimeError, match=r"^needs an NVIDIA GPU: none$"):
        bench.run()


def test_a_checkout_s_changes_are_told(tmp_path, monkeypatch):
    def git(*words):
        import subprocess

        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "m")
    assert re.fullmatch("[0-9a-f]{40}", gpu.commit(tmp_path))
    (tmp_path / "a").write_text("2")
    assert re.fullmatch("[0-9a-f]{40}[+]", gpu.commit(tmp_path))


# ---- the roofs' text -----------------------------------------------------------------------------


def test_the_roofs_compile_move_wide_words_and_spill_nothing():
    try:
        compiling.compiler()
    except compiling.NoCompiler as reason:
        pytest.skip(str(reason))
    text = (files(bench) / "roofs.cu").read_text(encoding="utf-8")
    found = compiling.resources(text, 90)
    assert set(found) == {"roof_triad", *(f"roof_{mix}" for mix in gpu.MIXES)}
    assert all(each.spilled == each.stack == 0 for each in found.values())
    ptx = compiling.ptx(text)
    assert not re.search(r"(ld|st)\.global(?!\.v4)\.[a-z]", ptx.replace(".nc", ""))


# ---- the checks, on the stand-in of conftest.py --------------------------------------------------


@pytest.fixture
def card(stand_in, monkeypatch):
    """A stand-in for a card, on which the checks' inputs are NumPy's."""

    def normal(*shape, dtype="float32"):
        drawn = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
        return cases.MACHINE.cast(stand_in.asarray(drawn), dtype)

    monkeypatch.setattr(checks, "normal", normal)
    return stand_in


@pytest.mark.slow
def test_every_kernel_has_a_call(card):
    """What the sanitizer and the check of determinism run: small calls, all kinds of kernel."""
    assert all(checks.bits(call()) == checks.bits(call()) for call in checks.calls().values())
    launched = {name for module in card.modules for name in module.launches}
    kinds = {re.sub("_(float32|float16|bfloat16)$", "", name) for name in launched}
    assert {"quantize_4bit", "dequantize_4bit", "dequantize_4bit_nested", "quantize_blockwise",
            "dequantize_blockwise", "quantize_absmax", "dequantize_absmax"} <= kinds  # fmt: skip
    assert any("product" in kind for kind in kinds)
    assert {kind for kind in kinds if "adam" in kind}


def test_the_check_against_the_reference_passes_and_can_fail(card, monkeypatch):
    checks.the_reference_agrees()
    right = checks.qloracle.quantize_4bit
    monkeypatch.setattr(checks.qloracle, "quantize_4bit", lambda x: (right(x)[0] ^ 1, right(x)[1]))
    with pytest.raises(AssertionError, match="float32"):
        checks.the_reference_agrees()


def test_the_check_of_two_runs_can_fail(monkeypatch):
    values = iter(range(100))
    monkeypatch.setattr(checks, "calls", lambda *_, **__: {"adam": lambda: next(values)})
    monkeypatch.setattr(checks, "bits", lambda value: bytes([value]))
    with pytest.raises(AssertionError, match="adam: other bits the second time"):
        checks.two_runs_are_equal()


# ---- the sanitizer -------------------------------------------------------------------------------


def sanitizer(monkeypatch, output, code):
    run = SimpleNamespace(stdout=output, stderr="", returncode=code)
    monkeypatch.setattr(checks.shutil, "which", lambda _: "/usr/bin/compute-sanitizer")
    monkeypatch.setattr(checks.subprocess, "run", lambda *_, **__: run)
    return checks.run({"memcheck": lambda: checks.sanitized("memcheck")})[0]


@pytest.mark.parametrize(
    ("output", "code", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "passed"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed", 0, "passed"),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors", 9, "failed"),
        ("Error: device not supported", 1, "not run"),
        ("========= RACECHECK SUMMARY: 10 hazards displayed", 0, "failed"),
        ("========= ERROR SUMMARY: 0 errors", 9, "failed"),  # the program itself did not end well
        ("", 0, "failed"),  # it said nothing
    ],
)
def test_what_the_sanitizer_says(monkeypatch, output, code, status):
    assert sanitizer(monkeypatch, output, code).status == status


def test_without_a_sanitizer_it_is_not_run(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda _: None)
    (result,) = checks.run({"memcheck": lambda: checks.sanitized("memcheck")})
    assert (result.status, result.reason) == ("not run", "compute-sanitizer is not on this machine")
