"""One implementation on its way to a verdict: the one state machine of all who judge.

The command line, `verify` in Python and the tests of pytest all open a `Run`, have its checks run,
and read its judgement::

    opened  ->  probed  ->  each check run once, compared with the known failures  ->  verdict
    and later: causes named, which takes longer and changes no verdict
"""

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from qloracle_conformance.calling import callers, objects
from qloracle_conformance.contract.errors import CannotRun, LoadError, UsageError
from qloracle_conformance.engine import Engine, bare_views, ledger
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement, any_compared
from qloracle_conformance.families import MEMBERS, all_checks
from qloracle_conformance.judging.checks import Check
from qloracle_conformance.running.known import Known, mark
from qloracle_conformance.running.likely import likely
from qloracle_conformance.running.selecting import EVERYTHING, Selection


def nothing(*_: object) -> None:
    """Ignore an event."""


class Listener(NamedTuple):
    """What is called while a run goes on, as soon as something is known.

    `opened`: an implementation's name, with file and line of its functions.  `checked`: its name,
    the number of planned checks, and None once it is probed, then each check's result.  `judged`:
    its verdict, before likely causes are sought.  `doing`: its name, and what is done with it now;
    '' when nothing is left to do.
    """

    opened: Callable[[str, Mapping[str, tuple[str, int]]], None] = nothing
    checked: Callable[[str, int, CheckRun | None], None] = nothing
    judged: Callable[[Judgement], None] = nothing
    doing: Callable[[str, str], None] = nothing


SILENT = Listener()


