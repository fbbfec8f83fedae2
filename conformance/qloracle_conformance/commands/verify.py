"""The `verify` command: judge once and print the report, or again whenever the file changes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console

from qloracle_conformance import reports
from qloracle_conformance.commands.progress import Progress
from qloracle_conformance.reports import differences, files, github
from qloracle_conformance.reports.report import Report
from qloracle_conformance.running import known, watching
from qloracle_conformance.running import verify as running

Options = Mapping[str, Any]  # of `running.verify.verify`


class Files(NamedTuple):
    """What is read and written beside the judging."""

    report: Path | None = None
    diff: Path | None = None
    write_known: Path | None = None


def once(
    impls: Sequence[str], options: Options, wanted: Files, console: Console, errors: Console
) -> int:
    """Judge, print and write; return the exit code."""
    old = differences.read(wanted.diff) if wanted.diff else None
    places: dict[str, github.Places] = {}
    with github.commands_off():
        with warnings.catch_warnings(), Progress(errors) as progress:
            warnings.simplefilter("ignore")  # the kit's own: an implementation warns in its child
            result = running.verify(
                impls, **options, opened=places.__setitem__, watch=progress.checked,
                judged=progress.judged, doing=progress.doing,
            )  # fmt: skip
        data = result.to_dict()
        reports.show(data, console, _write_reports(wanted.report, result) if wanted.report else {})
        if old is not None:
            _print_difference(differences.lines(old, data), console)
        if wanted.write_known:
            _write_known(wanted.write_known, result)
    if github.here():
        _tell_github(data, places)
    return reports.exit_code(data)


def again_and_again(impl: str, options: Options) -> int:
    """Judge after each change of the file, a line each, until Ctrl-C; return the last exit code."""
    code = 0
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        for line, code in watching.verdicts(impl, options):  # noqa: B007 (the last one is returned)
            typer.echo(files.printable(line))  # which flushes: it may be a pipe that is watched
    return code


def _print_difference(lines: list[str], console: Console) -> None:
    console.print("\nCompared with the older report:", style="bold")
    for line in lines or ["no difference"]:
        console.print(f"  {line}", markup=False, highlight=False)


def _write_reports(directory: Path, result: Report) -> dict[str, Path]:
    """Write the reports in place of an older run's; name the script of each failing check."""
    files.remove_old_scripts(directory)
    return reports.write_all(directory, result)


def _write_known(path: Path, result: Report) -> None:
    """Write the file of known failures, unless the run was interrupted."""
    if any(judgement.partial for judgement in result.judgements):
        typer.echo(f"qloracle: {path} is not written: the run was interrupted", err=True)
        return
    entries = known.failing(result.judgements)
    files.write(path, known.text(entries))
    missing = sum(not entry.link for entry in entries)
    typer.echo(f"\n{path}: {len(entries)} known failures, {missing} of them without a link")


def _tell_github(data: Mapping[str, Any], places: Mapping[str, github.Places]) -> None:
    """Annotate the run, and add to the step's summary."""
    for line in github.commands(data, places):
        typer.echo(line)
    problem = github.write_summary(data)
    if problem:
        typer.echo(f"qloracle: no step summary: {problem}", err=True)
