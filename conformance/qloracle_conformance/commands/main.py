"""The command `qloracle`."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import qloracle
from qloracle.memory import MODELS
from qloracle_conformance.contract import presets
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import LEVELS
from qloracle_conformance.engine.verdicts import BAD, BROKEN
from qloracle_conformance.judging.checks import PROFILES
from qloracle_conformance.reports.report import Report

if TYPE_CHECKING:
    from qloracle_conformance.reports import github

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judge QLoRA kernels against an executable specification, element by element.",
)
console = Console()
errors = Console(stderr=True)

Implementations = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMPL]...",
        help="Short names (numpy, bitsandbytes), module:NAME, pkg.mod:object or path/file.py. "
        "None: every implementation found on this machine, but for host, ptx and managed, "
        "which are run by name only.",
    ),
]


def main() -> None:
    """Run the command; a UsageError is one line and exit code 2."""
    try:
        app()
    except UsageError as error:
        errors.print(
            f"qloracle: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Judge QLoRA kernels against an executable specification, element by element."""
    if version:
        console.print(f"qloracle {qloracle.__version__}, specification {qloracle.SPEC_VERSION}")
        raise typer.Exit


@app.command()
def verify(
    impl: Implementations = None,
    profile: Annotated[
        str, typer.Option(help="smoke (under 10 s), standard or exhaustive.")
    ] = "smoke",
    require: Annotated[
        str, typer.Option(help="Fail if a function up to this level is missing.")
    ] = "",
    dialect: Annotated[str, typer.Option(help="Judge as declared by this preset.")] = "",
    only: Annotated[str, typer.Option(help="Rules, check ids or patterns, by commas.")] = "",
    seed: Annotated[str, typer.Option(help="A number, or 'random'.")] = "0",
    known: Annotated[Path | None, typer.Option(help="File of known failures (TOML).")] = None,
    diff: Annotated[Path | None, typer.Option(help="Compare with an older report.json.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write report.json, junit.xml, ... here.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device for adapters: cpu, cuda, cuda:1.")] = "",
    write_known: Annotated[
        Path | None,
        typer.Option(help="Write a file of known failures: all that fails in this run."),
    ] = None,
    processes: Annotated[
        str, typer.Option("--processes", "-n", help="Functions judged at once.")
    ] = "1",
    limit: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 20.0,
    spec: Annotated[
        str, typer.Option(help="Version of the specification.")
    ] = qloracle.SPEC_VERSION,
) -> None:
    """Judge implementations and print their verdicts.

    Exit code: 0 every function offered passed within its printed scope; 1 a failure; 2 usage;
    3 nothing was compared; 4 a crash or a time-out.
    """
    if find_spec("hypothesis") is None:
        typer.echo("qloracle verify needs Hypothesis: pip install 'qloracle[verify]'", err=True)
        raise typer.Exit(2)
    from qloracle_conformance import reports
    from qloracle_conformance.reports import differences, github
    from qloracle_conformance.running import verify as verification
    from qloracle_conformance.running.known import read

    _one_of("--profile", profile, PROFILES)
    _one_of("--spec", spec, (qloracle.SPEC_VERSION,))
    if require:
        _one_of("--require", require, LEVELS)
    if write_known and only:
        raise UsageError(f"--write-known needs a whole run; --only is {only!r}")
    old = differences.read(diff) if diff else None
    places: dict[str, github.Places] = {}
    with github.commands_off():
        with Watcher() as watch:
            result = verification.verify(
                impl or verification.found_here(), profile=profile, seed=_seed(seed),
                require=require, dialect=presets.preset(dialect) if dialect else None, only=only,
                device=device, known=read(known) if known else (), limit=limit, watch=watch,
                processes=_count("--processes", processes), opened=places.__setitem__,
            )  # fmt: skip
        data = result.to_dict()
        reports.show(data, console, _write_reports(report, result) if report else {})
        if old is not None:
            _print_difference(differences.lines(old, data))
        if write_known:
            _write_known(write_known, result)
    if github.here():
        _tell_github(data, places)
    raise typer.Exit(reports.exit_code(data))


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} is {value!r}; allowed: {', '.join(allowed)}")


def _seed(text: str) -> int:
    if text == "random":
        return random.SystemRandom().randrange(1 << 31)
    if not text.isdecimal():
        raise UsageError(f"--seed is {text!r}; allowed: a whole number >= 0, or 'random'")
    return int(text)


