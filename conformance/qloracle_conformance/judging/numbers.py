"""Numbers to try: scales with full mantissas, and plainer numbers for the reducer."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.expected import Float32


def full_mantissa(rng: np.random.Generator, count: int, low: int = -20, high: int = 20) -> Float32:
    """Scales whose mantissa is full, over the binades low..high."""
    mantissa = rng.integers(1 << 23, 1 << 24, count) | 1
    return np.ldexp(mantissa.astype(np.float32), rng.integers(low, high, count) - 23).astype("f4")


def zeroed(x: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """The same array with a share of its non-zero elements set to zero."""
    places = np.flatnonzero(x)
    step = len(places)
    while step > 1:
        step = -(-step // 2) if step > 2 else 1
        for start in range(0, len(places), step):
            if step == 1 and len(places) > 64:
                return
            part = x.copy()
            part.reshape(-1)[places[start : start + step]] = 0
            yield part


def rounder(x: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """The same array with one element replaced by a simpler number."""
    flat = x.reshape(-1)
    places = np.flatnonzero(flat)
    for place in places if len(places) <= 8 else ():
        value = float(flat[place])
        for simple in simpler(value):
            if complexity(simple) < complexity(value):
                part = x.copy()
                part.reshape(-1)[place] = simple
                if np.isfinite(float(part.reshape(-1)[place])):
                    yield part


def in_float32(case: Case) -> Iterator[Case]:
    """The same numbers in float32, if any of them are in 16 bits."""
    short = [name for name, array in case.arrays.items() if array.dtype.itemsize == 2]
    if short:
        yield case.with_arrays(**{name: case.arrays[name].astype(np.float32) for name in short})


def simpler(value: float) -> Iterator[float]:
    """Simpler numbers near a value: signs dropped, small wholes, powers of two, short mantissas."""
    yield 1.0
    yield from (-1.0, 2.0, 0.5, abs(value))
    mantissa, exponent = np.frexp(value)
    yield float(np.ldexp(np.sign(mantissa), int(exponent)))
    for bits in (1, 2, 3, 5, 8, 12, 16, 20):
        yield float(np.ldexp(np.round(mantissa * 2**bits), int(exponent) - bits))


def shorter(length: int) -> list[int]:
    """Shorter lengths: few, lanes, blocks and the edges below, then bisection."""
    edges = {1, 2, 3, 16, 32, 64, length // 4, length // 2, length - length % 16}
    return sorted(n for n in {*edges, length - 16, length - 2, length - 1} if 0 < n < length)


def simpler_scales(scale: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """Scales that are easier to read: all 1, or 1, 2, 3 and on."""
    ramp = np.arange(1, scale.size + 1, dtype=np.float32)
    yield from (simple for simple in (np.ones_like(scale), ramp) if _read(simple) < _read(scale))


def _read(scale: NDArray[np.floating]) -> tuple[int, float]:
    """How much there is to read in an array."""
    parts = [complexity(float(v)) for v in scale[:64]]
    return sum(bits for bits, _ in parts), sum(rest for _, rest in parts)


def complexity(value: float) -> tuple[int, float]:
    """Order numbers by how much there is to read in them: mantissa bits, distance from 1, sign."""
    if value == 0:
        return (0, 0.0)
    mantissa, exponent = np.frexp(abs(value))
    bits = int(mantissa * 2**53)
    length = 53 - ((bits & -bits).bit_length() - 1)
    return (length, abs(int(exponent) - 1) + (0.5 if value < 0 else 0.0))
