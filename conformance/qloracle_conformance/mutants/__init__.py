"""Proof that the kit detects: implementations that are wrong in one known way, and lawful ones.

Every faulty one must be killed by the rule that it names and leave a fingerprint of its own; every
lawful one must pass, with its dialect printed.  A mutant is a row of a family's table (`fault`,
`variant`), or a class where it has state; either is a namespace of protocol functions:
``qloracle verify qloracle_conformance.mutants.codes.tables:TieTakesUpper``.
"""

import inspect
from importlib.util import find_spec
from types import ModuleType

from qloracle_conformance.mutants import adam, calls, codes, lora, nested, paging, products
from qloracle_conformance.mutants.parts import Right


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


FAMILIES = (codes, nested, products, lora, adam, paging, calls)
EVERY = [m for family in FAMILIES for module in family.MODULES for m in catalogue(module)]
MUTANTS = [mutant for mutant in EVERY if not mutant.lawful]
LAWFUL = [mutant for mutant in EVERY if mutant.lawful]
