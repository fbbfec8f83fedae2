"""A kernel run on arrays of lanes: the lowest block of the program first, so that lanes meet again.

Lanes that part at a branch go on as two groups, each with its own, shorter registers; two groups
that come to the same block become one.  So nothing needs a mask, and what few lanes do costs
little.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from qloracle_gpu.devices.ptx import lanes
from qloracle_gpu.devices.ptx.arithmetic import Lanes
from qloracle_gpu.devices.ptx.blocks import Block, blocks
from qloracle_gpu.devices.ptx.errors import KernelFault, Misuse
from qloracle_gpu.devices.ptx.memory import Heap, Window, layout
from qloracle_gpu.devices.ptx.parse import Instruction, Kernel, Module
from qloracle_gpu.devices.ptx.translate import DTYPES, Translated, Translator

CHUNK = 8192  # lanes at once: their registers then stay in a core's cache
HEAP = 1 << 40  # the first address of global memory

Registers = dict[str, Any]  # arrays by register, and "%lane": the number of each lane


class Program:
    """One kernel, translated; UnknownInstruction if it cannot be.

    `counts` has how many lanes have run each block of instructions, over all launches.
    """

    def __init__(self, module: Module, kernel: Kernel):
        self.kernel, self.blocks = kernel, blocks(kernel)
        self.shared = layout(
            v for v in (*module.variables, *kernel.variables) if v.space == "shared"
        )
        addresses = {piece.name: piece.start for piece in self.shared}
        translator = Translator(kernel, self.blocks, addresses)
        self.code = translator.all()
        self.stored = translator.stored
        self.counts: Counter[int] = Counter()
        self.trace: list[tuple[int, int]] | None = None  # a list: blocks as they run, and lanes

    def launch(self, grid: int, block: int, heap: Heap, parameters: bytes) -> None:
        """Run `grid` blocks of `block` threads, a few blocks at a time; KernelFault."""
        if not 1 <= block <= self.kernel.max_threads:
            raise ValueError(f"block must be 1 to {self.kernel.max_threads} threads, got {block}")
        if not 1 <= grid < 2**31:
            raise ValueError(f"grid must be 1 to 2147483647 blocks, got {grid}")
        together = max(1, CHUNK // block)
        with np.errstate(all="ignore"):
            for first in range(0, grid, together):
                machine = Machine(self, heap, parameters, block, min(together, grid - first))
                Run(self, machine, first, grid).run()


class Machine:
    """What the lines of a translated block call: memory, parameters, shuffles."""

    def __init__(self, program: Program, heap: Heap, parameters: bytes, threads: int, count: int):
        self._bytes = parameters
        self.parameters = {name: at for name, (at, _) in program.kernel.parameters.items()}
        self.threads, self.count = threads, count
        shared = Window("shared", 0, program.shared, threads, count)
        self.memory = {"global": heap.window, "shared": shared}

    def parameter(self, offset: int, dtype: np.dtype[Any]) -> Lanes:
        """Return a kernel's argument, which all lanes share."""
        return np.frombuffer(self._bytes, dtype, 1, offset)

    def shuffle(
        self, x: Lanes, by: Lanes, clamp: Lanes, mask: Lanes, lane: Lanes
    ) -> tuple[Lanes, Lanes]:
        """Return each lane's value of another lane of its warp."""
        return lanes.shuffle(x, by, clamp, mask, self.numbered(lane))

    def numbered(self, lane: Lanes) -> Lanes:
        """Number the lanes so that each block begins a warp, whatever its size."""
        rest = self.threads % lanes.WARP
        return lane + lane // self.threads * (lanes.WARP - rest) if rest else lane

    @staticmethod
    def pack(dtype: np.dtype[Any], *parts: Lanes) -> Lanes:
        """Return the parts as one number, the first of them lowest."""
        width = 8 * dtype.itemsize // len(parts)
        result = np.zeros(1, dtype)
        for number, part in enumerate(parts):
            result = result | part.astype(dtype) << dtype.type(width * number)
        return result


