"""The `probe` command: an implementation's dialect, field by field, with the evidence.

Above it stands what the implementation runs on: versions, and what this machine has of the memory
or the driver that it needs. That is no verdict, and right or wrong results do not depend on it.
"""

from contextlib import closing

import typer
from rich.console import Console
from rich.table import Table

from qloracle_conformance.calling.callers import ChildCaller
from qloracle_conformance.calling.loading import parse
from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.errors import CannotRun, LoadError, UsageError
from qloracle_conformance.engine import Engine
from qloracle_conformance.judging.views import View


def show_dialect(impl: str, device: str, console: Console) -> int:
    """Print every field of every function; the exit code: 1 if a finding is undeclared.

    3 if there is nothing to probe.
    """
    parse(impl)
    try:
        with closing(ChildCaller(impl, device)) as caller:
            views, versions = Engine(caller).probe(), caller.versions
    except CannotRun as error:
        typer.echo(f"NOT_RUN {impl}: {error}")
        return 3
    except (LoadError, UsageError) as error:
        typer.echo(f"ERROR {impl}: {error}")
        return 1
    typer.secho(impl, bold=True)
    for name, version in versions.items():
        typer.echo(f"  {name}: {version}")
    for view in views:
        _show(view, console)
    if not views:
        typer.echo("offers none of the functions that can be probed")
        return 3
    return 1 if any(view.findings for view in views) else 0


def _show(view: View, console: Console) -> None:
    if view.unsupported:
        typer.echo(f"\n{view.name}: UNSUPPORTED, {view.unsupported}")
        return
    typer.secho(f"\n{view.name}", bold=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    spec = dialects.specification(view.function, view.quant_type)
    for name, value in view.dialect.items():
        kind = dialects.BY_NAME[name].kind
        mark = "" if value == spec.get(name) else "differs from the specification"
        table.add_row(name, value, kind, mark)
    console.print(table)
    for finding in view.findings:
        text = f"  FINDING {finding.field}: {finding.found}, expected {finding.expected}"
        console.print(f"{text} ({finding.evidence})", style="yellow", soft_wrap=True)
        if finding.declare:
            typer.echo(f"    to declare it: {finding.declare}")
