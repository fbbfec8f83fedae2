"""HTML from Python: whatever is not Markup is text, and text is always escaped.

So a name, a message or a script that looks like HTML can only ever be shown.
"""

import html
import re
from collections.abc import Iterable, Sequence

from qloracle_conformance import families
from qloracle_conformance.engine.verdicts import BAD, BROKEN, GOOD
from qloracle_conformance.reports.files import printable


class Markup(str):
    """HTML that is ready to be placed into a page."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    r"""A text as HTML that shows it; Markup stays as it is.

    >>> escaped("<b> & \x1b \ud800")
    '&lt;b&gt; &amp; \\x1b \\ud800'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text)))


def verbatim(text: str) -> Markup:
    r"""A text that a reader copies: a browser gives it back to the character.

    A parser of HTML reads a carriage return as a line feed, and drops a line feed after <pre>.

    >>> verbatim("\na\r\n&")
    '\n\na&#13;\n&amp;'
    """
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return Markup("\n" + html.escape(encodable).replace("\r", "&#13;"))


def join(*parts: str) -> Markup:
    """Parts one after another, texts among them escaped."""
    return Markup("".join(map(escaped, parts)))


def tag(kind: str, *content: str, **attributes: object) -> Markup:
    """An element; `kind` is its name and its classes, an attribute of None is left out.

    >>> tag("th.wide", "<x>", scope="row", aria_label='"', id=None)
    '<th class="wide" scope="row" aria-label="&quot;">&lt;x&gt;</th>'
    """
    name, *classes = kind.split(".")
    given = {"class": " ".join(classes) or None, **attributes}
    written = [_attribute(key, value) for key, value in given.items() if value is not None]
    head = f"<{name}{''.join(written)}>"
    return Markup(head if name == "meta" else f"{head}{join(*content)}</{name}>")


def _attribute(key: str, value: object) -> str:
    return f' {key.replace("_", "-")}="{escaped(str(value))}"'


def link(text: str, url: str) -> Markup:
    """A link, where the address is one of the web or of this page; else the bare text.

    >>> link("here", "javascript:alert(1)")
    'here'
    """
    safe = re.match(r"(https?://|#)", url)
    return tag("a", text, href=url, rel="noreferrer") if safe else escaped(text)


def status(word: str, target: str = "") -> Markup:
    """A status as a word, which leads to what it is about; colour only repeats the word."""
    kind = "bad" if word in BAD + BROKEN else "good" if word in GOOD else "none"
    return tag(f"span.status.{kind}", link(word, target) if target else word)


def table(caption: str, head: Sequence[str], bodies: Iterable[Iterable[str]]) -> Markup:
    """A table in a box, in which it scrolls where the page is narrow; a body is a group of rows.

    Nothing where there are no rows.
    """
    columns = tag("tr", *(_ready(name, "th", scope="col") for name in head))
    groups = [tag("tbody", *rows) for rows in map(list, bodies) if rows]
    if not groups:
        return Markup()
    whole = tag("table", tag("caption", caption), tag("thead", columns), *groups)
    return tag("div.scroll", whole, tabindex=0, role="group", aria_label=caption)


def row(name: str, *cells: str) -> Markup:
    """A row of a table: its heading, then cells; a cell that is a td already stays."""
    return tag("tr", tag("th", name, scope="row"), *(_ready(cell, "td") for cell in cells))


def _ready(cell: str, kind: str, **attributes: object) -> Markup:
    """A cell, unless it is one already."""
    if isinstance(cell, Markup) and cell.startswith(f"<{kind}"):
        return cell
    return tag(kind, cell, **attributes)


def group(name: str, columns: int) -> Markup:
    """The heading of a group of rows, across all columns."""
    return tag("tr.group", tag("th", name, scope="rowgroup", colspan=columns))


def counted(name: str) -> Markup:
    """The heading of a column of counts."""
    return tag("th.number", name, scope="col")


def number(value: int) -> Markup:
    """A cell with a count, flush right."""
    return tag("td.number", f"{value:,}")


def more(summary: str, *content: str, shown: bool = False) -> Markup:
    """Content that opens on demand."""
    return tag("details", tag("summary", summary), *content, open="" if shown else None)


def statement(rule: str) -> Markup:
    """A rule in full, with its derivation: the paragraphs of its statement.

    >>> statement("S4")[:58]
    '<p>S4. absmax = max |x| of the block, exact, in float32; 0'
    """
    return join(*(tag("p", prose(part)) for part in families.statement(rule).split("\n\n")))


def prose(text: str) -> Markup:
    """A paragraph of a docstring: what stands in backticks is code.

    >>> prose("The shape of `x` < ``(2, 3)``.")
    'The shape of <code>x</code> &lt; <code>(2, 3)</code>.'
    """
    parts = re.split(r"``?([^`]+)``?", text)
    return join(*(tag("code", part) if i % 2 else part for i, part in enumerate(parts)))
