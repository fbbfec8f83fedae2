"""The CUDA text on the CPU: small kernels give what they must, and each planted fault is seen."""

import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import qloracle
from qloracle_gpu import kernels, operations
from qloracle_gpu.devices import Addresses
from qloracle_gpu.devices import gcc as package
from qloracle_gpu.devices.gcc import CompileError, Host, KernelError, build, unavailable
from qloracle_gpu.proof import sanitized

DATA = Path(__file__).parent / "data"
SMALL = DATA / "small_kernels.cu"
CALLS = runpy.run_path(str(DATA / "small_calls.py"))
X, THREADS, GRID = CALLS["X"], CALLS["THREADS"], CALLS["GRID"]

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def planted(*changes):
    """Return the small kernels with changes (old, new), and the lines where `/*here*/` stands."""
    text = SMALL.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text, [n for n, line in enumerate(text.splitlines(), 1) if "/*here*/" in line]


def same(got, expected):
    return got.shape == expected.shape and np.array_equal(got, expected)


# ---- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("name", CALLS["CALLS"])
def test_small_kernels_give_what_numpy_gives(name, seed):
    got, expected = CALLS["CALLS"][name](Host(SMALL.read_text(), seed=seed))
    assert same(got, expected)


def test_other_processors_switch_by_ucontext(monkeypatch):
    monkeypatch.setattr(build, "COMMON", (*build.COMMON, "-DSHIM_UCONTEXT"))
    host = Host(SMALL.read_text(), seed=3)
    for call in CALLS["CALLS"].values():
        got, expected = call(host)
        assert same(got, expected)


