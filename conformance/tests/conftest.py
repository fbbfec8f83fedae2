"""What several test files need."""

import json
from importlib.resources import files

import jsonschema
import pytest

from qloracle_conformance.reports import data


@pytest.fixture(scope="session")
def schema():
    """The published form of a report."""
    return json.loads((files("qloracle_conformance.reports") / "report.schema.json").read_text())


@pytest.fixture(scope="session")
def validate(schema):
    """Compare a report, as it is written, with its schema."""
    checker = jsonschema.Draft202012Validator(schema)
    return lambda report: checker.validate(json.loads(data.to_json(report)))
