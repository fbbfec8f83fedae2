"""Quantizers and decoders: codes of four bits or eight, and the absmax of each block."""

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes import (
    cases,
    probe_decoders,
    probe_quantizers,
    s01_codebook,
    s02_thresholds,
    s03_blocks,
    s04_absmax,
    s05_code,
    s06_packing,
    s07_decode,
    smaller,
)
from qloracle_conformance.families.codes.script import script
from qloracle_conformance.judging.members import Member
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES

RULES = {
    "S1": s01_codebook,
    "S2": s02_thresholds,
    "S3": s03_blocks,
    "S4": s04_absmax,
    "S5": s05_code,
    "S6": s06_packing,
    "S7": s07_decode,
}
CHECKS = tuple(check for rule in RULES.values() for check in rule.CHECKS)


def without_spare(case: Case, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packed bytes without the one whose second nibble is spare."""
    return packed[:-1] if case.arrays["x"].size % 2 and packed.size > 1 else packed


# Decoders come first: they show the tables by which the quantizers are judged.
MEMBERS = (
    Member(
        "dequantize_4bit", cases.plain_decode, smaller.smaller_codes,
        probe_decoders.four_bit, QUANT_TYPES, script=script,
    ),
    Member(
        "quantize_4bit", cases.plain_encode, smaller.smaller_x,
        probe_quantizers.four_bit, QUANT_TYPES, "dequantize_4bit",
        script=script, settled=without_spare,
    ),
    Member(
        "dequantize_blockwise", cases.plain_decode, smaller.smaller_codes,
        probe_decoders.blockwise, MAPS, script=script,
    ),
    Member(
        "quantize_blockwise", cases.plain_encode, smaller.smaller_x,
        probe_quantizers.blockwise, MAPS, "dequantize_blockwise", script=script,
    ),
)  # fmt: skip
