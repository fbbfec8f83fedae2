"""LoRA layers on a dense or a packed weight, forward and backward."""

from qloracle_conformance.contract.dialects import Field
from qloracle_conformance.families.lora import inputs, probe, s10_lora
from qloracle_conformance.families.products.smaller import smaller
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.members import Member

RULES = {"S10": s10_lora}
CHECKS = s10_lora.CHECKS


def by_rounding(check: Check, field: Field) -> bool:
    """How a layer rounds is the business of `rounding`; all of its weight, of `weights`."""
    return check.layer == ("rounding" if field.name.startswith("lora") else "weights")


MEMBERS = (
    Member("lora_forward", inputs.plain, smaller, probe.kept, owns=by_rounding),
    Member("lora_backward", inputs.plain, smaller, probe.kept, owns=by_rounding),
    Member(
        "qlora_forward", inputs.plain, smaller, probe.packed, ("nf4",), "dequantize_4bit",
        by_rounding, builds_on=("matmul_4bit", "lora_forward", "dequantize_4bit"),
    ),
    Member(
        "qlora_backward", inputs.plain, smaller, probe.packed, ("nf4",), "dequantize_4bit",
        by_rounding, builds_on=("matmul_4bit_backward", "lora_backward", "dequantize_4bit"),
    ),
)  # fmt: skip
