"""Compare a report with an older one: what fails now, what passes now, what is new or gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qloracle_conformance.contract.errors import UsageError


def read(path: str | Path) -> dict[str, Any]:
    """Read an older report.json; UsageError if it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        _checks(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a report of qloracle") from error
    return dict(data)


def lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each check whose status or message is another one."""
    before, after = _checks(old), _checks(new)
    found = []
    for key in [*after, *(key for key in before if key not in after)]:
        was, now = before.get(key), after.get(key)
        if was is None and now is not None:
            found.append(f"{key}: new, {now['status']}")
        elif now is None:
            found.append(f"{key}: gone" + (f", was {was['status']}" if was else ""))
        elif was is not None and (was["status"], was["message"]) != (now["status"], now["message"]):
            found.append(_change(key, was, now))
    return found


def _change(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if was["status"] != now["status"]:
        return f"{key}: was {was['status']}, is {now['status']}"
    return f"{key}: still {now['status']}, but now: {now['message']}"


def _checks(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        f"{implementation['name']} {check['id']}": check
        for implementation in report["implementations"]
        for check in implementation["checks"]
    }
