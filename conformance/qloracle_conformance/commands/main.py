"""The command `qloracle`."""

import atexit
import gc
import random
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument, Option

import qloracle
from qloracle.memory import MODELS
from qloracle_conformance import adapters
from qloracle_conformance.calling import nursery
from qloracle_conformance.calling.callers import LIMIT, environment
from qloracle_conformance.contract.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judge QLoRA kernels against an executable specification, element by element.",
)
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)

Implementations = Annotated[
    list[str] | None,
    Argument(
        metavar="[IMPL]...",
        help="Short names (numpy, bitsandbytes), module:NAME, pkg.mod:object or path/file.py. "
        "None: every implementation found on this machine, but for host, ptx and managed, "
        "which are run by name only.",
    ),
]
Device = Annotated[str, Option(help="Device for adapters: cpu, cuda, cuda:1.")]


def main() -> None:
    """Run the command; a UsageError is one line and exit code 2."""
    atexit.register(gc.freeze)  # else the interpreter looks for garbage in all of it at its end
    try:
        app()
    except UsageError as error:
        errors.print(f"qloracle: {error}", style="red", soft_wrap=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Judge QLoRA kernels against an executable specification, element by element."""
    if version:
        typer.echo(f"qloracle {qloracle.__version__}, specification {qloracle.SPEC_VERSION}")
        raise typer.Exit


@app.command()
def verify(
    impl: Implementations = None,
    profile: Annotated[
        str, Option(help="smoke (to edit and run), standard, exhaustive.")
    ] = "smoke",
    require: Annotated[str, Option(help="Fail if a function up to this level is missing.")] = "",
    dialect: Annotated[str, Option(help="Judge as declared by this preset.")] = "",
    only: Annotated[
        str, Option(help="Rules, levels, functions, check ids, patterns: l0,S7,S5/*/full.")
    ] = "",
    stop_early: Annotated[bool, Option("-x", help="Stop at the first failure.")] = False,
    verbose: Annotated[bool, Option("-v", help="Print all failures, functions, rules.")] = False,
    watch: Annotated[bool, Option("--watch", help="Judge again when the file changes.")] = False,
    seed: Annotated[str, Option(help="A number, or 'random'.")] = "0",
    known: Annotated[Path | None, Option(help="File of known failures (TOML).")] = None,
    diff: Annotated[Path | None, Option(help="Compare with an older report.json.")] = None,
    report: Annotated[Path | None, Option(help="Write report.json, junit.xml, ... here.")] = None,
    device: Device = "",
    write_known: Annotated[Path | None, Option(help="Write all that fails as known.")] = None,
    processes: Annotated[
        int | None, Option("--processes", "-n", min=1, help="Processes that judge; none: as fits.")
    ] = None,
    limit: Annotated[float, Option(help="Seconds that a call may take.")] = LIMIT,
    spec: Annotated[str, Option(help="Version of the specification.")] = qloracle.SPEC_VERSION,
) -> None:
    """Judge implementations and print their verdicts.

    Exit code: 0 every function offered passed within its printed scope; 1 a failure, or a call that
    took longer than --limit; 2 usage; 3 nothing was compared; 4 a crash.
    """
    if find_spec("hypothesis") is None:
        raise UsageError("verify needs Hypothesis: pip install 'qloracle[verify]'")
    if report and find_spec("jinja2") is None:
        raise UsageError("--report needs Jinja2: pip install 'qloracle[verify]'")
    if spec != qloracle.SPEC_VERSION:
        raise UsageError(f"--spec is {spec!r}; allowed: {qloracle.SPEC_VERSION}")
    if write_known and (only or stop_early):
        why = f"--only is {only!r}" if only else "-x ends it early"
        raise UsageError(f"--write-known needs a whole run; {why}")
    if watch and (report or diff or write_known or len(impl or []) != 1):
        raise UsageError("--watch takes one IMPL, and no --report, --diff or --write-known")
    with _loading(impl or adapters.found_here(), device):
        from qloracle_conformance.commands import verify as command
        from qloracle_conformance.running import options

        given = options.read(
            profile=profile, require=require, seed=_seed(seed), dialect=dialect, known=known,
            device=device, limit=limit,
        ) | {"only": only, "stop_early": stop_early, "processes": processes}  # fmt: skip
        if watch:
            code = command.again_and_again((impl or [])[0], given)
        else:
            files = report, diff, write_known
            code = command.once(impl or [], given, console, errors, *files, verbose)
    raise typer.Exit(code)


def _loading(impls: Sequence[str], device: str) -> AbstractContextManager[None]:
    """Load the libraries that implementations need, while the rest of the kit is loaded."""
    needed = device in ("", "cpu") and any(map(nursery.needs, impls))
    return nursery.opened(environment(), impls) if needed else nullcontext()


def _seed(text: str) -> int:
    if text == "random":
        return random.SystemRandom().randrange(1 << 31)
    if not text.isdecimal():
        raise UsageError(f"--seed is {text!r}; allowed: a whole number >= 0, or 'random'")
    return int(text)


@app.command()
def probe(impl: Annotated[str, Argument(metavar="IMPL")], device: Device = "") -> None:
    """Find an implementation's dialect from its outputs alone, and print it field by field."""
    from qloracle_conformance.commands.probe import show_dialect

    raise typer.Exit(show_dialect(impl, device, console))


@app.command()
def explain(name: Annotated[str, Argument(metavar="[RULE | LEVEL | FUNCTION]")] = "") -> None:
    """Print what a rule, a level or a function demands; without a name, list them all."""
    from qloracle_conformance.commands.explain import explain

    explain(name)


@app.command()
def mutants(
    from_file: Annotated[
        Path | None, Option("--from", help="Judge the mutants in this file instead.")
    ] = None,
    matrix: Annotated[
        Path | None, Option(help="Write the whole matrix, checks x mutants, as CSV.")
    ] = None,
) -> None:
    """Run the kit over planted faults and lawful variants: which check kills which mutant."""
    from qloracle_conformance.commands.mutants import run

    raise typer.Exit(run(from_file, matrix))


@app.command()
def memory(
    model: Annotated[str, Option(help=f"One of: {', '.join(MODELS)}.")] = "llama-65b",
    seq: Annotated[
        int, Option(help="Tokens of a micro-batch; in the timeline one has twice as many.")
    ] = 512,
    capacity: Annotated[
        float | None, Option(help="GB of the card; none: the smallest common one that holds QLoRA.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="Draw memory.png and timeline.png in this folder; none: no pictures."),
    ] = None,
) -> None:
    """Show where the memory of a fine-tuning goes, and what paging does about a spike.

    Prints the bytes by part, the papers' numbers beside ours, and a timeline.
    """
    from qloracle_conformance.commands.memory import run

    raise typer.Exit(run(model, seq, capacity, out, console))


@app.command()
def bench(
    device: Annotated[str, Option(help="cuda: so far times are taken on a GPU only.")],
    only: Annotated[str, Option(help="Measure what has this in its name.")] = "",
    out: Annotated[Path, Option(help="File to write.")] = Path("bench.json"),
) -> None:
    """Time the kernels on a GPU beside their peers and the roof of the card, and write a JSON.

    Exit code: 0 measured; 1 a check failed; 2 usage; 3 nothing was measured.
    """
    from qloracle_conformance.commands.bench import run

    raise typer.Exit(run(device, only, out))


if __name__ == "__main__":
    main()
