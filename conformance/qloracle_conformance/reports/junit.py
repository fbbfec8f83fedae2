"""junit.xml: one suite for each implementation, one case for each check, for CI servers.

Nothing that makes the exit code differ from 0 is green here: what concerns the run as a whole
(requirements that are not met, stale known failures, nothing compared) has a suite of its own.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.files import printable

FAILURES = ("FAIL", "XPASS", "INCONCLUSIVE")
ERRORS = ("ERROR", *BROKEN)


def text(report: Data) -> str:
    """The report as JUnit's XML."""
    root = ElementTree.Element("testsuites", name="qloracle")
    for implementation in report["implementations"]:
        suite = _suite(root, implementation["name"], report, implementation["seconds"])
        _properties(suite, report, implementation)
        _cases(suite, implementation)
    _run_as_a_whole(root, report)
    for element in (*root, root):
        _count(element)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _suite(
    root: ElementTree.Element, name: str, report: Data, seconds: float
) -> ElementTree.Element:
    attributes = {"name": printable(name), "time": f"{seconds:.3f}"}
    if report["started"]:
        attributes["timestamp"] = report["started"]
    return ElementTree.SubElement(root, "testsuite", attributes)


def _properties(suite: ElementTree.Element, report: Data, implementation: Data) -> None:
    properties = ElementTree.SubElement(suite, "properties")
    run = {name: report[name] for name in ("profile", "seed", "spec_version", "qloracle_version")}
    for name, value in {**run, **implementation["versions"]}.items():
        ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))


def _cases(suite: ElementTree.Element, implementation: Data) -> None:
    if implementation["status"] != "OK":
        case = _case(suite, "load", implementation["name"], implementation["import_seconds"])
        _outcome(case, implementation["status"], implementation["message"])
    for check in implementation["checks"]:
        case = _case(suite, f"{check['rule']}.{check['function']}", check["id"], check["seconds"])
        message = check["message"]
        if check["known"]:
            message += f" ({check['known']})"
        _outcome(case, check["status"], message, _body(implementation, check))
    for row in implementation["functions"]:
        if row["status"] == "MISSING":
            case = _case(suite, f"protocol.{row['name']}", row["name"], 0.0)
            _outcome(case, "MISSING", "not offered")


def _case(
    suite: ElementTree.Element, classname: str, name: str, seconds: float
) -> ElementTree.Element:
    attributes = {"classname": classname, "name": printable(name), "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(suite, "testcase", attributes)


def _outcome(case: ElementTree.Element, status: str, message: str, body: str = "") -> None:
    """Add what happened to a case; nothing for a pass."""
    if status == "PASS":
        return
    tag = "failure" if status in FAILURES else "error" if status in ERRORS else "skipped"
    element = ElementTree.SubElement(case, tag, message=printable(f"{status}: {message}"))
    if tag != "skipped":
        element.set("type", status)
        element.text = printable(body)


def _body(implementation: Data, check: Data) -> str:
    """The failing input with its numbers, and the likely causes."""
    rows = [] if check["failure"] is None else failures.entry(implementation, check).rows
    rows += [("repro", check["repro"])] if "repro" in check else []
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _run_as_a_whole(root: ElementTree.Element, report: Data) -> None:
    """What no single check shows, if there is any."""
    problems = list(_problems(report))
    if problems:
        suite = _suite(root, "the run", report, 0.0)
        for status, message in problems:
            _outcome(_case(suite, "run", message, 0.0), status, message)


def _problems(report: Data) -> Iterator[tuple[str, str]]:
    """Each with a message of its own: CI servers merge cases of one name."""
    for line in report["unmet"]:
        yield "FAIL", f"required: {line}"
    for line in report["known_problems"]:
        yield "FAIL", line
    if report["partial"]:
        yield "ERROR", "the run was interrupted"
    if failures.exit_code(report) == 3:
        yield "ERROR", failures.MEANINGS[3]


def _count(element: ElementTree.Element) -> None:
    """Enter the totals that CI servers read from a suite's head."""
    element.set("tests", str(len(element.findall(".//testcase"))))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(name, str(len(element.findall(f".//testcase/{tag}"))))
