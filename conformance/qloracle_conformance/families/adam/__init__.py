"""Adam on float32 states and on 8-bit ones."""

from qloracle_conformance.contract.dialects import Field
from qloracle_conformance.families.adam import inputs, probe, s11_adam, s11b_adam_8bit
from qloracle_conformance.families.adam.smaller import smaller
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.members import Member

RULES = {"S11": s11_adam, "S11b": s11b_adam_8bit}
CHECKS = (*s11_adam.CHECKS, *s11b_adam_8bit.CHECKS)


def as_8_bits_show(check: Check, field: Field) -> bool:
    """S11's fields belong to S11b's layers; the moments show in the coded states."""
    layer = field.layer.replace("S11/moments", "S11b/states").replace("S11/", "S11b/")
    return layer == f"{check.rule}/{check.layer}"


MEMBERS = (
    Member("adam_step", inputs.plain, smaller, probe.step),
    Member(
        "adam_step_8bit", inputs.plain, smaller, probe.step_8bit, owns=as_8_bits_show,
        builds_on=("quantize_blockwise", "dequantize_blockwise", "adam_step"),
    ),
)  # fmt: skip
