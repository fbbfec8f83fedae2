"""A check: inputs that try one rule on one function, and the judgement of what comes back."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FORMS
from qloracle_conformance.judging.compare import Judge
from qloracle_conformance.judging.views import View

PROFILES = ("smoke", "standard", "exhaustive")
EQUAL = 12  # cases with an array of equal rows or elements


@dataclass(frozen=True)
class Plan:
    """What a check draws its cases from: the view, the profile and a generator of its own."""

    view: View
    profile: str
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator, the same for the same seed."""
        return np.random.default_rng(self.seed)

    @property
    def deep(self) -> bool:
        """True beyond the smoke profile."""
        return self.profile != "smoke"

    def pick(self, smoke: int, standard: int) -> int:
        """A size that depends on the profile."""
        return standard if self.deep else smoke


@dataclass(frozen=True)
class Check:
    """One check on one function.

    `judged` are the results whose values it judges: the self-control replaces them by zeros,
    constants and shuffled values, and a check that would accept those on its own data is no check.
    `search` marks cases drawn by Hypothesis, which shrinks its own failures.  `form` is the form in
    which all its cases are called (rule P5): what is wrong in the plain form does not count.
    """

    rule: str
    layer: str
    function: str
    cases: Callable[[Plan], Iterator[Case]]
    judge: Judge
    judged: tuple[int, ...] = (0,)
    tables: tuple[str, ...] = ()
    search: Callable[[Plan], Any] | None = None
    directed: bool = True
    profiles: tuple[str, ...] = ()
    form: str = ""

    def id(self, view: View) -> str:
        """The check's name in reports and known-failure files."""
        return f"{self.rule}/{view.name}/{self.layer}"


def no_cases(plan: Plan) -> Iterator[Case]:
    """The directed cases of a check whose cases are drawn."""
    return iter(())


def layers(
    rule: str,
    function: str,
    tables: tuple[str, ...],
    judge: Judge,
    cases: Mapping[str, Callable[[Plan], Iterator[Case]]],
    *,
    judged: tuple[int, ...] = (0,),
    search: Callable[[Plan], Any] | None = None,
) -> tuple[Check, ...]:
    """The checks of one rule on one function: a check a layer, all but `volume` directed.

    `search` adds a layer `edits`, whose cases Hypothesis draws.
    """
    found = [
        Check(rule, name, function, make, judge, judged, tables, directed=name != "volume")
        for name, make in cases.items()
    ]
    if search is not None:
        edits = (rule, "edits", function, no_cases, judge, judged, tables)
        found.append(Check(*edits, search=search, directed=False))
    return tuple(found)


def in_every_form(
    function: str,
    cases: Callable[[Plan], Iterator[Case]],
    judge: Judge,
    judged: tuple[int, ...] = (0,),
    tables: tuple[str, ...] = (),
    *,
    axes: bool = True,
) -> tuple[Check, ...]:
    """Rule P5 on one function: a check a form; arrays without `axes` have no transpose."""
    own = {"expanded": all_equal(cases)}
    found = (
        Check(
            "P5", form, function, own.get(form, cases), judge, judged, tables, directed=False,
            form=form,
        )
        for form in FORMS
    )  # fmt: skip
    return tuple(check for check in found if axes or check.form != "transposed")


def all_equal(cases: Callable[[Plan], Iterator[Case]]) -> Callable[[Plan], Iterator[Case]]:
    """Some of the cases, in each another array of equal rows or elements: one stands for all."""

    def found(plan: Plan) -> Iterator[Case]:
        every = [*cases(plan)]
        for i, number in enumerate(plan.rng.permutation(len(every))[:EQUAL]):
            arrays = every[number].arrays
            names = [name for name in arrays if arrays[name].size > 1 and name != "codebook"]
            if names:
                name = names[i % len(names)]
                equal = np.broadcast_to(arrays[name][:1], arrays[name].shape).copy()
                yield every[number].with_arrays(**{name: equal})

    return found
