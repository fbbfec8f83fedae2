"""Compare a report with an older one: what fails now, what passes now, what is new or gone."""

import json
from pathlib import Path
from typing import Any

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.reports.failures import Data

ABSENT = "absent", ""


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
    before, after, found = _checks(old), _checks(new), []
    for name in before | after:
        (was, said), (now, says) = before.get(name, ABSENT), after.get(name, ABSENT)
        if was != now:
            found.append(f"{name}: was {was}, is {now}")
        elif said != says:
            found.append(f"{name}: still {now}, but now: {says}")
    return found


def _checks(report: Data) -> dict[str, tuple[str, str]]:
    """Status and message of each check."""
    return {
        f"{implementation['name']} {check['id']}": (check["status"], check["message"])
        for implementation in report["implementations"]
        for check in implementation["checks"]
    }
