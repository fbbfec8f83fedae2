"""The kernels run without a GPU: the PTX that NVIDIA's compiler makes of them, on NumPy arrays.

    parse       the text of a module: instructions, labels, variables, lines of the CUDA source
    blocks      basic blocks, and which registers each still needs
    translate   a block as a Python function, a line an instruction
    arithmetic  the roundings and bit operations that NumPy has not
    memory      a heap with gaps, and shared memory: every access is checked
    lanes       shuffles, and who has to be there
    execute     groups of lanes that part at branches and meet again
    machine     the `Device`: arrays in, a launch, arrays out

This is what the compiler made, so it shows contraction to a fused multiply-add, fast mathematics, a
wrong mask or conversion, and every access out of bounds.  Lanes run in step, so it cannot show a
dropped barrier; and ptxas, which makes machine code of PTX, is trusted.  What the kernels do not
use is refused by name: local memory, tables of the module, other shuffles.

`implementation` is what the conformance kit judges; its first call compiles.
"""

from qloracle_gpu import compiling, operations
from qloracle_gpu.devices.ptx.errors import KernelFault, UnknownInstruction
from qloracle_gpu.devices.ptx.machine import Ptx

__all__ = ["KernelFault", "Ptx", "UnknownInstruction", "implementation", "unavailable"]

MOST_ELEMENTS = 5_000_000  # of a call: about a second; smoke has none that is larger

implementation = operations.implementation(Ptx())
implementation.limits["max_elements"] = MOST_ELEMENTS


def unavailable() -> str:
    """Return in one line why nothing compiles the kernels here, or ''."""
    try:
        compiling.compiler()
    except compiling.NoCompiler as reason:
        return str(reason)
    return ""
