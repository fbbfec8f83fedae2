"""An example that comes along: a decoder in NumPy, right but for one line.  Can you see it?

`qloracle verify example` finds it in a second.
"""

import math

import numpy as np

NF4 = np.array([
    0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
    0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000,
], np.uint32).view(np.float32)  # fmt: skip


def dequantize_4bit(packed, absmax, *, shape, blocksize=64):  # type: ignore[no-untyped-def]
    """Decode NF4."""
    n = math.prod(shape)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    block = np.arange(n) // blocksize
    block = np.minimum(block, max(n // blocksize - 1, 0))  # the last, short block has a scale too
    return (NF4[codes] * absmax[block]).reshape(shape)
