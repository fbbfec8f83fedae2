"""What the kit knows of one function of a family, beside its signature and its rules."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import Field
from qloracle_conformance.judging.asking import Asker, Found
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.judging.compare import Mismatch, Values
from qloracle_conformance.judging.views import View


class Shown(NamedTuple):
    """A failing element, as a repro script shows it; `read` makes a NumPy array of a result."""

    case: Case
    values: Values
    mismatch: Mismatch
    view: View
    read: str


def owns(check: Check, field: Field) -> bool:
    """Whether a check fails for a finding: the layer that owns the field, or any of its rule."""
    return field.layer in (check.rule, f"{check.rule}/{check.layer}") and check.layer != "spare"


@dataclass(frozen=True)
class Member:
    """One function of a family.

    plain: the first call, one that everybody should take
    smaller: smaller neighbours of a failing case, given the index of the wrong element
    probe: finds the dialect fields; none by default
    decoder: the function that shows the table under which this one is judged
    owns: which checks fail for a finding of the probe
    script: the comparison in a repro script, where it is not that of a plain number
    settled: the part of a result that the rules settle; all by default
    repeats: how many of its first results an equal call must give again; None: all
    wrong_form: what stands in for rule P1's own comparison
    builds_on: functions whose faults may show in this one as well
    """

    function: str
    plain: Callable[[Asker, View], Case]
    smaller: Callable[[Case, int], Iterator[Case]]
    probe: Callable[[Asker, View], Found] = lambda ask, view: {}
    tables: tuple[str, ...] = ("",)
    decoder: str = ""
    owns: Callable[[Check, Field], bool] = owns
    script: Callable[[Shown], list[str] | None] = lambda shown: None
    settled: Callable[[Case, NDArray[Any]], NDArray[Any]] = lambda case, result: result
    repeats: int | None = None
    wrong_form: Callable[[Case, Values], Mismatch | None] | None = None
    builds_on: tuple[str, ...] = ()
