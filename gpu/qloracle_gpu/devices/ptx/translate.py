"""Each block of a kernel as a Python function, one line an instruction, on arrays of lanes.

A register is a local variable: an array of one element a lane, or of one element where all lanes
share it.  So `mul.rn.f32 %f3, %f1, %f2;` becomes `f3 = f1 * f2`.  A register has one NumPy type,
that of the instruction which first writes it; another that reads it as something else takes a view.

Forms are listed whole: those that compilers make of the kernels, and near relatives.  What is not
listed is refused by name before the kernel runs: approximate and flush-to-zero forms above all,
since no one else rounds as they do.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from qloracle_gpu.devices.ptx import arithmetic
from qloracle_gpu.devices.ptx.blocks import Block, left, results, sources
from qloracle_gpu.devices.ptx.errors import UnknownInstruction
from qloracle_gpu.devices.ptx.parse import TYPES, Address, Instruction, Kernel, Operand, integer

# NumPy's types by PTX's: "F4" is float32, "U4" uint32, "I4" int32, "B1" a predicate.
DTYPES = {f"{kind}{n}": np.dtype(f"{kind.lower()}{n}") for kind in "UI" for n in (1, 2, 4, 8)}
DTYPES |= {f"F{n}": np.dtype(f"f{n}") for n in (2, 4, 8)} | {"B1": np.dtype(bool)}
LETTERS = {"b": "U", "u": "U", "s": "I", "f": "F", "p": "B"}

SPECIAL = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x"}
CACHING = r"(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+))*"  # hints: they change no value
SPACES = r"(?:\.(?P<space>global|shared(?:::cta)?))?"

FLOATS, SIGNED, BITS = "f32|f64", "s16|s32|s64", "b16|b32|b64"
INTEGERS = f"{SIGNED}|u16|u32|u64"


class Form(NamedTuple):
    """What some opcodes compute: a Python expression in their operands a, b, c.

    `{a}` is the first source in the instruction's own type, `{a:U}` its bits, `{b:u32}` in that
    type.
    """

    opcodes: str
    expression: str
    result: str = ""  # the type of the expression; the instruction's own where none is given


FORMS = (
    Form(rf"add(?:\.rn)?\.({FLOATS})", "{a} + {b}"),
    Form(rf"sub(?:\.rn)?\.({FLOATS})", "{a} - {b}"),
    Form(rf"mul(?:\.rn)?\.({FLOATS})", "{a} * {b}"),
    Form(rf"div\.rn\.({FLOATS})", "{a} / {b}"),
    Form(rf"sqrt\.rn\.({FLOATS})", "np.sqrt({a})"),
    Form(r"fma\.rn\.(f32)", "do.fma({a}, {b}, {c})"),
    Form(rf"neg\.({FLOATS})", "-{a}"),
    Form(rf"abs\.({FLOATS})", "np.abs({a})"),
    Form(rf"max\.({FLOATS})", "do.largest({a}, {b})"),
    Form(rf"min\.({FLOATS})", "do.least({a}, {b})"),
    Form(rf"add\.({INTEGERS})", "{a:U} + {b:U}", "U"),
    Form(rf"sub\.({INTEGERS})", "{a:U} - {b:U}", "U"),
    Form(rf"mul\.lo\.({INTEGERS})", "{a:U} * {b:U}", "U"),
    Form(rf"mad\.lo\.({INTEGERS})", "{a:U} * {b:U} + {c:U}", "U"),
    Form(r"mul\.wide\.([su]16|[su]32)", "np.multiply({a}, {b}, dtype={a:wide})", "wide"),
    Form(rf"div\.({INTEGERS})", "do.quotient({a}, {b})"),
    Form(rf"max\.({INTEGERS})", "np.maximum({a}, {b})"),
    Form(rf"min\.({INTEGERS})", "np.minimum({a}, {b})"),
    Form(rf"neg\.({SIGNED})", "-{a}"),
    Form(rf"and\.({BITS}|pred)", "{a} & {b}"),
    Form(rf"or\.({BITS}|pred)", "{a} | {b}"),
    Form(rf"xor\.({BITS}|pred)", "{a} ^ {b}"),
    Form(rf"not\.({BITS}|pred)", "~{a}"),
    Form(r"bfe\.(u32)", "do.extract({a}, {b}, {c})"),
    Form(r"bfi\.(b32|b64)", "do.insert({a}, {b}, {c:u32}, {d:u32})"),
    Form(r"prmt\.(b32)", "do.permute({a}, {b}, {c})"),
    Form(r"lop3\.(b32)", "do.table_logic({a}, {b}, {c}, int({d}[0]))"),
    Form(r"shf\.l\.wrap\.(b32)", "do.funnel({a}, {b}, {c}, left=True)"),
    Form(r"shf\.r\.wrap\.(b32)", "do.funnel({a}, {b}, {c}, left=False)"),
    Form(rf"mov\.({BITS}|{INTEGERS}|{FLOATS}|pred)", "{a}"),
    Form(rf"selp\.({BITS}|{INTEGERS}|{FLOATS})", "np.where({c:pred}, {a}, {b})"),
    Form(r"cvta\.(?:to\.)?global\.(u64)", "{a}"),
)  # fmt: skip
COMPARISONS = {
    "eq": "{x} == {y}",
    "lt": "{x} < {y}",
    "le": "{x} <= {y}",
    "gt": "{x} > {y}",
    "ge": "{x} >= {y}",
    "lo": "{x} < {y}",
    "ls": "{x} <= {y}",
    "hi": "{x} > {y}",
    "hs": "{x} >= {y}",
    "ne": "{x} != {y}",
    "neu": "{x} != {y}",
    "ltu": "~({x} >= {y})",
    "leu": "~({x} > {y})",
    "gtu": "~({x} <= {y})",
    "geu": "~({x} < {y})",
    "equ": "~(({x} < {y}) | ({x} > {y}))",
}
UNLIKE = "({x} < {y}) | ({x} > {y})"  # `ne` of floats: false for a NaN, of which `!=` is true


class Translated(NamedTuple):
    """A block as a function of registers, machine and lanes; what its lines came from."""

    run: Callable[[dict[str, Any], Any, Any], None]
    lines: dict[int, Instruction]


class Translator:
    """The registers of one kernel and the addresses of what it names."""

    def __init__(self, kernel: Kernel, made: Sequence[Block], addresses: dict[str, int]):
        self._kernel, self._blocks, self._addresses = kernel, made, addresses
        self._constants: dict[str, Any] = {**DTYPES, "np": np, "do": arithmetic}
        self.storage: dict[str, str] = {}
        for instruction in (i for block in made for i in block.instructions):
            for name in results(instruction):
                self.storage.setdefault(name, self._natural(name, instruction.opcode))

    def all(self) -> list[Translated]:
        """Return every block; UnknownInstruction if there is an instruction that is not listed."""
        unknown: list[Instruction] = []
        done = [self._block(number, unknown) for number in range(len(self._blocks))]
        if unknown:
            forms = {i.opcode: i for i in reversed(unknown)}
            raise UnknownInstruction(self._kernel.name, list(forms.values())[::-1])
        return done

    def _block(self, number: int, unknown: list[Instruction]) -> Translated:
        block = self._blocks[number]
        keep = left(self._blocks, number)
        body = []
        for instruction in block.instructions:
            try:
                body.append(self.statement(instruction))
            except Unlisted:
                unknown.append(instruction)
        written = {name for i in block.instructions for name in results(i)}
        read = sorted(block.needs & {name for i in block.instructions for name in sources(i)})
        first = "; ".join(f"{local(name)} = R[{name!r}]" for name in read)
        last = "; ".join(f"R[{name!r}] = {local(name)}" for name in sorted(written & keep))
        name = f"<{self._kernel.name}>"
        source = "\n ".join(["def run(R, M, LANE):", first or "pass", *body, last or "pass"])
        scope = self._constants
        exec(compile(source, name, "exec"), scope)
        return Translated(scope.pop("run"), dict(enumerate(block.instructions, 3)))

    def statement(self, instruction: Instruction) -> str:
        """Return an instruction in Python, on one line; Unlisted if it has no form."""
        if instruction.guard:
            raise Unlisted("a guarded instruction")
        form, kind = _form(instruction.opcode)
        if form and not any(isinstance(operand, tuple) for operand in instruction.operands):
            return self._formed(form, kind, instruction)
        write, found = _statement(instruction.opcode)
        if write is None or found is None:
            raise Unlisted(instruction.opcode)
        return write(self, instruction, found)

    def _formed(self, form: Form, kind: str, instruction: Instruction) -> str:
        read = {
            letter: _Source(self, operand, kind)
            for letter, operand in zip("abcd", instruction.operands[1:], strict=False)
        }
        return self.write(
            instruction.operands[0], form.expression.format(**read), form.result or kind, kind
        )

    # ---- operands

    def read(self, operand: Operand, kind: str) -> str:
        """Return an operand as a value of a type: a variable, a view of it, or a constant."""
        want = numpy_type(kind)
        name = str(operand)
        if name.startswith("!"):
            return f"~{self.read(name[1:], kind)}"
        if not name.startswith("%"):
            return self._constant(name, want)
        have = self.stored(name)
        if want[1:] == have[1:]:
            return local(name) if want == have else f"{local(name)}.view({want})"
        if int(want[1:]) > int(have[1:]):
            raise Unlisted(f"{name} is too narrow")
        narrow = f"{local(name)}.astype(U{want[1:]})"
        return narrow if want[0] == "U" else f"{narrow}.view({want})"

    def write(self, operand: Operand, expression: str, result: str, kind: str = "u32") -> str:
        """Return the assignment of an expression, whose type is `result`, to a register."""
        name = str(operand)
        if name == "_":
            return expression
        have, got = self.stored(name), numpy_type(result, kind)
        if have == got:
            return f"{local(name)} = {expression}"
        if have[1:] == got[1:]:
            return f"{local(name)} = ({expression}).view({have})"
        if int(have[1:]) < int(got[1:]):
            raise Unlisted(f"{name} is too narrow")
        wide = f"({expression}).astype(U{have[1:]})"  # which keeps the sign of a signed one
        return f"{local(name)} = {wide}" + ("" if have[0] == "U" else f".view({have})")

    def stored(self, name: str) -> str:
        """Return the type that a register's array has."""
        if name in SPECIAL or name in self.storage:
            return self.storage.get(name, "U4")
        return self._natural(name, "")

    def _natural(self, name: str, opcode: str) -> str:
        """Return the type for a register that this opcode writes first: a float if that is one."""
        if name in SPECIAL:
            return "U4"
        declared = numpy_type(self._kernel.type_of(name))
        first = next((part for part in opcode.split(".")[1:] if part in TYPES), "")
        if declared[0] == "U" and first in ("f32", "f64") and numpy_type(first)[1] == declared[1]:
            return numpy_type(first) if not opcode.startswith("set") else declared
        return declared

    def _constant(self, text: str, want: str) -> str:
        """Return the name of an array of one element, made once."""
        try:
            number = self._addresses[text] if text in self._addresses else integer(text)
        except ValueError as error:
            raise Unlisted(text) from error
        width = int(want[1:])
        bits = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        name = f"K{bits.hex()}_{want}"
        self._constants[name] = np.frombuffer(bits, DTYPES[want])
        return name

    def address(self, operand: Operand) -> str:
        """Return an address as an array of int64."""
        assert isinstance(operand, Address)
        if operand.base in self._addresses:
            return self._constant(str(self._addresses[operand.base] + operand.offset), "I8")
        if not operand.base.startswith("%"):
            raise Unlisted(f"{operand.base} does not lie in shared memory")
        wide = self.stored(operand.base)[1:] == "8"
        base = self.read(operand.base, "s64" if wide else "u32")
        base = base if wide else f"{base}.astype(I8)"
        return f"{base} + {operand.offset}" if operand.offset else base


