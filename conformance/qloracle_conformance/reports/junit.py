"""junit.xml: one suite for each implementation, one case for each check, for CI servers.

Nothing that makes the exit code differ from 0 is green here: what concerns the run as a whole
(requirements that are not met, stale known failures, nothing compared) has a suite of its own.
"""

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data
from qloracle_conformance.reports.files import printable

FAILURES = ("FAIL", "XPASS", "INCONCLUSIVE")
ERRORS = ("ERROR", *BROKEN)

Case = tuple[str, str, float, str, str, str]  # class, name, seconds, status, message, body


def text(report: Data) -> str:
    """The report as JUnit's XML."""
    root = ElementTree.Element("testsuites", name="qloracle")
    run = {name: report[name] for name in ("profile", "seed", "spec_version", "qloracle_version")}
    for implementation in report["implementations"]:
        suite = _suite(root, implementation["name"], report, implementation["seconds"])
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in {**run, **implementation["versions"]}.items():
            ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))
        for case in _cases(implementation):
            _enter(suite, *case)
    if whole := list(_problems(report)):
        suite = _suite(root, "the run", report, 0.0)
        for status, message in whole:
            _enter(suite, "run", message, 0.0, status, message)
    for element in (*root, root):
        _count(element)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _suite(root: Element, name: str, report: Data, seconds: float) -> Element:
    attributes = {"name": printable(name), "time": f"{seconds:.3f}"}
    if report["started"]:
        attributes["timestamp"] = report["started"]
    return ElementTree.SubElement(root, "testsuite", attributes)


def _cases(implementation: Data) -> Iterator[Case]:
    if implementation["status"] != "OK":
        name, seconds = implementation["name"], implementation["import_seconds"]
        yield "load", name, seconds, implementation["status"], implementation["message"], ""
    for check in implementation["checks"]:
        body = failures.entry(implementation, check).body if check["failure"] else ""
        message = check["message"] + (f" ({check['known']})" if check["known"] else "")
        place = f"{check['rule']}.{check['function']}"
        yield place, check["id"], check["seconds"], check["status"], message, body
    for row in implementation["functions"]:
        if row["status"] == "MISSING":
            yield f"protocol.{row['name']}", row["name"], 0.0, "MISSING", "not offered", ""


def _enter(
    suite: Element, place: str, name: str, seconds: float, status: str, message: str, body: str = ""
) -> None:
    """Add a case, and what happened to it; nothing for a pass."""
    attributes = {"classname": place, "name": printable(name), "time": f"{seconds:.3f}"}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if status == "PASS":
        return
    tag = "failure" if status in FAILURES else "error" if status in ERRORS else "skipped"
    element = ElementTree.SubElement(case, tag, message=printable(f"{status}: {message}"))
    if tag != "skipped":
        element.set("type", status)
        element.text = printable(body)


def _problems(report: Data) -> Iterator[tuple[str, str]]:
    """What no single check shows, each with a message of its own: CI servers merge equal ones."""
    for line in report["unmet"]:
        yield "FAIL", f"required: {line}"
    for line in report["known_problems"]:
        yield "FAIL", line
    if report["partial"]:
        yield "ERROR", "the run was interrupted"
    if failures.exit_code(report) == 3:
        yield "ERROR", failures.MEANINGS[3]


def _count(element: Element) -> None:
    """Enter the totals that CI servers read from a suite's head."""
    element.set("tests", str(len(element.findall(".//testcase"))))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(name, str(len(element.findall(f".//testcase/{tag}"))))
