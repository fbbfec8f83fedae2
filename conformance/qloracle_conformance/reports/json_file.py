"""report.json: the whole report as data, in the form that `report.schema.json` publishes."""

import json
import math
from collections.abc import Mapping
from importlib.resources import files
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


def schema() -> dict[str, Any]:
    """The published form of a report, as JSON Schema 2020-12."""
    resource = files("qloracle_conformance.reports") / "report.schema.json"
    return dict(json.loads(resource.read_text(encoding="utf-8")))


def validate(report: Mapping[str, Any]) -> None:
    """Compare a report with the schema: ValueError names the first difference.

    Needs the package `jsonschema`, which is not among the kit's own requirements.
    """
    import jsonschema

    checker = jsonschema.Draft202012Validator(schema())
    errors = sorted(checker.iter_errors(json.loads(text(report))), key=lambda e: e.json_path)
    if errors:
        raise ValueError(f"{errors[0].json_path}: {errors[0].message}")