class Run:
    """The run of one implementation.

    `impl` is what `objects.target` returns; the options are those of ``qloracle verify``.  Whatever
    keeps it from being judged ends in the judgement's status and message, and is not raised.
    """

    def __init__(
        self, impl: Any, *, profile: str = "smoke", seed: int = 0,
        dialect: Mapping[str, Any] | None = None, only: Selection = EVERYTHING,
        known: Sequence[Known] = (), device: str = "", limit: float = callers.LIMIT,
        searching: bool | None = None,
    ) -> None:  # fmt: skip
        name = objects.name_of(impl)
        self.judgement = Judgement(name, profile="" if only.narrow else profile)
        self.known = [entry for entry in known if entry.implementation in ("", name)]
        self._impl, self._device, self._limit = impl, device, limit
        self.only, self.ended = only, False
        self._options: dict[str, Any] = {
            "profile": profile, "seed": seed, "declared": dialect, "searching": searching,
        }  # fmt: skip
        self._results: dict[str, CheckRun] = {}

    def close(self) -> None:
        """Let go of the implementation."""
        if (caller := self.__dict__.get("caller")) is not None:
            caller.close()

    # ---- opened and probed ---------------------------------------------------------------------

    @cached_property
    def caller(self) -> callers.Caller | None:
        """The implementation, opened when it is first asked for; None if it does not load."""
        kind = callers.ChildCaller if isinstance(self._impl, str) else callers.LocalCaller
        try:
            caller = kind(self._impl, self._device, self._limit)
        except LoadError as error:
            self.judgement.away = isinstance(error, CannotRun)
            self._give_up("NOT_RUN" if self.judgement.away else "ERROR", error)
            return None
        self.judgement.versions, self.judgement.declared = caller.versions, caller.declared
        self.judgement.offers, self.judgement.device = list(caller.offers), caller.device
        self.judgement.import_seconds, self.judgement.files = caller.import_seconds, [*caller.files]
        return caller

    @cached_property
    def engine(self) -> Engine | None:
        """What judges it; None if it does not load, or declares what means nothing."""
        caller = self.caller
        if caller is None:
            return None
        second: Any = None
        if self.judgement.name == "numpy" and self._options["profile"] != "smoke":
            from qloracle_conformance.judging.exact import rational

            second = rational  # the reference is not its own judge
        try:
            engine = Engine(
                caller, only=self.only, functions=self.only.functions, second=second,
                **self._options,
            )  # fmt: skip
        except UsageError as error:
            self._give_up("ERROR", error)
            return None
        self.judgement.scopes = {name: engine.scope.describe(name) for name in caller.offers}
        return engine

    @cached_property
    def probed(self) -> bool:
        """Whether its dialect was found; that is sought when this is first asked for."""
        if self.engine is None:
            return False
        with self._judging():
            self.judgement.views = self.engine.probe()
        return self.judgement.status == "OK"

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Count the time; an implementation that does not start again ends its run."""
        start, caller = time.perf_counter(), self.caller
        assert caller is not None
        compiled = caller.compile_seconds
        try:
            yield
        except LoadError as error:
            self._give_up("CRASH", error)
        finally:
            compiled = caller.compile_seconds - compiled
            self.judgement.compile_seconds += compiled
            self.judgement.seconds += time.perf_counter() - start - compiled

    def _give_up(self, status: str, error: Exception) -> None:
        self.judgement.status, self.judgement.message = status, str(error)

    # ---- judged --------------------------------------------------------------------------------

    def judge(self, listener: Listener = SILENT, stop_early: bool = False) -> None:
        """Open, probe, run every selected check, and let go; the first failure may end it."""
        with closing(self):
            name = self.judgement.name
            listener.doing(name, "loading")
            if self.caller is not None:
                listener.opened(name, self.caller.places)
            listener.doing(name, "finding its dialect")
            if self.probed:
                listener.checked(name, self.planned, None)
            with closing(self.checks()) as results:
                for result in results:
                    listener.checked(name, self.planned, result)
                    if stop_early and result.status in BAD + BROKEN:
                        self.judgement.stopped = True
                        break
        self.ended = True

    @cached_property
    def planned(self) -> int:
        """How many checks there are to run, P1 to P4 not counted."""
        return len(self.engine.planned()) if self.engine is not None and self.probed else 0

    def checks(self) -> Generator[CheckRun, None, None]:
        """Run every selected check, and yield each result as soon as it is known."""
        if self.engine is not None and self.probed:
            with self._judging():
                for result in self.engine.run():
                    yield self._enter(result)
        conclude(self.judgement, self.only)

    def check(self, name: str) -> CheckRun:
        """The result of one check, by its id; run once, and P1 to P4 after all of its function."""
        rule, _, function = name.partition("/")
        if rule in ledger.RULES:
            for own in self.plan_of(function):
                self.check(own)
        if name not in self._results and self.engine is not None and self.probed:
            with self._judging():
                if rule in ledger.RULES:
                    results = [*self.engine.ledger_runs([function])]
                else:
                    check, of = self.plan[name]
                    view = next(view for view in self.judgement.views if view.name == of)
                    results = [self.engine.run_check(check, view)]
                for result in results:
                    self._enter(result)
        status = "NOT_RUN" if self.judgement.status == "OK" else self.judgement.status
        message = self.judgement.message or "nothing was called"
        return self._results.get(name, CheckRun(name, rule, "", "", status, message))

    def _enter(self, result: CheckRun) -> CheckRun:
        mark(result, self.known)
        self._results[result.id] = result
        self.judgement.checks.append(result)
        return result

    @cached_property
    def plan(self) -> dict[str, tuple[Check, str]]:
        """Every check of every table that is offered, by its id; nothing is probed to know them."""
        engine = self.engine
        if engine is None:
            return {}
        views = bare_views(name for name in MEMBERS if name in engine.caller.offers)
        fitting = ((c, view) for c in all_checks() for view in views if engine.fits(c, view))
        return {check.id(view): (check, view.name) for check, view in fitting}

    def plan_of(self, function: str) -> list[str]:
        """The ids of the planned checks of one function."""
        return [name for name, (check, _) in self.plan.items() if check.function == function]


def name_causes(checks: Iterable[CheckRun]) -> None:
    """Call the mutants with the failing inputs; what they warn of is nobody's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in checks:
            if check.failure is not None and check.status in BAD + BROKEN:
                check.looks_like = likely(check)


def conclude(judgement: Judgement, only: Selection) -> None:
    """Say in a sentence why nothing was compared, if that is so: such a run is never OK."""
    idle = judgement.status == "OK" and judgement.whole and not any_compared(judgement)
    if not idle or judgement.failed:
        return
    judgement.status, judgement.message = "NOT_RUN", _why_idle(judgement, only)


def _why_idle(judgement: Judgement, only: Selection) -> str:
    if not judgement.offers:
        return "offers none of the protocol's functions"
    if not set(only.needed) & set(judgement.offers):
        return f"offers nothing of what was asked for: {', '.join(only.needed)}"
    if not judgement.checks:
        return "no check of this profile was selected"
    if all(check.rule[0] == "P" for check in judgement.checks):
        return "P1 to P5 alone judge no value: select a rule of S1 to S12b as well"
    reasons = dict.fromkeys(check.message for check in judgement.checks if check.message)
    return f"nothing was compared: {'; '.join([*reasons][:3])}"
