"""Faults planted in the CUDA text, and which runner sees which: proof that the runners detect.

    python -m qloracle_gpu.proof.faults

prints a line for each fault and a column for each runner.

    listed    the faults, from `faults.diff`: edits of the text, a story, who must see it
    planting  how a fault is planted; one that no longer applies is an error
    cases     small directed inputs, compared with the reference to the last bit
    attempt   one fault on one runner, in a process of its own
    matrix    all of them, and what is not as promised

The runners: `host`, the text compiled by g++ and run on the CPU; `address` and `thread`, the same
under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer; `ptx`, what
NVIDIA's compiler makes of the text, interpreted; `gate`, the figures that it prints for a kernel.
None of them sees everything. A value that is wrong shows wherever the kernel runs; a byte beyond an
array in `address` and `ptx`; an order of threads that happens to go well in `thread`; contraction
in `ptx`; a spill in `gate`; and an index of 32 bits in `host`, which can reserve the memory of 2^31
elements and run the last blocks of a launch.
"""
