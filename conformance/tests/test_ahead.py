"""Calls that are sent before their turn give the results of calls one by one."""

import select
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from qloracle_conformance.calling.callers import ChildCaller
from qloracle_conformance.calling.wire import Wire
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.engine import Engine, ahead

DECODER = """
    import os, threading, time
    import numpy as np
    import qloracle

    CALLS = []

    def dequantize_4bit(packed, absmax, *, shape, blocksize=64, quant_type="nf4", dtype="float32"):
        CALLS.append(shape)
        values = qloracle.dequantize_4bit(
            packed, absmax, shape=shape, blocksize=blocksize, quant_type=quant_type, dtype=dtype
        )
        FAULT
        return values
"""
RIGHT = "pass"
WRONG = "values.reshape(-1)[64:65] *= 2"
DIES = "os._exit(7) if tuple(shape) == (17,) else None"
HANGS = "time.sleep(60) if tuple(shape) == (17,) else None"
SPOILS = "threading.Timer(0.01, values.fill, [7]).start() if values.size else None"
REFUSES = "raise ValueError('odd') if values.size % 2 else None"


@pytest.fixture
def decoder(tmp_path):
    def write(fault):
        path = tmp_path / "decoder.py"
        path.write_text(textwrap.dedent(DECODER).replace("FAULT", fault))
        return str(path)

    return write


def judged(path, only="S3", limit=20.0):
    """What became of the checks of a file, in all that does not depend on time."""
    caller = ChildCaller(path, limit=limit)
    engine = Engine(caller, only=lambda name: name.startswith((only, "P")), reducing=False)
    engine.probe()
    runs = list(engine.run())
    caller.close()
    return [(run.id, run.status, run.message, run.wrong, *counts(run)) for run in runs]


def counts(run):
    """What was counted; how many results a crash took before they were read again is chance."""
    return () if run.rule == "P3" else (run.cases, run.comparisons, run.unsupported)


@pytest.mark.parametrize("fault", [RIGHT, WRONG, REFUSES, DIES])
def test_results_are_those_of_calls_one_by_one(decoder, monkeypatch, fault):
    path = decoder(fault)
    together = judged(path)
    monkeypatch.setattr(ahead, "CASES", 1)
    assert judged(path) == together


def test_what_dies_on_the_way_is_told_of_its_own_case_and_no_answer_is_lost(decoder):
    caller = ChildCaller(decoder(DIES))
    cases = [decoding(n) for n in (3, 5, 17, 9, 11)]
    for case in cases:
        caller.expect(case)
    answers = [caller.call(case) for case in cases]
    caller.close()
    assert [answer.status for answer in answers] == ["OK", "OK", "CRASH", "OK", "OK"]
    assert answers[2].message == "the process died (exit code 7)"
    assert [a.values[0].size for a in answers if a.status == "OK"] == [3, 5, 9, 11]


def test_the_time_limit_holds_for_a_call_and_not_for_those_before_it(decoder):
    caller = ChildCaller(decoder(HANGS), limit=1.0)
    cases = [decoding(n) for n in (3, 17, 5)]
    for case in cases:
        caller.expect(case)
    start = time.monotonic()
    assert [caller.call(case).status for case in cases] == ["OK", "TIMEOUT", "OK"]
    caller.close()
    assert time.monotonic() - start < 30


def test_an_answer_can_be_asked_for_out_of_turn_and_forgotten(decoder):
    caller = ChildCaller(decoder(RIGHT))
    early, dropped, late = decoding(3), decoding(5), decoding(9)
    for case in (early, dropped, late):
        caller.expect(case)
    caller.forget(dropped)
    serial = decoding(12)
    assert [caller.call(case).values[0].size for case in (serial, late, early)] == [12, 9, 3]
    caller.close()


def test_results_that_change_later_are_seen_in_a_child_that_works_ahead(decoder):
    statuses = {name: status for name, status, *_ in judged(decoder(SPOILS))}
    assert statuses["P3/dequantize_4bit"] == "FAIL"


def test_large_messages_in_both_directions_do_not_block_each_other():
    echo = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from qloracle_conformance.calling.wire import receive, send\n"
        "while (blob := receive(sys.stdin.buffer)) is not None: send(sys.stdout.buffer, blob)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", echo, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    wire = Wire(child.stdin, child.stdout)
    blobs = [bytes([i]) * (3 << 20) for i in range(8)]
    for blob in blobs:
        wire.post([blob[:1000], blob[1000:]])
    assert [wire.take(60.0) for _ in blobs] == blobs
    child.stdin.close()
    assert wire.take(60.0) is None
    child.stdout.close()
    child.wait()


def test_messages_go_together_when_the_first_answer_is_asked_for():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        wire = Wire(cat.stdin, cat.stdout)
        wire.post([b"one"])
        wire.post([b"two"])
        assert not select.select([cat.stdout], [], [], 0.1)[0]
        assert [wire.take(60.0), wire.take(60.0)] == [b"one", b"two"]


def test_calls_are_sent_half_of_them_at_a_time():
    sent = []
    cases = ahead.Ahead([lambda: map(decoding, range(100))], sent.append, print).of(0)
    ahead_of = [len(sent) - number for number, _ in enumerate(cases)]
    assert max(ahead_of) == ahead.CASES
    assert min(ahead_of[: -ahead.CASES]) == ahead.CASES // 2 + 1


def decoding(n):
    options = {"shape": [n], "blocksize": 64, "quant_type": "nf4", "dtype": "float32"}
    arrays = {"packed": np.zeros((n + 1) // 2, np.uint8), "absmax": np.ones(-(-n // 64), "f4")}
    return Case("dequantize_4bit", arrays, options)


@pytest.mark.parametrize("fault", [WRONG, DIES])
def test_nothing_stays_expected_of_a_check_that_has_enough(decoder, fault):
    """What stayed would be taken for a later case that lies at the same place in memory."""
    caller = ChildCaller(decoder(fault))
    engine = Engine(caller, only=lambda name: name.startswith("S3/"), reducing=False)
    engine.probe()
    for check, view in engine.planned():
        engine.run_check(check, view)
        assert engine._expected == {}
    caller.close()


def test_nothing_stays_expected_of_a_function_that_is_left_alone(decoder):
    caller = ChildCaller(decoder(DIES.replace("(17,)", "(64,)")))
    engine = Engine(caller, reducing=False)
    list(engine.run())
    assert engine._expected == {}
    caller.close()
