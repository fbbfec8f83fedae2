"""Text on its way out: made printable, and never half-written."""

from __future__ import annotations

import os
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


def printable(text: str) -> str:
    r"""Escape what no terminal and no XML may be given: control characters, lone surrogates.

    >>> printable("red \x1b[31m, tab\t, µ, \ud800")
    'red \\x1b[31m, tab\t, µ, \\ud800'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
