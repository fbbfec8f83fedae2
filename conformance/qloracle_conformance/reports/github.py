"""GitHub Actions: annotations of the lines that fail, and the step's summary.

An annotation is a line of the output that the runner reads as a command::

    ::error file=my_kernels.py,line=6,title=FAIL S4 quantize_4bit[nf4]::call ...

In the message % and line ends are escaped, in the properties : and , as well.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qloracle_conformance.calling.loading import parse
from qloracle_conformance.reports import failures, markdown
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.files import printable

SHOWN = 10  # annotations of a kind that GitHub shows of one step
MESSAGE = 4096  # characters of a message that the runner passes on
SUMMARY = 1 << 20  # bytes of a step's summary; GitHub refuses one that is longer

Places = Mapping[str, tuple[str, int]]  # a function: the file and the line where it is written


def here() -> bool:
    """True in a step of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


@contextmanager
def commands_off() -> Iterator[None]:
    """Keep the runner from obeying what an implementation's messages may say, ``::error::`` say."""
    if not here():
        yield
        return
    word = secrets.token_hex(16)
    print(f"::stop-commands::{word}", flush=True)
    try:
        yield
    finally:
        print(f"::{word}::", flush=True)


# ---- annotations -------------------------------------------------------------------------------


def commands(report: Data, places: Mapping[str, Places]) -> list[str]:
    """The commands for a report: an error a failure, a warning for what is known or not met.

    places: of each implementation, where its functions are written.  Of more errors than GitHub
    shows, the last line, the verdict's, says how many are left out.
    """
    errors = [
        line
        for implementation in report["implementations"]
        for line in _errors(implementation, places.get(implementation["name"], {}))
    ]
    warnings = _warnings(report)
    left = [
        f"{len(lines) - SHOWN} more {kind} are not annotated: GitHub shows {SHOWN} of a step"
        for kind, lines in (("errors", errors), ("warnings", warnings))
        if len(lines) > SHOWN
    ]
    kind = "error" if failures.exit_code(report) and not errors else "notice"
    verdict = command(kind, "\n".join([failures.outcome(report), *left]), title="qloracle verify")
    return [*errors[:SHOWN], *warnings[:SHOWN], verdict]


def command(kind: str, message: str, **properties: str | int) -> str:
    r"""A workflow command; a property that is empty is left out.

    >>> command("error", "50 %\nof it", title="S4, S5", file="a.py", line=0)
    '::error title=S4%2C S5,file=a.py::50 %25%0Aof it'
    """
    named = [f"{name}={_escaped(str(v), ':,')}" for name, v in properties.items() if v]
    head = f"{kind} {','.join(named)}".rstrip()
    return f"::{head}::{_escaped(message[:MESSAGE])}"


def _escaped(text: str, more: str = "") -> str:
    """% first, as it begins every escape."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _errors(implementation: Data, places: Places) -> list[str]:
    name, status = implementation["name"], implementation["status"]
    found = [_error(entry, name, places) for entry in failures.entries(implementation)]
    if status not in ("OK", "NOT_RUN"):
        message, title = printable(implementation["message"]), printable(f"{status} {name}")
        found.insert(0, command("error", message, **_own_file(name), title=title))
    return found


def _error(entry: Entry, name: str, places: Places) -> str:
    rows = [f"{row}: {' '.join(text.split())}" for row, text in entry.rows]
    text = printable("\n".join([entry.brief, failures.statement(entry.first["rule"]), *rows]))
    place = _in_workspace(*places.get(entry.first["function"], ("", 0))) or _own_file(name)
    return command("error", text, **place, title=f"{entry.first['status']} {entry.title}")


def _warnings(report: Data) -> list[str]:
    said = [("required", text) for text in report["unmet"]]
    said += [("known failures", text) for text in report["known_problems"]]
    for one in report["implementations"]:
        said += [(f"NOT_RUN {one['name']}", one["message"])] * (one["status"] == "NOT_RUN")
        for check in failures.known(one):
            said.append((f"XFAIL {check['id']}", f"{check['message']}\n{check['known']}"))
    return [command("warning", printable(text), title=printable(title)) for title, text in said]


def _own_file(name: str) -> dict[str, str | int]:
    """The file that an implementation is, if it is one."""
    place = parse(name)
    return _in_workspace(place.where, 0) if place.kind == "file" else {}


def _in_workspace(file: str, line: int) -> dict[str, str | int]:
    """A place as GitHub names it; none for what is not in the checkout, or was installed there."""
    workspace = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    path = Path(file).resolve()
    if not path.is_file() or not path.is_relative_to(workspace) or "site-packages" in path.parts:
        return {}
    return {"file": path.relative_to(workspace).as_posix(), "line": line}


# ---- the step's summary --------------------------------------------------------------------------


def write_summary(report: Data) -> str:
    """Append summary.md to the step's summary; '' or why that could not be done."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return "GITHUB_STEP_SUMMARY is not set"
    text = markdown.text(report).encode()
    try:
        with Path(name).open("ab") as file:
            if file.tell() + len(text) >= SUMMARY:
                return f"{name}: {len(text):,} bytes more than GitHub takes ({SUMMARY:,} in all)"
            file.write(text if not file.tell() else b"\n" + text)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return ""
