"""Wrong decoding (S7): what becomes of level * absmax on its way to the output type."""

import numpy as np
from numpy.typing import DTypeLike

from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes.steps import cut_to_bfloat16, only_for
from qloracle_conformance.mutants.parts import BFLOAT16, Array, Decoder, fault, product
from qloracle_conformance.mutants.products import sums


def _pairs_in_half_a_buffer(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
    if dtype != np.float32:
        return product(levels, scale, dtype)
    narrow = product(levels, scale, BFLOAT16)
    return np.append(narrow, np.zeros_like(narrow)).view(np.float32)


# fmt: off

Truncated = fault("S7", "The product is cut to bfloat16, not rounded (rule S7).",
    **Decoder(multiply=only_for(BFLOAT16, cut_to_bfloat16)).both())
HalvesUp = fault("S7",
    "float16 results round a half up: 0x1000 is added (bitsandbytes' portable CPU path).",
    dequantize_4bit=Decoder(multiply=only_for(np.float16, sums.tf32)).four_bit)
Saturated = fault("S7", "float16 results end at 65,504 instead of infinity (rule S7).",
    **Decoder(multiply=only_for(np.float16, lambda values: np.clip(values, -65504, 65504))).both())
RoundedTwice = fault("S7",
    "float16 results pass through a bfloat16 buffer (unsloth #4026: one buffer, two types).",
    dequantize_4bit=Decoder(
        multiply=only_for(np.float16, lambda values: parts.rounded(values, BFLOAT16))).four_bit)
RoundedDirectly = fault("S7",
    "The product is made in float64 and rounded once, past float32 (rule S7).",
    dequantize_4bit=Decoder(multiply=lambda levels, scale, dtype:
        (levels.astype(np.float64) * scale).astype(dtype)).four_bit)
SmallHalvesLost = fault("S7",
    "Subnormal float16 results are flushed, though their products are normal (rule S7).",
    dequantize_4bit=Decoder(multiply=only_for(np.float16, lambda values:
        np.where(np.abs(values.astype(np.float16)) < 2.0**-14, 0, values))).four_bit)
ScaleNarrowed = fault("S7",
    "The absmax is rounded to the output type, the level is not (bitsandbytes on Gaudi).",
    **Decoder(multiply=lambda levels, scale, dtype:
        product(levels, parts.rounded(scale, dtype), dtype)).both())
SignOfScaleLost = fault("S7",
    "A negative absmax, lawful after double quantization, is taken for its magnitude (rule S7).",
    dequantize_4bit=Decoder(multiply=lambda levels, scale, dtype:
        product(levels, np.abs(scale), dtype)).four_bit)
HalfABuffer = fault("S7",
    "float32 output by the 16-bit routine fills half the buffer with pairs (axolotl #3799).",
    dequantize_4bit=Decoder(multiply=_pairs_in_half_a_buffer).four_bit)
SignedCodes = fault("S7",
    "8-bit codes are read as signed bytes: those above 127 decode to level 0 (rule S7).",
    dequantize_blockwise=Decoder(levels=lambda codebook:
        np.where(np.arange(codebook.size) < 128, codebook, codebook[0])).eight_bit)
