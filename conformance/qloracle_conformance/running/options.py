"""The options that Python and pytest have in common, made into those of a `Run`."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qloracle_conformance.calling.callers import LIMIT
from qloracle_conformance.contract import dialects, presets
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.judging.checks import PROFILES
from qloracle_conformance.running.known import read as read_known


def read(
    *, profile: str = "smoke", require: str = "", seed: int = 0,
    dialect: str | Mapping[str, Any] | None = None, known: str | Path | None = None,
    device: str | None = "", limit: float = LIMIT,
) -> dict[str, Any]:  # fmt: skip
    """Options as `Run` takes them, and `require`.

    dialect: a preset by its name, or a declaration as an implementation would have it.
    UsageError for an option that means nothing; ImportError if Hypothesis is missing.
    """
    if find_spec("hypothesis") is None:
        raise ImportError("verify needs Hypothesis: pip install 'qloracle[verify]'")
    if profile not in PROFILES:
        raise UsageError(f"profile is {profile!r}; allowed: {', '.join(PROFILES)}")
    if require and require not in LEVELS:
        raise UsageError(f"require is {require!r}; allowed: {', '.join(LEVELS)}")
    if type(seed) is not int or seed < 0:
        raise UsageError(f"seed is {seed!r}; allowed: a whole number >= 0")
    if not limit > 0:
        raise UsageError(f"limit is {limit}; allowed: seconds above 0")
    declared = presets.preset(dialect) if dialect and isinstance(dialect, str) else dialect or {}
    dialects.check_declaration(declared)
    return {
        "profile": profile, "require": require, "seed": seed, "dialect": declared,
        "known": read_known(known) if known is not None else (), "device": device or "",
        "limit": limit,
    }  # fmt: skip
