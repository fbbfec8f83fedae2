"""A fault, how it is planted, and the part of the text that is compiled to see it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from qloracle_gpu import kernels

# One line that makes a kernel of each type: FOR_EACH_FLOAT(QUANTIZE_4BIT)
EACH_TYPE = re.compile(r"^FOR_EACH_\w+\(\w+\)$", re.MULTILINE)
KERNEL = re.compile(r'^extern "C" __global__ void (\w+)\(.*?^\}$', re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^#line 1 "(.+)"\n', re.MULTILINE)


class Edit(NamedTuple):
    """A string of the text, what stands there instead, and how often it must occur."""

    old: str
    new: str
    times: int = 1


class Fault(NamedTuple):
    """One thing that is wrong, on purpose.

    `case` names the inputs of `cases.CASES` on which it is tried; `seen_by` the runners that must
    see it, of which others may see it too; `options` are the compiler's.
    """

    name: str
    story: str
    case: str
    seen_by: tuple[str, ...]
    edits: tuple[Edit, ...] = ()
    options: tuple[str, ...] = kernels.OPTIONS


class DoesNotApply(ValueError):
    """The text has changed under a fault: what it edits is not there, or not as often."""


def planted(text: str, fault: Fault) -> str:
    """Return the text with a fault in it.

    Raises DoesNotApply, unless every edit finds its string exactly as often as it says.

    >>> planted("a b b", Fault("", "", "", (), (Edit("b", "c", 2),)))
    'a c c'
    >>> planted("a b b", Fault("twice", "", "", (), (Edit("b", "c"),)))
    Traceback (most recent call last):
        ...
    qloracle_gpu.proof.faults.planting.DoesNotApply: twice: 'b' must occur 1 time in the text, got 2
    """
    for old, new, times in fault.edits:
        found = text.count(old)
        if found != times:
            often = f"{times} time{'s' if times > 1 else ''}"
            raise DoesNotApply(f"{fault.name}: {old!r} must occur {often} in the text, got {found}")
        text = text.replace(old, new)
    return text


def narrowed(text: str, wanted: Sequence[str]) -> str:
    r"""Return the text with no kernels but these; all other lines keep their number.

    A case launches two or three of seventy kernels, and a compiler's time goes with their number.
    `wanted` are names, or uses of the text's own macros: "QUANTIZE_4BIT(float, float32)".

    >>> narrowed("#define MAKE(T) ...\nFOR_EACH_FLOAT(MAKE)\n", ["MAKE(float)"])
    '#define MAKE(T) ...\n\nMAKE(float)\n'
    """

    def left(kernel: re.Match[str]) -> str:
        return kernel[0] if kernel[1] in wanted else "\n" * kernel[0].count("\n")

    text = KERNEL.sub(left, text)
    made = "".join(f"{line}\n" for line in wanted if "(" in line)
    return EACH_TYPE.sub("", text) + made


def place(text: str, fault: Fault) -> str:
    r"""Return the file and the line of a fault's first edit; where there is none, its options.

    >>> place('#line 1 "a.cu"\none\ntwo\n', Fault("", "", "", (), (Edit("two", "one"),)))
    'a.cu:2'
    """
    if not fault.edits:
        return " ".join(option for option in fault.options if option not in kernels.OPTIONS)
    before = text[: text.index(fault.edits[0].old)]
    *_, file = FILE.finditer(before)
    return f"{file[1]}:{before.count(chr(10), file.end()) + 1}"
