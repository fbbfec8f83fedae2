"""Judge implementations: load, probe, run, compare with known failures, and name likely causes."""

from __future__ import annotations

import datetime
import fnmatch
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from qloracle_conformance import adapters
from qloracle_conformance.calling.callers import Caller, ChildCaller
from qloracle_conformance.calling.loading import parse
from qloracle_conformance.contract.errors import CannotRun, LoadError, UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine import Engine
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement
from qloracle_conformance.families import all_checks
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running import likely as fingerprints
from qloracle_conformance.running.known import Known, apply
from qloracle_conformance.running.pool import stream

Watcher = Callable[[str, int, CheckRun | None], None]
Opened = Callable[[str, Mapping[str, tuple[str, int]]], None]  # a function: its file and line
Start = Callable[[str], ChildCaller]
Judging = Callable[..., None]  # `judge` with the options of the run


def watch_nothing(name: str, planned: int, run: CheckRun | None) -> None:
    """The watcher for those who do not watch."""


def open_unnoticed(name: str, places: Mapping[str, tuple[str, int]]) -> None:
    """For those who need not know where functions are written."""


def found_here() -> list[str]:
    """Short names of what is judged where none is named: what is installed and can run here."""
    return [adapter.name for adapter in adapters.ADAPTERS if adapter.found]


def selector(only: str) -> Callable[[str], bool]:
    """Which check ids an `--only` text means: rules, ids or patterns, separated by commas.

    >>> wanted = selector("S5, S3/dequantize_*")
    >>> wanted("S5/quantize_4bit[nf4]/full"), wanted("S4/quantize_4bit[nf4]/zeros")
    (True, False)
    """
    patterns = [part.strip() for part in only.split(",") if part.strip()]

    def wanted(check: str) -> bool:
        literal = [p.replace("[", "[[]") for p in patterns]  # brackets of an id are no class
        return not patterns or any(
            check.split("/")[0] == p or check == p or fnmatch.fnmatchcase(check, q)
            for p, q in zip(patterns, literal, strict=True)
        )

    return wanted


def verify(
    specs: Sequence[str],
    *,
    profile: str = "smoke",
    seed: int = 0,
    dialect: Mapping[str, Any] | None = None,
    only: str = "",
    require: str = "",
    known: Sequence[Known] = (),
    device: str = "",
    limit: float = 20.0,
    processes: int = 1,
    watch: Watcher = watch_nothing,
    opened: Opened = open_unnoticed,
) -> Report:
    """Judge each implementation in a child process of its own.

    With several `processes` so many functions are judged at once, each on an implementation of its
    own: the results are the same, in the same order; seconds are those of all processes together.
    `opened` hears where each implementation's functions are written.  UsageError if an argument
    cannot mean anything.  Ctrl-C ends the run; what was judged until then is in the report, which
    is marked partial.
    """
    if processes < 1:
        raise UsageError(f"processes is {processes}; allowed: a whole number from 1")
    for spec in specs:
        parse(spec)
    report = Report(profile, seed, require=require, only=only, started=_now())
    environment = {"QLORACLE_DEVICE": device} if device else {}
    start = partial(ChildCaller, limit=limit, environment=environment)
    judging = partial(judge, profile=profile, seed=seed, dialect=dialect or {}, only=only)
    if processes == 1:
        _one_by_one(report, specs, start, partial(judging, watch=watch), opened)
    else:  # here they are only probed, which shows what there is to do
        _one_by_one(report, specs, start, partial(judging, watch=watch, functions=()), opened)
        _side_by_side(report, start, judging, processes, watch)
    report.known_problems = apply(known, report.judgements, selector(only))
    return report


def _one_by_one(
    report: Report, specs: Sequence[str], start: Start, judging: Judging, opened: Opened
) -> None:
    """Judge one implementation after the other."""
    for spec in specs:
        judgement = Judgement(spec, profile="" if report.only else report.profile)
        report.judgements.append(judgement)
        try:
            with _open(judgement, start) as caller:
                if caller is not None:
                    opened(spec, caller.places)
                    judging(caller, judgement)
        except KeyboardInterrupt:
            judgement.partial = True
            break


@contextmanager
def _open(judgement: Judgement, start: Start) -> Iterator[ChildCaller | None]:
    """Load an implementation; None, and the judgement says why, if that fails."""
    try:
        caller = start(judgement.name)
    except LoadError as error:
        judgement.status = "NOT_RUN" if isinstance(error, CannotRun) else "ERROR"
        judgement.message = str(error)
        yield None
        return
    with closing(caller):
        yield caller


