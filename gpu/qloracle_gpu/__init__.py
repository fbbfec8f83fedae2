"""Implementations of the protocol for GPUs, which must match the reference to the bit.

`qloracle_gpu.torch_backend` is the first: plain tensors, on any device.  Each is named when it is
wanted; importing this package loads no framework.
"""
