"""What can be said of each kernel's speed without a GPU, as a table.

The interpreter counts the instructions of the PTX that a launch on large, aligned arrays runs;
ptxas reports the registers; the rest is arithmetic on a card's published sizes.  Nothing is timed.

`INTRODUCTION` says what each column means.

    python -m qloracle_gpu.proof.figures           print the table
    python -m qloracle_gpu.proof.figures --write   and write gpu/docs/kernels.md
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from qloracle import dynamic_codebook
from qloracle_gpu import compiling, kernels
from qloracle_gpu.compiling import Resources
from qloracle_gpu.devices.ptx import Ptx
from qloracle_gpu.devices.ptx.blocks import results, sources
from qloracle_gpu.devices.ptx.execute import Program
from qloracle_gpu.devices.ptx.parse import Instruction
from qloracle_gpu.operations import adam, blockwise, nested, products

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# An H100 SXM, and an SM of compute capability 9.0.
MULTIPROCESSORS, CLOCK = 132, 1.755e9
ISSUED, LSU_LANES = 128, 32  # lanes a clock and SM
ROOF = 3.0e12  # bytes a second, as measured with a mix of reads and writes
REGISTERS, THREADS, BLOCKS, SHARED = 65_536, 2_048, 32, 228 * 1024
RESERVED = 1024  # bytes of shared memory that each block takes beside its own

COUNT = 1 << 18  # elements of a run: whole blocks of every kernel
OUT, IN = 256, 4096  # the shape of the weight of a product

MEMORY = re.compile(
    r"(?P<verb>ld|st)(?:\.volatile)?(?:\.(?P<space>global|shared|local|const|param))?"
    r"(?:\.(?!v[24]\b)[a-zA-Z]\w*(?:::\w+)?)*?(?:\.v(?P<count>[24]))?\.[busf](?P<bits>\d+)"
)
# What takes no slot of its own in machine code, or seldom.
FOLDED = re.compile(r"mov\.|cvta\.|ld\.param\.|cvt\.[us]64\.[us]32|cvt\.u32\.u64")


class Work(NamedTuple):
    """One call to count: the kernel that it launches, the threads of a block, and the bytes."""

    kernel: str
    threads: int
    elements: int
    bytes: float  # that must be moved for an element
    function: Callable[..., object]
    arguments: tuple[object, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, which nothing changes


class Row(NamedTuple):
    """One line of the table."""

    kernel: str
    bytes: float
    load: int
    store: int
    ptx: float
    issue: float
    lsu: float
    registers: int
    occupancy: float
    in_flight: float  # KiB


# ---- the launches, and the bytes of each ---------------------------------------------------------


def works() -> Iterator[Work]:
    """Yield a launch of every kernel, on COUNT elements."""
    for name, dtype in TYPES.items():
        yield from _codes(name, np.dtype(dtype))
        yield from _products(name, np.dtype(dtype))
    yield from _nested()
    yield from _adam()


def _codes(name: str, dtype: np.dtype[Any]) -> Iterator[Work]:
    x = np.linspace(-1, 1, COUNT).astype(dtype)
    packed, scales = np.zeros(COUNT // 2, np.uint8), np.ones(COUNT // 64, np.float32)
    codes, groups = np.zeros(COUNT, np.uint8), np.ones(COUNT // 256, np.float32)
    nested_scales = codes[: scales.size], groups[: scales.size // 256], np.float32(0), None
    table, form = dynamic_codebook(signed=True), {"shape": (COUNT,), "dtype": name}
    four, nested_four, eight = 0.5 + 4 / 64, 0.5 + (1 + 4 / 256) / 64, 1 + 4 / 256

    def work(
        function: Callable[..., object], moved: float, *arguments: object, **options: Any
    ) -> Work:
        suffix = "nested_" if "nested" in options else ""
        kernel = f"{function.__name__}_{suffix}{name}"
        moved += dtype.itemsize
        return Work(kernel, blockwise.THREADS, COUNT, moved, function, arguments, options)

    yield work(blockwise.quantize_4bit, four, x)
    yield work(blockwise.dequantize_4bit, four, packed, scales, **form)
    yield work(blockwise.dequantize_4bit, nested_four, packed, nested=nested_scales, **form)
    yield work(blockwise.quantize_blockwise, eight, x, table)
    yield work(blockwise.dequantize_blockwise, eight, codes, groups, table, **form)


def _products(name: str, dtype: np.dtype[Any]) -> Iterator[Work]:
    count, threads = OUT * IN, products.WARPS * 32
    packed, scales = np.zeros(count // 2, np.uint8), np.ones(count // 64, np.float32)
    for m in products.TILES:
        moved = 0.5 + 4 / 64 + m * (IN + OUT) * dtype.itemsize / count
        call = products.matmul_4bit, (np.ones((m, IN), dtype), packed, scales)
        yield Work(f"product_4bit_{m}_{name}", threads, count, moved, *call, {"shape": (OUT, IN)})


def _nested() -> Iterator[Work]:
    absmax = np.linspace(0.5, 1, COUNT, dtype=np.float32)
    codes, groups = np.zeros(COUNT, np.uint8), np.ones(COUNT // 256, np.float32)
    coded, threads = (codes, groups, np.float32(0)), blockwise.THREADS
    eight = 4 + 1 + 4 / 256
    yield Work("sum_absmax", threads, COUNT, 4, nested.quantize_absmax, (absmax,))
    yield Work("quantize_absmax", threads, COUNT, eight, nested.quantize_absmax, (absmax,))
    yield Work("dequantize_absmax", threads, COUNT, eight, nested.dequantize_absmax, coded)


def _adam() -> Iterator[Work]:
    moment, options = np.full(COUNT, 0.25, np.float32), {"step": 3, "lr": 1e-3}
    coded = (np.zeros(COUNT, np.uint8), np.ones(COUNT // 256, np.float32)) * 2
    same = [(name, name) for name in TYPES]
    for of_p, of_g in [*same, ("float16", "float32"), ("bfloat16", "float32")]:
        p, g = np.ones(COUNT, TYPES[of_p]), np.ones(COUNT, TYPES[of_g])
        own, types = 2 * p.itemsize + g.itemsize, f"{of_p}_{of_g}"
        plain = adam.adam_step, (p, g, moment, moment), options
        eight = adam.adam_step_8bit, (p, g, *coded), options
        yield Work(f"adam_step_{types}", adam.THREADS, COUNT, own + 16, *plain)
        yield Work(f"adam_step_8bit_{types}", adam.THREADS, COUNT, own + 4 + 16 / 256, *eight)


# ---- what a run counts ---------------------------------------------------------------------------


def rows() -> list[Row]:
    """Run every launch in the interpreter and return the table; NoCompiler."""
    takes, device = compiling.resources(kernels.text(), 90), Ptx(arch=90)
    return [row(work, device, takes[work.kernel]) for work in works()]


def row(work: Work, device: Ptx, takes: Resources) -> Row:
    """Run one launch and return its line."""
    program = device.program(work.kernel)
    program.counts.clear()
    program.trace = []
    work.function(device, *work.arguments, **work.options)
    every = list(_executed(program))
    kept = sum(lanes for i, lanes in every if not FOLDED.match(i.opcode))
    lsu = sum(lanes for i, lanes in every if is_lsu(i))
    widths = {verb: max((_width(i, verb) for i, _ in every), default=0) for verb in ("ld", "st")}
    resident = residents(takes, work.threads)
    waiting = most_in_flight(program)
    program.trace = None
    return Row(
        work.kernel,
        work.bytes,
        widths["ld"],
        widths["st"],
        sum(lanes for _, lanes in every) / work.elements,
        kept / work.elements,
        lsu / work.elements,
        takes.registers,
        resident / THREADS,
        resident * waiting / 1024,
    )


def _executed(program: Program) -> Iterator[tuple[Instruction, int]]:
    """Yield every instruction that ran, jumps between blocks too, and in how many lanes."""
    for number, lanes in program.counts.items():
        block = program.blocks[number]
        for instruction in block.instructions:
            yield instruction, lanes
        if block.target is not None or block.ends:
            yield Instruction("bra", 0, "", block.guard, "bra", ()), lanes


def is_lsu(instruction: Instruction) -> bool:
    """Whether an instruction goes to the load-store unit: parameters lie in constant memory."""
    found = MEMORY.fullmatch(instruction.opcode)
    if found is None:
        return instruction.opcode.startswith("shfl")
    return found["space"] not in ("param", "const")


def _width(instruction: Instruction, verb: str) -> int:
    """Return the bytes that a load or a store moves of device memory, for a lane."""
    found = MEMORY.fullmatch(instruction.opcode)
    if found is None or found["verb"] != verb or found["space"] not in ("global", None):
        return 0
    return int(found["count"] or 1) * int(found["bits"]) // 8


def most_in_flight(program: Program) -> int:
    """Return the most bytes that a thread has asked for and not yet used, on the path of most."""
    waiting: dict[str, int] = {}
    most = 0
    for instruction in _path(program):
        used = [name for name in sources(instruction) if name in waiting]
        for name in used:
            waiting.pop(name, None)
        size = _width(instruction, "ld")
        names = results(instruction)
        for name in names:
            waiting.pop(name, None)
            if size:
                waiting[name] = size // len(names)
        most = max(most, sum(waiting.values()))
    return most


def _path(program: Program) -> Iterator[Instruction]:
    """Yield the instructions that most lanes of the first blocks of threads run, in order."""
    trace = program.trace or []
    most = max((lanes for _, lanes in trace), default=0)
    for place, (number, lanes) in enumerate(trace):
        if place and not number:
            return  # the next blocks of threads
        if 2 * lanes > most:
            yield from program.blocks[number].instructions


def residents(takes: Resources, threads: int) -> int:
    """Return how many threads an SM of compute capability 9.0 holds at once.

    >>> residents(Resources(registers=32, spilled=0, stack=0, shared=0), 256)
    2048
    >>> residents(Resources(registers=255, spilled=0, stack=0, shared=0), 256)
    256
    """
    warps = -(-threads // 32)
    of_warp = -(-takes.registers * 32 // 256) * 256
    by_registers = REGISTERS // of_warp // warps
    by_shared = SHARED // (takes.shared + RESERVED)
    return min(BLOCKS, THREADS // threads, by_registers, by_shared) * threads


def budget(bytes_: float, lanes: int = ISSUED) -> float:
    """Return the instructions for an element that fit into the time of its bytes, at the roof.

    >>> round(budget(2.5625), 1), round(budget(2.5625, LSU_LANES), 1)
    (25.3, 6.3)
    """
    return MULTIPROCESSORS * CLOCK * lanes / (ROOF / bytes_)


# ---- the document --------------------------------------------------------------------------------


def document(found: Sequence[Row]) -> str:
    """Return the table and what it means, as Markdown."""
    head = (
        "kernel", "bytes", "widest load / store", "PTX", "issue (budget)", "LSU (budget)",
        "registers", "occupancy", "KiB in flight",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [f"| {' | '.join(cells(row))} |" for row in found]
    return INTRODUCTION + "\n".join(lines) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """Return a line's cells; what is over its budget is in bold."""
    return (
        f"`{row.kernel}`",
        f"{row.bytes:.3f}",
        f"{row.load} / {row.store}",
        f"{row.ptx:.1f}",
        _beside(row.issue, budget(row.bytes)),
        _beside(row.lsu, budget(row.bytes, LSU_LANES)),
        f"{row.registers}",
        f"{row.occupancy:.0%}",
        f"{row.in_flight:.0f}",
    )


