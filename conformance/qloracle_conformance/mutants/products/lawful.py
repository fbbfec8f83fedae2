"""4-bit linear layers that differ from the reference and are right (S9)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from qloracle_conformance.mutants.parts import Right
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import (
    biased_in_type_of_x,
    both,
    factors_in_type_of_rows,
    forward,
    in_type_of_rows,
)


class SumsOfTheLibrary(Right):
    """Products by BLAS, in float32."""

    lawful = True
    matmul_4bit, matmul_4bit_backward = both()


class SumsInOrder(Right):
    """Products added one after the other in float32, as one thread does."""

    lawful = True
    matmul_4bit, matmul_4bit_backward = both(total=sums.in_order)


class SumsFromTheEnd(Right):
    """Products added one after the other, the last one first."""

    lawful = True
    matmul_4bit, matmul_4bit_backward = both(total=sums.from_the_end)


class SumsInFusedSteps(Right):
    """One fused multiply-add a product."""

    lawful = True
    matmul_4bit, matmul_4bit_backward = both(total=sums.fused)


class SumsInPairs(Right):
    """A tree of additions, as a parallel reduction makes it."""

    lawful = True
    matmul_4bit, matmul_4bit_backward = both(total=sums.tree)


class DeclaredTree(Right):
    """The same tree, declared: a tighter bound holds."""

    lawful = True
    adopts = "order: pairwise"
    dialect: ClassVar[dict[str, str]] = {"order": "pairwise"}
    matmul_4bit, matmul_4bit_backward = both(total=sums.tree)


class DeclaredChunks(Right):
    """Chunks of 64 products each, then the sum of the chunks: declared."""

    lawful = True
    adopts = "order: chunk(64)"
    dialect: ClassVar[dict[str, str]] = {"order": "chunk(64)"}
    matmul_4bit, matmul_4bit_backward = both(total=sums.chunks)


class TensorCores(Right):
    """Eight products a step; what float32 cannot hold beside the largest is cut off."""

    lawful = True
    adopts = "accumulate: truncated"
    matmul_4bit, matmul_4bit_backward = both(total=sums.tensor_core)


class TensorCoresWithGuardBits(Right):
    """Eight products a step are added exactly, and each sum is cut off to float32."""

    lawful = True
    adopts = "accumulate: truncated"
    matmul_4bit, matmul_4bit_backward = both(total=sums.cut_at_the_end)


class EverySumCutOff(Right):
    """Each single addition is cut off: all errors are toward zero, and add up."""

    lawful = True
    adopts = "accumulate: truncated"
    matmul_4bit, matmul_4bit_backward = both(total=partial(sums.cut_at_the_end, step=1))


class WeightsInTypeOfX(Right):
    """The weight is decoded into the type of x (bitsandbytes: decode, then a library's product)."""

    lawful = True
    adopts = "product_weights: own"
    matmul_4bit, matmul_4bit_backward = both(decode=in_type_of_rows)


class FactorsInTypeOfX(Right):
    """Level and scale are rounded to the type of x first (bitsandbytes' kernels for vectors)."""

    lawful = True
    adopts = "product_weights: own_factors"
    matmul_4bit, matmul_4bit_backward = both(decode=factors_in_type_of_rows)


class BiasInTypeOfX(Right):
    """A float32 bias is rounded to the type of x before it is added."""

    lawful = True
    adopts = "bias_type: own"
    matmul_4bit = staticmethod(forward(add=biased_in_type_of_x))
