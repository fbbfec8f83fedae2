"""The functions of L1 in steps, as `parts` has those of L0."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import Array, Encoder, Scale, divided

Nested = tuple[Array, Array, Any]
Levels = Callable[[Array | None], Array]  # the map that is passed in, or none -> the map


def mean(absmax: Array) -> np.float32:
    """S8: the offset."""
    return np.float32(math.fsum(absmax.tolist()) / max(absmax.size, 1))


def by_default(table: Array) -> Levels:
    """The map that is passed in, else this one."""
    return lambda codebook: table if codebook is None else codebook


OWN_MAP = by_default(qloracle.dynamic_codebook())


def group_index(n: int, blocksize: int) -> Array:
    """The group of each scale."""
    return np.arange(n) // blocksize


class Scales(NamedTuple):
    """Both functions out of their steps; an index beyond the end reads the last scale."""

    offset: Callable[[Array], Any] = mean
    residual: Callable[[Array, np.float32], Array] = np.subtract
    levels: Levels = OWN_MAP
    scale: Scale = divided
    group: Callable[[int, int], Array] = group_index
    combine: Callable[[Array, Array, np.float32], Array] = (  # S8: two roundings and no clamp
        lambda levels, scale, offset: levels * scale + offset
    )

    def quantize(
        self, absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
    ) -> Nested:
        """quantize_absmax."""
        offset, quantize = np.float32(self.offset(absmax)), Encoder(scale=self.scale).eight_bit
        rest = self.residual(absmax, offset)
        return (*quantize(rest, self.levels(codebook), blocksize=blocksize), offset)

    @np.errstate(all="ignore")
    def dequantize(
        self, codes: Array, nested_absmax: Array, offset: Any, *, codebook: Array | None = None,
        blocksize: int = 256,
    ) -> Array:  # fmt: skip
        """dequantize_absmax."""
        scale = nested_absmax.take(self.group(codes.size, blocksize), mode="clip")
        return self.combine(self.levels(codebook)[codes], scale, np.float32(offset))
