"""One rule, one room: each module's docstring is the rule, its `checks` are how it is tried.

A new rule is a new module here and one more entry in ROOMS.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from qloracle_conformance.families.nested import shared_rules
from qloracle_conformance.judging.checks import Check

ROOMS = {
    "P1": "calls.p1_form",
    "P2": "calls.p2_inputs",
    "P3": "calls.p3_lasting",
    "P4": "calls.p4_repeatable",
    "S1": "codes.s01_codebook",
    "S2": "codes.s02_thresholds",
    "S3": "codes.s03_blocks",
    "S4": "codes.s04_absmax",
    "S5": "codes.s05_code",
    "S6": "codes.s06_packing",
    "S7": "codes.s07_decode",
    "S8": "nested.s08_nested",
    "S9": "products.s09_products",
    "S10": "lora.s10_lora",
    "S11": "adam.s11_adam",
    "S11b": "adam.s11b_adam_8bit",
    "S12": "paging.s12_paging",
    "S12b": "paging.s12b_books",
    "P5": "calls.p5_arrays",  # last: it asks again, in other forms, for what was judged before
}


def room(rule: str) -> ModuleType:
    """Import the module of a rule."""
    return import_module(f"qloracle_conformance.families.{ROOMS[rule]}")


def statement(rule: str) -> str:
    """The rule in words: its module's docstring."""
    return (room(rule).__doc__ or "").strip()


def all_checks() -> list[Check]:
    """List every check of every rule, in the order in which they run."""
    found: list[Check] = []
    for rule in ROOMS:
        found += getattr(room(rule), "CHECKS", ())
    found += shared_rules.CHECKS
    order = list(ROOMS)
    return sorted(found, key=lambda check: order.index(check.rule))
