"""Several processes give what one gives: results, order, counts, interruption; nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing, nullcontext

import pytest

from qloracle_conformance.calling import nursery
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.pool import JobError, stream
from qloracle_conformance.running.run import Listener
from qloracle_conformance.running.verify import verify

# ---- the pool alone ------------------------------------------------------------------------------

WORK = """
import os, signal, time
from pathlib import Path

def count(item, send):
    print("what is printed disturbs nobody")
    for i in range(item):
        send((item, i))

def raises(item, send):
    send(item)
    raise ZeroDivisionError("nobody expected this")

def exits(item, send):
    raise SystemExit(0)

def dies(item, send):
    os.kill(os.getpid(), signal.SIGKILL)

def vanishes(item, send):
    os._exit(0)

def sends_what_cannot_be_sent(item, send):
    send(lambda: None)

def meets(item, send):
    folder, me, other = item
    Path(folder, me).touch()
    deadline = time.monotonic() + 60
    while not Path(folder, other).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    send(Path(folder, other).exists())

def holds(item, send):
    try:
        send(os.getpid())
        time.sleep(60)
    finally:
        Path(item).write_text("let go")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The functions of WORK, in a module that new processes can import, too."""
    (tmp_path / "pool_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import pool_work

    yield pool_work
    del sys.modules["pool_work"]


@pytest.mark.parametrize("processes", [1, 3])
def test_every_object_arrives_and_those_of_an_item_in_their_order(work, processes):
    found = list(stream(work.count, [3, 0, 2, 4], processes))
    for number, item in enumerate([3, 0, 2, 4]):
        assert [value for n, value in found if n == number] == [(item, i) for i in range(item)]
    assert len(found) == 9


def test_so_many_run_at_once(work, tmp_path):
    pairs = [(str(tmp_path), "a", "b"), (str(tmp_path), "b", "a")]
    assert [value for _, value in stream(work.meets, pairs, 2)] == [True, True]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "ZeroDivisionError: nobody expected this"),
        ("exits", "SystemExit"),
        ("dies", "signal 9"),
        ("vanishes", "exit code 0"),
        ("sends_what_cannot_be_sent", "pickle"),
    ],
)
def test_a_process_that_fails_is_never_a_missing_result(work, name, said):
    with pytest.raises(JobError, match=said):
        list(stream(getattr(work, name), [1], 2))


def test_whoever_stops_listening_leaves_no_process(work, tmp_path, alive):
    held = tmp_path / "held"
    with closing(stream(work.holds, [str(held)], 1)) as words:
        _, pid = next(words)
        assert alive(pid)
    assert not alive(pid)
    assert held.read_text() == "let go"


# ---- verify --------------------------------------------------------------------------------------

# A wrong scale, swapped nibbles, a crash, a refusal, a result that the next function overwrites.
KERNEL = r"""
import os
import numpy as np
import qloracle as q

limits = {"blocksize": [64, 256]}
SHARED = np.zeros(1 << 16, np.float32)

def share(values):
    if values.size > SHARED.size or not values.size:
        return values
    SHARED[: values.size] = values.reshape(-1)
    return SHARED[: values.size].reshape(values.shape)

def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return packed >> 4 | packed << 4, share(absmax + (absmax == 0))

def dequantize_4bit(packed, absmax, *, shape, blocksize=64):
    if len(shape) > 2:
        os.abort()
    return q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)

def quantize_blockwise(x, codebook, *, blocksize=256):
    codes, absmax = q.quantize_blockwise(x, codebook, blocksize=blocksize)
    return codes, share(absmax)

def dequantize_blockwise(codes, absmax, codebook, *, shape, blocksize=256):
    raise ValueError("not today")

quantize_absmax = q.quantize_absmax
"""
ONLY = "S3/*/shapes,S4/quantize_4bit[nf4]/*,S5/*/zeros,S6,S7/dequantize_4bit[nf4]/powers,S8,P*"
KNOWN = (Known("S6/quantize_4bit[fp4]/pairs", "packed", "https://tracker/1"),)


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL)
    return str(path)


def plain(report):
    """A report's data without its times."""
    return timeless(report.to_dict())


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "seconds" not in k and k != "started"}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def untimed(data):
    """Without P3's numbers: which result is overwritten when is a matter of the clock."""
    for implementation in data["implementations"]:
        for check in implementation["checks"]:
            if check["rule"] == "P3":
                check.update(cases=0, comparisons=0, wrong=0, failure=check["failure"] is not None)
    return data


