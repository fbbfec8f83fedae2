"""Machines without a GPU that run the CUDA text: `host` on the CPU, `ptx` in NumPy."""
