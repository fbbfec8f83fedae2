"""What only a GPU can show, beside times: each check passes, raises AssertionError, or is not run.

Ours is compared with the reference, and with itself: on another stream, at another time, in other
company, on more elements than 32 bits count.  None of them waits between the launches that it
looks at.  The tests marked `gpu` run the same functions.

    python -m qloracle_gpu.bench.checks    small calls of every kernel: what compute-sanitizer runs
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import qloracle
from qloracle_gpu.bench.cases import MACHINE, OURS, normal
from qloracle_gpu.bench.timing import said

LONG = 2**31 + 2**12  # elements: more than a signed 32-bit number counts
LATE = 50_000_000  # bytes copied in front of late inputs, again and again
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
TYPES = ("float32", "float16", "bfloat16")
NOT_A_TOOL = ("not supported", "unable to", "failed to", "no attachable", "internal sanitizer")


class Missing(Exception):
    """What a check needs and does not find here."""


class Result(NamedTuple):
    """How a check ended: "passed", "failed" or "not run", and why."""

    name: str
    status: str
    reason: str = ""


def run(checks: dict[str, Callable[[], None]]) -> list[Result]:
    """Run all checks, one after another, whether or not they pass.

    >>> def missing():
    ...     raise Missing("no second GPU")
    >>> def wrong():
    ...     assert 1 == 2, "other bits"
    >>> for result in run({"a": int, "b": missing, "c": wrong}):
    ...     print(": ".join(filter(None, result)))
    a: passed
    b: not run: no second GPU
    c: failed: AssertionError: other bits
    """
    results = []
    for name, check in checks.items():
        status, reason = "passed", ""
        try:
            check()
        except Missing as missing:
            status, reason = "not run", str(missing)
        except Exception as error:
            status, reason = "failed", said(error)
        results.append(Result(name, status, reason))
    return results


# ---- calls of every kernel -----------------------------------------------------------------------


def calls(n: int = 4096, rows: int = 3) -> dict[str, Callable[[], Any]]:
    """Return calls by name, on inputs that are the same at every run."""
    book = MACHINE.table(qloracle.dynamic_codebook())
    width, step = 64 * max(n // 4096, 1), {"step": 3, "lr": 1e-3}
    found: dict[str, Callable[[], Any]] = {}
    for dtype in TYPES:
        x, thin = normal(n, dtype=dtype), normal(rows, width, dtype=dtype)
        packed, absmax = OURS.quantize_4bit(x)
        codes, scales = OURS.quantize_blockwise(x, book)
        coded = *OURS.quantize_absmax(absmax), None
        form, wide = {"shape": (n,), "dtype": dtype}, MACHINE.cast(x, "float32")
        named: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "quantize_4bit": ((x,), {}),
            "dequantize_4bit": ((packed, absmax), form),
            "dequantize_4bit nested": ((packed,), form | {"nested": coded}),
            "quantize_blockwise": ((x, book), {}),
            "dequantize_blockwise": ((codes, scales, book), form),
            "quantize_absmax": ((absmax,), {}),
            "dequantize_absmax": (coded[:3], {}),
            "matmul_4bit": ((thin, packed, absmax), {"shape": (n // width, width)}),
            "adam_step": ((x, x, wide, abs(wide)), step | {"weight_decay": 0.01}),
            "adam_step_8bit": ((x, x, codes, scales, codes, scales), step),
        }
        for name, (given, options) in named.items():
            function = getattr(OURS, name.split()[0])
            found[f"{name} {dtype}"] = partial(function, *given, **options)
    return found


def bits(result: Any) -> bytes:
    """Return every bit of one or several results."""
    parts = result if isinstance(result, tuple) else (result,)
    return b"".join(part.view(np.uint8).get().tobytes() if part.ndim else part.get().tobytes()
                    for part in parts)  # fmt: skip


# ---- the checks ----------------------------------------------------------------------------------


def two_runs_are_equal() -> None:
    """Every kernel gives the same bits again, at a size that fills the card."""
    for name, call in calls(1 << 22, rows=16).items():
        assert bits(call()) == bits(call()), f"{name}: other bits the second time"


def a_row_is_the_same_in_any_company() -> None:
    """Rows of a product have the same bits for M = 1 to 16."""
    shape = (4096, 4096)
    packed, absmax = OURS.quantize_4bit(normal(*shape))
    for dtype in TYPES:
        x = normal(16, shape[1], dtype=dtype)
        alone = [
            bits(OURS.matmul_4bit(x[i : i + 1], packed, absmax, shape=shape)) for i in range(16)
        ]
        for m in range(2, 17):
            y = OURS.matmul_4bit(x[:m], packed, absmax, shape=shape)
            for i in range(m):
                assert bits(y[i]) == alone[i], f"row {i} of {m}, {dtype}: other bits than alone"


def a_side_stream_is_kept_to() -> None:
    """A call on a side stream reads inputs that arrive there late, without any synchronization."""
    import cupy

    n = 1 << 20
    x, weight = normal(n), cupy.zeros(LATE, np.uint8)
    expected = bits(OURS.quantize_4bit(x))
    late, stream = cupy.full_like(x, 3e38), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        for _ in range(64):
            weight.copy()
        late[...] = x
        got = OURS.quantize_4bit(late)
        stream.synchronize()
    assert bits(got) == expected, "the inputs were read before they had arrived"


def two_streams_do_not_meet() -> None:
    """Calls on two streams at once give what each gives alone."""
    import cupy

    n = 1 << 20
    inputs = normal(n), normal(n, dtype="bfloat16")
    expected = [bits(OURS.quantize_4bit(x)) for x in inputs]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in inputs]
    got: list[list[Any]] = [[], []]
    cupy.cuda.Device().synchronize()
    for _ in range(16):
        for found, stream, x in zip(got, streams, inputs, strict=True):
            with stream:
                found.append(OURS.quantize_4bit(x))
    cupy.cuda.Device().synchronize()
    for found, alone in zip(got, expected, strict=True):
        assert all(bits(each) == alone for each in found), "other bits beside another stream"


def long_arrays_are_whole() -> None:
    """More than 2^31 elements are coded and decoded like few: first and last are compared."""
    import cupy

    free = cupy.cuda.Device().mem_info[0]
    if free < 5 * LONG:
        raise Missing(f"needs {5 * LONG >> 30} GiB of free memory, there are {free >> 30}")
    some = 1 << 12
    x, piece = cupy.zeros(LONG, np.float16), normal(some, dtype="float16")
    x[:some] = x[LONG - some :] = piece
    packed, absmax = OURS.quantize_4bit(x)
    few, scales = OURS.quantize_4bit(piece)
    assert bits(packed[: some // 2]) == bits(packed[-some // 2 :]) == bits(few), "codes"
    assert bits(absmax[: some // 64]) == bits(absmax[-some // 64 :]) == bits(scales), "absmax"
    y = OURS.dequantize_4bit(packed, absmax, shape=(LONG,), dtype="float16")
    expected = bits(OURS.dequantize_4bit(few, scales, shape=(some,), dtype="float16"))
    assert bits(y[:some]) == bits(y[-some:]) == expected, "decoded values"
    assert not y[some : LONG - some].any(), "zeros are not zero between the ends"


def the_reference_agrees() -> None:
    """Codes and values equal the reference's in every bit, in all three types."""
    for dtype in TYPES:
        x = normal(100_003, dtype=dtype)
        packed, absmax = OURS.quantize_4bit(x)
        host = np.frombuffer(bits(x), x.dtype).reshape(x.shape)
        expected = qloracle.quantize_4bit(host)
        assert bits((packed, absmax)) == b"".join(part.tobytes() for part in expected), dtype
        y = OURS.dequantize_4bit(packed, absmax, shape=x.shape, dtype=dtype)
        back = qloracle.dequantize_4bit(*expected, shape=host.shape, dtype=host.dtype.type)
        assert bits(y) == back.tobytes(), dtype


def sanitized(tool: str) -> None:
    """Run small calls of every kernel under a tool of compute-sanitizer: it must find nothing."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise Missing("compute-sanitizer is not on this machine")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", __name__]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    text = run.stdout + run.stderr
    if run.returncode and any(words in text.lower() for words in NOT_A_TOOL):
        raise Missing(f"compute-sanitizer does not work here: {text.strip().splitlines()[0]}")
    assert run.returncode == 0, text[-300:]
    assert "ERROR SUMMARY: 0 errors" in text or "RACECHECK SUMMARY: 0 hazards" in text, text[-300:]


CHECKS: dict[str, Callable[[], None]] = {
    "codes and values equal the reference": the_reference_agrees,
    "two runs are equal": two_runs_are_equal,
    "a row is the same in any company": a_row_is_the_same_in_any_company,
    "a side stream is kept to": a_side_stream_is_kept_to,
    "two streams do not meet": two_streams_do_not_meet,
    "arrays beyond 2^31 elements": long_arrays_are_whole,
    **{f"compute-sanitizer {tool}": partial(sanitized, tool) for tool in TOOLS},
}


if __name__ == "__main__":
    import cupy

    for name, call in calls().items():
        call()
        cupy.cuda.Device().synchronize()
        print(name)