def _count(option: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{option} is {text!r}; allowed: a whole number from 1")
    return int(text)


def _print_difference(lines: list[str]) -> None:
    console.print("\nCompared with the older report:", style="bold")
    for line in lines or ["no difference"]:
        console.print(f"  {line}", markup=False, highlight=False)


def _write_reports(directory: Path, result: Report) -> dict[str, Path]:
    """Write the reports in place of an older run's; name the script of each failing check."""
    from qloracle_conformance import reports
    from qloracle_conformance.reports import files

    files.remove_old_scripts(directory)
    return reports.write_all(directory, result)


def _write_known(path: Path, result: Report) -> None:
    """Write the file of known failures, unless the run was interrupted."""
    from qloracle_conformance.reports import files
    from qloracle_conformance.running import known

    if any(judgement.partial for judgement in result.judgements):
        typer.echo(f"qloracle: {path} is not written: the run was interrupted", err=True)
        return
    entries = known.failing(result.judgements)
    files.write(path, known.text(entries))
    missing = sum(not entry.link for entry in entries)
    typer.echo(f"\n{path}: {len(entries)} known failures, {missing} of them without a link")


def _tell_github(data: Mapping[str, Any], places: Mapping[str, github.Places]) -> None:
    """Annotate the run, and add to the step's summary."""
    from qloracle_conformance.reports import github

    for line in github.commands(data, places):
        typer.echo(line)
    problem = github.write_summary(data)
    if problem:
        typer.echo(f"qloracle: no step summary: {problem}", err=True)


class Watcher:
    """A progress bar for each implementation, and the first failure of each rule as it is found."""

    def __init__(self) -> None:
        name, count = TextColumn("{task.description}"), MofNCompleteColumn()
        columns = name, BarColumn(), count, TimeElapsedColumn()
        self._progress = Progress(*columns, console=errors, transient=True)
        self._tasks: dict[str, Any] = {}
        self._planned: dict[str, int] = {}
        self._told: set[tuple[str, str, str]] = set()

    def __enter__(self) -> Any:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, planned: int, run: Any) -> None:
        """Take note of a check's result, or of the number of checks to come."""
        if run is None:
            self._plan(name, planned)
            return
        if run.rule not in ("P1", "P2", "P3", "P4"):  # they were not planned apart
            self._progress.advance(self._tasks[name])
        first = (name, run.rule, run.function) not in self._told
        if run.status in BAD + BROKEN and first:
            self._told.add((name, run.rule, run.function))
            line = f"{run.status} {run.id}: {run.message}"
            errors.print(line, style="red", markup=False, highlight=False, no_wrap=True,
                         overflow="ellipsis")  # fmt: skip

    def _plan(self, name: str, planned: int) -> None:
        """With several processes each of them says what it has planned."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=0)
        self._planned[name] = self._planned.get(name, 0) + planned
        self._progress.update(self._tasks[name], total=self._planned[name])


@app.command()
def probe(
    impl: Annotated[str, typer.Argument(metavar="IMPL")],
    device: Annotated[str, typer.Option(help="Device for adapters: cpu, cuda, cuda:1.")] = "",
) -> None:
    """Find an implementation's dialect from its outputs alone, and print it field by field."""
    from qloracle_conformance.commands.probe import show_dialect

    raise typer.Exit(show_dialect(impl, device, console))


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="[RULE | LEVEL | FUNCTION]")] = "",
) -> None:
    """Print what a rule, a level or a function demands; without a name, list them all."""
    from qloracle_conformance.commands.explain import explain

    explain(name, console)


@app.command()
def mutants(
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Judge the mutants in this file instead.")
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help="Write the whole matrix, checks x mutants, as CSV.")
    ] = None,
) -> None:
    """Run the kit over planted faults and lawful variants: which check kills which mutant."""
    from qloracle_conformance.commands.mutants import run

    raise typer.Exit(run(from_file, matrix, console, errors))


@app.command()
def memory(
    model: Annotated[str, typer.Option(help=f"One of: {', '.join(MODELS)}.")] = "llama-65b",
    seq: Annotated[
        int, typer.Option(help="Tokens of a micro-batch; in the timeline one has twice as many.")
    ] = 512,
    capacity: Annotated[
        float | None,
        typer.Option(help="GB of the card; none: the smallest common one that holds QLoRA."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Draw memory.png and timeline.png in this folder; none: no pictures."),
    ] = None,
) -> None:
    """Show where the memory of a fine-tuning goes, and what paging does about a spike.

    Prints the bytes by part, the papers' numbers beside ours, and a timeline.
    """
    from qloracle_conformance.commands.memory import run

    raise typer.Exit(run(model, seq, capacity, out, console))


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="cuda: so far times are taken on a GPU only.")],
    only: Annotated[str, typer.Option(help="Measure what has this in its name.")] = "",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("bench.json"),
) -> None:
    """Time the kernels on a GPU beside their peers and the roof of the card, and write a JSON.

    Exit code: 0 measured; 1 a check failed; 2 usage; 3 nothing was measured.
    """
    from qloracle_conformance.commands.bench import run

    raise typer.Exit(run(device, only, out, console))


if __name__ == "__main__":
    main()
