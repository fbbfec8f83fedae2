"""The `explain` command: a rule, a function, a level; without a name, all there are."""

import typer

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


def explain(name: str) -> None:
    """Print what a name means; UsageError if it means nothing."""
    rules = {rule.lower(): rule for rule in families.RULES}
    functions = {function.lower(): function for function in FUNCTIONS}
    if not name:
        _everything()
    elif name.lower() in rules:
        _rule(rules[name.lower()])
    elif name.upper() in LEVELS:
        _level(name.upper())
    elif name.lower() in functions:
        _function(FUNCTIONS[functions[name.lower()]])
    else:
        raise UsageError(
            f"{name!r} is no rule, level or function; rules: {', '.join(families.RULES)}; levels: "
            f"{', '.join(LEVELS)}; functions: {', '.join(FUNCTIONS)}"
        )


def _everything() -> None:
    typer.secho("Levels: what a port can offer, in the order in which to write it", bold=True)
    for level in LEVELS:
        names = [f.name for f in FUNCTIONS.values() if f.level == level]
        typer.echo(f"  {level}  {ABOUT[level]}: {', '.join(names)}")
    typer.echo()
    typer.secho("Rules: what is demanded (P of every call, S of the numbers)", bold=True)
    for rule in sorted(families.RULES, key=lambda rule: rule[0]):
        typer.echo(f"  {rule:<5} {statement(rule)}")
    typer.echo()
    typer.echo("More: qloracle explain S5, qloracle explain L2, qloracle explain matmul_4bit")


def _level(level: str) -> None:
    typer.secho(f"{level}: {ABOUT[level]}", bold=True)
    for function in FUNCTIONS.values():
        if function.level == level:
            typer.echo()
            _function(function)


def _function(function: Function) -> None:
    """Signature, results, the first line of the reference's docstring, and the rules."""
    typer.echo(function.signature)
    typer.echo(f"  returns {', '.join(function.results)}")
    doc = (getattr(getattr(qloracle, function.name, None), "__doc__", "") or "").strip()
    if doc:
        typer.echo("  " + " ".join(doc.partition("\n\n")[0].split()))
    checks = [check for check in all_checks() if check.function == function.name]
    for rule in dict.fromkeys(check.rule for check in checks):
        typer.echo(f"  {rule:<5} {statement(rule)}")


def _rule(rule: str) -> None:
    """The statement, why, by which checks it is tried, and where dialects may differ."""
    typer.echo(families.statement(rule))
    tried = [check for check in all_checks() if check.rule == rule]
    if tried:
        typer.secho("\nTried by:", bold=True)
    for check in tried:
        tables = f"[{', '.join(check.tables)}]" if check.tables else ""
        doc = " ".join(((check.search or check.cases).__doc__ or "").split())
        typer.echo(f"  {rule}/{check.function}{tables}/{check.layer}: {doc}")
    fields = [field for field in dialects.FIELDS if field.rule == rule]
    if fields:
        typer.secho("\nDialect fields:", bold=True)
    for field in fields:
        values = ", ".join(field.values)
        typer.echo(f"  {field.name} ({field.kind}): {values}. {field.meaning}")
