"""One rule, one room: each module's docstring is the rule, its `checks` are how it is tried.

A new rule is a new module here and one more entry in ROOMS.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

ROOMS = {
    "P1": "p1_form",
    "P2": "p2_inputs",
    "P3": "p3_lasting",
    "P4": "p4_repeatable",
    "S1": "s01_codebook",
    "S2": "s02_thresholds",
    "S3": "s03_blocks",
    "S4": "s04_absmax",
    "S5": "s05_code",
    "S6": "s06_packing",
    "S7": "s07_decode",
    "S8": "s08_nested",
    "S9": "s09_products",
    "S10": "s10_lora",
    "S11": "s11_adam",
    "S11b": "s11b_adam_8bit",
    "S12": "s12_paging",
    "S12b": "s12b_books",
    "P5": "p5_arrays",  # last: it asks again, in other forms, for what the rules before have judged
}


def room(rule: str) -> ModuleType:
    """Import the module of a rule."""
    return import_module(f"qloracle_conformance.rules.{ROOMS[rule]}")


def statement(rule: str) -> str:
    """The rule in words: its module's docstring."""
    return (room(rule).__doc__ or "").strip()
