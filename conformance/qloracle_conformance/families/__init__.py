"""The families of functions, each in a folder: its rules, their checks, its members.

A rule is a module: its docstring is the rule with its derivation, its `CHECKS` are how it is tried.
A member is one function: all that the rest of the kit asks of it.  A new function is one more
member of its family, a new family one more name in FAMILIES.
"""

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families import adam, calls, codes, lora, nested, paging, products
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.compare import Mismatch, Values
from qloracle_conformance.judging.views import View

FAMILIES = (codes, nested, products, lora, adam, paging, calls)
MEMBERS = {member.function: member for family in FAMILIES for member in family.MEMBERS}
RULES = {rule: module for family in FAMILIES for rule, module in family.RULES.items()}


def statement(rule: str) -> str:
    """The rule in words: its module's docstring."""
    return (RULES[rule].__doc__ or "").strip()


def all_checks() -> list[Check]:
    """List every check of every rule, in the order in which they run.

    P5 is the last: it asks again, in other forms, for what was judged before.
    """
    order = list(RULES)
    found = [check for family in FAMILIES for check in family.CHECKS]
    return sorted(found, key=lambda check: order.index(check.rule))


def wrong_form(case: Case, values: Values, view: View) -> Mismatch | None:
    """Rule P1: the first result of a call whose form is wrong."""
    own = MEMBERS[case.function].wrong_form
    return calls.p1_form.wrong_form(case, values, view) if own is None else own(case, values)
