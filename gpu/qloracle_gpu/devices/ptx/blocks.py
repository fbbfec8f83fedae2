"""A kernel as basic blocks, and which registers each block still needs.

Lanes part only at the end of a block and meet only at the start of one.  What several lanes do
together (a barrier, a shuffle) begins a block, so that lanes that come by another way can be waited
for.  Of guarded instructions there are branches only: the translation refuses any other.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qloracle_gpu.devices.ptx.parse import Address, Instruction, Kernel

TOGETHER = re.compile(r"(bar|barrier|shfl)\b")
STORES = re.compile(r"(st|bra|bar|barrier|ret|exit|red|membar|fence|trap|prefetch)\b")


@dataclass
class Block:
    """Instructions that run one after another, and where the lanes go then."""

    instructions: list[Instruction] = field(default_factory=list)
    guard: str = ""  # who takes the branch; "" for all
    target: int | None = None  # the block that the branch leads to
    ends: bool = False  # those who take no branch leave the kernel
    needs: frozenset[str] = frozenset()  # registers that it, or a block after it, reads
    together: bool = False  # its first instruction is one of several lanes together


def blocks(kernel: Kernel) -> list[Block]:
    """Return the blocks of a kernel in the order of its text, the last of which ends it."""
    made, starts = [Block()], dict[int, int]()
    jumps: list[tuple[Block, int]] = []
    leads = set(kernel.labels.values())
    for number, instruction in enumerate(kernel.instructions):
        if made[-1].instructions and (number in leads or _together(instruction)):
            made.append(Block())
        starts[number] = len(made) - 1
        root = instruction.opcode.partition(".")[0]
        if root == "bra":
            jumps.append((made[-1], kernel.labels[str(instruction.operands[0])]))
            made[-1].guard = instruction.guard
            made.append(Block())
        elif root in ("ret", "exit") and not instruction.guard:
            made[-1].ends = True
            made.append(Block())
        else:
            made[-1].instructions.append(instruction)
    made[-1].ends = True
    for block in made:
        block.together = bool(block.instructions) and _together(block.instructions[0])
    for block, number in jumps:
        block.target = starts.get(number, len(made) - 1)
    _needs(made)
    return made


def _together(instruction: Instruction) -> bool:
    return bool(TOGETHER.match(instruction.opcode))


def names(operand: object) -> Iterator[str]:
    """Yield the registers in an operand."""
    match operand:
        case Address(base=base):
            yield from names(base)
        case tuple():
            for part in operand:
                yield from names(part)
        case str() if operand.startswith("%"):
            yield operand


def results(instruction: Instruction) -> Sequence[str]:
    """Return the registers that an instruction writes."""
    if STORES.match(instruction.opcode) or not instruction.operands:
        return ()
    return [*names(instruction.operands[0])]


def sources(instruction: Instruction) -> Sequence[str]:
    """Return the registers that an instruction reads."""
    first = 0 if STORES.match(instruction.opcode) else 1
    return [name for operand in instruction.operands[first:] for name in names(operand)]


def _needs(made: list[Block]) -> None:
    """Find the registers that each block needs, from the last block to the first, until no more."""
    grew = True
    while grew:
        grew = False
        for number in reversed(range(len(made))):
            block = made[number]
            needed = set(left(made, number))
            for instruction in reversed(block.instructions):
                needed.difference_update(results(instruction))
                needed.update(sources(instruction))
            if len(needed) > len(block.needs):
                block.needs, grew = frozenset(needed), True


def left(made: Sequence[Block], number: int) -> frozenset[str]:
    """Return the registers that are needed after a block's instructions."""
    block = made[number]
    needed = {block.guard.removeprefix("!")} - {""}
    if not block.ends and (block.guard or block.target is None):
        needed |= made[number + 1].needs
    if block.target is not None:
        needed |= made[block.target].needs
    return frozenset(needed)
