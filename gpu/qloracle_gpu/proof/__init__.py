"""What proves that the kernels are right, and serves nobody who runs them: not in the wheel.

    faults     faults planted in the CUDA text, and which runner detects which
    sanitized  every kernel under AddressSanitizer and ThreadSanitizer
    exercise   the small calls that it makes
    gate       registers, spills and rounding of every kernel, for each architecture
    figures    bytes, instructions and registers of each kernel beside its budget

Each is a command: `python -m qloracle_gpu.proof.faults`, and so on.
"""
