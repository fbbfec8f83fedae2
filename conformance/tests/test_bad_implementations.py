"""Whatever an implementation does wrong is one clear line with a status; the run goes on."""

import sys
import textwrap
import time
from pathlib import Path

import pytest

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.running.verify import verify

# Each kernel is the reference with one function replaced; the run is narrowed to what it concerns.
HEAD = """
import numpy as np, os, time, sys
import qloracle as q
dequantize_4bit = q.dequantize_4bit
"""

ONLY = "S3/quantize_4bit[nf4]/shapes,S7/dequantize_4bit[nf4]/powers,P1,P2,P3,P4"


@pytest.fixture
def judged(tmp_path):
    def judge(body, only=ONLY, **options):
        path = tmp_path / "kernel.py"
        path.write_text(HEAD + textwrap.dedent(body))
        report = verify([str(path)], only=only, **options)
        judgement = report.judgements[0]
        return report, judgement, {check.id: check for check in judgement.checks}

    return judge


def status_and_message(checks, key="S3/quantize_4bit[nf4]/shapes"):
    return checks[key].status, checks[key].message


def test_an_import_that_fails_is_one_line(judged):
    report, judgement, _ = judged("raise RuntimeError('no\\ndriver')")
    assert judgement.status == "ERROR"
    assert judgement.message == "does not import: RuntimeError: no driver"
    assert report.exit_code == 1


def test_an_import_that_ends_the_process(judged):
    _, judgement, _ = judged("os._exit(7)")
    assert judgement.status == "ERROR"
    assert "exit code 7" in judgement.message


def test_an_import_that_exits_politely(judged):
    _, judgement, _ = judged("sys.exit('bye')")
    assert (judgement.status, judgement.message) == ("ERROR", "does not import: SystemExit: bye")


