"""The CUDA text compiled by g++ and run on the CPU: `qloracle verify host`.

    build        the text, the shim before it, and the cache of libraries
    machine      `Host`, which answers `devices.Device` with NumPy arrays; `KernelError`
    signature    what a kernel takes, and arguments as C has them

A launch runs its blocks one after another and the threads of a block in turn, each until it must
wait for others.  So every run is the same as the last, and what CUDA forbids is seen: a barrier
that some threads never reach, a shuffle whose mask is not the lanes that arrive.  What the order
hides, two threads at one address, ThreadSanitizer sees: `qloracle_gpu.proof.sanitized`.

Importing this compiles nothing: the first call of `implementation` does.
"""

from qloracle_gpu import operations
from qloracle_gpu.devices.gcc.build import CompileError, unavailable
from qloracle_gpu.devices.gcc.machine import Host, KernelError

__all__ = ["CompileError", "Host", "KernelError", "arrays", "implementation", "unavailable"]

arrays = "numpy"
implementation = operations.implementation(Host())
