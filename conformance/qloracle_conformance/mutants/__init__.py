"""Proof that the kit detects: implementations that are wrong in one known way, and lawful ones.

Every faulty one must be killed by the rule that it names and leave a fingerprint of its own; every
lawful one must pass, with its dialect printed.  A mutant is a class that serves as a namespace of
protocol functions: ``qloracle verify qloracle_conformance.mutants.l0.tables:TieTakesUpper``.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import ModuleType

from qloracle_conformance.mutants import (
    adam,
    adam_8bit,
    adam_lawful,
    calls,
    forms,
    l1,
    lawful,
    lora,
    lora_lawful,
    nested,
    paging,
    paging_books,
    paging_lawful,
    paging_saved,
    paging_shared,
    products,
    products_lawful,
)
from qloracle_conformance.mutants.l0 import blocks, codes, decoding, scales, tables
from qloracle_conformance.mutants.parts import Right


def catalogue(module: ModuleType) -> list[type[Right]]:
    """List the mutants of a module in the order in which they stand there."""
    found = (entry for entry in vars(module).values() if inspect.isclass(entry))
    return [c for c in found if issubclass(c, Right) and c.__module__ == module.__name__]


def story(mutant: object) -> str:
    """What is wrong with it, in one line: the first paragraph of its docstring."""
    own = inspect.cleandoc(vars(mutant).get("__doc__") or "")
    return " ".join(own.partition("\n\n")[0].split())


def here(mutant: type[Right]) -> bool:
    """Whether the framework of its arrays is installed: a few mutants are kernels on tensors."""
    return find_spec(mutant.arrays) is not None


LINEAR = (products, products_lawful, lora, lora_lawful)
ADAM = (adam, adam_8bit, adam_lawful)
PAGING = (paging, paging_shared, paging_saved, paging_books, paging_lawful)
L0 = (tables, blocks, scales, codes, decoding)
MODULES = (*L0, l1, nested, *LINEAR, *ADAM, *PAGING, calls, forms)
MUTANTS = [m for module in MODULES for m in catalogue(module) if not m.lawful]
LAWFUL = [*catalogue(lawful), *(m for x in MODULES for m in catalogue(x) if m.lawful)]