def test_nothing_offered_is_nothing_compared(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    report = verify([str(path)])
    assert report.exit_code == 3
    assert "none of the protocol's functions" in report.judgements[0].message


def test_raising_is_an_error_and_the_other_function_is_still_judged(judged):
    report, _, checks = judged("""
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            raise ZeroDivisionError("oops")
    """)
    assert status_and_message(checks) == ("ERROR", "raised ZeroDivisionError: oops")
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "PASS"
    assert report.exit_code == 1


def test_not_implemented_is_unsupported_and_never_a_pass(judged):
    report, _, checks = judged("""
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            raise NotImplementedError("later")
    """)
    assert checks["S3/quantize_4bit[nf4]/shapes"].status == "UNSUPPORTED"
    row = next(r for r in report.to_dict()["implementations"][0]["functions"]
               if r["name"] == "quantize_4bit")  # fmt: skip
    assert row["status"] == "UNSUPPORTED"


def test_hanging_is_a_timeout(judged):
    report, _, checks = judged(
        """
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            time.sleep(60)
        """,
        limit=0.5,
    )
    assert checks["S3/quantize_4bit[nf4]/shapes"].status == "TIMEOUT"
    said = "no answer within 0.5 s for x float32["
    assert checks["S3/quantize_4bit[nf4]/shapes"].message.removeprefix("after: ").startswith(said)
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "PASS"
    assert report.exit_code == 1  # a larger limit may let it pass


def test_a_killed_process_is_a_crash(judged):
    report, _, checks = judged("""
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            if x.size > 100:
                os.kill(os.getpid(), 11)
            return q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    """)
    assert checks["S3/quantize_4bit[nf4]/shapes"].status == "CRASH"
    assert "signal 11" in checks["S3/quantize_4bit[nf4]/shapes"].message
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "PASS"
    assert report.exit_code == 4


def test_a_wrong_shape_fails_the_form_and_the_values_are_judged(judged):
    _, _, checks = judged("""
        def dequantize_4bit(*args, **options):
            return q.dequantize_4bit(*args, **options)[None]
    """)
    assert checks["P1/dequantize_4bit"].status == "FAIL"
    assert "float32[1, " in checks["P1/dequantize_4bit"].message
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "PASS"


def test_a_wrong_type_fails_the_form(judged):
    _, _, checks = judged("""
        def dequantize_4bit(*args, **options):
            return q.dequantize_4bit(*args, **options).astype(np.float64)
    """)
    assert checks["P1/dequantize_4bit"].status == "FAIL"
    assert "float64" in checks["P1/dequantize_4bit"].message


def test_a_lazy_object_is_named(judged):
    _, _, checks = judged("""
        def dequantize_4bit(*args, **options):
            return (v for v in q.dequantize_4bit(*args, **options).reshape(-1))
    """)
    status, message = status_and_message(checks, "S7/dequantize_4bit[nf4]/powers")
    assert status == "ERROR"
    assert "generator" in message


def test_too_few_results_are_named(judged):
    _, _, checks = judged("""
        def quantize_4bit(x, **options):
            return q.quantize_4bit(x, **options)[0]
    """)
    assert status_and_message(checks)[0] == "ERROR"
    assert "expected 2: packed, absmax" in status_and_message(checks)[1]


def test_nan_is_wrong_and_no_wildcard(judged):
    _, _, checks = judged("""
        def dequantize_4bit(*args, **options):
            return q.dequantize_4bit(*args, **options) * np.float32("nan")
    """)
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "FAIL"


def test_changed_inputs_are_seen(judged):
    _, _, checks = judged("""
        def quantize_4bit(x, **options):
            result = q.quantize_4bit(x, **options)
            x[...] = 0
            return result
    """)
    assert status_and_message(checks)[0] == "PASS"
    assert checks["P2/quantize_4bit"].status == "FAIL"


def test_a_result_in_a_shared_buffer_does_not_last(judged):
    _, _, checks = judged("""
        BUFFER = np.zeros(1 << 22, np.float32)
        def dequantize_4bit(packed, absmax, *, shape, dtype=np.float32, **options):
            if dtype is not np.float32:
                return q.dequantize_4bit(packed, absmax, shape=shape, dtype=dtype, **options)
            values = q.dequantize_4bit(packed, absmax, shape=shape, dtype=dtype, **options)
            out = BUFFER[: values.size].reshape(values.shape)
            out[...] = values
            return out
    """, only="S3/dequantize_4bit[nf4]/shapes,P3")  # fmt: skip
    assert checks["S3/dequantize_4bit[nf4]/shapes"].status == "PASS"
    assert checks["P3/dequantize_4bit"].status == "FAIL"


def test_two_runs_must_be_equal(judged):
    _, _, checks = judged("""
        CALLS = [0]
        def dequantize_4bit(*args, **options):
            CALLS[0] += 1  # the sign of zero is nobody's business, but it must not change
            values = q.dequantize_4bit(*args, **options)
            values[values == 0] = -0.0 if CALLS[0] % 2 else 0.0
            return values
    """)
    assert checks["S7/dequantize_4bit[nf4]/powers"].status == "PASS"
    assert checks["P4/dequantize_4bit"].status == "FAIL"


def test_a_refusal_inside_the_declared_limits_is_an_error(judged):
    _, _, checks = judged("""
        limits = {"blocksize": [64, 128]}
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            if blocksize != 64:
                raise ValueError("only 64")
            return q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    """)
    assert status_and_message(checks) == ("ERROR", "raised ValueError: only 64")


def test_limits_narrow_the_scope_and_the_verdict_says_so(judged):
    report, _, checks = judged("""
        limits = {"blocksize": [64], "dtype": ["bfloat16"]}
        def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
            assert blocksize == 64 and x.dtype.name == "bfloat16"
            return q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    """)
    check = checks["S3/quantize_4bit[nf4]/shapes"]
    assert check.status == "PASS"
    assert check.unsupported > check.cases > 0
    line = report.to_dict()["implementations"][0]["levels"][0]["line"]
    assert "within blocksize {64}, bfloat16" in line


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("dialect = {'nibbles': 'low_first'}", "no field 'nibbles'"),
        ("dialect = {'nibble_order': 'middle'}", "allowed: high_first, low_first"),
        ("limits = {'block': [64]}", "no key 'block'"),
        ("limits = 3", "limits must be a dict"),
        ("limits = {'multiple': 'x'}", "allowed: a number from 1"),
        ("limits = {'blocksize': 'text'}", "allowed: whole numbers"),
        ("limits = {'ndim': [1, 2.5]}", "allowed: whole numbers"),
        ("limits = {'quantize_4bit': {'blocksize': []}}", "limits['blocksize'] is empty"),
        ("dialect = {'normalisation': ['divide']}", "give one value, or full and partial"),
        ("dialect = {'normalisation': 3}", "give one value, or full and partial"),
    ],
)
def test_a_declaration_that_means_nothing_is_one_line(judged, declaration, expected):
    report, judgement, _ = judged(declaration)
    assert judgement.status == "ERROR"
    assert expected in judgement.message
    assert report.exit_code == 1


def test_a_contradicted_declaration_fails(judged):
    _, _, checks = judged(
        """
        dialect = {"normalisation": "reciprocal"}
        quantize_4bit = q.quantize_4bit
        """,
        only="S5/quantize_4bit[nf4]/full",
    )
    assert checks["S5/quantize_4bit[nf4]/full"].status == "FAIL"
    assert "declared: reciprocal" in checks["S5/quantize_4bit[nf4]/full"].message


@pytest.mark.parametrize(
    "spec", ["no_such_name", "no/such/file.py", "a:", ":b", "half/path", "numpyy"]
)
def test_a_spec_that_means_nothing_is_a_usage_error(spec):
    with pytest.raises(UsageError):
        verify([spec])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_a_kernel_starts_ends_with_it(tmp_path):
    path = tmp_path / "forks.py"
    path.write_text(
        "import os, pathlib, time\nimport qloracle as q\n"
        "def dequantize_4bit(packed, absmax, *, shape, blocksize=64):\n"
        "    if os.fork() == 0:\n"
        f"        pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch()\n"
        "        time.sleep(1000)\n"
        "    return q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize)\n"
    )
    report = verify([str(path)], only="S7/dequantize_4bit[nf4]/powers")
    assert report.exit_code == 0
    started = [int(place.stem) for place in tmp_path.glob("*.pid")]
    assert started
    deadline = time.monotonic() + 10
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(started)


def alive(pids):
    """Those that still run: a zombie that nobody has waited for does not."""
    found = []
    for pid in pids:
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
            found.append(pid)
    return found
