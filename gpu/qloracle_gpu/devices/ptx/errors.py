from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qloracle_gpu.devices.ptx.parse import Instruction


class UnknownInstruction(Exception):
    """A kernel has instructions that are not run here: each is named, with its line.

    It is no NotImplementedError, which the conformance kit takes for a lawful refusal.
    """

    def __init__(self, kernel: str, instructions: Sequence[Instruction]):
        forms = "; ".join(f"{i.opcode} ({where(i)})" for i in instructions[:8])
        more = f" and {len(instructions) - 8} more" if len(instructions) > 8 else ""
        super().__init__(f"{kernel}: not run here: {forms}{more}")


class Misuse(Exception):
    """An instruction that went wrong in some lane: `position` among the lanes that ran it."""

    def __init__(self, why: str, position: int = 0):
        super().__init__(why)
        self.why, self.position = why, position


class KernelFault(Exception):
    """What a GPU leaves undefined: an access out of bounds, a barrier that some never reach."""

    def __init__(self, kernel: str, why: str, instruction: Instruction, block: int, thread: int):
        super().__init__(
            f"{kernel}: {why}\n  {instruction.text}\n  {where(instruction)}, "
            f"block {block}, thread {thread}"
        )
        self.why, self.instruction, self.block, self.thread = why, instruction, block, thread


def where(instruction: Instruction) -> str:
    """Return the lines of an instruction: that of the CUDA text, where known, and the PTX's."""
    place = f"{instruction.place}, " if instruction.place else ""
    return f"{place}PTX line {instruction.line}"
