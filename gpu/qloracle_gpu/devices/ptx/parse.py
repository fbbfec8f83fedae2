"""The PTX of a module, read: its kernels' instructions, with the CUDA lines that they came from.

>>> module = parse('''
... .visible .entry half(.param .u64 half_param_0)
... {
...     .reg .b32 %r<3>;
...     ld.param.u32 %r1, [half_param_0+4];
...     @%p1 bra $END;
... $END:
...     ret;
... }
... ''')
>>> for instruction in module.kernels["half"].instructions:
...     print(instruction.line, instruction.guard, instruction.opcode, instruction.operands)
5  ld.param.u32 ('%r1', Address(base='half_param_0', offset=4))
6 %p1 bra ('$END',)
8  ret ()
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True)
class Address:
    """An operand in brackets: a register or a variable, and bytes beyond it."""

    base: str
    offset: int


Operand: TypeAlias = str | Address | tuple[str, ...]  # a tuple: {a, b}, or a pair p|q


class Instruction(NamedTuple):
    """One instruction and where it stands."""

    text: str
    line: int  # of the PTX, from 1
    place: str  # of the CUDA text: "adam.cu:12"
    guard: str  # "%p1", "!%p1", or "" where all lanes run it
    opcode: str  # with its modifiers: "ld.global.nc.f32"
    operands: tuple[Operand, ...]


class Variable(NamedTuple):
    """An array of the module's or of a kernel's."""

    name: str
    space: str  # "shared", "local", "global", "const"
    alignment: int
    size: int  # bytes


@dataclass
class Kernel:
    """The body of one entry function."""

    name: str
    parameters: dict[str, tuple[int, int]]  # offset and bytes of each
    max_threads: int = 1024
    registers: dict[str, str] = field(default_factory=dict)  # "%r" or "%r1": "b32"
    variables: list[Variable] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the instruction that follows each
    instructions: list[Instruction] = field(default_factory=list)

    def type_of(self, register: str) -> str:
        """Return the type that a register is declared with: "b32"."""
        return self.registers.get(register) or self.registers[register.rstrip("0123456789")]


@dataclass
class Module:
    """A PTX text."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)  # called, and therefore not run here


