"""Numbers to try: scales with full mantissas."""

import numpy as np

from qloracle_conformance.judging.expected import Float32


def full_mantissa(rng: np.random.Generator, count: int, low: int = -20, high: int = 20) -> Float32:
    """Scales whose mantissa is full, over the binades low..high."""
    mantissa = rng.integers(1 << 23, 1 << 24, count) | 1
    return np.ldexp(mantissa.astype(np.float32), rng.integers(low, high, count) - 23).astype("f4")
