"""QLoRA in plain torch: the reference's functions on tensors, where the tensors are.

    blockwise   a block, its absmax, and the nearest level
    nested      the scales of the scales
    lora        a thin product beside a frozen weight, and its gradients
    linear4bit  the product with a packed weight, a few rows at a time
    adam        the step, with moments in 32 bits or in 8
    tables      the codebooks, once for each device
    operators   what a compiler and torch's gradients see of them
    cuda        which calls go to the kernels: CUDA tensors, where CuPy is installed

The functions are those of `qloracle`, with tensors for arrays and torch's types for NumPy's. Codes,
scales, offset, decoded values and Adam's steps equal the reference's in every bit. Products are
sums in float32, which no two libraries order alike: they keep within the bounds of S9 and S10. All
tensors of a call lie on one device, and there the results lie, too. They may be views of any
strides. Bad input raises what the reference raises.

Tensors may require a gradient. What `matmul_4bit`, `lora_forward` and `qlora_forward` return then
has one, with respect to x, the bias, A and B, never to the weight. No other result requires one.

>>> import torch
>>> x = torch.tensor([0.5, -2.0, 0.0, 1.0], dtype=torch.bfloat16)
>>> packed, absmax = quantize_4bit(x)
>>> absmax.tolist(), [f"{byte:02x}" for byte in packed]
([2.0], ['a0', '7c'])
>>> dequantize_4bit(packed, absmax, shape=(4,), dtype=torch.bfloat16)
tensor([ 0.4922, -2.0000,  0.0000,  0.8828], dtype=torch.bfloat16)

What it takes to learn a rank-1 adapter beside that weight, one step long:

>>> a, b = torch.ones(1, 2, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
>>> y = qlora_forward(x[:2], packed, absmax, a, b, shape=(2, 2), scaling=1.0)
>>> y.float().sum().backward()
>>> b.grad.tolist(), a.grad.tolist()
([[-1.5], [-1.5]], [[0.0, 0.0]])
>>> zero = torch.zeros(2, 1)
>>> new_b, m, v = adam_step(b, b.grad, zero, zero, step=1, lr=0.5)
>>> new_b.mT
tensor([[0.5000, 0.5000]])

Where CuPy is installed and a block size is a power of two from 32 to 4096, CUDA tensors go to the
kernels of `qloracle_gpu.kernels`: see `cuda`. Otherwise, and on other devices, each function is a
row of torch's own operations.

So far this has been run on CPUs only: no GPU was at hand. Nothing needs what cuda, mps or xpu are
known to lack (float64, for one; only a CPU is asked for it). A device that flushes subnormal
numbers, or rounds a quotient or a root otherwise than IEEE 754, will differ.

To look for a NaN or an unknown code the values of a call are read, which on a GPU waits for it. By
the kernels, and while a CUDA graph is captured, nothing waits: there the checks of values are left
out, and those of types and shapes are not.
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
