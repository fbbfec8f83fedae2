"""The calls themselves: what holds for every function, whatever it computes."""

from qloracle_conformance.families.calls import (
    p1_form,
    p2_inputs,
    p3_lasting,
    p4_repeatable,
    p5_arrays,
)
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.members import Member

RULES = {"P1": p1_form, "P2": p2_inputs, "P3": p3_lasting, "P4": p4_repeatable, "P5": p5_arrays}
CHECKS: tuple[Check, ...] = ()  # P1 to P4 look at other rules' calls; P5 stands in each family
MEMBERS: tuple[Member, ...] = ()