@pytest.mark.slow
def test_a_bad_kernel_and_the_reference_side_by_side(kernel):
    options = {"only": ONLY, "known": KNOWN, "require": "L1"}
    one = verify([kernel, "numpy"], **options)
    several = verify([kernel, "numpy"], processes=3, **options)
    assert untimed(plain(several)) == untimed(plain(one))
    assert {c.status for c in one.judgements[0].checks} >= {
        "PASS", "FAIL", "ERROR", "CRASH", "XFAIL", "UNSUPPORTED",
    }  # fmt: skip
    assert "P3/quantize_blockwise" in {
        check.id for check in several.judgements[0].checks if check.status == "FAIL"
    }


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 5])
def test_a_whole_run_of_the_reference(processes):
    assert plain(verify(["numpy"], processes=processes)) == plain(verify(["numpy"]))


@pytest.mark.parametrize(
    "text",
    [
        "raise RuntimeError('no driver')",
        "import os; os._exit(7)",
        "x = 1",
        "limits = {'blocks': 3}\ndef quantize_4bit(x): return x",
        "def matmul_4bit(x, packed, absmax, *, shape): return x",
    ],
)
def test_what_cannot_be_judged_is_told_alike(tmp_path, text):
    path = tmp_path / "kernel.py"
    path.write_text(text)
    several, one = verify([str(path)], processes=2), verify([str(path)])
    assert plain(several) == plain(one)
    assert several.exit_code in (1, 3)


def test_a_watcher_hears_the_same(kernel):
    def heard(processes):
        planned, seen = {}, set()

        def watch(name, count, run):
            if run is None:
                planned[name] = planned.get(name, 0) + count
            else:
                seen.add((name, run.id, run.status))

        verify([kernel], only="S6,P1", processes=processes, listener=Listener(checked=watch))
        return planned, seen

    assert heard(2) == heard(1)


def test_places_are_told(kernel):
    found = {}
    verify(
        [kernel],
        only="S6/quantize_4bit[nf4]/*",
        processes=2,
        listener=Listener(opened=found.__setitem__),
    )
    line = KERNEL.splitlines().index("def quantize_blockwise(x, codebook, *, blocksize=256):") + 1
    assert tuple(found[kernel]["quantize_blockwise"]) == (kernel, line)


def test_a_process_that_is_killed_surfaces(tmp_path, monkeypatch):
    """Without a nursery a kernel's parent is who judges it."""
    monkeypatch.setattr(nursery, "opened", lambda *_, **__: nullcontext())
    path = tmp_path / "kernel.py"
    path.write_text(
        textwrap.dedent("""
        import os, pathlib, signal
        import qloracle as q
        def dequantize_4bit(packed, absmax, *, shape):
            judge = pathlib.Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
            if b"running.pool" in judge:
                os.kill(os.getppid(), signal.SIGKILL)
            return q.dequantize_4bit(packed, absmax, shape=shape)
    """)
    )
    with pytest.raises(JobError, match="signal 9"):
        verify([str(path)], only="S6", processes=2)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_no_processes_are_a_usage_error(command, text):
    code, _, err = command("verify", "numpy", "-n", text)
    assert code == 2
    assert "'--processes' / '-n'" in err


def test_no_processes_from_python():
    with pytest.raises(UsageError, match="processes is 0; allowed: a whole number from 1"):
        verify(["numpy"], processes=0)


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_leaves_a_partial_report(tmp_path, alive):
    """One function is judged, and two hang in large calls, when Ctrl-C comes."""
    kernel, out = tmp_path / "kernel.py", tmp_path / "out"
    pids, hang = tmp_path / "pids", tmp_path / "hang"
    pids.mkdir()
    hang.mkdir()
    kernel.write_text(
        textwrap.dedent(f"""
        import os, pathlib, time
        import qloracle as q
        for pid in (os.getpid(), os.getppid()):
            pathlib.Path({str(pids)!r}, str(pid)).touch()
        dequantize_4bit = q.dequantize_4bit
        def slow(name):
            def function(x, *arguments, **options):
                if x.size > 2_000:  # none of the probe
                    pathlib.Path({str(hang)!r}, name).touch()
                    time.sleep(300)
                return getattr(q, name)(x, *arguments, **options)
            return function
        first, second = "quantize_4bit", "adam_step"  # which two processes judge
        quantize_4bit, adam_step = slow(first), slow(second)
    """)
    )
    command = [sys.executable, "-m", "qloracle_conformance.commands.main", "verify",
               str(kernel), "--report", str(out), "-n", "2", "--limit", "300"]  # fmt: skip
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **streams) as process:
        try:
            wait_until(lambda: len(list(hang.iterdir())) == 2)
            os.kill(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    report = json.loads((out / "report.json").read_text())
    assert report["partial"] is True
    (implementation,) = report["implementations"]
    judged = {check["function"] for check in implementation["checks"]}
    assert "dequantize_4bit" in judged
    wait_until(lambda: not any(alive(int(pid.name)) for pid in pids.iterdir()))


def wait_until(true):
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
