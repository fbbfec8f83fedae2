"""Judge implementations: each by a `Run` of its own, one by one or by function in parallel."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from qloracle_conformance import adapters
from qloracle_conformance.calling.callers import LIMIT
from qloracle_conformance.calling.loading import parse
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running.known import Known, stale
from qloracle_conformance.running.parallel import Opening, SideBySide
from qloracle_conformance.running.run import SILENT, Listener, Run, name_causes
from qloracle_conformance.running.selecting import Selection, select

MOST = 4  # processes that judge, where nothing else is said
FEW = 3  # functions that one process judges as fast as two
OURS = ("qloracle", "qloracle_gpu")  # packages that are judged after other people's


def verify(
    impls: Sequence[Any],
    *,
    profile: str = "smoke",
    seed: int = 0,
    dialect: Mapping[str, Any] | None = None,
    only: str = "",
    functions: Sequence[str] = (),
    require: str = "",
    known: Sequence[Known] = (),
    device: str = "",
    limit: float = LIMIT,
    processes: int | None = 1,
    stop_early: bool = False,
    causes: bool = True,
    listener: Listener = SILENT,
) -> Report:
    """Judge implementations, other people's before our own.

    impls: what `objects.target` returns.  A text runs in a child process of its own, an object in
    this one.  `functions` are those that must have been judged; none: what `only` selects.
    Several `processes` judge texts side by side, or functions of one text if there are more
    processes than texts: the results are the same, in the same order; seconds are those of all
    processes together.  None: one for each core, where there is enough to do.  With `stop_early`
    the first failure ends the run.  Likely `causes` are sought after each verdict.

    UsageError if an argument cannot mean anything.  Ctrl-C ends the run; what was judged until then
    is in the report, which is marked partial.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"processes is {processes}; allowed: a whole number from 1")
    selection, first = select(only, functions), sorted(impls, key=_is_ours)
    report = Report(
        profile, seed, require=require, only=", ".join(filter(None, [*functions, only])),
        ops=tuple(functions), started=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    run = partial(
        Run, profile=profile, seed=seed, dialect=dialect, only=selection, known=known,
        device=device, limit=limit,
    )  # fmt: skip
    alone = stop_early or device not in ("", "cpu")
    count = processes or (1 if alone else usual(first, selection))
    if count == 1:
        _one_by_one(report, first, run, listener, stop_early, causes)
    else:
        report.judgements = SideBySide(
            first, run, listener, stop_early=stop_early, causes=causes, processes=count
        ).judgements
    report.known_problems = stale(known, report.judgements, selection)
    return report


def usual(impls: Sequence[str], only: Selection) -> int:
    """How many processes judge: more than one for several texts, or for all of a library.

    A file under work has few functions: it is judged before a second process has started.
    """
    much = len(impls) > 1 or (adapters.find(impls[0]) and len(only.needed) > FEW)
    return min(len(os.sched_getaffinity(0)), MOST) if much else 1


def _is_ours(impl: object) -> bool:
    """True for a text that names a part of this project; UsageError for one that names nothing."""
    if not isinstance(impl, str):
        return False
    place = parse(impl)
    return place.kind == "module" and place.where.partition(".")[0] in OURS


def _one_by_one(
    report: Report, impls: Sequence[Any], opening: Opening, listener: Listener, stop_early: bool,
    causes: bool,
) -> None:  # fmt: skip
    """Judge one implementation after the other."""
    for impl in impls:
        run = opening(impl)
        report.judgements.append(run.judgement)
        try:
            run.judge(listener, stop_early)
            listener.judged(run.judgement)
            if causes and run.judgement.failed:
                listener.doing(run.judgement.name, "seeking likely causes")
                name_causes(run.judgement.checks)
            listener.doing(run.judgement.name, "")
        except KeyboardInterrupt:
            run.judgement.partial = not run.ended or impl is not impls[-1]
            break
        if stop_early and run.judgement.failed:
            break
