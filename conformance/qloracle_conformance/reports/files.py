"""Text on its way out: made printable, and never half-written."""

import os
import re
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text beside its place and rename it, so that nobody ever reads a half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_old_scripts(directory: Path) -> None:
    """Remove the repro scripts of an earlier run: those that its report.json names, and no others.

    A script of a fault that is gone would look like one of this run.
    """
    try:
        report = (directory / "report.json").read_text("utf-8", "replace")
    except OSError:
        return
    for name in re.findall(r'"repro": "(repro/[^"/\\]+\.py)"', report):
        (directory / name).unlink(missing_ok=True)


def printable(text: str) -> str:
    r"""Escape what no terminal and no XML may be given: control characters, lone surrogates.

    >>> printable("red \x1b[31m, tab\t, µ, \ud800")
    'red \\x1b[31m, tab\t, µ, \\ud800'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
