"""The command: faults x runners.

    python -m qloracle_gpu.proof.faults

takes some minutes on two cores, most of them in compilers; what was compiled is kept.

Exit codes: 0 every fault is seen by the runners that it names, and the unchanged text by none;
1 otherwise; 3 where that holds of the runners that are there, and one is not.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from qloracle_gpu import kernels
from qloracle_gpu.proof.faults.cases import RUNNERS
from qloracle_gpu.proof.faults.listed import FAULTS, UNCHANGED
from qloracle_gpu.proof.faults.matrix import SEEN, Row, run_matrix, unavailable
from qloracle_gpu.proof.faults.planting import Fault, place

NAME, CELL, PLACE = 41, 13, 18


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant each fault, show it to each runner and print the matrix."""
    parser = argparse.ArgumentParser(
        prog="python -m qloracle_gpu.proof.faults",
        description="Plant faults in the CUDA text, and print which runner sees which.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="WORD",
        help="faults with one of these in the name",
    )
    parser.add_argument("--runner", nargs="+", choices=RUNNERS, default=RUNNERS)
    parser.add_argument(
        "-n", type=int, default=1 + (os.cpu_count() or 1), help="processes at a time"
    )
    parser.add_argument("--details", action="store_true", help="what each runner said")
    chosen = parser.parse_args(arguments)
    faults = [f for f in (*UNCHANGED, *FAULTS) if any(word in f.name for word in chosen.only)]
    if not faults:
        parser.error(f"no fault has one of {', '.join(chosen.only)} in its name")
    return show(faults, chosen.runner, chosen.n, chosen.details)


def show(faults: Sequence[Fault], runners: Sequence[str], processes: int, details: bool) -> int:
    """Print a line for each fault, then every broken promise; return the exit code."""
    out = Console(soft_wrap=True, highlight=False, markup=False)
    columns = "".join(f"{runner:{CELL}}" for runner in runners)
    header = f"{'* must see it':{NAME}} {columns} {'where':{PLACE}} what is wrong"
    out.print(header, style="bold")
    problems = []
    for row in run_matrix(faults, runners, processes):
        out.print(line(row))
        for runner, verdict in row.verdicts.items():
            if details and verdict.detail:
                out.print(f"    {runner}: {verdict.detail}")
        problems += row.problems
    for problem in problems:
        out.print(problem, style="bold red")
    if not problems:
        out.print(f"{len(faults)} rows: each fault is seen by the runners that it names")
    away = [reason for reason in map(unavailable, runners) if reason]
    for reason in away:
        out.print(f"not counted: {reason}")
    return 1 if problems else 3 if away else 0


def line(row: Row) -> Text:
    """Return a row of the matrix: red where a promise is broken, bold where something is seen."""
    text = Text(f"{row.fault.name:{NAME}} ", style="red" if row.problems else "")
    for runner, verdict in row.verdicts.items():
        mark = "*" if runner in row.fault.seen_by else ""
        style = "bold" if verdict.kind in SEEN else "dim"
        text.append(f"{verdict.kind + mark:{CELL}}", style)
    return text.append(f" {place(kernels.text(), row.fault):{PLACE}} {row.fault.story}")


if __name__ == "__main__":
    sys.exit(main())
