"""S7. Decoding: float32(level) * float32(absmax) with one float32 rounding, then one rounding to
nearest even to the output type.

float16 therefore overflows to infinity from 65,520 on.  absmax may be negative or -0 (a nested
absmax can be); zeros compare by value.  Rounding both factors to the output type first is a lawful
dialect (output_type), found by the probe; so is flushing subnormal products.

Judged for every code at powers of two, at full-mantissa, negative, subnormal and huge scales, in
three output types, with 65,519.996 and 65,520 among the products, by edits and by random volume.
"""

from collections.abc import Iterator

import numpy as np

import qloracle
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes import edits, values
from qloracle_conformance.families.codes.cases import packed_case
from qloracle_conformance.families.codes.judge import judge_decoded
from qloracle_conformance.judging.checks import Plan, layers
from qloracle_conformance.judging.expected import Float32, full_mantissa
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES


def every_code(plan: Plan, scale: Float32, note: str) -> Iterator[Case]:
    """All codes at every scale, one row a scale, in the three output types."""
    size = qloracle.codebook(plan.view.table).size if plan.view.quant_type else 256
    width = 64 if size <= 64 else 256
    codes = np.tile(np.resize(np.arange(size, dtype=np.uint8), width), (scale.size, 1)).copy()
    for dtype in FLOAT_TYPES:
        yield packed_case(
            plan.view, codes.reshape(-1), scale.astype(np.float32), codes.shape, width, dtype, note
        )


def powers(plan: Plan) -> Iterator[Case]:
    """Every power of two."""
    yield from every_code(plan, values.powers(values.NORMAL_POWERS), "powers of two")


def mantissas(plan: Plan) -> Iterator[Case]:
    """Full mantissas of both signs: rounding of the product, and double rounding, show here."""
    scale = full_mantissa(plan.rng, plan.pick(512, 1 << 13), -30, 30)
    scale[1::2] *= -1
    yield from every_code(plan, scale, "full mantissas")
    yield from every_code(plan, -scale[::-1], "the same codes and shape, other scales")


def extremes(plan: Plan) -> Iterator[Case]:
    """Zeros of both signs, subnormal and huge scales, and the edge of float16."""
    edge = [65519.996, 65520.0, -65520.0, 65504.0, 131072.0, 262144.0]
    small = values.powers(values.SUBNORMAL_POWERS)
    scale = np.concatenate([[0.0, -0.0], edge, values.extremes(), -values.extremes(), small])
    yield from every_code(plan, scale.astype(np.float32), "edges of the scale")
    ramp = np.ldexp(np.linspace(1, 2, 64, dtype=np.float32), 17)
    yield from every_code(plan, ramp.astype(np.float32), "scales up to 2**18")


def other_maps(plan: Plan) -> Iterator[Case]:
    """Maps of fewer than 256 levels, passed in."""
    for codebook in values.maps():
        codes = plan.rng.integers(0, codebook.size, 300).astype(np.uint8)
        scale = full_mantissa(plan.rng, 5, -3, 3)
        note = f"{codebook.size} levels"
        case = packed_case(plan.view, codes, scale, (300,), 64, "float32", note)
        yield case.with_arrays(codebook=codebook)


def volume(plan: Plan) -> Iterator[Case]:
    """Random codes and scales, all block sizes and types."""
    rng, levels = plan.rng, plan.view.levels
    for blocksize in (32, 64, 256, 1024, 4096):
        for dtype in FLOAT_TYPES:
            n = plan.pick(1 << 14, 1 << 19)
            codes = rng.integers(0, levels.size, n).astype(np.uint8)
            scale = np.exp(rng.normal(-3, 1, -(-n // blocksize))).astype(np.float32)
            yield packed_case(plan.view, codes, scale, (n,), blocksize, dtype, "random volume")


LAYERS = {"powers": powers, "mantissas": mantissas, "extremes": extremes, "volume": volume}
CHECKS = (
    *layers("S7", "dequantize_4bit", QUANT_TYPES, judge_decoded, LAYERS, search=edits.decoded),
    *layers("S7", "dequantize_blockwise", MAPS, judge_decoded, LAYERS, search=edits.decoded),
    *layers("S7", "dequantize_blockwise", MAPS[:1], judge_decoded, {"maps": other_maps}),
)
