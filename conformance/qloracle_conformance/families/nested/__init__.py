"""Double quantization: the scales of blocks, coded once more."""

from qloracle_conformance.contract.dialects import Field
from qloracle_conformance.families.codes.script import script
from qloracle_conformance.families.nested import inputs, probe, s08_nested, shared_rules, smaller
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.members import Member, owns

RULES = {"S8": s08_nested}
CHECKS = (*shared_rules.CHECKS, *s08_nested.CHECKS)


def all_of_s8(check: Check, field: Field) -> bool:
    """S8 answers for every field but the tables; the shared rules for their own."""
    return field.rule != "S1" if check.rule == "S8" else owns(check, field)


MEMBERS = (
    Member(
        "dequantize_absmax", inputs.plain_codes, smaller.smaller_codes, probe.decoder,
        owns=all_of_s8, script=script, builds_on=("dequantize_blockwise",),
    ),
    Member(
        "quantize_absmax", inputs.plain_absmax, smaller.smaller_absmax, probe.quantizer,
        decoder="dequantize_absmax", owns=all_of_s8, script=script,
        builds_on=("quantize_blockwise",),
    ),
    Member(
        "quantize_nested", inputs.plain_state, smaller.smaller_state, probe.nested,
        ("nf4",), owns=all_of_s8,
        builds_on=("quantize_4bit", "dequantize_4bit", "quantize_absmax", "dequantize_absmax"),
    ),
)  # fmt: skip
