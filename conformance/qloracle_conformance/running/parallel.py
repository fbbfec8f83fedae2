"""Several processes: each judges some functions of an implementation, on one of its own."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from qloracle_conformance.calling import nursery
from qloracle_conformance.calling.callers import environment
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.running.pool import stream
from qloracle_conformance.running.run import Listener, Run, conclude, name_causes
from qloracle_conformance.running.selecting import Selection, every_check, select

Opening = partial[Run]  # with the options of the run
Word = tuple[str, tuple[Any, ...]]  # an event (of a `Listener`, or our own), and what it says


# The functions of one implementation, a row a job, in the order in which the jobs are begun: first
# what a library may compile, once, and at last what the process takes that is free first.
WORK = ("L2, L3, L5, dequantize_4bit", "L0, L1", "L4")


class Job(NamedTuple):
    """Some functions of an implementation: how it is opened, and whether causes are sought."""

    impl: str
    only: Selection
    opening: Opening
    causes: bool
    doors: list[int]


def judge(job: Job, send: Callable[[Word], None]) -> None:
    """Judge some functions in this process, on an implementation of its own."""
    nursery.adopt(job.doors)
    run = job.opening(job.impl, only=job.only)

    def told(event: str) -> Callable[..., None]:
        return lambda *said: send((event, said))

    def checked(name: str, planned: int, check: CheckRun | None) -> None:
        if check is None:
            send(("probed", (run.judgement.views,)))
        send(("checked", (name, planned, check)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kit's own: a kernel warns in its child
        run.judge(Listener(told("opened"), checked, doing=told("doing")))
        send(("ended", (replace(run.judgement, views=[], checks=[]),)))
        if job.causes:
            name_causes(run.judgement.checks)
            send(("causes", ({check.id: check.looks_like for check in run.judgement.checks},)))


def shares(only: Selection) -> list[Selection]:
    """Divide the functions of a selection among jobs.

    >>> from qloracle_conformance.running.selecting import select
    >>> [share.functions for share in shares(select("L2, S7"))]
    [('dequantize_4bit', 'matmul_4bit', 'matmul_4bit_backward'), ('dequantize_blockwise',)]
    """
    left, parts = only.needed, list[list[str]]()
    for terms in WORK:
        parts.append([name for name in select(terms).needed if name in left])
        left = [name for name in left if name not in parts[-1]]
    return [replace(only, functions=tuple(part)) for part in parts if part]


class SideBySide:
    """The judgements of several implementations, while processes judge them."""

    def __init__(
        self, impls: Sequence[str], opening: Opening, listener: Listener, *,
        stop_early: bool, causes: bool, processes: int,
    ) -> None:  # fmt: skip
        only: Selection = opening.keywords["only"]
        self.judgements = [opening(impl).judgement for impl in impls]
        self._only, self._listener, self._stop_early = only, listener, stop_early
        parts = shares(only) if processes >= 2 * len(impls) else [only]
        work = [(impl, part) for impl in zip(impls, self.judgements, strict=True) for part in parts]
        # Who needs no library is judged while those of the first are loaded.
        work[1:] = sorted(work[1:], key=lambda pair: bool(nursery.needs(pair[0][0])))
        self._of = [judgement for (_, judgement), _ in work]  # by number of the job
        self._going = dict(enumerate(self._of))  # those of the jobs that have not ended
        self._untold = [*self.judgements]  # in whose order the verdicts are told
        with nursery.opened(environment(), impls):
            how = opening, causes, nursery.doors()
            self._go([Job(impl, part, *how) for (impl, _), part in work], processes)

    def _go(self, jobs: Sequence[Job], processes: int) -> None:
        """Do the jobs; Ctrl-C, or the first failure where that is asked for, ends them all."""
        words, stopped = stream(judge, jobs, processes, nursery.doors()), False
        with suppress(KeyboardInterrupt), closing(words):
            for number, (event, said) in words:
                self._hear(number, event, said)
                failed = event == "checked" and said[2] and said[2].status in BAD + BROKEN
                if stopped := failed and self._stop_early:
                    break
        for judgement in self._going.values():
            judgement.stopped, judgement.partial = stopped, not stopped
            _put_in_order(judgement)
        if self._going:  # as in one process, what was not begun is left out
            self._untold = [one for one in self._untold if one.whole]
            self._tell()
            begun = [judgement for judgement in self.judgements if judgement.checks]
            self.judgements = begun or self.judgements[:1]

    def _hear(self, number: int, event: str, said: tuple[Any, ...]) -> None:
        """Enter in a judgement what a process says of it, and pass it on."""
        judgement = self._of[number]
        if event == "probed":
            known = {view.function for view in judgement.views}  # some are probed for others
            judgement.views += [view for view in said[0] if view.function not in known]
        elif event == "causes":
            for check in judgement.checks:
                check.looks_like = said[0].get(check.id, check.looks_like)
        elif event == "ended":
            del self._going[number]
            _add(judgement, said[0])
            if not self._going:
                nursery.close()
            self._tell()
        else:
            judgement.checks += [said[2]] if event == "checked" and said[2] else []
            getattr(self._listener, event)(*said)

    def _tell(self) -> None:
        """Tell the verdicts that are there, each after those before it."""
        going = {id(judgement) for judgement in self._going.values()}
        while self._untold and id(self._untold[0]) not in going:
            judgement = self._untold.pop(0)
            _put_in_order(judgement)
            conclude(judgement, self._only)
            self._listener.judged(judgement)
            self._listener.doing(judgement.name, "")


def _add(judgement: Judgement, end: Judgement) -> None:
    """Add what became of some functions; that nothing was compared of them says nothing yet."""
    if judgement.status == "OK" and (end.away or end.status != "NOT_RUN"):
        judgement.status, judgement.message, judgement.away = end.status, end.message, end.away
    for name in ("versions", "declared", "device", "offers", "files", "scopes"):
        setattr(judgement, name, getattr(end, name))
    judgement.import_seconds = max(judgement.import_seconds, end.import_seconds)
    judgement.seconds += end.seconds
    judgement.compile_seconds += end.compile_seconds


def _put_in_order(judgement: Judgement) -> None:
    """Sort views and checks as one process makes them."""
    functions, places = list(MEMBERS), {check: i for i, check in enumerate(every_check())}
    judgement.views.sort(key=lambda view: functions.index(view.function))
    judgement.checks.sort(key=lambda check: places[check.id])
