"""Faults from public reports, each in a small file, keep their verdicts: what failed still fails.

The files are handed to the project and are no part of it; their verdicts are, in
`data/public_cases.json`: the exit code, and each rule with the function that fails it.
"""

import json
from pathlib import Path

import pytest

from qloracle_conformance.engine.verdicts import BAD, BROKEN
from qloracle_conformance.running.verify import verify

CASES = Path(__file__).parents[3] / "shared" / "cases"
VERDICTS = json.loads((Path(__file__).parent / "data" / "public_cases.json").read_text())
NEEDS = {"case_22_jax_whole_blocks.py": "jax"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.exists(), reason=f"the cases are not here ({CASES})"),
]


@pytest.mark.parametrize("name", VERDICTS)
def test_a_case_keeps_its_verdict(name):
    pytest.importorskip(NEEDS.get(name, "torch"), reason="its arrays need it")
    report = verify([str(CASES / name)])
    failing = {
        f"{check.rule} {check.function}"
        for judgement in report.judgements
        for check in judgement.checks
        if check.status in BAD + BROKEN
    }
    assert report.exit_code == VERDICTS[name]["exit_code"]
    assert sorted(failing) == VERDICTS[name]["rules"]


def test_most_of_them_fail():
    """The verdicts that are kept are no list of passes."""
    assert sum(verdict["exit_code"] == 1 for verdict in VERDICTS.values()) > 10
