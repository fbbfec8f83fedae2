"""The `explain` command: a rule, a function, a level; without a name, all there are."""

from __future__ import annotations

from rich.console import Console

import qloracle
from qloracle_conformance import families
from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS, LEVELS, Function
from qloracle_conformance.families import all_checks
from qloracle_conformance.reports.failures import statement

ABOUT = {
    "L0": "4-bit and 8-bit codes, and back",
    "L1": "scales that are coded themselves (double quantization)",
    "L2": "the product with a 4-bit weight, forward and backward",
    "L3": "LoRA on a dense and on a 4-bit weight",
    "L4": "Adam, with 32-bit and with 8-bit state",
    "L5": "memory that pages",
}


def explain(name: str, console: Console) -> None:
    """Print what a name means; UsageError if it means nothing."""
    rules = {rule.lower(): rule for rule in families.RULES}
    functions = {function.lower(): function for function in FUNCTIONS}
    if not name:
        _everything(console)
    elif name.lower() in rules:
        _rule(rules[name.lower()], console)
    elif name.upper() in LEVELS:
        _level(name.upper(), console)
    elif name.lower() in functions:
        _function(FUNCTIONS[functions[name.lower()]], console)
    else:
        raise UsageError(
            f"{name!r} is no rule, level or function; rules: {', '.join(families.RULES)}; levels: "
            f"{', '.join(LEVELS)}; functions: {', '.join(FUNCTIONS)}"
        )


def _print(console: Console, text: str = "", style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _everything(console: Console) -> None:
    _print(console, "Levels: what a port can offer, in the order in which to write it", "bold")
    for level in LEVELS:
        names = [f.name for f in FUNCTIONS.values() if f.level == level]
        _print(console, f"  {level}  {ABOUT[level]}: {', '.join(names)}")
    _print(console)
    _print(console, "Rules: what is demanded (P of every call, S of the numbers)", "bold")
    for rule in sorted(families.RULES, key=lambda rule: rule[0]):
        _print(console, f"  {rule:<5} {statement(rule)}")
    _print(console)
    _print(console, "More: qloracle explain S5, qloracle explain L2, qloracle explain matmul_4bit")


def _level(level: str, console: Console) -> None:
    _print(console, f"{level}: {ABOUT[level]}", "bold")
    for function in FUNCTIONS.values():
        if function.level == level:
            _print(console)
            _function(function, console)


def _function(function: Function, console: Console) -> None:
    """Signature, results, the first line of the reference's docstring, and the rules."""
    _print(console, function.signature)
    _print(console, f"  returns {', '.join(function.results)}")
    doc = (getattr(getattr(qloracle, function.name, None), "__doc__", "") or "").strip()
    if doc:
        _print(console, "  " + " ".join(doc.partition("\n\n")[0].split()))
    checks = [check for check in all_checks() if check.function == function.name]
    for rule in dict.fromkeys(check.rule for check in checks):
        _print(console, f"  {rule:<5} {statement(rule)}")


def _rule(rule: str, console: Console) -> None:
    """The statement, why, by which checks it is tried, and where dialects may differ."""
    _print(console, families.statement(rule))
    tried = [check for check in all_checks() if check.rule == rule]
    if tried:
        _print(console, "\nTried by:", "bold")
    for check in tried:
        tables = f"[{', '.join(check.tables)}]" if check.tables else ""
        doc = " ".join(((check.search or check.cases).__doc__ or "").split())
        _print(console, f"  {rule}/{check.function}{tables}/{check.layer}: {doc}")
    fields = [field for field in dialects.FIELDS if field.rule == rule]
    if fields:
        _print(console, "\nDialect fields:", "bold")
    for field in fields:
        values = ", ".join(field.values)
        _print(console, f"  {field.name} ({field.kind}): {values}. {field.meaning}")
