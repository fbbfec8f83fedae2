"""What is written of a run: every form says the same, nothing is lost, nothing breaks the form."""

import copy
import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from qloracle_conformance import reports
from qloracle_conformance.reports import failures, files, json_file, junit, markdown
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.verify import verify

# A wrong code, a wrong form, a swapped nibble, a refusal with wild words, and functions left out.
KERNEL = r"""
import numpy as np
import qloracle as q

limits = {"blocksize": [64, 256], "max_elements": float("inf")}

def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    return packed >> 4 | packed << 4, absmax + (absmax == 0)

def dequantize_4bit(packed, absmax, **options):
    if options.get("quant_type") == "fp4":
        raise NotImplementedError("no quant_type 'fp4'")
    return q.dequantize_4bit(packed, absmax, **options)[None]

def quantize_blockwise(x, codebook, *, blocksize=256):
    raise ValueError("red \x1b[31m & <b> | `tick` \ud800 \uffff \x00")
"""
ONLY = "S3/*/shapes,S4/quantize_4bit[nf4]/zeros,S5/*/zeros,S6,S7/dequantize_4bit[nf4]/powers,P*"
KNOWN = (
    Known("S6/quantize_4bit[fp4]/pairs", "packed", "https://tracker/1"),
    Known("S7/dequantize_4bit[nf4]/powers", "values", "https://tracker/2"),
    Known("S6/nothing", "", "https://tracker/3"),
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "kernel.py"
    path.write_text(KERNEL)
    return verify([str(path), "numpy"], only=ONLY, known=KNOWN, require="L1")


@pytest.fixture
def report(judged):
    return judged.to_dict()


@pytest.fixture
def clean(report):
    """The report of a run in which all went well: the reference, without the stale entries."""
    (reference,) = (i for i in report["implementations"] if i["name"] == "numpy")
    for check in reference["checks"]:
        check["status"] = "PASS" if check["status"] == "XPASS" else check["status"]
    report.update(implementations=[reference], known_problems=[], unmet=[], require="", exit_code=0)
    return report


def check_of(report, check_id, implementation=0):
    checks = report["implementations"][implementation]["checks"]
    return next(check for check in checks if check["id"] == check_id)


# ---- report.json ---------------------------------------------------------------------------------


def test_a_real_report_is_valid(report):
    json_file.validate(report)
    assert {c["status"] for i in report["implementations"] for c in i["checks"]} >= {
        "PASS", "FAIL", "ERROR", "UNSUPPORTED", "XFAIL", "XPASS",
    }  # fmt: skip


def first(report, *path):
    for step in path:
        report = report[step]
    return report


CHECK = ("implementations", 0, "checks", 0)
DAMAGES = {
    "an unknown key": ((), "comment", "hello"),
    "an unknown key of a check": (CHECK, "note", "hello"),
    "an unknown status": (CHECK, "status", "SKIPPED"),
    "a check that is MISSING": (CHECK, "status", "MISSING"),
    "a negative count": (CHECK, "comparisons", -1),
    "a count that is no whole number": (CHECK, "wrong", 0.5),
    "a count as text": (CHECK, "cases", "3"),
    "an unknown rule": (CHECK, "rule", "Q7"),
    "another version": ((), "report_version", "2"),
    "an exit code that is none": ((), "exit_code", 2),
    "an unknown profile": ((), "profile", "quick"),
    "an unknown level": (("implementations", 0, "levels", 0), "level", "L9"),
    "a status for text": (("implementations", 0), "status", "PASS"),
    "a decimal input": (
        (*CHECK[:2], "checks", -1, "failure", "input", "arrays", "absmax", "values"), 0, "1.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_refused(report, damage):
    path, name, value = DAMAGES[damage]
    report["implementations"][0]["checks"].sort(
        key=lambda check: check["id"] == "P1/dequantize_4bit"
    )
    first(report, *path)[name] = value
    with pytest.raises(ValueError, match=r"^\$"):
        json_file.validate(report)


def objects(value):
    if isinstance(value, dict):
        yield value
        for entry in value.values():
            yield from objects(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from objects(entry)


@pytest.mark.parametrize(
    ("path", "name"),
    [((), "seed"), (("machine",), "cores"), (("implementations", 0), "levels"), (CHECK, "known")],
)
def test_a_report_with_a_gap_is_refused(report, path, name):
    del first(report, *path)[name]
    with pytest.raises(ValueError, match=f"'{name}' is a required property"):
        json_file.validate(report)


def test_the_schema_is_strict_everywhere():
    schema = json_file.schema()
    closed = [entry for entry in objects(schema) if "properties" in entry]
    assert len(closed) == len([name for name, o in schema["$defs"].items() if "properties" in o])
    optional = {
        "repro",
        "only",
        "device",
        "form",
        "bound_use",
        "map",
        "stopped",
        "faults",
    }  # not in older reports
    for entry in closed:
        assert entry["additionalProperties"] is False
        assert set(entry["properties"]) - optional == set(entry["required"])


def test_numbers_that_json_lacks_are_text(report):
    text = json_file.text(report)
    json.loads(text, parse_constant=pytest.fail)
    declared = json.loads(text)["implementations"][0]["declared"]
    assert declared["limits"]["max_elements"] == "inf"


# ---- files ---------------------------------------------------------------------------------------


def test_everything_is_written(judged, tmp_path):
    scripts = reports.write_all(tmp_path / "new" / "folder", judged)
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {*reports.FILES, "repro"}
    written = json.loads((folder / "report.json").read_text())
    json_file.validate(written)
    named = {
        failures.key(i["name"], c["id"]): folder / c["repro"]
        for i in written["implementations"]
        for c in i["checks"]
        if "repro" in c
    }
    assert named == scripts
    assert {path.parent for path in scripts.values()} == {folder / "repro"}
    assert all(path.is_file() for path in scripts.values())


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    files.write(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


# ---- junit.xml -----------------------------------------------------------------------------------


def outcomes(report):
    """What JUnit says of each case: {(suite, case): (tag or "", message)}."""
    found = {}
    for suite in ElementTree.fromstring(junit.text(report).encode()):
        for case in suite.findall("testcase"):
            child = next(iter(case), None)
            said = ("", "") if child is None else (child.tag, child.get("message"))
            found[suite.get("name"), case.get("name")] = said
    return found


def test_junit_says_what_the_checks_say(report):
    found = outcomes(report)
    tags = {
        "PASS": "", "FAIL": "failure", "XPASS": "failure", "ERROR": "error",
        "UNSUPPORTED": "skipped", "NOT_RUN": "skipped", "XFAIL": "skipped",
    }  # fmt: skip
    checks = [(i["name"], c) for i in report["implementations"] for c in i["checks"]]
    assert all(found[name, check["id"]][0] == tags[check["status"]] for name, check in checks)
    kernel = report["implementations"][0]["name"]
    assert found[kernel, "dequantize_blockwise"] == ("skipped", "MISSING: not offered")
    assert "https://tracker/1" in found[kernel, "S6/quantize_4bit[fp4]/pairs"][1]
    whole = [tag for (suite, _), (tag, _) in found.items() if suite == "the run"]
    assert whole == ["failure"] * (len(report["unmet"]) + len(report["known_problems"]))
    assert len(whole) == 6


def test_junit_counts(report):
    root = ElementTree.fromstring(junit.text(report).encode())
    for element in (root, *root):
        assert int(element.get("tests")) == len(list(element.iter("testcase")))
        for tag, total in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(element.get(total)) == len(list(element.iter(tag)))
    assert int(root.get("failures")) == sum(
        tag == "failure" for tag, _ in outcomes(report).values()
    )


def test_junit_survives_control_characters(report):
    text = junit.text(report)
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff\uffff]", text)
    message = next(m for tag, m in outcomes(report).values() if tag == "error")
    assert message.endswith(r"red \x1b[31m & <b> | `tick` \ud800 \uffff \x00")


@pytest.mark.parametrize(
    "change",
    [
        {"partial": True},
        {"exit_code": 3},
        {"unmet": ["numpy: matmul_4bit (L2) MISSING"], "exit_code": 1},
        {"known_problems": ["known failure X matches no check of this run"], "exit_code": 1},
    ],
)
def test_a_run_that_does_not_end_with_0_is_not_green(clean, change):
    assert all(tag in ("", "skipped") for tag, _ in outcomes(clean).values())
    assert any(tag in ("failure", "error") for tag, _ in outcomes(clean | change).values())


def test_an_implementation_that_does_not_load_is_an_error(clean):
    broken = {"status": "ERROR", "message": "does not import: no driver", "checks": []}
    clean["implementations"][0].update(broken)
    assert outcomes(clean)["numpy", "numpy"] == ("error", "ERROR: does not import: no driver")


# ---- the terminal --------------------------------------------------------------------------------


def shown(report, width=80, scripts=None):
    page = io.StringIO()
    reports.show(report, Console(file=page, width=width), scripts)
    return page.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_too_long(report, width):
    lines = shown(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)
    assert all(line.isprintable() for line in lines)


def test_the_functions_with_their_counts(report):
    text = shown(report)
    for row in report["implementations"][0]["functions"]:
        if row["status"] != "MISSING":
            cells = rf"{row['name']} +{row['status']} .* {row['comparisons']:,}"
            assert re.search(rf"^{cells}$", text, re.MULTILINE)
    assert "\nMISSING dequantize_blockwise\n" in text
    assert "\nL1 to L5 MISSING\n" in text


def test_a_row_for_each_view(report):
    text = shown(report)
    assert re.search(r"^quantize_4bit\[nf4\] +PASS +FAIL +PASS +FAIL +-$", text, re.MULTILINE)
    assert "\ndequantize_4bit[fp4] UNSUPPORTED: no quant_type 'fp4'\n" in text


def test_the_dialect_stands_with_the_verdict(report):
    assert "\n    S5 PASS[nibble_order: low_first]\n" in shown(report)
    view = next(
        v for v in report["implementations"][0]["dialects"] if v["view"] == "quantize_4bit[nf4]"
    )
    view["label"] = "full: reciprocal, partial: divide"
    check_of(report, "S5/quantize_4bit[nf4]/zeros")["band"] = 1234
    check_of(report, "S5/quantize_4bit[nf4]/zeros")["recorded"] = 5
    said = (
        "S5 PASS[full: reciprocal, partial: divide], 1,234 within the band, 5 recorded, not judged"
    )
    assert f"\n    {said}\n" in shown(report, 120)


def test_a_failure_has_all_its_numbers(report):
    text = " ".join(shown(report, 200).split())
    entry = (
        "FAIL S4 quantize_4bit[nf4] absmax = max |x| of the block, exact, in float32; 0 stays 0. "
        "call quantize_4bit(x=[0.0] float32[1], blocksize=64, quant_type='nf4') "
        "result absmax[0] got 1.0 expected 0.0 because the largest |x| of the block"
    )
    assert entry in text
    assert 'declare dialect = {"nibble_order": "low_first"}' in text
    assert r"got raised ValueError: red \x1b[31m & <b> | `tick` \ud800 \uffff \x00" in text


def test_a_bound_and_a_likely_cause_are_shown(report):
    check = check_of(report, "S4/quantize_4bit[nf4]/zeros")
    check["looks_like"] = ["an epsilon"]
    check["failure"] |= {"bound": 0.25, "observed": 1e10, "ratio": 4e10}
    text = shown(report)
    for row in (
        "bound       0.25",
        "observed    1e+10",
        "ratio       4e+10",
        "looks like  an epsilon",
    ):
        assert f"\n  {row}\n" in text


def test_one_element_is_one_entry(report):
    names = ("S4/quantize_4bit[nf4]/zeros", "S3/quantize_4bit[nf4]/shapes")
    first_, other = (check_of(report, name) for name in names)
    other.update(status="FAIL", failure=copy.deepcopy(first_["failure"]))
    other["failure"]["input"]["note"] = "found by another layer"
    text = shown(report)
    assert text.count("\n  result      absmax[0]\n") == 1
    assert "\nFAIL S3 S4 quantize_4bit[nf4]\n" in text
    assert f"\n  checks      {names[1]}, {names[0]}\n" in text
    other["failure"]["index"] = 1
    assert shown(report).count("\n  result      absmax[") == 2


def test_one_reason_to_raise_is_one_entry(report):
    assert shown(report).count("raised ValueError") == 1
    assert "wrong       0 of" not in shown(report)


def test_a_finding_is_told_once(report):
    kernel = report["implementations"][0]
    views = {view["view"]: view for view in kernel["dialects"]}
    views["quantize_4bit[fp4]"]["findings"] = views["quantize_4bit[nf4]"]["findings"]
    assert check_of(report, "S6/quantize_4bit[nf4]/pairs")["failure"]
    other = copy.deepcopy(check_of(report, "S6/quantize_4bit[fp4]/pairs"))
    other |= {"id": "S6/quantize_4bit[fp4]/more", "status": "FAIL"}
    kernel["checks"].append(other)
    assert shown(report).count("nibble_order is low_first") == 2  # the other one is the XFAIL's
    other["failure"] = None  # with nothing else to say it is said again
    assert shown(report).count("nibble_order is low_first") == 3


def test_nobody_is_flooded(report):
    kernel = report["implementations"][0]
    model = check_of(report, "S4/quantize_4bit[nf4]/zeros")
    kernel["checks"] = []
    for i in range(40):
        check = copy.deepcopy(model) | {"id": f"S4/{i}"}
        check["failure"]["index"] = i
        kernel["checks"].append(check)
    text = shown(report)
    assert text.count("FAIL S4 quantize_4bit[nf4]\n") == 1
    assert text.count("\n  FAIL S4/") == 12
    assert "and 27 more: S4/13, S4/14," in text
    assert markdown.text(report).count("**FAIL S4") == 5


def test_known_failures_and_their_problems(report):
    text = shown(report, 200)
    assert re.search(
        r"^XFAIL S6/quantize_4bit\[fp4\]/pairs: packed\[0\] is 0x03", text, re.MULTILINE
    )
    assert '"low_first"} (https://tracker/1)\n' in text
    assert "listed as a known failure (https://tracker/2), but passes" in text
    assert "KNOWN FAILURES: known failure S6/nothing matches no check of this run" in text
    assert "REQUIRED: " in text


def test_too_few_comparisons_are_named(clean):
    clean["implementations"][0]["functions"][0].update(comparisons=10, floor=1000, status="NOT_RUN")
    assert "\n    fewer than 1,000 comparisons: too few for a verdict\n" in shown(clean)


def test_the_script_is_named_in_one_line(judged, report, tmp_path, monkeypatch):
    scripts = reports.write_all(tmp_path / "a-folder-with-a-long-name" / "reports", judged)
    named = {path for path in scripts.values() if "fp4" not in path.name}  # that one is an XFAIL
    assert unnamed(shown(report, 80, scripts), named) == []
    monkeypatch.chdir(tmp_path)
    here = [path.relative_to(tmp_path) for path in named]
    assert unnamed(shown(report, 80, scripts), here) == []


def unnamed(text, paths):
    """The paths that no line of the text names whole."""
    return [path for path in paths if not re.search(rf"\n +repro +{re.escape(str(path))}\n", text)]


def test_the_end(clean):
    assert shown(clean).endswith(
        "exit code 0: every function offered passed within its printed scope\n"
    )
    clean["exit_code"] = 3
    assert shown(clean).endswith("exit code 3: nothing was compared\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partial": True, "only": ""}, "PARTIAL: the run was interrupted; this is no verdict"),
        ({"only": "S5"}, "PARTIAL: only S5 was run; nothing else is judged"),
    ],
)
def test_a_part_of_a_run_says_so_loudly(clean, change, said):
    lines = shown(clean | change).splitlines()
    assert lines[1] == lines[-2] == said
    assert said in markdown.text(clean | change)


def test_an_interrupted_run_is_no_pass(clean):
    assert failures.exit_code(clean) == 0
    assert (
        shown(clean | {"partial": True}).splitlines()[-1].startswith("exit code 130: interrupted")
    )


def test_colour_only_repeats_the_words(report):
    page = io.StringIO()
    reports.show(report, Console(file=page, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[" in page.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", page.getvalue()) == shown(report)


# ---- summary.md ----------------------------------------------------------------------------------


def test_the_summary_has_a_row_for_each_function(report):
    text = markdown.text(report)
    for implementation in report["implementations"]:
        for row in implementation["functions"]:
            cells = (
                f"| `{row['name']}` | {row['level']} | {row['status']} | {row['comparisons']:,} |"
            )
            assert cells in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}


def test_the_summary_keeps_wild_words_in_their_place(report):
    text = markdown.text(report)
    assert "\x1b" not in text
    quoted = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, re.MULTILINE | re.DOTALL)
    assert any("`tick`" in body for _, body in quoted)
    check_of(report, "S4/quantize_4bit[nf4]/zeros")["failure"]["reason"] = "```\n# gone"
    assert "````text" in markdown.text(report)
    assert "\n# gone" not in markdown.text(report)
    assert "max \\|x\\| of the block" in text


def test_the_summary_begins_with_the_outcome(report, clean):
    assert markdown.text(clean).startswith(
        "## qloracle: exit code 0, every function offered passed"
    )
