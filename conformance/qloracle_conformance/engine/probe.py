"""Find an implementation's dialect from its outputs alone.

Thresholds are bisected at absmax = 1, where divide and reciprocal are exact; normalisation is read
at full-mantissa scales where the two fall on different sides.  What is found is adopted if it is a
rounding field, and a finding if it is an undeclared format field.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.dialects import BY_NAME
from qloracle_conformance.contract.scope import Scope
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.judging.asking import Asker, Call, Found
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.members import Member
from qloracle_conformance.judging.views import QUANT_TYPES, Finding, View, specified_levels


def views(
    call: Call,
    offers: Mapping[str, Any],
    scope: Scope,
    declared: Mapping[str, Any],
    wanted: Iterable[str] = tuple(MEMBERS),
) -> list[View]:
    """Probe functions that are offered under every table that they may take.

    Beside those that are wanted the decoders whose tables they are judged by.
    """
    asker, found = Asker(call, scope), list[View]()
    needed = {*wanted, *(MEMBERS[function].decoder for function in wanted)}
    for member in MEMBERS.values():
        if member.function not in offers or member.function not in needed:
            continue
        for table in member.tables:
            view = _start(member, table, declared, found)
            view.unsupported = asker.refusal(member.plain(asker, view), view)
            if not view.unsupported:
                _settle(view, declared, member.probe(asker, view))
            found.append(view)
    return found


def _start(member: Member, table: str, declared: Mapping[str, Any], before: list[View]) -> View:
    """The view before anything was asked: the specification, and what was declared."""
    function = member.function
    quant_type = table if table in QUANT_TYPES else ""
    dialect = dialects.specification(function, quant_type)
    dialect |= dialects.declared_for(declared, function, quant_type)
    return View(function, table, dialect, _levels(member, table, before))


def _levels(member: Member, table: str, before: list[View]) -> Float32:
    """The table to start from: what the decoder of the same table showed, or S1's."""
    for view in before:
        if view.function == member.decoder and view.table == table and not view.unsupported:
            return view.levels
    return specified_levels(table)


def _settle(view: View, declared: Mapping[str, Any], found: Found) -> None:
    """Adopt what was found; note what should have been declared, or was declared otherwise."""
    said = dialects.declared_for(declared, view.function, view.quant_type)
    for name, (value, why) in found.items():
        expected = said.get(name, BY_NAME[name].values[0])
        named = value in BY_NAME[name].values
        must_be_declared = name in said or BY_NAME[name].kind == "format" or not named
        if value != expected and must_be_declared:
            view.findings.append(Finding(name, expected, value, why, said.get(name, "")))
        if named:
            view.dialect[name] = value
