"""The compile gate fails on each fault planted for it, and the table of figures is what it says."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from qloracle_gpu import compiling, kernels
from qloracle_gpu.compiling import Resources, nvcc, nvrtc
from qloracle_gpu.devices.ptx import Ptx
from qloracle_gpu.devices.ptx.execute import Program
from qloracle_gpu.devices.ptx.parse import Instruction, parse
from qloracle_gpu.proof import figures, gate

try:
    BY = compiling.compiler()
except compiling.NoCompiler as reason:
    pytest.skip(f"nothing compiles CUDA here: {reason}", allow_module_level=True)

HEAD = '#line 1 "small.cu"\n#define KERNEL extern "C" __global__ void\n'
SUM = HEAD + "KERNEL sum(float *x) { x[0] = SUM; }\n"
SEPARATE = SUM.replace("SUM;", "x[1] * x[2] + x[3];")
BY_NAME = SUM.replace("SUM;", "__fmaf_rn(x[1], x[2], x[3]);")
CONTRACTED = ("-std=c++17",)


def arithmetic(source, options=kernels.OPTIONS, arch=90):
    return list(gate.arithmetic_problems(source, compiling.ptx(source, arch, options)))


@pytest.mark.parametrize("arch", gate.ARCHS)
def test_sums_that_are_rounded_apart_pass_and_so_does_fma_by_name(arch):
    assert arithmetic(SEPARATE, arch=arch) == []
    assert arithmetic(BY_NAME, arch=arch) == []


@pytest.mark.parametrize("arch", gate.ARCHS)
def test_contraction_is_seen(arch):
    (problem,) = arithmetic(SEPARATE, CONTRACTED, arch)
    assert problem.startswith("sum: fused, and the text does not say so: fma.rn.f32")
    assert "(small.cu:2, PTX line" in problem


def test_what_ptxas_might_fuse_is_seen():
    source = SUM.replace("SUM;", "x[1] * x[2];")
    assert arithmetic(source) == []
    assert "may be fused by ptxas" in arithmetic(source, CONTRACTED)[0]


@pytest.mark.parametrize(
    ("expression", "options", "opcode"),
    [
        ("x[1] / x[2]", "--use_fast_math", r"div\.approx\.ftz\.f32"),
        ("sqrtf(x[1])", "--prec-sqrt=false", r"sqrt\.approx\.f32"),
        ("x[1] / x[2]", "--prec-div=false", r"div\.full\.f32"),
        ("fmaxf(x[1], x[2])", "--ftz=true", r"max\.ftz\.f32"),
        ("__fadd_rz(x[1], x[2])", "--fmad=false", r"add\.rz\.f32"),
        ("__saturatef(x[1])", "--fmad=false", r"cvt\.sat\.f32\.f32"),
        ("__double2float_rz(x[1] * 3.0)", "--fmad=false", r"cvt\.rz\.f32\.f64"),
    ],
)
def test_other_roundings_are_seen(expression, options, opcode):
    problems = arithmetic(SUM.replace("SUM;", f"{expression};"), ("--fmad=false", options))
    assert any(re.search(f"not IEEE's rounding: {opcode}", problem) for problem in problems)


LOCAL = (
    HEAD
    + """KERNEL pick(const int *x, int *y) {
  int table[8];
  for (int k = 0; k < 8; ++k) table[x[k] & 7] = k;
  y[threadIdx.x] = table[x[threadIdx.x] & 7];
}
"""
)
LOADS = "\n".join(f"  float v{i} = x[{i} * 1024 + threadIdx.x];" for i in range(96))
USES = " + ".join(f"v{i} * v{95 - i}" for i in range(96))
SPILL = (
    HEAD
    + f"""extern "C" __global__ void __launch_bounds__(1024, 2) wide(const float *x, float *y) {{
{LOADS}
  __syncthreads();
  y[threadIdx.x] = {USES};
}}
"""
)


def test_a_local_array_and_a_spill_are_seen():
    assert "pick: has an array in local memory" in arithmetic(LOCAL)
    found = gate.figures(LOCAL, BY, [90])
    assert list(gate.memory_problems(found)) == ["sm_90 pick: 32 bytes of stack"]
    spilled = list(gate.memory_problems(gate.figures(SPILL, BY, [90])))
    assert re.fullmatch(r"sm_90 wide: \d+ bytes spilled", spilled[0])


def test_more_registers_than_recorded():
    found = gate.figures(SEPARATE, BY, [75, 90])
    registers = {arch: {"sum": takes["sum"].registers} for arch, takes in found.items()}
    assert list(gate.register_problems(found, registers)) == []
    registers["sm_75"]["sum"] -= 1
    (problem,) = gate.register_problems(found, registers)
    assert problem.startswith("sm_75 sum: ")


def test_a_log_of_another_form_is_an_error_and_not_zero():
    log = "ptxas info : Compiling entry function 'f' for 'sm_90'\nptxas info : Used 8 registers\n"
    with pytest.raises(ValueError, match="the log of f has no"):
        compiling.read_log(log)


def test_the_kernels_arithmetic_is_what_the_text_says():
    assert arithmetic(kernels.text()) == []


@pytest.mark.slow
def test_the_kernels_pass_the_gate():
    assert gate.recorded(BY), f"no registers are recorded for release {gate.release(BY)}"
    found = gate.figures(kernels.text(), BY)
    assert gate.problems(kernels.text(), found, BY) == []


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The gate on a text of one kernel, with a record of its own."""
    monkeypatch.setattr(gate, "RECORD", tmp_path / "registers.txt")

    def run(source, *arguments):
        monkeypatch.setattr(kernels, "text", lambda: source)
        return gate.main(arguments)

    return run


