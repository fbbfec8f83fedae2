"""Judge an implementation again whenever its text changes: the inner loop of writing a kernel.

The kit stays loaded here; each run has a fresh child, so that nothing of the older text is left.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qloracle_conformance.calling.loading import parse
from qloracle_conformance.engine.verdicts import Judgement, verdict
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.data import implementation
from qloracle_conformance.running.verify import verify

PAUSE = 0.1  # seconds between two looks at the files
REST = 60  # columns of what is said between the status and the seconds

State = dict[Path, tuple[int, int]]  # of each file that is there: when it was written, its size


def verdicts(impl: str, options: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Judge now and after each change; yield a line and the exit code until Ctrl-C.

    Watched are the file and those that it was loaded from, but for installed packages.
    """
    place = parse(impl)
    own = [Path(place.where)] if place.kind == "file" else []
    folder = own[0].parent if own else Path.cwd()
    files = {*folder.resolve().glob("*.py"), *own}  # what an import that fails would have loaded
    while True:
        before, start = _state(files), time.perf_counter()
        report = verify([impl], **options, causes=False)
        if report.judgements[0].partial:
            return
        news = {Path(name) for name in report.judgements[0].files} - files
        files |= news
        before |= _state(news)  # before the line is out: who reads it may write at once
        yield line(report.judgements[0], time.perf_counter() - start), report.exit_code
        _wait(files, before)


def _state(files: Iterable[Path]) -> State:
    found = {}
    for path in files:
        try:
            stat = path.stat()
        except OSError:
            continue  # between two moments of an editor, or gone
        found[path] = stat.st_mtime_ns, stat.st_size
    return found


def _wait(files: Iterable[Path], before: State) -> None:
    """Return when the files differ from what they were, and nobody is writing them."""
    last = before
    while True:
        time.sleep(PAUSE)
        now = _state(files)
        if now == last != before and now:
            return
        last = now


def line(judgement: Judgement, seconds: float) -> str:
    """A verdict in one line: the time of day, the first fault or what passed, and how long it took.

    >>> line(Judgement("k.py", status="ERROR", message="does not import"), 0.25)[10:]
    'ERROR    does not import                                                0.2 s'
    """
    found = failures.faults(implementation(judgement))
    if found:
        first = found[0].first
        head, rest = "{status} {rule}".format(**first.first), f"{failures.view(first.checks)}: "
        rest += first.brief + (f"; {len(found) - 1} more" if len(found) > 1 else "")
    else:
        head, rest = verdict(judgement), judgement.message or _passed(judgement)
    return f"{time.strftime('%H:%M:%S')}  {head:<8} {rest:<{REST}} {seconds:5.1f} s"


def _passed(judgement: Judgement) -> str:
    """What was judged, and how much of it."""
    checks = [check for check in judgement.checks if check.rule[0] == "S"]
    names = list(dict.fromkeys(check.function for check in checks))
    what = ", ".join(names) if len(names) < 3 else f"{len(names)} functions"
    cases, values = (sum(getattr(c, name) for c in checks) for name in ("cases", "comparisons"))
    return f"{what}, {cases:,} cases, {values:,} values"
