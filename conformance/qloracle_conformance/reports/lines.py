"""Lines and rows on a terminal.

Lines are wrapped here and not by rich, so that a pipe of 80 columns shows the same as a screen, and
every verdict is a word: colour only repeats it.
"""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from qloracle_conformance.engine.verdicts import BAD, BROKEN
from qloracle_conformance.reports.files import printable


class Lines:
    """Prints wrapped lines and rows of tables."""

    def __init__(self, console: Console):
        self._console = console

    def line(self, text: str = "", style: str = "", indent: int = 0, hang: int = 0) -> None:
        """Print a line; what does not fit goes on below, `hang` columns further in."""
        lines = textwrap.wrap(
            printable(text),
            self._console.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hang),
            break_on_hyphens=False,
        )
        for part in lines or [""]:
            self._console.print(Text(part, style), soft_wrap=True)

    def unbroken(self, text: str) -> None:
        """Print what a reader may want to copy, in one line however long."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def cells(self, name: str, words: Sequence[str], width: int, end: str = "") -> None:
        """Print a row of words, flush left, each in its colour, and a text at its end."""
        row = Text(name)
        for word in words:
            row.append(f"{word:<{width}}", style_of(word))
        row.append(end)
        row.rstrip()  # in place
        self._console.print(row, soft_wrap=True)


def style_of(status: str) -> str:
    """The colour of a status; none for other texts."""
    if status == "PASS":
        return "green"
    if status in BAD + BROKEN:
        return "bold red"
    return "dim" if status in ("XFAIL", "-", "UNSUPPORTED", "MISSING") else ""