def test_the_command_records_and_compares(small, capsys):
    assert small(SEPARATE, "--record") == 0
    assert "sum" in capsys.readouterr().out
    assert small(SEPARATE) == 0
    assert small(SEPARATE.replace("sum(", "other(")) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "FAIL sm_100 sum: recorded, but there is no such kernel" in out
    assert "registers, none are recorded" in out


def test_the_command_fails_on_a_spill_and_on_what_does_not_compile(small, capsys):
    assert small(SPILL, "--record") == 1
    assert "bytes spilled" in capsys.readouterr().out
    assert small(HEAD + "KERNEL broken( {") == 1
    assert "FAIL small.cu:2:" in capsys.readouterr().out


def test_figures_of_another_release_are_not_compared(small, capsys):
    assert small(SEPARATE, "--record") == 0
    gate.RECORD.write_text(gate.RECORD.read_text().replace(gate.release(BY), "1.0"))
    assert small(SEPARATE.replace("sum(", "other(")) == 0
    assert "no registers are recorded for release" in capsys.readouterr().out


def test_without_a_compiler_the_exit_code_is_3(monkeypatch, capsys):
    def none():
        raise compiling.NoCompiler("no NVRTC; no nvcc on PATH")

    monkeypatch.setattr(compiling, "compiler", none)
    assert gate.main() == 3
    assert figures.main() == 3
    assert capsys.readouterr().out.count("no compiler: no NVRTC; no nvcc on PATH") == 2
    assert gate.main(["--recrod"]) == 2


# ---- the compilers -------------------------------------------------------------------------------


def test_both_compilers_make_ptx_that_runs_alike():
    roads = []
    for find in (nvrtc.find, nvcc.find):
        try:
            roads.append(find())
        except compiling.NoCompiler:
            continue
    if len(roads) < 2:
        pytest.skip(f"only {BY.name} is here")
    results = []
    for by in roads:
        assert list(gate.arithmetic_problems(BY_NAME, compiling.ptx(BY_NAME, by=by))) == []
        registers = compiling.resources(BY_NAME, by=by)["sum"].registers
        results.append((registers, by.name.rpartition(" ")[2]))
    if results[0][1] == results[1][1]:
        assert results[0] == results[1]


def test_the_compiler_can_be_named(monkeypatch):
    compiling.compiler.cache_clear()
    monkeypatch.setenv("QLORACLE_COMPILER", "gcc")
    with pytest.raises(compiling.NoCompiler, match="a compiler is 'nvrtc' or 'nvcc', got 'gcc'"):
        compiling.compiler()
    monkeypatch.setenv("QLORACLE_COMPILER", "nvcc")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(compiling.NoCompiler, match="no nvcc on PATH"):
        compiling.compiler()
    compiling.compiler.cache_clear()


def test_a_text_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    by = SimpleNamespace(name="a compiler", made=lambda *given: asked.append(given) or "its PTX")
    assert [compiling.ptx(text, by=by) for text in ("a", "a", "b")] == ["its PTX"] * 3
    assert [given[:2] for given in asked] == [("ptx", "a"), ("ptx", "b")]
    kept = sorted((tmp_path / "qloracle" / "compiled").glob("*/*"))
    assert [path.read_text() for path in kept] == ["its PTX", "its PTX"]


