"""Implementations of the protocol for GPUs, to come: nothing is offered here yet.

Each will be a module of its own (`qloracle_gpu.torch_backend`, `qloracle_gpu.cupy_backend`), named
when it is wanted. Importing this package loads no framework.
"""