def test_float16_is_rounded_as_numpy_rounds_it():
    patterns = np.arange(2**16, dtype=np.uint16)
    edges = patterns.view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        between = edges[np.isfinite(edges)]
        between = np.concatenate(
            [between, np.nextafter(between, np.float32(9e9)), between * 1.0004]
        )
        x = np.resize(np.concatenate([edges, between]).astype(np.float32), 2**18)
        expected = x.astype(np.float16)
    half, back = np.empty(x.size, np.uint16), np.empty(x.size, np.float32)
    Host(SMALL.read_text()).launch("through_half", x.size // 256, 256, x, half, back)
    nan = np.isnan(x)
    assert same(half.view(np.float16)[~nan].view(np.uint16), expected[~nan].view(np.uint16))
    assert np.isnan(half.view(np.float16)[nan]).all()
    assert same(back[~nan], expected[~nan].astype(np.float32))


def test_the_seed_changes_the_order_and_nothing_else():
    order = """
    extern "C" __global__ void order(int *next, int *turns) {
      turns[blockIdx.x * blockDim.x + threadIdx.x] = next[0]++;
    }"""

    def turns(seed):
        next_, taken = np.zeros(1, np.int32), np.zeros(3 * 96, np.int32)
        Host(order, seed=seed).launch("order", 3, 96, next_, taken)
        assert same(np.sort(taken), np.arange(3 * 96, dtype=np.int32))
        return taken

    assert same(turns(0), np.arange(3 * 96, dtype=np.int32))
    assert same(turns(1), turns(1))
    assert not same(turns(1), turns(2))
    by_block = turns(1).reshape(3, 96).argsort(axis=None) // 96
    assert len(np.flatnonzero(np.diff(by_block))) == 2  # a block runs to its end


def test_memory_that_nobody_wrote_is_poison():
    host = Host(SMALL.read_text())
    assert np.isnan(host.empty((3,), "float32")).all()
    assert np.isnan(host.empty((2, 2), "bfloat16").astype(np.float32)).all()
    assert (host.empty((3,), "uint8") == 255).all()
    changed, _ = planted((STORE, "  if (i < n) part[thread] = x[i];\n  __syncthreads();"))
    got, _ = CALLS["sum_blocks"](Host(changed))
    assert list(np.isnan(got)) == [False] * 4 + [True]  # the last block has 44 values of 64


# ---- what is wrong, and where ------------------------------------------------------------------


class Fault(NamedTuple):
    """A change of the small kernels, and what the launch of one of them then says."""

    what: str
    kernel: str
    old: str
    new: str
    message: str


WARPS = "  for (int distance = 16; distance > 0; distance /= 2) {\n"
LOOP = "    }\n    __syncthreads();"
STORE = "  part[thread] = i < n ? x[i] : 0.0f;\n  __syncthreads();"
SHUFFLE = "__shfl_xor_sync(ALL_LANES, largest, distance)"
FAULTS = (
    Fault(
        "a barrier that some threads never reach",
        "sum_blocks",
        "  if (threadIdx.x == 0) {",
        "  if (threadIdx.x < 5)\n/*here*/ __syncthreads();\n  if (threadIdx.x == 0) {",
        "thread 5 returned and never reaches this __syncthreads",
    ),
    Fault(
        "a return before a shuffle",
        "max_of_warps",
        WARPS,
        f"  if (i >= n) return;\n{WARPS}/*here*/",
        "has the mask 0xffffffff, and the lanes that arrive are 0x00000fff",
    ),
    Fault(
        "a mask that is too small",
        "max_of_warps",
        SHUFFLE,
        "\n/*here*/ __shfl_xor_sync(0xFFFFu, largest, distance)",
        "has the mask 0x0000ffff, and the lanes that arrive are 0xffffffff",
    ),
    Fault(
        "a lane outside of the mask",
        "max_of_warps",
        SHUFFLE,
        "(threadIdx.x & 16) ? largest :\n/*here*/ __shfl_xor_sync(0xFFFFu, largest, distance)",
        "reads lane 16, which is not in its mask 0x0000ffff",
    ),
    Fault(
        "two shuffles of one warp at once",
        "max_of_warps",
        SHUFFLE,
        f"(threadIdx.x & 1) ?\n/*here*/ {SHUFFLE} :\n{SHUFFLE}",
        "is reached while other lanes of the warp are at line",
    ),
    Fault(
        "shared memory that is one short",
        "sum_blocks",
        "  part[thread] =",
        "/*here*/ part[thread + 1] =",
        "the index 64 is outside of its array",
    ),
    Fault(
        "too much shared memory",
        "sum_blocks",
        "SHARED(float, part, THREADS)",
        "/*here*/ SHARED(float, part, 13000)",
        "the block's shared memory exceeds 49152 bytes",
    ),
    Fault(
        "a null pointer",
        "add_tables",
        "table ? table[threadIdx.x] : 1.0f",
        "/*here*/ table[threadIdx.x]",
        "a null pointer is used",
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_told_with_its_line(fault):
    source, (here,) = planted((fault.old, fault.new))
    host = Host(source)
    with pytest.raises(KernelError, match=re.escape(fault.message)) as caught:
        CALLS["CALLS"][fault.kernel](host)
    told = caught.value
    assert (told.kernel, told.file, told.line) == (fault.kernel, "kernels.cu", here)
    assert 0 <= told.block < GRID
    assert 0 <= told.thread < THREADS
    assert same(*CALLS["scale_add"](host))  # the process goes on


def test_a_barrier_in_a_branch_is_told_with_both_lines():
    branch = "  if (thread < 40) {\n/*here*/ __syncthreads();\n  }"
    source, (one, other) = planted((STORE, branch), (LOOP, "    }\n/*here*/ __syncthreads();"))
    told = f"{other}: __syncthreads is reached while other threads wait at that of line {one}"
    with pytest.raises(
        KernelError, match=rf"kernels\.cu:{told} \(sum_blocks, block 0, thread 40\)"
    ):
        CALLS["sum_blocks"](Host(source))


def test_a_write_beside_a_result_is_told():
    y = Host().empty((64,), "float32")
    for shift, side in ((1, "behind"), (-1, "before")):
        source, _ = planted(("y[i] = __fadd_rn", f"y[i + {shift}] = __fadd_rn"))
        with pytest.raises(KernelError, match=f"y was written {side} its 256 bytes"):
            Host(source).launch("scale_add", 1, 64, np.float32(1), X, y, np.int64(64))
    Host(SMALL.read_text()).launch("scale_add", 1, 64, np.float32(1), X, y, np.int64(64))


def test_words_from_an_address_that_is_not_aligned_are_told():
    host = Host(SMALL.read_text())
    with pytest.raises(KernelError, match="is not aligned for its type") as caught:
        host.launch("copy_words", 1, 32, X[1:9], host.empty((8,), "float32"), np.int64(2))
    line = SMALL.read_text().splitlines().index("    to[i] = from[i];") + 1
    assert (caught.value.line, caught.value.thread) == (line, 0)


def test_a_barrier_that_is_missing_gives_wrong_values():
    source, _ = planted((STORE, STORE.replace("__syncthreads();", "")))
    got, expected = CALLS["sum_blocks"](Host(source, seed=1))
    assert not same(got, expected)


# ---- under the sanitizers ----------------------------------------------------------------------

needs_address = pytest.mark.skipif(
    bool(sanitized.unavailable("address")), reason=sanitized.unavailable("address")
)
needs_thread = pytest.mark.skipif(
    bool(sanitized.unavailable("thread")), reason=sanitized.unavailable("thread")
)


def watched(flavour, source, tmp_path, *arguments, function="run"):
    """Return what a sanitizer says of a text: the result, and the lines that it names."""
    path = tmp_path / "planted.cu"
    path.write_text(source)
    script = str(DATA / "small_calls.py")
    result = sanitized.run(flavour, script, function, flavour, str(path), *arguments)
    return result, {place for finding in result.findings for place in finding.places}


@needs_address
@pytest.mark.slow
def test_the_small_kernels_are_clean_under_the_address_sanitizer(tmp_path):
    result, _ = watched("address", SMALL.read_text(), tmp_path)
    assert result.clean, result.text


@needs_thread
@pytest.mark.slow
def test_the_small_kernels_are_clean_under_the_thread_sanitizer(tmp_path):
    result, _ = watched("thread", SMALL.read_text(), tmp_path)
    assert result.clean, result.text


OUT_OF_MEMORY = {
    "a read behind x": (
        *("scale_add", "__fmul_rn(a, x[i])", "__fmul_rn(a, /*here*/ x[i + 1])"),
        "heap-buffer-overflow",
    ),
    "a write behind y": (
        *("scale_add", "y[i] = __fadd_rn(", "/*here*/ y[i + 1] = __fadd_rn("),
        "heap-buffer-overflow",
    ),
    "a shared array": (
        *("sum_blocks", "  part[thread] = i", "  float *end = part;\n/*here*/ end[thread + 1] = i"),
        "use-after-poison",
    ),
    "a shared index": (
        *("sum_blocks", "  part[thread] = i", "/*here*/ part[thread + 1] = i"),
        "index 64 out of bounds",
    ),
    "a shift": (
        *("add_tables", "  sum[threadIdx.x] = 0.0f;", "/*here*/ sum[threadIdx.x] = n << (n + 30);"),
        "shift exponent 33 is too large",
    ),
    "signed overflow": (
        *("add_tables", "  sum[threadIdx.x] = 0.0f;"),
        *("/*here*/ sum[threadIdx.x] = n + 0x7FFFFFFF;", "signed integer overflow"),
    ),
    "NaN as an integer": (
        *("add_tables", "  sum[threadIdx.x] = 0.0f;"),
        *("/*here*/ sum[threadIdx.x] = (int)sum[threadIdx.x];", "outside the range of"),
    ),
}


@needs_address
@pytest.mark.slow
@pytest.mark.parametrize("what", OUT_OF_MEMORY)
def test_the_address_sanitizer_names_the_line(what, tmp_path):
    kernel, old, new, kind = OUT_OF_MEMORY[what]
    source, (here,) = planted((old, new))
    result, places = watched("address", source, tmp_path, kernel)
    assert not result.clean
    assert kind in result.findings[0].kind
    assert ("kernels.cu", here) in places, result.text


@needs_address
@pytest.mark.slow
def test_an_address_that_is_not_aligned_is_found(tmp_path):
    result, places = watched("address", SMALL.read_text(), tmp_path, function="run_late")
    line = SMALL.read_text().splitlines().index("    to[i] = from[i];") + 1
    assert "misaligned address" in result.findings[0].kind
    assert places == {("kernels.cu", line)}


STORED = STORE.replace("part[thread]", "/*here*/ part[thread]").partition("__sync")[0]
ADD = "      part[thread] +="
RACES = {
    "no barrier after the store": (*("sum_blocks", (STORE, STORED), (ADD, f"/*here*/ {ADD}")),),
    "no barrier in the loop": (*("sum_blocks", (LOOP, "    }"), (ADD, f"/*here*/ {ADD}")),),
    "one result of all blocks": (
        *("sum_blocks", ("    sums[blockIdx.x] =", "/*here*/ sums[0] =")),
    ),
    "no meeting of the warp": (
        "swap_halves",
        ("  halves[thread] = x[thread];\n  __syncwarp();", "/*here*/ halves[thread] = x[thread];"),
        ("  out[thread] =", "/*here*/ out[thread] ="),
    ),
}


@needs_thread
@pytest.mark.slow
@pytest.mark.parametrize("what", RACES)
def test_the_thread_sanitizer_names_both_lines_of_a_race(what, tmp_path):
    kernel, *changes = RACES[what]
    source, here = planted(*changes)
    result, places = watched("thread", source, tmp_path, kernel)
    assert not result.clean
    assert {finding.kind for finding in result.findings} == {"data race"}
    assert places == {("kernels.cu", line) for line in here}, result.text


@needs_thread
@pytest.mark.slow
def test_a_kernel_error_is_a_finding_too(tmp_path):
    source, _ = planted((STORE, "  if (thread < 40) __syncthreads();"))
    result, places = watched("thread", source, tmp_path, "sum_blocks")
    assert not result.clean
    assert "__syncthreads is reached while other threads wait" in result.findings[0].kind
    assert places


@needs_address
@needs_thread
@pytest.mark.slow
@pytest.mark.parametrize("flavour", sanitized.SANITIZERS)
def test_every_operation_is_clean(flavour, capsys):
    assert sanitized.main(["--flavour", flavour]) == 0
    assert re.match(rf"{flavour}: clean, \d\d+ calls", capsys.readouterr().out)


def test_reports_are_read():
    race = """WARNING: ThreadSanitizer: data race (pid=7)
  Read of size 4 at 0x7f0 by thread T2:
    #0 float reduce<float>(float*) /tmp/a b/nested.cu:12 (kernels.so+0x1)
    #1 kernel nested.cu:30 (kernels.so+0x1)

  Previous write of size 4 at 0x7f0 by thread T1:
    #0 memcpy /usr/include/string.h:8 (kernels.so+0x2)
    #1 kernel nested.cu:28 (kernels.so+0x2)
"""
    overflow = (
        "ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6\n    #0 0x1 in f q.cu:3\n"
    )
    assert [*sanitized.findings(race + overflow)] == [
        ("data race", (("nested.cu", 12), ("nested.cu", 28))),
        ("heap-buffer-overflow", (("q.cu", 3),)),
    ]
    assert not [*sanitized.findings("quantize_4bit float32\n")]


def test_a_sanitizer_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sanitized.PRELOADED, "address", ("libnobody.so",))
    assert sanitized.main(["--flavour", "address"]) == 3
    assert "needs libnobody.so, which g++ does not have" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"needs libnobody\.so"):
        sanitized.run("address", "script.py")


# ---- the text, the cache, the compiler ---------------------------------------------------------


def test_the_text_is_compiled_as_it_is():
    folder = build.shared_object(kernels.text()).parent
    assert (folder / "kernels.cu").read_bytes() == kernels.text().encode()
    whole = (folder / "whole.cpp").read_text().splitlines()
    assert whole[:2] == ['#include "cuda_on_cpu.h"', '#include "kernels.cu"']
    assert len(whole) == 3
    assert whole[2].startswith('extern "C" SHIM_EXPORT const ShimKernel shim_kernels[] = {')


def test_a_library_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = build.shared_object(SMALL.read_text())
    assert made.is_relative_to(tmp_path / "qloracle" / "host")
    monkeypatch.setattr(build, "compile_into", lambda *_: pytest.fail("compiled again"))
    assert build.shared_object(SMALL.read_text()) == made
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        build.shared_object(SMALL.read_text() + "\n")


def test_two_processes_build_one_library(tmp_path):
    text = f"open({str(SMALL)!r}).read()"
    code = f"from qloracle_gpu.devices.gcc import build; build.shared_object({text})"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    names = [path.name for path in (tmp_path / "qloracle" / "host").glob("*/*")]
    assert sorted(names) == ["kernels.cu", "kernels.so", "scheduler.o", "whole.cpp"]


def test_an_error_of_the_compiler_is_shown():
    source, _ = planted(("y[i] = __fadd_rn(", "y[i] = __fadd_rz("))
    with pytest.raises(CompileError, match=r"kernels\.cu:\d+:\d+: error: .*__fadd_rz"):
        CALLS["scale_add"](Host(source))
    with pytest.raises(CompileError, match="defines no __global__ function"):
        Host("int f() { return 1; }").launch("f", 1, 1)


def test_without_a_compiler_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert unavailable() == "the host runner needs g++, which was not found on PATH"
    with pytest.raises(RuntimeError, match=r"needs g\+\+, which was not found"):
        Host(SMALL.read_text()).launch("scale_add", 1, 1)


def test_importing_compiles_nothing():
    code = "from qloracle_gpu.devices.gcc import implementation as q; print(sorted(vars(q)))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": ""}, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert b"quantize_4bit" in run.stdout
    with pytest.raises(AttributeError, match="no attribute 'implementations'"):
        package.implementations  # noqa: B018  the access is what is tried


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.float32(1), X), r"scale_add takes 4 arguments \(a, x, y, n\), got 2"),
        ((1.0, X, X, np.int64(1)), "a must be a NumPy scalar of float32, got float"),
        ((np.float64(1), X, X, np.int64(1)), "a must be a NumPy scalar of float32, got float64"),
        ((np.float32(1), X, X, np.int32(1)), "n must be a NumPy scalar of int64, got int32"),
        (
            (np.float32(1), X.astype(float), X, np.int64(1)),
            "x must be an array of float32, got float64",
        ),
        ((np.float32(1), [1.0], X, np.int64(1)), "x must be a NumPy array or None, got list"),
        ((np.float32(1), X, X[::2], np.int64(1)), r"y must be contiguous, got strides \(8,\)"),
        (
            (np.float32(1), X, Addresses((X,)), np.int64(1)),
            "y must be an array of float32, got uint64",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        Host(SMALL.read_text()).launch("scale_add", 1, 1, *arguments)


def test_a_launch_that_no_gpu_would_take_is_refused():
    host = Host(SMALL.read_text())
    with pytest.raises(
        ValueError, match=r"kernel must be one of scale_add, sum_blocks, .*'nobody'"
    ):
        host.launch("nobody", 1, 1)
    for grid, block, name in (
        (0, 1, "grid"),
        (2**31, 1, "grid"),
        (1, 0, "block"),
        (1, 1025, "block"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be 1 to"):
            host.launch("scale_add", grid, block)
    with pytest.raises(ValueError, match="at most 8,000 threads under ThreadSanitizer, got 8,192"):
        Host(SMALL.read_text(), "thread").launch("scale_add", 8, 1024)
    with pytest.raises(
        ValueError, match="flavour must be one of plain, address, thread, got 'hot'"
    ):
        Host(SMALL.read_text(), "hot").launch("scale_add", 1, 1)


def test_arrays_are_copied_only_where_they_must_be():
    host = Host()
    assert host.array("x", X) is X
    assert host.array("x", X[1:]).ctypes.data == X[1:].ctypes.data
    assert same(host.array("x", X[::3]), X[::3].copy())
    assert host.array("x", X.astype(">f4")).dtype.isnative
    assert host.array("x", np.float32(2)).shape == ()
    late = np.zeros(9, np.uint8)[1:].view(np.float32)
    assert host.array("x", late).flags.aligned
    with pytest.raises(TypeError, match="absmax must be a NumPy array, got memoryview"):
        host.array("absmax", memoryview(b"abcd"))


def test_casts_and_products_round_once():
    host = Host()
    x = np.array([1 + 2**-8 + 2**-23, 1 + 2**-8, 3.4e38, np.inf], np.float32)
    got = host.cast(x, "bfloat16")
    assert got.dtype == ml_dtypes.bfloat16
    assert list(got.astype(float)) == [1.0078125, 1.0, np.inf, np.inf]
    assert np.isinf(host.cast(x, "float16")[2])  # without a warning
    assert host.cast(x, "float32") is x
    assert host.product(X[:6].reshape(2, 3), X[:6].reshape(3, 2)).dtype == np.float32
    with pytest.raises(TypeError, match="b must have dtype float32, got bfloat16"):
        host.product(x.reshape(2, 2), got.reshape(2, 2))


# ---- the real kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_threads_changes_no_bit(seed):
    q = operations.implementation(Host(seed=seed))
    x = np.random.default_rng(seed).standard_normal(5000).astype(np.float32)
    packed, absmax = q.quantize_4bit(x)
    expected = qloracle.quantize_4bit(x)
    assert same(packed, expected[0])
    assert same(absmax, expected[1])
    decoded = q.dequantize_4bit(packed, absmax, shape=x.shape)
    assert same(decoded, qloracle.dequantize_4bit(packed, absmax, shape=x.shape))


def test_a_million_elements_take_less_than_a_second():
    x = np.random.default_rng(1).standard_normal(2**20).astype(np.float32)
    package.implementation.quantize_4bit(x[:64])  # compiled, if nobody did before
    begin = time.perf_counter()
    package.implementation.quantize_4bit(x)
    assert time.perf_counter() - begin < 1
