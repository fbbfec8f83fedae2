"""report.json: the whole report as data, in the form that `report.schema.json` publishes."""

import json
import math
from collections.abc import Mapping
from typing import Any


def text(report: Mapping[str, Any]) -> str:
    """The report as JSON.

    >>> print(text({"ratio": float("inf")}))
    {
     "ratio": "inf"
    }
    <BLANKLINE>
    """
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Write inf and nan as text: JSON has no numbers for them."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
