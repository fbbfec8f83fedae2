"""Judge implementations: load, probe, run, compare with known failures, and name likely causes."""

from __future__ import annotations

import datetime
import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qloracle_conformance import adapters
from qloracle_conformance.engine import Engine, fingerprints
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.errors import LoadError, UsageError
from qloracle_conformance.known import Known, apply
from qloracle_conformance.process.callers import Caller, ChildCaller
from qloracle_conformance.process.loading import parse
from qloracle_conformance.report import BAD, BROKEN, Judgement, Report

Watcher = Callable[[str, int, CheckRun | None], None]


def watch_nothing(name: str, planned: int, run: CheckRun | None) -> None:
    """The watcher for those who do not watch."""


def found_here() -> list[str]:
    """Short names of all implementations whose libraries are installed on this machine."""
    return [adapter.name for adapter in adapters.ADAPTERS if adapter.installed]


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
    watch: Watcher = watch_nothing,
) -> Report:
    """Judge each implementation in a child process of its own.

    UsageError if a spec, a dialect or a level cannot mean anything.  Ctrl-C ends the run; what was
    judged until then is in the report, which is marked partial.
    """
    for spec in specs:
        parse(spec)
    report = Report(profile, seed, require=require, only=only, started=_now())
    environment = {"QLORACLE_DEVICE": device} if device else {}
    for spec in specs:
        judgement = Judgement(spec, profile="" if only else profile)
        report.judgements.append(judgement)
        try:
            caller = ChildCaller(spec, limit=limit, environment=environment)
        except LoadError as error:
            judgement.status, judgement.message = "ERROR", str(error)
            continue
        try:
            judge(caller, judgement, profile, seed, dialect or {}, only, watch)
        except KeyboardInterrupt:
            judgement.partial = True
            break
        finally:
            caller.close()
    report.known_problems = apply(known, report.judgements, selector(only))
    return report


def judge(
    caller: Caller,
    judgement: Judgement,
    profile: str,
    seed: int,
    dialect: Mapping[str, Any],
    only: str,
    watch: Watcher = watch_nothing,
) -> None:
    """Fill a judgement from a caller; everything found so far is in it whenever this ends."""
    start = time.perf_counter()
    judgement.versions, judgement.declared = caller.versions, caller.declared
    judgement.offers, judgement.device = list(caller.offers), caller.device
    judgement.import_seconds = caller.import_seconds
    try:
        engine = Engine(
            caller, profile=profile, seed=seed, declared=dict(dialect), only=selector(only),
            second=_second_oracle(judgement.name, profile),
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


def _second_oracle(name: str, profile: str) -> Any:
    """The reference is judged by a second oracle as well (beyond smoke): not its own judge."""
    if name != "numpy" or profile == "smoke":
        return None
    from qloracle_conformance import rational

    return rational


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
