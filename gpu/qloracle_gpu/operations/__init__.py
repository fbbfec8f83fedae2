"""From the arguments of a call to launches: the protocol's functions, for any machine.

    blockwise   a block, its absmax, and the nearest level (L0)
    nested      the scales of the scales (L1)
    products    the product with a packed weight (L2)
    lora        an adapter beside a frozen weight, and gradients (L3)
    adam        the step, with moments in 32 bits or in 8 (L4)

Each function takes a `Device` first and then what the protocol says.  Types, shapes and numbers are
checked before anything is launched; values are not looked at, since a GPU would have to be waited
for.
"""

from functools import partial
from types import SimpleNamespace

from qloracle_gpu.devices import Device
from qloracle_gpu.operations import adam, blockwise, lora, nested, products
from qloracle_gpu.operations.arguments import BLOCKSIZES

FUNCTIONS = (
    blockwise.quantize_4bit,
    blockwise.dequantize_4bit,
    blockwise.quantize_blockwise,
    blockwise.dequantize_blockwise,
    nested.quantize_absmax,
    nested.dequantize_absmax,
    products.matmul_4bit,
    products.matmul_4bit_backward,
    lora.lora_forward,
    lora.lora_backward,
    lora.qlora_forward,
    lora.qlora_backward,
    adam.adam_step,
    adam.adam_step_8bit,
)


def implementation(device: Device) -> SimpleNamespace:
    """Return the protocol's functions on this machine, with the limits that the kernels have."""
    functions = {function.__name__: partial(function, device) for function in FUNCTIONS}
    return SimpleNamespace(**functions, limits={"blocksize": list(BLOCKSIZES)})
