"""Several processes: every function of every implementation is judged in one of its own."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.views import View
from qloracle_conformance.running.pool import stream
from qloracle_conformance.running.run import Listener, Run, conclude, name_causes
from qloracle_conformance.running.selecting import Selection, every_check

Opening = Callable[..., Run]  # `Run` with the options of the run


class Job(NamedTuple):
    """One function of one implementation: how it is opened, and whether causes are sought."""

    impl: Any
    only: Selection
    opening: Opening
    causes: bool


class Word(NamedTuple):
    """What a process says: each check as it ends, its judgement at its end, then likely causes."""

    planned: int = 0
    views: Sequence[View] = ()
    check: CheckRun | None = None
    end: Judgement | None = None
    causes: Sequence[tuple[str, list[str]]] = ()


def judge_function(job: Job, send: Callable[[Word], None]) -> None:
    """Judge one function in this process, on an implementation of its own."""
    run = job.opening(job.impl, only=job.only)

    def checked(_: str, planned: int, check: CheckRun | None) -> None:
        own = [view for view in run.judgement.views if view.function in job.only.functions]
        send(Word(planned, () if check is not None else own, check))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kit's own: a kernel warns in its child
        run.judge(Listener(checked=checked))
        send(Word(end=replace(run.judgement, checks=[], views=[])))
        if job.causes:
            name_causes(run.judgement.checks)
            send(Word(causes=[(check.id, check.looks_like) for check in run.judgement.checks]))


class SideBySide:
    """The judgements of several implementations, while processes judge their functions."""

    def __init__(self, only: Selection, listener: Listener, stop_early: bool) -> None:
        self.judgements: list[Judgement] = []
        self._only, self._listener, self._stop_early = only, listener, stop_early
        self._jobs: list[tuple[Judgement, Job]] = []
        self._going: dict[int, Judgement] = {}  # by the number of each job that has not ended

    def open(self, impl: Any, opening: Opening, causes: bool) -> None:
        """See what there is to do of an implementation: a job for each of its functions."""
        run = opening(impl)
        self.judgements.append(run.judgement)
        with closing(run):
            run.announce(self._listener)
            offers = run.judgement.offers if run.engine is not None else []
        wanted = [name for name in MEMBERS if name in {*offers} & {*self._only.needed}]
        for name in wanted:
            job = Job(impl, replace(self._only, functions=(name,)), opening, causes)
            self._going[len(self._jobs)] = run.judgement
            self._jobs.append((run.judgement, job))
        if not wanted:
            self._conclude(run.judgement)

    def go(self, processes: int) -> None:
        """Do the jobs; Ctrl-C, or the first failure where that is asked for, ends them all."""
        words, stopped = stream(judge_function, [job for _, job in self._jobs], processes), False
        with suppress(KeyboardInterrupt), closing(words):
            for number, word in words:
                self._hear(number, word)
                failed = word.check is not None and word.check.status in BAD + BROKEN
                if stopped := failed and self._stop_early:
                    break
        for judgement in self._going.values():
            judgement.stopped, judgement.partial = stopped, not stopped
            _put_in_order(judgement)
        if self._going:  # as in one process, what was not begun is left out
            begun = [judgement for judgement in self.judgements if judgement.checks]
            self.judgements = begun or self.judgements[:1]

    def _hear(self, number: int, word: Word) -> None:
        """Enter in a judgement what a process says of it."""
        judgement = self._jobs[number][0]
        if word.causes:
            stories = dict(word.causes)
            for check in judgement.checks:
                check.looks_like = stories.get(check.id, check.looks_like)
        elif word.end is None:
            judgement.views += word.views
            judgement.checks += [word.check] if word.check is not None else []
            self._listener.checked(judgement.name, word.planned, word.check)
        else:
            del self._going[number]
            _add(judgement, word.end)
            if judgement not in self._going.values():
                self._conclude(judgement)

    def _conclude(self, judgement: Judgement) -> None:
        _put_in_order(judgement)
        conclude(judgement, self._only)
        self._listener.judged(judgement)
        self._listener.doing(judgement.name, "")


def _add(judgement: Judgement, end: Judgement) -> None:
    """Add what became of one function; that nothing was compared of it alone says nothing yet."""
    if judgement.status == "OK" and (end.away or end.status != "NOT_RUN"):
        judgement.status, judgement.message, judgement.away = end.status, end.message, end.away
    judgement.seconds += end.seconds
    judgement.compile_seconds += end.compile_seconds


def _put_in_order(judgement: Judgement) -> None:
    """Sort views and checks as one process makes them."""
    functions, places = list(MEMBERS), {check: i for i, check in enumerate(every_check())}
    judgement.views.sort(key=lambda view: functions.index(view.function))
    judgement.checks.sort(key=lambda check: places[check.id])