class Unlisted(Exception):
    """There is no form for an opcode with these operands."""


class _Source:
    """An operand in a form's expression; the format's text is its type."""

    def __init__(self, translator: Translator, operand: Operand, kind: str):
        self._translator, self._operand, self._kind = translator, operand, kind

    def __format__(self, wanted: str) -> str:
        if wanted == "wide":
            return numpy_type("wide", self._kind)
        if wanted == "U":
            wanted = f"b{self._kind[1:]}"
        return self._translator.read(self._operand, wanted or self._kind)


def local(name: str) -> str:
    """Return the Python variable of a register.

    >>> local("%rd1"), local("%tid.x")
    ('v_rd1', 'v_tid_x')
    """
    return "v_" + re.sub(r"\W", "_", name.removeprefix("%"))


def numpy_type(kind: str, own: str = "") -> str:
    """Return the name of a PTX type's NumPy type; "U" are the bits of `own`, "wide" its double.

    >>> numpy_type("s32"), numpy_type("pred"), numpy_type("U", "s16"), numpy_type("wide", "u32")
    ('I4', 'B1', 'U2', 'U8')
    """
    if kind == "U":
        return f"U{TYPES[own]}"
    if kind == "wide":
        return f"{LETTERS[own[0]]}{2 * TYPES[own]}"
    return f"{LETTERS[kind[0]]}{TYPES[kind]}"