@dataclass
class Run:
    """The groups of lanes of a few blocks, each at the block of the program that it runs next."""

    program: Program
    machine: Machine
    first: int  # the grid's block that is the first of these
    grid: int
    ready: dict[int, Registers] = field(default_factory=dict)
    waiting: dict[int, Registers] = field(default_factory=dict)  # for lanes that they must meet

    def run(self) -> None:
        """Run until every lane has left; KernelFault."""
        self.ready = {0: self._entry()}
        while self.ready:
            number = min(self.ready)
            group = self.ready.pop(number)
            if self.program.blocks[number].together:
                gathered = self._gather(number, group)
                if gathered is None:
                    continue
                group = gathered
            self._execute(number, group)
            self._leave(number, group)
        if self.waiting:
            self._fail_waiting()

    def _entry(self) -> Registers:
        """Return the registers that a kernel starts with: who each lane is."""
        threads, count = self.machine.threads, self.machine.count
        lane = np.arange(threads * count)
        known = {
            "%tid.x": (lane % threads).astype(np.uint32),
            "%ctaid.x": (lane // threads + self.first).astype(np.uint32),
            "%ntid.x": np.array([threads], np.uint32),
            "%nctaid.x": np.array([self.grid], np.uint32),
        }
        group: Registers = {"%lane": lane}
        for name in self.program.blocks[0].needs:
            dtype = DTYPES[self.program.stored(name)]
            unwritten = np.frombuffer(b"\xff" * dtype.itemsize, dtype)
            group[name] = known.get(name, unwritten)
        return group

    def _execute(self, number: int, group: Registers) -> None:
        code, lane = self.program.code[number], group["%lane"]
        self.program.counts[number] += lane.size
        if self.program.trace is not None:
            self.program.trace.append((number, lane.size))
        try:
            code.run(group, self.machine, lane)
        except Misuse as misuse:
            self._fault(misuse.why, _line(misuse, code), int(lane[misuse.position]))

    def _leave(self, number: int, group: Registers) -> None:
        """Send the lanes on: to the branch's target, to the next block, or home."""
        block = self.program.blocks[number]
        if not block.guard:
            if not block.ends:
                self._arrive(number + 1 if block.target is None else block.target, group)
            return
        assert block.target is not None
        taken = group[block.guard.removeprefix("!")]
        taken = ~taken if block.guard.startswith("!") else taken
        if taken.all():
            self._arrive(block.target, group)
        elif not taken.any():
            self._arrive(number + 1, group)
        else:
            for there, mask in ((block.target, taken), (number + 1, ~taken)):
                self._arrive(there, _part(group, self.program.blocks[there], mask))

    def _arrive(self, number: int, group: Registers) -> None:
        if number in self.ready:
            other = self.ready[number]
            group = self._join(other, group, self.program.blocks[number])
        self.ready[number] = group

    def _gather(self, number: int, group: Registers) -> Registers | None:
        """Return the lanes that have all come that they must meet; the others wait."""
        block = self.program.blocks[number]
        if number in self.waiting:
            group = self._join(self.waiting.pop(number), group, block)
        try:
            present = self._present(block.instructions[0], group)
        except Misuse as misuse:
            lane = int(group["%lane"][misuse.position])
            self._fault(misuse.why, block.instructions[0], lane)
        if present.all():
            return group
        self.waiting[number] = _part(group, block, ~present)
        return _part(group, block, present) if present.any() else None

    def _present(self, instruction: Instruction, group: Registers) -> Lanes:
        lane, threads = group["%lane"], self.machine.threads
        root = instruction.opcode
        if root.startswith(("bar.sync", "barrier.sync")):
            return lanes.blocks_present(lane, threads)
        mask = str(instruction.operands[-1])
        if mask.startswith("%"):
            word: Lanes = group[mask].view(np.uint32)
        else:
            word = np.array([int(mask, 0) & lanes.ALL], np.uint32)
        everyone = lane.size == threads * self.machine.count and threads % lanes.WARP == 0
        if everyone and word.size == 1 and int(word[0]) == lanes.ALL:
            return np.ones(1, bool)
        return lanes.warps_present(word, self.machine.numbered(lane))

    def _join(self, a: Registers, b: Registers, block: Block) -> Registers:
        """Return two groups as one, its lanes in rising order."""
        if b["%lane"][0] < a["%lane"][0]:
            a, b = b, a
        first, second = a["%lane"].size, b["%lane"].size
        lane, order = np.concatenate([a["%lane"], b["%lane"]]), None
        if a["%lane"][-1] > b["%lane"][0]:
            order = np.argsort(lane, kind="stable")
        group: Registers = {"%lane": lane if order is None else lane[order]}
        for name in block.needs:
            x, y = a[name], b[name]
            if x is y or (x.size == y.size == 1 and x.tobytes() == y.tobytes()):
                group[name] = x
            else:
                x = x if x.size == first else x.repeat(first)
                y = y if y.size == second else y.repeat(second)
                both = np.concatenate([x, y])
                group[name] = both if order is None else both[order]
        return group

    def _fail_waiting(self) -> NoReturn:
        number = min(self.waiting)
        instruction = self.program.blocks[number].instructions[0]
        lane = int(self.waiting[number]["%lane"][0])
        alone = instruction.opcode.startswith(("bar.sync", "barrier"))
        who = "threads of the block" if alone else "lanes that the mask names"
        self._fault(f"{who} never came", instruction, lane)

    def _fault(self, why: str, instruction: Instruction, lane: int) -> NoReturn:
        block, thread = divmod(lane, self.machine.threads)
        raise KernelFault(
            self.program.kernel.name, why, instruction, self.first + block, thread
        ) from None


def _part(group: Registers, block: Block, mask: Lanes) -> Registers:
    """Return the lanes of a mask with what they still need."""
    return {
        name: group[name] if group[name].size == 1 else group[name][mask]
        for name in ("%lane", *block.needs)
    }


def _line(misuse: Misuse, code: Translated) -> Instruction:
    """Return the instruction whose line raised this."""
    trace = misuse.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is code.run.__code__:
            return code.lines[trace.tb_lineno]
        trace = trace.tb_next
    raise AssertionError("a fault of no line") from misuse
