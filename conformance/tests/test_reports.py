"""What is written of a run: every form says the same, nothing is lost, nothing breaks the form."""

import copy
import io
import json
import re
from xml.etree import ElementTree

import jsonschema
import pytest
from rich.console import Console

from qloracle_conformance import reports
from qloracle_conformance.reports import data, failures, files, junit, markdown
from qloracle_conformance.reports.screen import Screen
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


def test_a_real_report_is_valid(report, validate):
    validate(report)
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
def test_a_damaged_report_is_refused(report, validate, damage):
    path, name, value = DAMAGES[damage]
    report["implementations"][0]["checks"].sort(
        key=lambda check: check["id"] == "P1/dequantize_4bit"
    )
    first(report, *path)[name] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(report)


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
def test_a_report_with_a_gap_is_refused(report, validate, path, name):
    del first(report, *path)[name]
    with pytest.raises(jsonschema.ValidationError, match=f"'{name}' is a required property"):
        validate(report)


def test_the_schema_is_strict_everywhere(schema):
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
        "verdict",
    }  # not in older reports
    for entry in closed:
        assert entry["additionalProperties"] is False
        assert set(entry["properties"]) - optional == set(entry["required"])


def test_numbers_that_json_lacks_are_text(report):
    text = data.to_json(report)
    json.loads(text, parse_constant=pytest.fail)
    declared = json.loads(text)["implementations"][0]["declared"]
    assert declared["limits"]["max_elements"] == "inf"


# ---- files ---------------------------------------------------------------------------------------


def test_everything_is_written(judged, validate, tmp_path):
    folder = tmp_path / "new" / "folder"
    reports.write_all(folder, judged)
    written = {"report.html", "report.json", "junit.xml", "summary.md", "repro"}
    assert {path.name for path in folder.iterdir()} == written
    written = json.loads((folder / "report.json").read_text())
    validate(written)
    checks = [check for one in written["implementations"] for check in one["checks"]]
    named = {folder / check["repro"] for check in checks if "repro" in check}
    assert named == {*(folder / "repro").iterdir()}
    assert len(named) > 3


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


def shown(report, width=80, folder=None, **options):
    """What `-v` prints."""
    page = io.StringIO()
    console = Console(file=page, width=width, **options)
    screen = Screen(console, len(report["implementations"]), folder, whole=True)
    screen.opening(report)
    for implementation in report["implementations"]:
        screen.implementation(implementation)
    screen.table(report)
    screen.ending(report)
    return page.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_too_long(report, width):
    lines = shown(report, width).splitlines()
    long = [line for line in lines if len(line) > width]
    assert [line for line in long if not line.startswith("  repro ")] == []  # it may be copied
    assert not any(line.endswith(" ") for line in lines)
    assert all(line.isprintable() for line in lines)


def test_the_functions_with_their_counts(report):
    text = shown(report, 200)
    for row in report["implementations"][0]["functions"]:
        if row["status"] != "MISSING":
            said = f"{row['name']} {row['status']}, {row['comparisons']:,} comparisons"
            assert re.search(rf"^  {said}$", text, re.MULTILINE)


def test_each_table_has_its_rules(report):
    text = shown(report)
    assert "\n    [nf4] PASS S3 S5; FAIL S4 S6\n" in text
    assert re.search(r"\n    \[fp4\] UNSUPPORTED S3[S\d ]*: no quant_type 'fp4'\n", text)


def test_what_is_not_compared_exactly_is_counted(report):
    check = check_of(report, "S5/quantize_4bit[nf4]/zeros")
    check.update(band=1234, recorded=5)
    assert "1,234 within the band, 5 recorded, not judged\n" in shown(report, 120)


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
    faults = report["implementations"][0]["faults"]
    fault = next(fault for fault in faults if names[0] in fault["checks"])
    fault["checks"] = [names[1], *fault["checks"]]
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
    name = "S6/quantize_4bit[nf4]/pairs"
    assert check_of(report, name)["failure"]
    other = copy.deepcopy(check_of(report, "S6/quantize_4bit[fp4]/pairs"))
    other |= {"id": "S6/quantize_4bit[fp4]/more", "status": "FAIL"}
    kernel["checks"].append(other)
    next(f for f in kernel["faults"] if name in f["checks"])["checks"].append(other["id"])
    assert shown(report).count("nibble_order is low_first") == 2  # the other one is the XFAIL's
    other["failure"] = None  # with nothing else to say it is said again
    assert shown(report).count("nibble_order is low_first") == 3


def test_nothing_is_left_out(report):
    kernel = report["implementations"][0]
    model = check_of(report, "S4/quantize_4bit[nf4]/zeros")
    kernel["checks"] = []
    for i in range(40):
        check = copy.deepcopy(model) | {"id": f"S4/{i}"}
        check["failure"]["index"] = i
        kernel["checks"].append(check)
    kernel["faults"] = [
        {"checks": [f"S4/{i}" for i in range(20)], "consequences": []},
        {"checks": ["S4/20"], "consequences": [f"S4/{i}" for i in range(21, 40)]},
    ]
    text = shown(report)
    assert text.count("FAIL S4 quantize_4bit[nf4]\n") == 40
    assert all(f"\n  checks      S4/{i}\n" in text for i in range(40))
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
    assert "10 comparisons, fewer than 1,000: too few for a verdict\n" in shown(clean, 120)


def test_the_script_is_named_in_one_line(judged, tmp_path, monkeypatch):
    folder = tmp_path / "a-folder-with-a-long-name" / "reports"
    reports.write_all(folder, judged)
    report = judged.to_dict()
    paths = {*(folder / "repro").iterdir()}
    named = {path for path in paths if "fp4" not in path.name}  # that one is an XFAIL
    assert unnamed(shown(report, 80, folder), named) == []
    monkeypatch.chdir(tmp_path)
    here = [path.relative_to(tmp_path) for path in named]
    assert unnamed(shown(report, 80, folder), here) == []


def unnamed(text, paths):
    """The paths that no line of the text names whole."""
    return [path for path in paths if not re.search(rf"\n +repro +{re.escape(str(path))}\n", text)]


def test_the_end(clean):
    clean["only"] = ""
    passed = "every function offered passed within its printed scope: exit code 0\n"
    assert shown(clean).endswith(passed)
    clean["exit_code"] = 3
    assert shown(clean).endswith("nothing was compared: exit code 3\n")


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
    last = " ".join(shown(clean | {"partial": True}).split())
    assert last.endswith("interrupted; what was judged until then passed: exit code 130")


def test_colour_only_repeats_the_words(report):
    text = shown(report, force_terminal=True, color_system="standard")
    assert "\x1b[" in text
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == shown(report)


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
    assert markdown.text(clean).startswith("## qloracle: every function offered passed")
