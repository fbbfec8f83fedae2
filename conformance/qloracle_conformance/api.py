"""The kit from Python: `verify` for notebooks and graders, `conformance_tests` for a test file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qloracle_conformance.calling import objects
from qloracle_conformance.contract import dialects, presets
from qloracle_conformance.contract.errors import CannotRun
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running.options import check_arguments


def verify(
    obj: object,
    ops: Sequence[str] | None = None,
    profile: str = "smoke",
    device: str | None = None,
    *,
    seed: int = 0,
    dialect: str | Mapping[str, Any] | None = None,
    require: str = "",
    known: str | Path | None = None,
) -> Report:
    """Judge an implementation and return its report, which a notebook shows as a page.

    obj: a text IMPL as on the command line, which runs in a child process; or a module, class,
    function, list or dict of functions, which runs in this process (a crash would end it, too).
    ops: names of functions; only these are judged, and a missing one fails.  profile, device, seed,
    dialect (a preset or a dict), require and known are the options of ``qloracle verify``.

    The report has `.ok`, `.exit_code`, `.to_dict()` (the form of report.json) and is printable.
    UsageError (a ValueError) for an argument that means nothing; ImportError without Hypothesis.

    >>> import qloracle
    >>> report = verify(qloracle.dequantize_4bit)
    >>> report.ok, report.to_dict()["implementations"][0]["offers"]
    (True, ['dequantize_4bit'])
    >>> def dequantize_4bit(packed, absmax, *, shape):
    ...     return -qloracle.dequantize_4bit(packed, absmax, shape=shape)
    >>> verify(dequantize_4bit)
    <Report: exit code 1; dequantize_4bit: L0 FAIL, L1 to L5 MISSING>
    """
    from qloracle_conformance.calling.callers import LocalCaller
    from qloracle_conformance.running import verify as verification
    from qloracle_conformance.running.known import apply, read

    check_arguments(profile, require, ops, seed)
    only = ",".join(f"*/{name},*/{name}/*,*/{name}[*" for name in ops or ())
    declared = _declaration(dialect)
    entries = read(known) if known is not None else []
    found = objects.target(obj)
    if isinstance(found, str):
        report = verification.verify(
            [found], profile=profile, seed=seed, dialect=declared, only=only, require=require,
            known=entries, device=device or "",
        )  # fmt: skip
    else:
        report = Report(profile, seed, require=require, only=only)
        judgement = Judgement(objects.name_of(found), profile="" if only else profile)
        report.judgements.append(judgement)
        try:
            caller = LocalCaller(found, device or "")
        except CannotRun as error:
            judgement.status, judgement.message = "NOT_RUN", str(error)
        else:
            verification.judge(caller, judgement, profile, seed, declared, only)
        report.known_problems = apply(entries, report.judgements, verification.selector(only))
    report.ops = tuple(ops or ())
    return report


def conformance_tests(
    impl: object,
    *,
    profile: str = "smoke",
    device: str | None = None,
    seed: int = 0,
    dialect: str | Mapping[str, Any] | None = None,
    require: str = "",
    known: str | Path | None = None,
) -> Callable[[str], None]:
    """Make a test function for one's own test file: a parametrized test, a parameter a check.

    In a file that pytest collects::

        from qloracle_conformance import conformance_tests

        test_conformance = conformance_tests("my_kernels.py")

    impl and the options are those of `verify`.  What is UNSUPPORTED or MISSING is skipped with its
    reason, or fails where `require` names its level; known failures are xfail.  Needs pytest.
    """
    import pytest

    from qloracle_conformance.running.pytest_suite import Failed, Suite

    check_arguments(profile, require, None, seed)
    declared = _declaration(dialect)
    suite = Suite(objects.target(impl), profile, device or "", seed, declared, require, known)

    @pytest.mark.parametrize("check", suite.names())
    def test_conformance(check: str) -> None:
        __tracebackhide__ = True
        try:
            suite.demand(check)
        except Failed as failure:
            pytest.fail(str(failure), pytrace=False)

    return test_conformance


def _declaration(dialect: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A preset by its name, or a declaration as an implementation would have it."""
    declared = presets.preset(dialect) if isinstance(dialect, str) else dialect or {}
    dialects.check_declaration(declared)
    return declared
