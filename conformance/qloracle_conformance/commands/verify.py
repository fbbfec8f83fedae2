"""The `verify` command: judge once and print the report, or again whenever the file changes."""

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from qloracle_conformance import adapters, reports
from qloracle_conformance.commands.progress import Progress
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports import differences, failures, files, github, repro
from qloracle_conformance.reports.data import implementation
from qloracle_conformance.reports.report import Report
from qloracle_conformance.reports.screen import Screen
from qloracle_conformance.running import known, watching
from qloracle_conformance.running import verify as running
from qloracle_conformance.running.run import Listener, name_causes
from qloracle_conformance.running.selecting import select

Options = Mapping[str, Any]  # of `running.verify.verify`


def once(
    impls: Sequence[str], options: Options, console: Console, errors: Console, folder: Path | None,
    older: Path | None, known_failures: Path | None, verbose: bool,
) -> int:  # fmt: skip
    """Judge, print and write; return the exit code.

    impls: none for what is found here.  What is written: the report in a `folder`, and a file of
    known failures; `older` is a report to compare with.
    """
    select(options["only"])  # what matches nothing is told before anything is printed
    old = differences.read(older) if older else None
    found, places = impls or adapters.found_here(), dict[str, github.Places]()
    with github.commands_off():
        screen = Screen(console, len(found), folder, whole=verbose)
        screen.opening(Report(options["profile"], options["seed"], only=options["only"]).to_dict())
        if folder:
            files.remove_old_scripts(folder)
        with warnings.catch_warnings(), Progress(errors) as progress:
            warnings.simplefilter("ignore")  # the kit's own: an implementation warns in its child

            def judged(judgement: Judgement) -> None:
                if verbose and judgement.failed:
                    progress.doing(judgement.name, "seeking likely causes")
                    name_causes(judgement.checks)
                if folder:
                    repro.scripts(judgement)  # their names; they are written at the end
                with progress.aside():
                    _show(screen, judgement)

            listener = Listener(places.__setitem__, progress.checked, judged, progress.doing)
            causes = bool(folder) and not verbose
            result = running.verify(found, **options, listener=listener, causes=causes)
        if folder:
            reports.write_all(folder, result)
        data = result.to_dict()
        screen.table(data)
        screen.ending(data)
        for hint in () if impls else next_steps():
            screen.say(hint)
        if folder:
            screen.say(f"All of it: {folder / 'report.html'}")
        if old:
            changed = differences.lines(old, data) or ["no difference"]
            for line in ["", "Compared with the older report:", *(f"  {each}" for each in changed)]:
                screen.say(line)
        if known_failures:
            _write_known(known_failures, result)
    if github.here():
        _tell_github(data, places)
    return failures.exit_code(data)


def _show(screen: Screen, judgement: Judgement) -> None:
    """Print a verdict; the likely causes of what is printed are sought meanwhile."""
    runs = {run.id: run for run in judgement.checks}

    def likely(check: str) -> Sequence[str]:
        name_causes([runs[check]])
        return runs[check].looks_like

    screen.implementation(implementation(judgement), likely)


def next_steps() -> list[str]:
    """What somebody who named nothing may want to do next."""
    missing = [a for a in adapters.ADAPTERS if not a.installed and not a.driver]
    names = ", ".join(dict.fromkeys(a.name.partition(".")[0] for a in missing))
    steps = ["", "Judge your own kernels:   qloracle verify path/to/kernels.py"]
    steps += ["What the levels and rules are:   qloracle explain"]
    if names:
        steps += [f"Not installed, judged when they are: {names} (pip install 'qloracle[test]')"]
    return steps


def again_and_again(impl: str, options: Options) -> int:
    """Judge after each change of the file, a line each, until Ctrl-C; return the last exit code."""
    code = 0
    # Bytecode knows a text by its size and the second: an edit within the second would be missed.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        for line, code in watching.verdicts(impl, options):  # noqa: B007 (the last one is returned)
            typer.echo(files.printable(line))  # which flushes: it may be a pipe that is watched
    return code


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
