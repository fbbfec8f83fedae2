"""NF4 in plain torch: the reference's functions on tensors, to the bit, where the tensors are.

    blockwise   a block, its absmax, and the nearest level
    nested      the scales of the scales
    tables      the codebooks, once for each device

The functions are those of `qloracle`, with tensors for arrays and torch's types for NumPy's. The
results equal the reference's in every bit: codes, scales, offset, decoded values. All tensors of
a call lie on one device, and there the results lie, too. They may be views of any strides, and may
require a gradient; the results never do. Bad input raises what the reference raises.

>>> import torch
>>> x = torch.tensor([0.5, -2.0, 0.0, 1.0], dtype=torch.bfloat16)
>>> packed, absmax = quantize_4bit(x)
>>> absmax.tolist(), [f"{byte:02x}" for byte in packed]
([2.0], ['a0', '7c'])
>>> dequantize_4bit(packed, absmax, shape=(4,), dtype=torch.bfloat16)
tensor([ 0.4922, -2.0000,  0.0000,  0.8828], dtype=torch.bfloat16)

So far this has been run on CPUs only: no GPU was at hand. Nothing here asks for the kind of a
device, and nothing needs what cuda, mps or xpu are known to lack (float64, for one). A device that
flushes subnormal numbers, or divides with another rounding than that of IEEE 754, will differ.

To look for a NaN or an unknown code the values of a call are read, which on a GPU waits for it.
Under `torch.compile`, or while a CUDA graph is captured, nothing can wait: there the checks of
values are left out, and those of types and shapes are not.
"""

from qloracle_gpu.torch_backend.adam import adam_step, adam_step_8bit
from qloracle_gpu.torch_backend.blockwise import (
    dequantize_4bit,
    dequantize_blockwise,
    quantize_4bit,
    quantize_blockwise,
)
from qloracle_gpu.torch_backend.linear4bit import (
    matmul_4bit,
    matmul_4bit_backward,
    qlora_backward,
    qlora_forward,
)
from qloracle_gpu.torch_backend.lora import lora_backward, lora_forward
from qloracle_gpu.torch_backend.nested import dequantize_absmax, quantize_absmax

arrays = "torch"  # what the conformance kit shall hand over

__all__ = [
    "adam_step",
    "adam_step_8bit",
    "arrays",
    "dequantize_4bit",
    "dequantize_absmax",
    "dequantize_blockwise",
    "lora_backward",
    "lora_forward",
    "matmul_4bit",
    "matmul_4bit_backward",
    "qlora_backward",
    "qlora_forward",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_blockwise",
]
