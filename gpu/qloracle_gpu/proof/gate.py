"""The compile gate: what ptxas and the PTX say of every kernel, for each architecture.

    python -m qloracle_gpu.proof.gate            print the table and the verdict
    python -m qloracle_gpu.proof.gate --record   and record the registers, in registers.txt

It fails on a spill, on a stack or local memory, on more registers than recorded, and on arithmetic
that the rules do not have: a product and a sum fused where the text does not say so, an approximate
form, one that flushes subnormal numbers.  Exit codes: 0, 1 for a failure, 3 where there is no
compiler.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qloracle_gpu import compiling, kernels
from qloracle_gpu.compiling import Compiler, Resources
from qloracle_gpu.devices.ptx.errors import where
from qloracle_gpu.devices.ptx.parse import Instruction, parse

ARCHS = (75, 80, 90, 100)
RECORD = Path(__file__).with_name("registers.txt")
INEXACT = ("approx", "ftz", "full", "rz", "rm", "rp", "sat")  # parts of an opcode on floats
FLOATS = ("f16", "f32", "f64")

Figures = Mapping[str, Mapping[str, Resources]]  # by "sm_90" and by kernel


def figures(source: str, by: Compiler, archs: Sequence[int] = ARCHS) -> Figures:
    """Return what each kernel of a text takes on each architecture; CompileError."""
    return {f"sm_{arch}": compiling.resources(source, arch, by=by) for arch in archs}


def memory_problems(found: Figures) -> Iterator[str]:
    """Yield every kernel that keeps values of a thread in memory.

    >>> list(memory_problems({"sm_90": {"half": Resources(32, 8, 0, 0)}}))
    ['sm_90 half: 8 bytes spilled']
    """
    for arch, by_name in found.items():
        for name, takes in by_name.items():
            if takes.spilled:
                yield f"{arch} {name}: {takes.spilled} bytes spilled"
            if takes.stack:
                yield f"{arch} {name}: {takes.stack} bytes of stack"


def register_problems(found: Figures, recorded: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield every kernel that takes more registers than recorded, or of which there is no record.

    >>> found = {"sm_90": {"half": Resources(33, 0, 0, 0), "new": Resources(9, 0, 0, 0)}}
    >>> for problem in register_problems(found, {"sm_90": {"half": 32, "gone": 10}}):
    ...     print(problem)
    sm_90 half: 33 registers, recorded are 32
    sm_90 new: 9 registers, none are recorded
    sm_90 gone: recorded, but there is no such kernel
    """
    for arch, by_name in found.items():
        known = recorded.get(arch, {})
        for name, takes in by_name.items():
            if name not in known:
                yield f"{arch} {name}: {takes.registers} registers, none are recorded"
            elif takes.registers > known[name]:
                yield f"{arch} {name}: {takes.registers} registers, recorded are {known[name]}"
        for name in sorted(known.keys() - by_name.keys()):
            yield f"{arch} {name}: recorded, but there is no such kernel"


def arithmetic_problems(source: str, ptx: str) -> Iterator[str]:
    """Yield every instruction of the PTX whose rounding is not the one that the text asks for."""
    lines, module = lines_of(source), parse(ptx)
    for kernel in module.kernels.values():
        if any(variable.space == "local" for variable in kernel.variables):
            yield f"{kernel.name}: has an array in local memory"
        for instruction in kernel.instructions:
            problem = _rounding(instruction, lines)
            if problem:
                yield f"{kernel.name}: {problem}: {instruction.text} ({where(instruction)})"
    for function in module.functions:
        yield f"a function that is called: {function}"


def _rounding(instruction: Instruction, lines: Mapping[str, Sequence[str]]) -> str:
    root, *parts = instruction.opcode.split(".")
    if not any(part in FLOATS for part in parts):
        return ""
    if any(part in INEXACT for part in parts):
        return "not IEEE's rounding"
    if root in ("add", "sub", "mul") and "rn" not in parts:
        return "may be fused by ptxas"
    if root in ("fma", "mad"):
        found = re.match(r"(.*?):(\d+)", instruction.place)
        line = lines[found[1]][int(found[2]) - 1] if found and found[1] in lines else ""
        if "fmaf" not in line:
            return "fused, and the text does not say so"
    return ""


def lines_of(source: str) -> dict[str, list[str]]:
    r"""Return the lines of each file that a text names by `#line`.

    >>> lines_of('#line 1 "a.cu"\nfirst\nsecond\n#line 1 "b.cu"\nthird\n')["a.cu"]
    ['first', 'second']
    """
    files: dict[str, list[str]] = {"kernels.cu": []}
    now = files["kernels.cu"]
    for line in source.splitlines():
        found = re.match(r'#line 1 "(.*)"', line)
        if found:
            now = files.setdefault(found[1], [])
        else:
            now.append(line)
    return files


def release(by: Compiler) -> str:
    """Return the release of a compiler, the same for NVRTC and nvcc: "13.0"."""
    return by.name.rpartition(" ")[2]


def recorded(by: Compiler) -> dict[str, dict[str, int]] | None:
    """Return the registers recorded for this release of the compiler; None for another."""
    lines = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else ["none"]
    (of_release, *archs), *rows = [line.split() for line in lines]
    if of_release != release(by):
        return None
    return {arch: {row[0]: int(row[i]) for row in rows} for i, arch in enumerate(archs, 1)}


def record(found: Figures, by: Compiler) -> None:
    """Write the registers of every kernel to registers.txt, a line each."""
    names = sorted(next(iter(found.values())))
    rows = [(name, *(by_name[name].registers for by_name in found.values())) for name in names]
    lines = [f"{name:36}" + "".join(f"{each:>7}" for each in rest)
             for name, *rest in ((release(by), *found), *rows)]  # fmt: skip
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")


def problems(source: str, found: Figures, by: Compiler) -> list[str]:
    """Return all that is wrong with a text, one line each."""
    known = recorded(by)
    several = [*memory_problems(found), *(register_problems(found, known) if known else ())]
    for arch in found:
        ptx = compiling.ptx(source, int(arch.removeprefix("sm_")), by=by)
        several += [f"{arch} {problem}" for problem in arithmetic_problems(source, ptx)]
    return several


def table(found: Figures) -> Table:
    """Return the figures as a table, a row a kernel."""
    shown = Table(title="registers (bytes of shared memory)")
    shown.add_column("kernel", no_wrap=True)
    for arch in found:
        shown.add_column(arch, justify="right")
    for name in sorted(next(iter(found.values()))):
        takes = [by_name[name] for by_name in found.values()]
        shown.add_row(name, *(f"{t.registers} ({t.shared})" for t in takes))
    return shown


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table and the verdict; return the exit code."""
    console = Console()
    if set(arguments) - {"--record"}:
        console.print("usage: python -m qloracle_gpu.proof.gate [--record]")
        return 2
    try:
        by = compiling.compiler()
    except compiling.NoCompiler as reason:
        console.print(f"no compiler: {reason}", markup=False)
        return 3
    try:
        found = figures(kernels.text(), by)
    except compiling.CompileError as error:
        console.print(f"FAIL {error}", markup=False)
        return 1
    if "--record" in arguments:
        record(found, by)
    console.print(table(found))
    if recorded(by) is None:
        console.print(f"no registers are recorded for release {release(by)}: not compared")
    wrong = problems(kernels.text(), found, by)
    for problem in wrong:
        console.print(f"FAIL {problem}", markup=False)
    console.print(f"{by.name}: {len(wrong)} problems" if wrong else f"{by.name}: passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
