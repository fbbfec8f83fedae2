"""The `mutants` command: rules x mutants, what each check kills, what the matrix does not prove."""

import csv
import io
import time
from collections import Counter
from pathlib import Path

import typer

from qloracle_conformance.families import RULES
from qloracle_conformance.mutants import LAWFUL, MUTANTS, here
from qloracle_conformance.mutants.matrix import Row, kind_of, load_from, problems, run_matrix
from qloracle_conformance.reports import files


def run(from_file: Path | None, matrix: Path | None) -> int:
    """Judge our catalogue, or the mutants of a file; the exit code is 1 if one surprises."""
    specs = load_from(str(from_file)) if from_file else None
    if specs == []:
        text = f"{from_file}: no public class in it offers a function of the protocol"
        typer.echo(text, err=True)
        return 3

    start = time.perf_counter()
    typer.secho(header(), bold=True)
    given = () if specs is None else (specs,)
    rows = run_matrix(*given, watch=lambda row: typer.echo(line(row)))
    typer.echo(kills(rows))
    away = [mutant.__name__ for mutant in (*MUTANTS, *LAWFUL) if not here(mutant)]
    if away and specs is None:
        text = f"left out, because torch is not installed here: {', '.join(away)}"
        typer.echo(text, err=True)
    found = problems(rows, whole=specs is None)
    for problem in found:
        typer.secho(problem, bold=True, err=True)
    typer.echo(f"{summary(rows)}, in {time.perf_counter() - start:.0f} s")
    if matrix is not None:
        files.write(matrix, table(rows))
    return 1 if found else 0


def header() -> str:
    """The rules as columns, the largest error over its bound, and what the marks mean."""
    marks = "K killed by the rule that it names, x by another one, A accepted, ! a surprise"
    return f"{'':2}{'':24} {' '.join(RULES)} {'err/bound':>10}  ({marks})"


def line(row: Row) -> str:
    """A mutant as a row of the matrix: one mark a rule, then its story."""
    marks = {rule: "K" if rule == row.kills else "x" for rule in row.rules}
    cells = " ".join(f"{marks.get(rule, '.'):{len(rule)}}" for rule in RULES)
    use = f"{row.use:.3g}" if row.use else ""
    end = f"A[{row.adopts or 'as specified'}] " if row.lawful and row.as_expected else ""
    mark = " " if row.as_expected else "!"
    return f"{mark} {row.name:24} {cells} {use:>10}  {end}{row.story}".rstrip()


def kills(rows: list[Row]) -> str:
    """How many faulty mutants each check kills: none may be idle."""
    every = {kind_of(check): 0 for row in rows for check in row.statuses}
    faulty = (row for row in rows if not row.lawful)
    counts = Counter(kind for row in faulty for kind in {kind_of(c) for c in row.failing})
    parts = [f"{check} {counts[check]}" for check in sorted(every)]
    return "\nmutants killed by each check: " + ", ".join(parts) + "\n"


def table(rows: list[Row]) -> str:
    """The whole matrix, checks x mutants, as CSV."""
    checks = list(dict.fromkeys(check for row in rows for check in row.statuses))
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["check", *(row.name for row in rows)])
    out.writerows([check, *(row.statuses.get(check, "") for row in rows)] for check in checks)
    return text.getvalue()


def summary(rows: list[Row]) -> str:
    """Count what was killed and what was accepted."""
    lawful = [row for row in rows if row.lawful]
    faulty = [row for row in rows if not row.lawful]
    killed = sum(row.as_expected for row in faulty)
    accepted = sum(row.as_expected for row in lawful)
    return (
        f"{killed} of {len(faulty)} faulty mutants killed by the rule that they name, "
        f"{accepted} of {len(lawful)} lawful variants accepted{times(faulty)}"
    )


def times(faulty: list[Row]) -> str:
    """Seconds from the first call to the first failing check of the rule that a mutant names."""
    found = sorted((row.first_kill, row.name) for row in faulty if row.first_kill >= 0)
    if not found:
        return ""
    middle, (worst, slowest) = found[len(found) // 2][0], found[-1]
    return f"; first kill after {middle:.2f} s (median), {worst:.2f} s (the worst, {slowest})"