def _beside(number: float, allowed: float) -> str:
    text = f"{number:.1f} ({allowed:.1f})"
    return f"**{text}**" if number > allowed else text


INTRODUCTION = f"""# The kernels, without a GPU

No GPU has run these kernels, and no line below is a time. The table is made by
`python -m qloracle_gpu.proof.figures --write` from three things: the PTX for compute capability
9.0, which the interpreter runs on {COUNT:,} elements (a product: on a weight of {OUT} x {IN})
and counts; what ptxas says of registers and shared memory; and the sizes of an H100 SXM.

- **bytes**: what must be moved for an element (of a product: for a weight), by the formats alone,
  at 64 elements a block for 4 bits and 256 for 8.
- **widest load / store**: bytes of the widest access to device memory that ran.
- **PTX**: instructions for an element, over all lanes.
- **issue**: those that ptxas keeps as instructions of their own, which moves, parameters and
  conversions of addresses mostly are not. It is an estimate: of a division or a root ptxas makes
  about ten, of a sum of 64 bits two. The budget is what {MULTIPROCESSORS} multiprocessors of
  {ISSUED} lanes at {CLOCK / 1e9} GHz issue while {ROOF / 1e12} TB/s move those bytes.
- **LSU**: loads, stores and shuffles for an element, shared memory included, at {LSU_LANES} lanes
  a clock.
- **occupancy**: resident threads over {THREADS:,}, by registers, shared memory and the threads of
  a block.
- **KiB in flight**: what a multiprocessor has asked for at once, if each thread waits for a loaded
  value where the PTX first uses it. About 14 KiB keep an H100's memory busy, 18 KiB an H200's.

A figure over its budget is in bold: the kernel is then bound by instructions, not by memory.

Only the products are. For one row, a lookup, a product and a fused multiply-add leave room for
hardly three instructions more, and cutting a code out of its word, the address of its level and the
scale take twice that. For 16 rows no saving there helps: weights are float32, as `dequantize_4bit`
makes them, and each costs 16 fused multiply-adds, twice what memory leaves time for. So the time of
16 rows cannot stay near that of one. Tensor cores could do it with weights rounded to the type of
x, a dialect that rule S9 allows. There is no such kernel here.

"""


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table, or write it; return the exit code."""
    if set(arguments) - {"--write"}:
        print("usage: python -m qloracle_gpu.proof.figures [--write]")
        return 2
    try:
        text = document(rows())
    except compiling.NoCompiler as reason:
        print(f"no compiler: {reason}")
        return 3
    if "--write" in arguments:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
