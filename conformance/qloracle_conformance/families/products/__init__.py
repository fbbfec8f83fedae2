"""Products with a 4-bit weight, forward and backward."""

from qloracle_conformance.contract.dialects import Field
from qloracle_conformance.families.products import inputs, probe, s09_products
from qloracle_conformance.families.products.script import script
from qloracle_conformance.families.products.smaller import smaller
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.members import Member
from qloracle_conformance.judging.views import QUANT_TYPES

RULES = {"S9": s09_products}
CHECKS = s09_products.CHECKS


def by_weights(check: Check, field: Field) -> bool:
    """A product shows its nibbles, its blocks and its weights at once: one layer answers."""
    return check.layer == "weights"


MEMBERS = (
    Member(
        "matmul_4bit", inputs.plain, smaller, probe.forward, QUANT_TYPES, "dequantize_4bit",
        owns=by_weights, script=script, builds_on=("dequantize_4bit",),
    ),
    Member(
        "matmul_4bit_backward", inputs.plain, smaller, probe.backward, QUANT_TYPES,
        "dequantize_4bit", owns=by_weights, script=script, builds_on=("dequantize_4bit",),
    ),
)  # fmt: skip
