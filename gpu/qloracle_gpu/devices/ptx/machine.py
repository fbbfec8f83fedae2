"""The `Device` whose arrays are NumPy's and whose kernels are interpreted PTX."""

import struct
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from qloracle_gpu import compiling, kernels
from qloracle_gpu.devices import Addresses, Argument
from qloracle_gpu.devices.on_numpy import OnNumPy
from qloracle_gpu.devices.ptx.execute import HEAP, Program
from qloracle_gpu.devices.ptx.memory import POISON, Heap
from qloracle_gpu.devices.ptx.parse import Module, parse


class Ptx(OnNumPy):
    """A machine that runs the PTX of a CUDA text, compute_`arch`; the kernels' own by default.

    The first launch compiles it: compiling.NoCompiler, or CompileError for a text that does not.
    """

    def __init__(self, source: str | None = None, arch: int = 90, options: Sequence[str] = ()):
        self._source, self._arch, self._options = source, arch, tuple(options) or kernels.OPTIONS
        self._programs: dict[str, Program] = {}

    @property
    def _module(self) -> Module:
        text = kernels.text() if self._source is None else self._source
        return _module(text, self._arch, self._options)

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """Return an array whose bytes are all 0xFF, so that what is never written is seen."""
        made = np.empty(tuple(shape), np.dtype(dtype))
        made.reshape(-1).view(np.uint8)[:] = POISON
        return made

    def launch(self, kernel: str, grid: int, block: int, *arguments: Argument) -> None:
        """Run a kernel and wait for it.

        Raises ValueError for a name or a number of arguments that the text has not,
        UnknownInstruction for a kernel that cannot be run here, and KernelFault.
        """
        program = self.program(kernel)
        tables = {
            i: (argument, np.zeros(len(argument.arrays), np.uint64))
            for i, argument in enumerate(arguments)
            if isinstance(argument, Addresses)
        }
        named = [(f"argument {i}", table) for i, (_, table) in tables.items()]
        heap = Heap(HEAP, [*_arrays(arguments), *named])
        for addresses, table in tables.values():
            table[:] = [0 if a is None else heap.address(a) for a in addresses.arrays]
            heap.put(table)
        values = [tables[i][1] if i in tables else value for i, value in enumerate(arguments)]
        program.launch(grid, block, heap, _parameters(program, values, heap))
        heap.copy_back()

    def program(self, kernel: str) -> Program:
        """Return a kernel, translated; ValueError for a name that the text has not."""
        if kernel not in self._programs:
            if kernel not in self._module.kernels:
                known = ", ".join(sorted(self._module.kernels))
                raise ValueError(f"kernel must be one of {known}; got {kernel!r}")
            self._programs[kernel] = Program(self._module, self._module.kernels[kernel])
        return self._programs[kernel]


@cache
def _module(source: str, arch: int, options: tuple[str, ...]) -> Module:
    return parse(compiling.ptx(source, arch, options))


def _arrays(arguments: Sequence[Argument]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array of a launch and its name; TypeError for one that is not contiguous."""
    for number, argument in enumerate(arguments):
        name, several = f"argument {number}", isinstance(argument, Addresses)
        arrays = argument.arrays if isinstance(argument, Addresses) else (argument,)
        for place, array in enumerate(arrays):
            if isinstance(array, np.ndarray):
                if not array.flags.c_contiguous:
                    raise TypeError(f"{name} must be contiguous, got strides {array.strides}")
                yield f"{name}[{place}]" if several else name, array


def _parameters(program: Program, values: Sequence[Argument], heap: Heap) -> bytes:
    """Return the arguments as the kernel reads them; ValueError if number or size differ."""
    name, declared = program.kernel.name, program.kernel.parameters
    if len(values) != len(declared):
        raise ValueError(f"{name} takes {len(declared)} arguments, got {len(values)}")
    buffer = bytearray(max((at + size for at, size in declared.values()), default=0))
    for (parameter, (at, size)), value in zip(declared.items(), values, strict=True):
        written = _scalar(value, heap)
        if len(written) != size:
            raise ValueError(f"{parameter} takes {size} bytes, got {value!r} of {len(written)}")
        buffer[at : at + size] = written
    return bytes(buffer)


def _scalar(value: Argument, heap: Heap) -> bytes:
    """Return the bytes of one argument."""
    if value is None:
        return struct.pack("Q", 0)
    if isinstance(value, np.ndarray):
        return struct.pack("Q", heap.address(value))
    if isinstance(value, np.generic):
        return value.tobytes()
    raise TypeError(f"an argument must be an array, None or a NumPy scalar, got {value!r}")