# ---- instructions whose operands are no plain values --------------------------------------------


def _compare(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    comparison, kind = found["comparison"], found["kind"]
    target, a, b = instruction.operands
    x, y = translator.read(a, kind), translator.read(b, kind)
    form = UNLIKE if comparison == "ne" and kind[0] == "f" else COMPARISONS[comparison]
    return translator.write(target, form.format(x=x, y=y), "pred")


def _convert(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    """Convert as NumPy does; of floats to integers nobody asks."""
    to, source = found["to"], found["source"]
    target, operand = instruction.operands
    narrows = to[0] == "f" and (source[0] != "f" or TYPES[to] < TYPES[source])
    if source[0] == "f" != to[0] or to == source or narrows != bool(found["rounding"]):
        raise Unlisted(instruction.opcode)
    value = f"{translator.read(operand, source)}.astype({numpy_type(to)})"
    return translator.write(target, value, to)


def _load(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    kind, count = found["kind"], int(found["count"] or 1)
    target, address = instruction.operands
    targets = _several(target)
    space = (found["space"] or "global").partition("::")[0]
    where = translator.address(address)
    call = f"M.memory[{space!r}].load({where}, {numpy_type(kind)}, {count}, LANE)"
    writes = [translator.write(t, f"L[{i}]", kind) for i, t in enumerate(targets) if t != "_"]
    return "; ".join([f"L = {call}", *writes])


def _store(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    kind, count = found["kind"], int(found["count"] or 1)
    address, source = instruction.operands
    parts = _several(source)
    space = (found["space"] or "global").partition("::")[0]
    values = "".join(f"{translator.read(s, kind)}, " for s in parts)
    where = translator.address(address)
    return f"M.memory[{space!r}].store({where}, {numpy_type(kind)}, {count}, LANE, ({values}))"


def _load_parameter(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    target, address = instruction.operands
    assert isinstance(address, Address)
    place, kind = f"M.parameters[{address.base!r}] + {address.offset}", found["kind"]
    return translator.write(target, f"M.parameter({place}, {numpy_type(kind)})", kind)


def _pack(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    """mov between a register and a vector of the parts of its bits."""
    target, source = instruction.operands
    kind = found["kind"]
    if isinstance(source, tuple):
        parts = _several(source)
        part = TYPES[kind] * 8 // len(parts)
        values = ", ".join(translator.read(s, f"b{part}") for s in parts)
        return translator.write(target, f"M.pack({numpy_type(kind)}, {values})", kind)
    targets = _several(target)
    part = TYPES[kind] * 8 // len(targets)
    wide = translator.read(source, f"b{TYPES[kind] * 8}")
    return "; ".join(
        translator.write(t, f"({wide} >> {part * i}).astype(U{part // 8})", f"b{part}")
        for i, t in enumerate(targets)
        if t != "_"
    )


def _shuffle(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    target, value, by, clamp, mask = instruction.operands
    pair = (*_several(target), "_")
    numbers = ", ".join(translator.read(operand, "u32") for operand in (by, clamp, mask))
    x = translator.read(value, "b32")
    call = f"L = M.shuffle({x}, {numbers}, LANE)"
    first = translator.write(pair[0], "L[0]", "b32")
    return f"{call}; {first}" + (
        "" if pair[1] == "_" else "; " + translator.write(pair[1], "L[1]", "pred")
    )


def _shift(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    """Shift by a number, which is known to be small enough, or by a register."""
    target, a, by = instruction.operands
    left_, kind = found["way"] == "l", found["kind"]
    x = translator.read(a, kind)
    if re.fullmatch(r"\d+", str(by)) and int(str(by)) < 8 * TYPES[kind]:
        value = f"{x} {'<<' if left_ else '>>'} {translator.read(by, kind)}"
    else:
        name = "shift_left" if left_ else "shift_right"
        value = f"do.{name}({x}, {translator.read(by, 'u32')})"
    return translator.write(target, value, kind)


def _meet(translator: Translator, instruction: Instruction, found: re.Match[str]) -> str:
    """Nothing happens at a barrier, other than that all have come."""
    if ".warp" not in instruction.opcode and instruction.operands != ("0",):
        raise Unlisted("a barrier of some threads")
    return "pass"


def _several(operand: Operand) -> tuple[str, ...]:
    """Return the names in {a, b} or p|q, or the one name."""
    assert not isinstance(operand, Address)
    return operand if isinstance(operand, tuple) else (operand,)


Write = Callable[[Translator, Instruction, "re.Match[str]"], str]
COMPARISON = "(?P<comparison>(?:eq|ne|lt|le|gt|ge)u?|lo|ls|hi|hs)"
KIND = r"\.(?P<kind>[busf](?:8|16|32|64))"
STATEMENTS: tuple[tuple[str, Write], ...] = (
    (rf"setp\.{COMPARISON}\.(?P<kind>{FLOATS}|{INTEGERS}|{BITS})", _compare),
    (r"cvt(?P<rounding>\.rn)?\.(?P<to>[usf]\d+)\.(?P<source>[usf]\d+)", _convert),
    (rf"ld\.param{KIND}", _load_parameter),
    (rf"ld(?:\.volatile)?{SPACES}{CACHING}(?:\.v(?P<count>[24]))?{KIND}", _load),
    (rf"st(?:\.volatile)?{SPACES}{CACHING}(?:\.v(?P<count>[24]))?{KIND}", _store),
    (r"mov\.(?P<kind>b32|b64)", _pack),
    (rf"sh(?P<way>[lr])\.(?P<kind>{BITS}|{INTEGERS})", _shift),
    (r"shfl\.sync\.bfly\.b32", _shuffle),
    (r"bar\.sync|barrier\.sync(?:\.aligned)?|bar\.warp\.sync", _meet),
)  # fmt: skip


@cache
def _form(opcode: str) -> tuple[Form | None, str]:
    """Return the form of an opcode and its type."""
    for form in FORMS:
        if found := re.fullmatch(form.opcodes, opcode):
            return form, found[1]
    return None, ""


@cache
def _statement(opcode: str) -> tuple[Write | None, re.Match[str] | None]:
    """Return what writes the statement of an opcode, and the parts of its name."""
    for pattern, write in STATEMENTS:
        if found := re.fullmatch(pattern, opcode):
            return write, found
    return None, None
