"""Implementations of L1 that differ from the reference and are right."""

import numpy as np

from qloracle_conformance.judging import expected
from qloracle_conformance.mutants.nested import faulty
from qloracle_conformance.mutants.nested.steps import Scales
from qloracle_conformance.mutants.parts import inverted, variant

# fmt: off

EqualScalesFirst = variant("zero_block: first",
    "A group of zeros, which equal scales leave, has code 0, declared (bitsandbytes on CPU).",
    {"dialect": {"quantize_absmax": {"zero_block": "first"}}},
    quantize_absmax=faulty.EqualScalesAreNaN.quantize_absmax)
DeclaredBaselineMap = variant("map_8bit: baseline",
    "The 8-bit map of a PyTorch without fused arithmetic, declared.",
    {"dialect": {"map_8bit": "baseline"}}, quantize_absmax=faulty.BaselineMap.quantize_absmax,
    dequantize_absmax=faulty.BaselineMap.dequantize_absmax)
FusedNested = variant("decode: fma",
    "Nested scales by one fused multiply-add: one rounding (bitsandbytes' fused kernels).",
    dequantize_absmax=Scales(combine=expected.fused).dequantize)
SummedInOrder = variant("",
    "The offset is summed one by one in float32: within the bound of any order.",
    quantize_absmax=Scales(offset=lambda absmax:  # cumsum adds in order, sum does not
        np.cumsum(absmax)[-1:].sum() / np.float32(max(absmax.size, 1))).quantize)
NestedReciprocal = variant("reciprocal",
    "Residuals are scaled by the reciprocal of the group's absmax.",
    quantize_absmax=Scales(scale=inverted).quantize)