def judge(
    caller: Caller,
    judgement: Judgement,
    profile: str,
    seed: int,
    dialect: Mapping[str, Any],
    only: str,
    watch: Watcher = watch_nothing,
    functions: Collection[str] = tuple(FUNCTIONS),
) -> None:
    """Fill a judgement from a caller; everything found so far is in it whenever this ends.

    All functions are probed, and those named in `functions` are judged.
    """
    start = time.perf_counter()
    judgement.versions, judgement.declared = caller.versions, caller.declared
    judgement.offers, judgement.device = list(caller.offers), caller.device
    judgement.import_seconds = caller.import_seconds
    try:
        engine = Engine(
            caller, profile=profile, seed=seed, declared=dict(dialect), only=selector(only),
            second=_second_oracle(judgement.name, profile), functions=functions,
        )  # fmt: skip
    except UsageError as error:
        judgement.status, judgement.message = "ERROR", str(error)
        return
    judgement.scopes = {name: engine.scope.describe(name) for name in caller.offers}
    try:
        judgement.views = engine.probe()
        planned = len(engine.planned())
        watch(judgement.name, planned, None)
        for run in engine.run():
            judgement.checks.append(run)
            if run.failure is not None and run.status in BAD + BROKEN:
                run.looks_like = fingerprints.likely(run)
            watch(judgement.name, planned, run)
    except LoadError as error:
        judgement.status, judgement.message = "CRASH", str(error)
    finally:
        judgement.compile_seconds = caller.compile_seconds
        judgement.seconds = time.perf_counter() - start - caller.compile_seconds
    if not judgement.offers and judgement.status == "OK":
        judgement.message = "offers none of the protocol's functions"


# ---- several processes -------------------------------------------------------------------------


class Job(NamedTuple):
    """One function of one implementation, and how that is opened and judged."""

    spec: str
    function: str
    start: Start
    judging: Judging


class Word(NamedTuple):
    """What a process says while it works: what a watcher hears, and at its end a judgement."""

    planned: int = 0
    run: CheckRun | None = None
    end: Judgement | None = None


def judge_function(job: Job, send: Callable[[Word], None]) -> None:
    """Judge one function in this process, on an implementation of its own.

    The others are probed all the same: the tables that decoders show are those that quantizers are
    judged by, and one function may spoil what another one has returned.
    """
    judgement = Judgement(job.spec)

    def watch(_: str, planned: int, run: CheckRun | None) -> None:
        send(Word(planned, run))

    with _open(judgement, job.start) as caller:
        if caller is not None:
            job.judging(caller, judgement, watch=watch, functions=(job.function,))
    send(Word(end=replace(judgement, checks=[])))


def _side_by_side(
    report: Report, start: Start, judging: Judging, processes: int, watch: Watcher
) -> None:
    """Judge every function of the implementations that were probed, in processes of their own."""
    jobs = [
        (judgement, Job(judgement.name, function, start, judging))
        for judgement in report.judgements
        for function in dict.fromkeys(view.function for view in judgement.views)
    ]
    going = {number: judgement for number, (judgement, _) in enumerate(jobs)}
    if not any(judgement.partial for judgement in report.judgements):
        words = stream(judge_function, [job for _, job in jobs], processes)
        with suppress(KeyboardInterrupt), closing(words):
            for number, word in words:
                _hear(going, number, word, watch)
    for judgement in going.values():
        judgement.partial = True
    for judgement in report.judgements:
        _put_in_order(judgement)
    if going:  # as in one process, what was not begun when Ctrl-C came is left out
        begun = [judgement for judgement in report.judgements if judgement.checks]
        report.judgements[:] = begun or report.judgements[:1]


def _hear(going: dict[int, Judgement], number: int, word: Word, watch: Watcher) -> None:
    """Enter in a judgement what a process says of it."""
    judgement, end = going[number], word.end
    if end is None:
        judgement.checks += [word.run] if word.run is not None else []
        watch(judgement.name, word.planned, word.run)
        return
    if judgement.status == "OK":
        judgement.status, judgement.message = end.status, end.message
    judgement.seconds += end.seconds
    judgement.compile_seconds += end.compile_seconds
    del going[number]


def _put_in_order(judgement: Judgement) -> None:
    """Sort the checks as one process runs them: P1, P2 and P4 of every function, then P3."""
    views = judgement.views
    functions = dict.fromkeys(view.function for view in views)
    order = [
        check.id(view)
        for check in all_checks()
        for view in views
        if view.function == check.function and view.table in (check.tables or (view.table,))
    ]
    order += [f"{rule}/{name}" for name in functions for rule in ("P1", "P2", "P4")]
    order += [f"P3/{name}" for name in functions]
    places = {check: place for place, check in enumerate(order)}
    judgement.checks.sort(key=lambda run: places[run.id])


def _second_oracle(name: str, profile: str) -> Any:
    """The reference is judged by a second oracle as well (beyond smoke): not its own judge."""
    if name != "numpy" or profile == "smoke":
        return None
    from qloracle_conformance.judging.exact import rational

    return rational


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
