"""Compare a report with an older one: what fails now, what passes now, what is new or gone."""

import json
from pathlib import Path
from typing import Any

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports.failures import Data


def read(path: str | Path) -> dict[str, Any]:
    """Read an older report.json; UsageError if the file is not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        _checks(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a report of qloracle") from error
    return dict(data)


def lines(old: Data, new: Data) -> list[str]:
    """One line for each check whose status or message is another one."""
    before, after = _checks(old), _checks(new)
    found = []
    for name, now in after.items():
        was = before.pop(name, None)
        if was is None:
            found.append(f"{name}: new, {now['status']}")
        elif was["status"] != now["status"]:
            found.append(f"{name}: was {was['status']}, is {now['status']}")
        elif was["message"] != now["message"]:
            found.append(f"{name}: still {now['status']}, but now: {now['message']}")
    return [*found, *(f"{name}: gone, was {was['status']}" for name, was in before.items())]


def _checks(report: Data) -> dict[str, Data]:
    return {
        f"{implementation['name']} {check['id']}": check
        for implementation in report["implementations"]
        for check in implementation["checks"]
    }
