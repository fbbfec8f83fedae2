"""Known failures: a file that says what fails today, and that cannot go stale.

A TOML file of entries::

    [[known]]
    check = "S4/quantize_4bit[nf4]/zeros"
    message = "absmax[0] is 1e-38"          # how the failure's message begins
    link = "https://github.com/..."         # where it is tracked
    implementation = "bitsandbytes"         # optional

A listed check that fails with that message is XFAIL.  A pass is XPASS, a failure; another message
stays a failure; an entry that matches no check of the run is a problem of the run.  An empty link
is refused: a file that was written by `text` waits for somebody to fill it in.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement

FAILING = {*BAD, *BROKEN, "XFAIL"} - {"XPASS"}
ANOTHER = " (known with another message: "  # what is added to a message that was not expected


class Known(NamedTuple):
    """One entry of a known-failures file."""

    check: str
    message: str
    link: str
    implementation: str = ""


def read(path: str | Path) -> list[Known]:
    """Read a known-failures file; UsageError names the file, the entry and what is wrong."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    entries = data.get("known", [])
    if set(data) - {"known"} or not isinstance(entries, list):
        raise UsageError(f"{path}: only [[known]] entries are allowed, got {', '.join(data)}")
    return [_entry(path, i, entry) for i, entry in enumerate(entries, 1)]


def _entry(path: str | Path, i: int, entry: dict[str, str]) -> Known:
    needed, allowed = {"check", "message", "link"}, set(Known._fields)
    if not needed <= set(entry) <= allowed or not all(isinstance(v, str) for v in entry.values()):
        raise UsageError(
            f"{path}: entry {i} has {', '.join(sorted(entry))}; it needs the texts "
            "check, message, link and may have implementation"
        )
    if not entry["link"].strip():
        raise UsageError(
            f"{path}: entry {i} ({entry['check']}) has the link {entry['link']!r}; "
            "say where the failure is tracked"
        )
    return Known(**entry)


def mark(check: CheckRun, entries: Iterable[Known]) -> None:
    """Make a check that an entry lists XFAIL or XPASS; another message stays a failure."""
    for entry in entries:
        if entry.check != check.id:
            continue
        if check.status in BAD + BROKEN and check.message.startswith(entry.message):
            check.status, check.known = "XFAIL", entry.link
        elif check.status == "PASS":
            check.status, check.known = "XPASS", entry.link
            check.message = f"listed as a known failure ({entry.link}), but passes"
        elif check.status in BAD + BROKEN:
            check.message += f"{ANOTHER}{entry.message!r}, {entry.link})"


def stale(
    entries: Iterable[Known], judgements: Sequence[Judgement], selected: Callable[[str], bool]
) -> list[str]:
    """Name the entries that match no check, each in a sentence."""
    return [
        f"known failure {entry.check} matches no check of this run"
        for entry in entries
        if selected(entry.check) and not any(_may_hold(entry, one) for one in judgements)
    ]


def _may_hold(entry: Known, judgement: Judgement) -> bool:
    """Whether an entry matches a check, or may do so: not all was run, or nothing could be."""
    if not judgement.whole:
        return True
    hit = judgement.away or any(check.id == entry.check for check in judgement.checks)
    return hit and entry.implementation in ("", judgement.name)


def failing(judgements: Sequence[Judgement]) -> list[Known]:
    """An entry for each check that fails; what was known keeps its link, the rest has none."""
    unwritable = re.compile("[\ud800-\udfff]")  # what a file cannot hold
    return [
        Known(
            check.id, unwritable.split(check.message.partition(ANOTHER)[0])[0], check.known,
            judgement.name,
        )
        for judgement in judgements
        for check in judgement.checks
        if check.status in FAILING
    ]  # fmt: skip


def text(entries: Sequence[Known]) -> str:
    r"""A known-failures file; TOML's strings are JSON's but for one character.

    >>> print(text([Known("S6/a[nf4]/pairs", 'b is "1"\x7f', "")]), end="")
    [[known]]
    check = "S6/a[nf4]/pairs"
    message = "b is \"1\"\u007f"
    link = ""
    implementation = ""
    """
    return "\n".join(f"[[known]]\n{_fields(entry)}" for entry in entries)


def _fields(entry: Known) -> str:
    quoted = {n: json.dumps(text, ensure_ascii=False) for n, text in entry._asdict().items()}
    lines = (f"{name} = {text}\n" for name, text in quoted.items())
    return "".join(lines).replace("\x7f", "\\u007f")
