"""What `--only` selects: rules, levels, functions, check ids, patterns; case is ignored."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.engine import bare_views, ledger
from qloracle_conformance.families import MEMBERS, RULES, all_checks


@dataclass(frozen=True)
class Selection:
    """The checks that are run: those that a term matches, of the functions that are named."""

    terms: tuple[str, ...] = ()  # none: all checks
    functions: tuple[str, ...] = tuple(FUNCTIONS)

    def __call__(self, check: str) -> bool:
        """Whether a check is selected, by its id."""
        wanted = not self.terms or any(_matches(term, check) for term in self.terms)
        return wanted and (
            self.functions == tuple(FUNCTIONS) or function_of(check) in self.functions
        )

    @property
    def narrow(self) -> bool:
        """True if anything is left out."""
        return bool(self.terms) or self.functions != tuple(FUNCTIONS)

    @property
    def needed(self) -> list[str]:
        """The functions that any selected check judges."""
        found = {function_of(check) for check in every_check() if self(check)}
        return [name for name in self.functions if name in found]


EVERYTHING = Selection()


def select(only: str = "", functions: Sequence[str] = ()) -> Selection:
    """Read the terms of `--only`, separated by commas; with `functions`, of these functions alone.

    UsageError, which names what is allowed, for a term that matches no check there is.

    >>> wanted = select("l0, s10")
    >>> [wanted(check) for check in ("S5/quantize_4bit[nf4]/full", "S10/lora_forward/shapes")]
    [True, True]
    >>> select("S5/*_4bit*/full, p1/dequantize_4bit").needed
    ['quantize_4bit', 'dequantize_4bit']
    """
    terms = tuple(part.strip() for part in only.split(",") if part.strip())
    if only.strip() and not terms:
        raise UsageError(f"only is {only!r}, which names nothing; {_allowed()}")
    for term in terms:
        if not any(_matches(term, check) for check in every_check()):
            raise UsageError(f"only {term!r} matches nothing{_near(term)}; {_allowed()}")
    return Selection(terms, tuple(functions) or tuple(FUNCTIONS))


def function_of(check: str) -> str:
    """The function that a check judges.

    >>> function_of("S5/quantize_4bit[nf4]/full"), function_of("P1/quantize_4bit")
    ('quantize_4bit', 'quantize_4bit')
    """
    return check.partition("/")[2].partition("/")[0].partition("[")[0]


@cache
def every_check() -> tuple[str, ...]:
    """The ids of all checks of all functions, in the order in which one process runs them."""
    checks = [
        check.id(view)
        for check in all_checks()
        for view in bare_views(MEMBERS)
        if view.function == check.function and view.table in (check.tables or (view.table,))
    ]
    lasting = [name for name in MEMBERS if "P3" in ledger.rules_of(name)]
    checks += [f"{rule}/{name}" for name in MEMBERS for rule in ("P1", "P2", "P4")]
    return (*checks, *(f"P3/{name}" for name in lasting))


def _matches(term: str, check: str) -> bool:
    """Compare a term with a check's id, its rule, its function and that one's level."""
    function = function_of(check)
    level = FUNCTIONS[function].level if function in FUNCTIONS else ""
    names = (check, check.partition("/")[0], function, level)
    pattern = term.lower().replace("[", "[[]")  # the brackets of an id are no class
    return any(fnmatchcase(name.lower(), pattern) for name in names)


def _near(term: str) -> str:
    """A hint where a term is misspelt.

    >>> _near("dequantise_4bit"), _near("S5/quantize_4bit[nf4]/ful"), _near("x")
    (' (dequantize_4bit?)', ' (S5/quantize_4bit[nf4]/full?)', '')
    """
    names = every_check() if "/" in term else (*RULES, *FUNCTIONS)
    close = difflib.get_close_matches(term, names, 1, 0.8)
    return f" ({close[0]}?)" if close else ""


def _allowed() -> str:
    return (
        f"allowed, separated by commas: rules ({', '.join(RULES)}), levels ({', '.join(LEVELS)}), "
        f"functions ({', '.join(FUNCTIONS)}), check ids, and patterns such as S5/*/full"
    )
