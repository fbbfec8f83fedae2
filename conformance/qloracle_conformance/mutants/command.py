"""The `mutants` command: one line a mutant, then what the matrix does not prove."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from qloracle_conformance.mutants.matrix import Row, load_from, problems, run_matrix


def run(from_file: Path | None, console: Console, errors: Console) -> int:
    """Judge our catalogue, or the mutants of a file; the exit code is 1 if one surprises."""
    specs = load_from(str(from_file)) if from_file else None
    if specs == []:
        errors.print(f"{from_file}: no public class in it offers a function of the protocol")
        return 3

    def show(row: Row) -> None:
        console.print(line(row), markup=False, highlight=False, soft_wrap=True)

    rows = run_matrix(watch=show) if specs is None else run_matrix(specs, watch=show)
    found = problems(rows, whole=specs is None)
    for problem in found:
        errors.print(problem, style="bold red", markup=False, highlight=False)
    console.print(summary(rows), highlight=False, soft_wrap=True)
    return 1 if found else 0


def line(row: Row) -> str:
    """A mutant in a line: as expected or not, its name, what became of it, and its story."""
    return f"{' ' if row.as_expected else '!'} {row.name:24} {row.verdict:32} {row.story}".rstrip()


def summary(rows: list[Row]) -> str:
    """Count what was killed and what was accepted."""
    lawful = [row for row in rows if row.lawful]
    faulty = [row for row in rows if not row.lawful]
    killed = sum(row.as_expected for row in faulty)
    accepted = sum(row.as_expected for row in lawful)
    return (
        f"{killed} of {len(faulty)} faulty mutants killed by the rule that they name, "
        f"{accepted} of {len(lawful)} lawful variants accepted"
    )