TYPES = {"pred": 1, **{f"{k}{8 * n}": n for k in "busf" for n in (1, 2, 4, 8)}}
STATEMENT = re.compile(r"(?:@(!?%[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
VARIABLE = re.compile(
    r"\.(shared|local|global|const)(?: \.align (\d+))? \.(\w+) ([\w$.]+)((?:\[\d+\])*)"
)
ENTRY = re.compile(r"\.entry ([\w$]+) ?\((.*?)\)(.*)", re.DOTALL)
PARAMETER = re.compile(r"\.param (?:\.align (\d+) )?\.(\w+) .*?([\w$]+)(?:\[(\d+)\])?$")
LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
HEADERS = (".h", ".hpp")  # an intrinsic's own line says less than the line of its use


def parse(text: str) -> Module:
    """Return a module; ValueError for a text of another form."""
    files = {number: PurePath(name).name for number, name in FILE.findall(text)}
    module, kernel, place = Module(), None, ""
    for line, statement in _statements(text):
        if LOC.match(statement):
            place = _place(statement, files)
        elif found := ENTRY.search(statement):
            kernel = _entry(found)
            module.kernels[kernel.name] = kernel
        elif ".func" in statement:
            kernel = None
            module.functions.append(statement)
        elif found := VARIABLE.search(statement):
            owner = module if kernel is None else kernel
            owner.variables.append(_variable(found))
        elif statement == "END":
            kernel = None
        elif kernel is not None:
            _body(kernel, statement, line, place)
    return module


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield what ends in a semicolon, a brace, a colon or, for directives, with the line."""
    depth, start, parts = 0, 0, list[str]()
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("//")[0].strip()
        if not line or (not parts and re.match(r"\.(version|target|address_size|file)\b", line)):
            continue
        if line.startswith(".section") or LOC.match(line) or line.endswith(":"):
            yield number, line
            if line.startswith(".section"):
                return  # what follows is for debuggers
            continue
        if line in ("{", "}"):
            if parts:  # the head of a function
                yield start, " ".join(parts)
                parts = []
            depth += 1 if line == "{" else -1
            if not depth:
                yield number, "END"
            continue
        start = start if parts else number
        for piece in re.split(r"(?<=;)", line):
            if piece.strip():
                parts.append(piece.strip())
            if piece.endswith(";"):
                yield start, " ".join(" ".join(parts).split()).removesuffix(";").strip()
                parts, start = [], number


def _place(statement: str, files: dict[str, str]) -> str:
    """Return "file:line", of the caller where a function of a header of CUDA's is inlined."""
    found = LOC.match(statement)
    assert found is not None
    name, line = files.get(found[1], ""), found[2]
    caller = re.search(r"inlined_at (\d+) (\d+)", statement)
    if caller:
        outer = f"{files.get(caller[1], '')}:{caller[2]}"
        return outer if name.endswith(HEADERS) else f"{name}:{line} in {outer}"
    return f"{name}:{line}"


def _entry(found: re.Match[str]) -> Kernel:
    parameters, offset = {}, 0
    for text in filter(None, (part.strip() for part in found[2].split(","))):
        match = PARAMETER.search(text)
        if match is None:
            raise ValueError(f"a parameter of another form: {text!r}")
        size = TYPES[match[2]]
        alignment = int(match[1] or size)
        offset = -(-offset // alignment) * alignment
        parameters[match[3]] = (offset, size * int(match[4] or 1))
        offset += size * int(match[4] or 1)
    most = re.search(r"\.(?:max|req)ntid (\d+)", found[3])
    return Kernel(found[1], parameters, int(most[1]) if most else 1024)


def _variable(found: re.Match[str]) -> Variable:
    space, alignment, kind, name, dimensions = found.groups()
    width = TYPES[kind]
    count = math.prod(int(n) for n in re.findall(r"\d+", dimensions))
    return Variable(name, space, int(alignment or width), width * count)


def integer(text: str) -> int:
    """Return an immediate operand's number, or the bits of a float's; ValueError for a name.

    >>> integer("-1"), integer("0f3F800000") == 0x3F800000, integer("0x10"), integer("7U")
    (-1, True, 16, 7)
    """
    if text[:2].lower() in ("0f", "0d"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


def _body(kernel: Kernel, statement: str, line: int, place: str) -> None:
    if statement.startswith(".reg"):
        kind, names = re.match(r"\.reg \.(\w+) (.*)", statement).groups()  # type: ignore[union-attr]
        for name in names.split(","):
            kernel.registers[name.strip().partition("<")[0]] = kind
    elif statement.endswith(":"):
        kernel.labels[statement[:-1]] = len(kernel.instructions)
    elif statement.startswith(".pragma"):
        pass  # a hint about unrolling
    else:
        kernel.instructions.append(_instruction(statement, line, place))


def _instruction(statement: str, line: int, place: str) -> Instruction:
    found = STATEMENT.fullmatch(statement)
    if found is None:
        raise ValueError(f"PTX line {line}: a statement of another form: {statement!r}")
    guard, opcode, rest = found.groups()
    return Instruction(statement, line, place, guard or "", opcode, tuple(_operands(rest)))


def _operands(text: str) -> Iterator[Operand]:
    for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{}\[\]]+(?:\s*\|\s*[^,\s]+)?", text):
        if part.startswith("{"):
            yield tuple(name.strip() for name in part[1:-1].split(","))
        elif part.startswith("["):
            base, sign, offset = re.match(r"\[\s*([^\s+\]-]+)\s*([+-]*)\s*(\w*)", part).groups()  # type: ignore[union-attr]
            yield Address(base, int(offset or 0) * (-1 if sign.endswith("-") else 1))
        elif "|" in part:
            yield tuple(name.strip() for name in part.split("|"))
        else:
            yield part
