"""Asking an implementation small questions within its scope: what every family's probe does."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Answer, Case
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.contract.scope import Scope
from qloracle_conformance.judging.compare import NOTHING, Judge
from qloracle_conformance.judging.views import View

Call = Callable[[Case], Answer]
Found = dict[str, tuple[str, str]]  # field -> (its value, the evidence)
UNNAMED = "none of the named"


class Asker:
    """Asks by calls within the declared scope; a question without an answer gives None."""

    def __init__(self, call: Call, scope: Scope) -> None:
        self._call, self._scope = call, scope

    def blocksize(self, view: View) -> int:
        """A small block size that the function takes."""
        return int(self._scope.choose(view.function, "blocksize", (64, 32, 128, 256)))

    def dtype(self, view: View, *prefer: str) -> str:
        """A type that the function takes, float32 unless another is preferred."""
        wishes = (*prefer, "float32", "bfloat16", "float16")
        return str(self._scope.choose(view.function, "dtype", wishes))

    def values(self, case: Case) -> tuple[NDArray[Any], ...] | None:
        """The results of a call."""
        if self._scope.outside(case):
            return None
        answer = self._call(case)
        return answer.values if answer.status == "OK" else None

    def first(self, case: Case, size: int = -1) -> NDArray[Any] | None:
        """The first result of a call, flat; None also where it has not the size that is asked."""
        got = self.values(case)
        return None if got is None or size not in (-1, got[0].size) else got[0].reshape(-1)

    def in_turn(self, view: View, *probes: Callable[["Asker", View], Found]) -> Found:
        """Ask one thing after another, each under what the earlier ones showed."""
        found: Found = {}
        for probe in probes:
            found |= probe(self, view)
            view.dialect |= {k: v for k, (v, _) in found.items() if v in BY_NAME[k].values}
        return found

    def explain(
        self,
        view: View,
        fields: Sequence[str],
        cases: Iterable[Case],
        judge: Judge,
        among: Mapping[str, Sequence[str]] | None = None,
        unnamed: str = "",
    ) -> Found:
        """The first values of some fields under which nothing is wrong; the view takes them over.

        All values of a field are tried, the specification's first, or those that `among` names.  If
        none fits, the field `unnamed` has no named value; nothing is said where none is given.
        """
        answers = [(case, got) for case in cases if (got := self.values(case)) is not None]
        choices = {name: BY_NAME[name].values for name in fields} | dict(among or {})
        tried = []
        for values in itertools.product(*choices.values()):
            chosen = dict(zip(fields, values, strict=True))
            trial = replace(view, dialect=view.dialect | chosen)
            outcome = sum((judge(case, got, trial) for case, got in answers), NOTHING)
            if outcome.compared and not outcome.wrong:
                view.dialect |= chosen
                near = f", {outcome.band} of them beside a threshold" if outcome.band else ""
                why = f"{outcome.compared:,} values agree{near}"
                return {name: (value, why) for name, value in chosen.items()}
            tried.append(outcome)
        if not unnamed or not all(outcome.compared for outcome in tried):
            return {}
        nearest = min(tried, key=lambda outcome: outcome.wrong)
        asked = f"{answers[0][0].note}: " if answers[0][0].note else ""
        share = f"{nearest.wrong:,} of {nearest.compared:,} values"
        why = f"{asked}under each recipe at least {share} are wrong; {nearest.first}"
        return {unnamed: (UNNAMED, why)}

    def refusal(self, case: Case, view: View) -> str:
        """Why a view cannot be judged at all, from a call that everybody should take; '' if it can.

        Only NF4 is demanded of everybody: another 4-bit type may also be refused by an error.
        """
        outside = self._scope.outside(case)
        if outside:
            return outside
        answer = self._call(case)
        optional = view.quant_type not in ("", "nf4")
        if answer.status == "UNSUPPORTED" or (optional and answer.status == "ERROR"):
            return answer.message or "not supported"
        return ""
