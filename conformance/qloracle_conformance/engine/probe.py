"""Find an implementation's dialect from its outputs alone.

Thresholds are bisected at absmax = 1, where divide and reciprocal are exact; normalisation is read
at full-mantissa scales where the two fall on different sides.  What is found is adopted if it is a
rounding field, and a finding if it is an undeclared format field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.dialects import BY_NAME, PACKED
from qloracle_conformance.contract.scope import Scope
from qloracle_conformance.families.adam import probe as adam
from qloracle_conformance.families.asking import Asker, Call, Found
from qloracle_conformance.families.codes import (
    probe_decoders as decoders,
)
from qloracle_conformance.families.codes import (
    probe_quantizers as quantizers,
)
from qloracle_conformance.families.lora import probe as lora
from qloracle_conformance.families.nested import probe as nested
from qloracle_conformance.families.nested import probe_roundtrip as roundtrip
from qloracle_conformance.families.products import probe as products
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import MAPS, QUANT_TYPES, Finding, View, specified_levels


def nothing(ask: Asker, view: View) -> Found:
    """A pager has no dialect: bytes are bytes."""
    return {}


# Decoders come first: they show the tables that the quantizers are judged by.
PROBES: dict[str, tuple[tuple[str, ...], Callable[[Asker, View], Found]]] = {
    "dequantize_4bit": (QUANT_TYPES, decoders.four_bit),
    "quantize_4bit": (QUANT_TYPES, quantizers.four_bit),
    "dequantize_blockwise": (MAPS, decoders.blockwise),
    "quantize_blockwise": (MAPS, quantizers.blockwise),
    "dequantize_absmax": (("",), nested.decoder),
    "quantize_absmax": (("",), nested.quantizer),
    "quantize_nested": (("nf4",), roundtrip.nested),
    "matmul_4bit": (QUANT_TYPES, products.forward),
    "matmul_4bit_backward": (QUANT_TYPES, products.backward),
    "lora_forward": (("",), lora.forward),
    "lora_backward": (("",), lora.backward),
    "qlora_forward": (("nf4",), lora.forward),
    "qlora_backward": (("nf4",), lora.backward),
    "adam_step": (("",), adam.step),
    "adam_step_8bit": (("",), adam.step_8bit),
    "make_pager": (("",), nothing),
}


def views(
    call: Call,
    offers: Mapping[str, Any],
    scope: Scope,
    declared: Mapping[str, Any],
    wanted: Iterable[str] = tuple(PROBES),
) -> list[View]:
    """Probe functions that are offered under every table that they may take.

    Beside those that are wanted the decoders whose tables they are judged by.
    """
    asker, found = Asker(call, scope), list[View]()
    needed = {*wanted, *map(_decoder_of, wanted)}
    for function, (tables, probe) in PROBES.items():
        if function not in offers or function not in needed:
            continue
        for table in tables:
            view = _start(function, table, declared, found)
            view.unsupported = asker.trial(view)
            if not view.unsupported:
                _settle(view, declared, probe(asker, view))
            found.append(view)
    return found


def _start(function: str, table: str, declared: Mapping[str, Any], before: list[View]) -> View:
    """The view before anything was asked: the specification, and what was declared."""
    quant_type = table if table in QUANT_TYPES else ""
    dialect = dialects.specification(function, quant_type)
    dialect |= dialects.declared_for(declared, function, quant_type)
    return View(function, table, dialect, _levels(function, table, before))


def _decoder_of(function: str) -> str:
    """The function that shows the table of another one, if there is any."""
    return "dequantize_4bit" if function in PACKED else "de" + function


def _levels(function: str, table: str, before: list[View]) -> Float32:
    """The table to start from: what the decoder of the same table showed, or S1's."""
    twin = _decoder_of(function)
    for view in before:
        if view.function == twin and view.table == table and not view.unsupported:
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
