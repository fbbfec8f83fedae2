"""report.html: the whole report as one page, which needs nothing else.

`page/report.html.jinja` says what stands where, and this module what it needs beside the report.
All that the template puts out is made printable and escaped: a name, a message or a script that
looks like HTML can only ever be shown.

The page may load nothing and run nothing but its own script: its policy names the digests of its
one style sheet and its one script.  It is complete without the script, which only copies.
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup  # comes with Jinja2

from qloracle_conformance import families
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.verdicts import BAD, BROKEN, GOOD, level_lines
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.files import printable


def text(report: Data, scripts: Mapping[str, str] = {}) -> str:
    """The report as one HTML file; `scripts` are the repro scripts by their path."""
    found = sorted(report["implementations"], key=lambda data: data["verdict"] not in BAD + BROKEN)
    page = files("qloracle_conformance.reports") / "page"
    style, script = (Markup((page / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    return _template().render(
        report=report, implementations=found, scripts=scripts, style=style, script=script
    )


@cache
def _template() -> Template:
    page = Environment(
        loader=PackageLoader("qloracle_conformance.reports", "page"),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters |= {"counted": "{:,}".format, "digest": _digest, "prose": prose}
    page.filters |= {"verbatim": verbatim, "marked": _marked}
    page.globals |= {"failures": failures, "families": families, "level_lines": level_lines}
    page.globals |= {"judged": _judged, "by_offer": _by_offer, "bounds": _bounds, "maps": _maps}
    page.globals |= {"bad": BAD + BROKEN, "good": GOOD, "prod": math.prod}
    return page.get_template("report.html.jinja")


# ---- texts ---------------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """What an expression of the template puts out, before it is escaped; Markup is ready."""
    return value if isinstance(value, Markup) else printable(str(value))


def prose(text: str) -> Markup:
    """A paragraph of a docstring: what stands in backticks is code.

    >>> print(prose("The shape of `x` < ``(2, 3)``."))
    The shape of <code>x</code> &lt; <code>(2, 3)</code>.
    """
    return Markup(re.sub("``?([^`]+)``?", r"<code>\1</code>", escape(printable(text))))


def verbatim(text: str) -> Markup:
    r"""A text that a reader copies: a browser gives it back to the character.

    A parser of HTML reads a carriage return as a line feed, and drops a line feed after <pre>.

    >>> verbatim("\na\r\n&")
    Markup('\n\na&#13;\n&amp;')
    """
    return Markup("\n" + escape(text).replace("\r", "&#13;"))


def _digest(part: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}"


def _marked(cells: str) -> Markup:
    """A row of a map: a dot for each cell, the wrong ones as marked squares."""
    return Markup(re.sub("(x+)", r"<mark>\1</mark>", re.sub("[^x]", "·", cells)).replace("x", "■"))


# ---- what a part of the page shows ---------------------------------------------------------------


def _judged(data: Data) -> bool:
    """False where it could not be loaded: there is only a message to show then."""
    return bool(data["checks"]) or data["status"] == "OK"


def _by_offer(implementations: Sequence[Data]) -> tuple[list[str], list[str]]:
    """The functions that at least one implementation offers, and those that none does."""
    rows = [row for data in implementations for row in data["functions"]]
    offered = {row["name"] for row in rows if row["status"] != "MISSING"}
    missing = {row["name"] for row in rows} - offered
    return [f for f in FUNCTIONS if f in offered], [f for f in FUNCTIONS if f in missing]


def _bounds(data: Data) -> list[tuple[Data, float]]:
    """Each check that needed a share of its bound, with that share; infinity is a text in JSON."""
    shares = [(check, float(check["bound_use"])) for check in data["checks"]]
    return [(check, share) for check, share in shares if share > 0]


def _maps(entry: Entry) -> list[tuple[str, Data]]:
    """Where the wrong elements of a larger input lie, for each check of a failure."""
    found = [(c["id"], c["failure"].get("map")) for c in entry.checks if c["failure"]]
    return [(name, drawn) for name, drawn in found if drawn and drawn["elements"] > 1]
