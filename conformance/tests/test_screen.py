"""The first screen: bad news first, within forty lines, a cause before what follows from it."""

import copy
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from qloracle_conformance.reports import failures
from qloracle_conformance.reports.screen import EACH, MOST, Screen
from qloracle_conformance.running.verify import verify

# A wrong scale, a wrong code, and a refusal.
KERNEL = """
import numpy as np
import qloracle as q

def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return packed, absmax + (absmax == 0)

def quantize_blockwise(x, codebook, *, blocksize=256):
    codes, absmax = q.quantize_blockwise(x, codebook, blocksize=blocksize)
    return np.where(codes == 127, 131, codes).astype(np.uint8), absmax

def quantize_absmax(absmax, *, codebook=None, blocksize=256):
    raise ValueError("no scales today")
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "kernel.py"
    path.write_text(KERNEL)
    only = "S3/quantize_4bit[nf4]/shapes,S4,S5/*/zeros,S5/*/full,S8/quantize_absmax/*"
    return json.dumps(verify([str(path)], only=only).to_dict())


@pytest.fixture
def report(judged):
    return json.loads(judged)


def shown(report, width=100, folder=None, likely=lambda check: ()):
    page = io.StringIO()
    screen = Screen(Console(file=page, width=width), len(report["implementations"]), folder)
    screen.opening(report)
    for implementation in report["implementations"]:
        screen.implementation(implementation, likely)
    screen.table(report)
    screen.ending(report)
    return page.getvalue()


def lines_of_failures(text):
    return [line for line in text.splitlines() if line.startswith("  ") and line.strip()]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_too_long(report, width):
    lines = shown(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert not any(line.endswith(" ") for line in lines[:-8])


def test_a_long_status_stands_apart_from_what_follows(report):
    for check in report["implementations"][0]["checks"]:
        check["status"] = check["status"].replace("FAIL", "TIMEOUT")
    assert "\n  TIMEOUT quantize_4bit[" in shown(report)


def test_a_fault_is_told_in_its_words(report):
    text = shown(report)
    assert "\n  FAIL  quantize_4bit[nf4, fp4" in text
    assert ": absmax[0] is 1.0, " in text
    assert "\n        quantize_4bit(x=[0.0] float32[1], blocksize=64, quant_type='nf4')\n" in text
    assert "\n        because the largest |x| of the block\n" in text


def test_an_infinite_error_is_shown(report):
    model = many(report, 1, 1)
    model["implementations"][0]["checks"][0]["failure"] |= {
        "bound": 0.25, "observed": "inf", "ratio": "inf",
    }  # fmt: skip
    assert "off by inf, inf of the bound" in shown(model)


def test_a_cause_stands_before_what_follows_from_it(report):
    found = failures.faults(report["implementations"][0])
    functions = [fault.first.first["function"] for fault in found]
    assert functions == sorted(functions, key=["quantize_4bit", "quantize_blockwise",
                                               "quantize_absmax"].index)  # fmt: skip
    assert [bool(fault.after) for fault in found] == [f == "quantize_absmax" for f in functions]
    assert found[-1].after == "quantize_blockwise"


def many(report, implementations, faults):
    model = report["implementations"][0]
    check = next(c for c in model["checks"] if c["status"] == "FAIL" and c["failure"])
    model["checks"] = []
    for i in range(faults):
        other = copy.deepcopy(check) | {"id": f"S4/{i}"}
        other["failure"] |= {"result": f"r{i}", "index": i}
        model["checks"].append(other)
    model["faults"] = [{"checks": [c["id"]], "consequences": []} for c in model["checks"]]
    copies = [copy.deepcopy(model) | {"name": f"kernel {i}"} for i in range(implementations)]
    return report | {"implementations": copies}


@pytest.mark.parametrize(("implementations", "faults"), [(1, 60), (3, 9), (12, 1), (12, 30)])
def test_a_run_has_forty_lines_of_failures_at_most(report, implementations, faults):
    text = shown(many(report, implementations, faults), likely=lambda check: ["a story"])
    assert len(lines_of_failures(text.partition("  L0 ")[0])) <= MOST
    assert text.count("looks like: a story") >= 1


def test_what_is_left_out_is_counted(report):
    text = shown(many(report, 1, 60))
    listed = text.count("\n  FAIL")
    assert f"and {60 - listed} more faults: -v prints all, --report DIR" in " ".join(text.split())


def test_the_first_takes_no_more_than_its_share(report):
    first = shown(many(report, 4, 30)).split("kernel 1")[0]
    assert len(lines_of_failures(first)) <= EACH


def test_likely_causes_are_sought_only_for_what_is_shown_whole(report):
    asked = []
    shown(many(report, 1, 60), likely=lambda check: asked.append(check) or [])
    assert asked
    assert len(asked) < 10


def test_the_script_is_named(report, tmp_path):
    for check in report["implementations"][0]["checks"]:
        check["repro"] = "repro/S4.py"
    script = tmp_path / "repro" / "S4.py"
    assert f"reproduce with NumPy alone: {script}" in shown(report, 300, tmp_path)


def test_one_table_ends_it(report):
    other = {"name": "away", "status": "NOT_RUN", "message": "needs a card", "levels": []}
    blank = {
        "checks": [],
        "faults": [],
        "functions": [],
        "dialects": [],
        "versions": {},
        "device": "",
    }
    report["implementations"].append(other | blank | {"seconds": 0.0, "partial": False})
    lines = shown(report | {"only": ""}, 200).splitlines()
    *_, head, kernel, away, _, end = lines
    assert head.split() == ["L0", "L1", "L2", "L3", "L4", "L5"]
    found = failures.faults(report["implementations"][0])
    own = sum(not fault.after for fault in found)
    assert kernel.split()[-2:] == [str(own), "faults"]
    assert 1 < own < len(found)
    assert away.split() == ["away", *"-" * 6, "NOT_RUN"]
    assert end.endswith("kernel.py has a fault: exit code 1")


def test_a_pass_says_within_which_scope(tmp_path):
    report = verify(["example"], only="S1").to_dict()
    (line,) = [line for line in shown(report, 200).splitlines() if line.startswith("  L0 ")]
    assert "PASS within quant_type nf4, dtype float32" in line


def test_known_failures_are_no_news(report):
    report["implementations"][0]["faults"] = []
    for check in report["implementations"][0]["checks"]:
        check.update(status="XFAIL", known="https://tracker/1")
    report |= {"exit_code": 0, "only": ""}
    text = shown(report)
    assert "\n  failed as expected: " in text
    end = "more; the rest passed within its printed scope: exit code 0"
    assert " ".join(text.split()).endswith(end)
    assert "every function offered passed" not in text


def test_nothing_compared_is_never_fine(report):
    report |= {"implementations": [], "exit_code": 3, "only": ""}
    assert shown(report).endswith("nothing was compared: exit code 3\n")


def test_the_example_is_the_fault_that_the_readme_shows():
    root = Path(__file__).parents[2]
    if not (root / "README.md").exists():
        pytest.skip("no README beside an installed package")
    from qloracle_conformance.adapters import ragged_block

    text = Path(ragged_block.__file__).read_text()
    shown_there = (root / "README.md").read_text().partition("<!-- ci:fault -->\n```python\n")[2]
    lines = shown_there.partition("```")[0].splitlines()
    assert len(lines) > 4
    assert all(line.removesuffix("  # type: ignore[no-untyped-def]") in text for line in lines)
