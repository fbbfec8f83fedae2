"""The options that the command line, Python and pytest have in common."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS
from qloracle_conformance.judging.checks import PROFILES


def check_arguments(profile: str, require: str, ops: Sequence[str] | None, seed: int) -> None:
    """UsageError for an option that means nothing; ImportError if Hypothesis is missing."""
    if find_spec("hypothesis") is None:
        raise ImportError("verify needs Hypothesis: pip install 'qloracle[verify]'")
    if profile not in PROFILES:
        raise UsageError(f"profile is {profile!r}; allowed: {', '.join(PROFILES)}")
    if require and require not in LEVELS:
        raise UsageError(f"require is {require!r}; allowed: {', '.join(LEVELS)}")
    if isinstance(ops, str) or not set(ops or ()) <= set(FUNCTIONS):
        raise UsageError(f"ops is {ops!r}; allowed: a list of {', '.join(FUNCTIONS)}")
    if type(seed) is not int or seed < 0:
        raise UsageError(f"seed is {seed!r}; allowed: a whole number >= 0")
