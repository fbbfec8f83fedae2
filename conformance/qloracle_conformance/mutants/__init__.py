"""Proof that the kit detects: implementations that are wrong in one known way, and lawful ones.

Every faulty one must be killed by the rule that it names and leave a fingerprint of its own; every
lawful one must pass, with its dialect printed.  A mutant is a class that serves as a namespace of
protocol functions: ``qloracle verify qloracle_conformance.mutants.codes.tables:TieTakesUpper``.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import ModuleType

from qloracle_conformance.mutants.adam import (
    faulty as adam,
)
from qloracle_conformance.mutants.adam import (
    faulty_8bit as adam_8bit,
)
from qloracle_conformance.mutants.adam import (
    lawful as adam_lawful,
)
from qloracle_conformance.mutants.calls import faulty as calls
from qloracle_conformance.mutants.calls import forms
from qloracle_conformance.mutants.codes import blocks, codes, decoding, lawful, scales, tables
from qloracle_conformance.mutants.lora import faulty as lora
from qloracle_conformance.mutants.lora import lawful as lora_lawful
from qloracle_conformance.mutants.nested import faulty as l1
from qloracle_conformance.mutants.nested import opaque as nested
from qloracle_conformance.mutants.paging import (
    books as paging_books,
)
from qloracle_conformance.mutants.paging import (
    faulty as paging,
)
from qloracle_conformance.mutants.paging import (
    lawful as paging_lawful,
)
from qloracle_conformance.mutants.paging import (
    saved as paging_saved,
)
from qloracle_conformance.mutants.paging import (
    shared as paging_shared,
)
from qloracle_conformance.mutants.parts import Right
from qloracle_conformance.mutants.products import faulty as products
from qloracle_conformance.mutants.products import lawful as products_lawful


def catalogue(module: ModuleType) -> list[type[Right]]:
    """List the mutants of a module in the order in which they stand there; a row gets its name."""
    found = []
    for name, entry in vars(module).items():
        own = getattr(entry, "__module__", "") == module.__name__
        if own and inspect.isclass(entry) and issubclass(entry, Right):
            if entry.__name__ == "Row":
                entry.__name__ = entry.__qualname__ = name
            found.append(entry)
    return found


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
