"""The kit from Python: `verify` for notebooks and graders, `conformance_tests` for a test file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qloracle_conformance.calling import objects
from qloracle_conformance.calling.callers import LIMIT
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.reports.report import Report


def verify(
    obj: object,
    ops: Sequence[str] | None = None,
    profile: str = "smoke",
    device: str | None = None,
    *,
    only: str = "",
    limit: float = LIMIT,
    seed: int = 0,
    dialect: str | Mapping[str, Any] | None = None,
    require: str = "",
    known: str | Path | None = None,
) -> Report:
    """Judge an implementation and return its report, which a notebook shows as a page.

    obj: a text IMPL as on the command line, which runs in a child process; or a module, class,
    function, list or dict of functions, which runs in this process (a crash would end it, too).
    ops: names of functions; only these are judged, and a missing one fails.  only (rules, levels,
    functions, check ids, patterns), limit (seconds of one call), profile, device, seed, dialect (a
    preset or a dict), require and known are the options of ``qloracle verify``.  A call of an
    object cannot be interrupted: what takes longer than the limit fails when it returns.

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
    >>> verify(dequantize_4bit, only="S1").ok
    False
    """
    from qloracle_conformance.running import options
    from qloracle_conformance.running import verify as running

    if isinstance(ops, str) or not set(ops or ()) <= set(FUNCTIONS):
        raise UsageError(f"ops is {ops!r}; allowed: a list of {', '.join(FUNCTIONS)}")
    given = options.read(
        profile=profile, require=require, seed=seed, dialect=dialect, known=known, device=device,
        limit=limit,
    )  # fmt: skip
    return running.verify([objects.target(obj)], only=only, functions=tuple(ops or ()), **given)


def conformance_tests(impl: object, **options: Any) -> Callable[[str], None]:
    """Make a test function for one's own test file: a parametrized test, a parameter a check.

    In a file that pytest collects::

        from qloracle_conformance import conformance_tests

        test_conformance = conformance_tests("my_kernels.py")

    impl, profile, device, limit, seed, dialect, require and known are those of `verify`.  What is
    UNSUPPORTED or MISSING is skipped with its reason, or fails where `require` names its level;
    known failures are xfail.  Needs pytest.
    """
    import pytest

    from qloracle_conformance.running.options import read
    from qloracle_conformance.running.pytest_suite import Failed, Suite

    suite = Suite(objects.target(impl), **read(**options))

    @pytest.mark.parametrize("check", suite.names())
    def test_conformance(check: str) -> None:
        __tracebackhide__ = True
        try:
            suite.demand(check)
        except Failed as failure:
            pytest.fail(str(failure), pytrace=False)

    return test_conformance
