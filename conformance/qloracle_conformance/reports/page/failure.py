"""One failure: what is wrong with which input, where else, by which rule, and how to see it."""

import math
from collections.abc import Mapping

from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.page import drawings
from qloracle_conformance.reports.page.markup import (
    Markup,
    join,
    more,
    prose,
    statement,
    status,
    tag,
    verbatim,
)

PROSE = ("because", "looks like", "finding", "wrong")  # what is not written in code


def article(entry: Entry, place: str, scripts: Mapping[str, str], *, shown: bool) -> Markup:
    """A failure whole; `place` begins the ids of its scripts."""
    title = tag("h4", status(entry.first["status"]), f" {entry.title}")
    parts = [
        tag("p.rule", prose(failures.statement(entry.first["rule"]))),
        tag("dl", *(_fact(name, text) for name, text in entry.rows)),
        *_map(entry),
        *_inputs(entry),
        *_scripts(entry, place, scripts),
        *(more(f"Rule {rule} in full", statement(rule)) for rule in failures.rules(entry.checks)),
    ]
    summary = join(title, tag("span.brief", entry.brief))
    return tag("article", more(summary, tag("div.body", *parts), shown=shown))


def _fact(name: str, text: str) -> Markup:
    """A row of what there is to say of a failure."""
    said = text if name in PROSE else tag("code", text)
    return tag(f"div.{name.replace(' ', '-')}", tag("dt", name), tag("dd", said))


def _map(entry: Entry) -> list[Markup]:
    """Where the wrong elements of a larger input lie, for the first check and for the others."""
    maps = [(c, c["failure"].get("map")) for c in entry.checks if c["failure"]]
    drawn = [(c, picture) for c, picture in maps if picture and picture["elements"] > 1]
    if not drawn:
        return []
    (_, first), *others = drawn
    further = [join(tag("p", tag("code", c["id"])), _pattern(picture)) for c, picture in others]
    rest = [more(f"Maps of {len(others)} more checks", *further)] if others else []
    return [_pattern(first), *rest]


def _pattern(drawn: Data) -> Markup:
    flips = drawings.code_flips(drawn["flips"])
    return tag("div.pattern", drawings.error_map(drawn), flips)


def _inputs(entry: Entry) -> list[Markup]:
    """The arrays of the smallest input, in a form that loses nothing."""
    if not entry.first["failure"]:
        return []
    case = entry.first["failure"]["input"]
    options = ", ".join(f"{name}={value!r}" for name, value in case["options"].items())
    arrays = [_array(name, array) for name, array in case["arrays"].items()]
    notes = [text for text in (case["note"], case.get("form", "")) if text]
    return [more("Input to the bit", *(tag("p", text) for text in (*notes, options)), *arrays)]


def _array(name: str, array: Data) -> Markup:
    size, values = math.prod(array["shape"]), array["values"]
    shape = "x".join(map(str, array["shape"]))
    cut = f", the first {len(values)}" if len(values) < size else ""
    title = tag("p", tag("code", f"{name} {array['dtype']}[{shape}]"), cut)
    return join(title, tag("pre", " ".join(map(str, values))))


def _scripts(entry: Entry, place: str, scripts: Mapping[str, str]) -> list[Markup]:
    """The scripts of a failure, each with a button that copies it."""
    shown = ((i, path) for i, path in enumerate(entry.scripts) if path in scripts)
    return [_script(f"{place}-{i}", path, scripts[path]) for i, path in shown]


def _script(name: str, path: str, text: str) -> Markup:
    title = join("Script that reproduces it ", tag("code", path))
    button = tag("button", "Copy the script", type="button", data_copies=name, hidden="")
    answer = tag("span.said", role="status")
    return tag("div.script", more(title, tag("pre", verbatim(text), id=name)), button, answer)