def test_importing_the_runners_loads_no_framework_and_compiles_nothing():
    code = (
        "import sys, qloracle_gpu.devices.ptx, qloracle_gpu.proof.gate, qloracle_gpu.compiling; "
        "print({'torch', 'cupy', 'jax', 'ctypes.util'} & set(sys.modules), "
        "qloracle_gpu.compiling.compiler.cache_info().misses)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["set()", "0"]


# ---- the table of figures ------------------------------------------------------------------------

COPY = """
struct alignas(16) Words { unsigned word[4]; };
KERNEL copy(const Words *x, Words *y, const unsigned *added) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  Words a = x[2 * i], b = x[2 * i + 1];
  a.word[0] += added[i & 7];
  y[2 * i] = a;
  y[2 * i + 1] = b;
}
"""


def test_counts_of_a_kernel_that_can_be_counted_by_hand():
    device = Ptx(HEAD + COPY)
    x, y, added = (np.zeros(n, np.uint32) for n in (4096, 4096, 8))

    def copy(machine):
        machine.launch("copy", 4, 128, x, y, added)

    takes = Resources(registers=32, spilled=0, stack=0, shared=0)
    row = figures.row(figures.Work("copy", 128, 4096, 8, copy, ()), device, takes)
    assert (row.load, row.store) == (16, 16)
    assert row.lsu == 5 / 8  # two loads of four, a number and two stores for eight elements
    assert row.occupancy == 1
    assert row.in_flight == 2048 * (16 + 4 + 16) / 1024
    assert row.issue < row.ptx


def test_a_loop_counts_as_often_as_it_runs():
    source = (
        HEAD
        + """KERNEL loop(float *x, int n) {
      #pragma unroll 1
      for (int k = 0; k < n; ++k) x[threadIdx.x + 32 * k] = 1.f;
    }"""
    )
    device, x = Ptx(source), np.zeros(32 * 50, np.float32)
    takes = Resources(registers=32, spilled=0, stack=0, shared=0)

    def run(machine, n):
        machine.launch("loop", 1, 32, x, np.int32(n))

    rows = [
        figures.row(figures.Work("loop", 32, 32, 4, run, (n,)), device, takes) for n in (10, 50)
    ]
    assert [row.lsu for row in rows] == [10, 50]


WAITING = """
.visible .entry f()
{
  .reg .f32 %f<10>;
  .reg .b64 %rd<2>;
  ld.global.f32 %f1, [%rd1];
  ld.global.v2.f32 {%f2, %f3}, [%rd1];
  add.rn.f32 %f9, %f1, %f1;
  ld.global.v4.f32 {%f4, %f5, %f6, %f7}, [%rd1];
  ld.shared.f32 %f8, [%rd1];
  add.rn.f32 %f4, %f2, %f3;
  ret;
}
"""


def test_a_load_is_in_flight_until_its_first_use():
    module = parse(WAITING)
    program = Program(module, module.kernels["f"])
    program.trace = [(0, 64), (0, 64)]  # two times the same, one after the other
    assert figures.most_in_flight(program) == 8 + 16


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "resident"),
    [
        (32, 0, 256, 2048),
        (33, 0, 256, 1536),  # 1,280 registers a warp, 51 warps, 6 blocks of 8
        (64, 0, 256, 1024),
        (255, 0, 256, 256),
        (32, 0, 32, 1024),  # 32 blocks
        (32, 40_000, 256, 1280),  # 5 blocks of 41,024 bytes
        (32, 0, 768, 1536),
    ],
)
def test_resident_threads(registers, shared, threads, resident):
    takes = Resources(registers=registers, spilled=0, stack=0, shared=shared)
    assert figures.residents(takes, threads) == resident


@pytest.mark.parametrize(
    ("opcode", "lsu"),
    [
        ("ld.global.nc.L1::no_allocate.v4.f32", True),
        ("ld.shared.f32", True),
        ("st.u8", True),
        ("shfl.sync.bfly.b32", True),
        ("ld.param.u64", False),
        ("ld.const.f32", False),
        ("add.s32", False),
        ("bar.sync", False),
    ],
)
def test_what_goes_to_the_load_store_unit(opcode, lsu):
    assert figures.is_lsu(Instruction("", 0, "", "", opcode, ())) == lsu


BYTES = {  # of an element, from the goals: dequantize 2.5625, nested 2.516, Adam 28 and 22 ...
    "dequantize_4bit_bfloat16": 2.5625,
    "dequantize_4bit_float32": 4.5625,
    "quantize_4bit_bfloat16": 2.5625,
    "dequantize_4bit_nested_bfloat16": 2.516,
    "adam_step_float32_float32": 28,
    "adam_step_bfloat16_bfloat16": 22,
    "adam_step_8bit_bfloat16_bfloat16": 10.0625,
    "adam_step_8bit_float32_float32": 16.0625,
}


def test_the_bytes_of_an_element():
    found = {work.kernel: work.bytes for work in figures.works()}
    assert {name: round(found[name], 4) for name in BYTES} == pytest.approx(BYTES, abs=2e-4)


def test_every_kernel_is_in_the_table_or_left_out_by_name():
    text = compiling.ptx(kernels.text())
    there = set(re.findall(r"\.entry (\w+)", text))
    left_out = {name for name in there if "_any_" in name} | {
        "mean_absmax"
    }  # odd shapes; one block
    listed = [work.kernel for work in figures.works()]
    assert sorted(listed) == sorted(there - left_out)
    document = figures.DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)`", document, re.MULTILINE) == listed
    assert "No GPU has run these kernels" in document


@pytest.mark.slow
def test_the_document_is_what_the_kernels_give():
    if gate.recorded(BY) is None:
        pytest.skip(f"the document is of another release than {BY.name}")
    fresh = figures.document(figures.rows())
    assert figures.DOCUMENT.read_text(encoding="utf-8") == fresh


def test_what_is_over_its_budget_is_bold():
    row = figures.Row("half", 2.5625, 4, 16, 30.0, 26.0, 6.2, 32, 1.0, 20.0)
    cells = figures.cells(row)
    assert cells[4] == "**26.0 (25.3)**"
    assert cells[5] == "6.2 (6.3)"
