"""Time the kit at an old commit and in this checkout, side by side, and print a table in Markdown.

    python conformance/bench/side_by_side.py 708538e
    python conformance/bench/side_by_side.py 708538e --only numpy --only "a failing file" --runs 3

Both run with this interpreter and its packages.  The same command alternates between them, once
unmeasured and then so many times; the table gives the medians of wall-clock and of CPU seconds
(user and system, of the command and all its children).  On a machine that does other work at the
same time, judge by CPU.

"Without start and imports" is the difference of two runs: one that judges the failing file, and one
that judges a file with the same imports and no function.  Both start the same two processes, and
the first thing they do is to import all that the first run has ever imported.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Argument, Option

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("reference", "gpu", "conformance")
HERE = "conformance/qloracle_conformance"
MAINS = (f"{HERE}/commands/main.py", f"{HERE}/cli.py")  # the second one in old commits

FAILING = '''"""NF4 with a fault: the block index starts again at each row."""
import numpy as np
import qloracle


def dequantize_4bit(packed, absmax, *, shape, blocksize=64, quant_type="nf4", dtype=np.float32):
    n = int(np.prod(shape))
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    row = max(shape[-1] if shape else 1, 1)
    place = np.arange(n)
    block = (place // row * (row // blocksize) + place % row // blocksize).clip(0, absmax.size - 1)
    with np.errstate(all="ignore"):
        values = qloracle.codebook(quant_type)[codes] * absmax[block]
        return values.astype(dtype).reshape(shape)
'''

IDLE = f"{FAILING.partition('def ')[0]}qloracle.codebook('nf4')\n"  # it offers nothing

# Starts the kit: what it imports is noted in the first run, and imported at once in later ones.
START = """\
import atexit, contextlib, importlib, pathlib, runpy, sys
module, noted = sys.argv[1], pathlib.Path(sys.argv[2])
del sys.argv[1:3]
if noted.exists():
    for name in noted.read_text().split():
        with contextlib.suppress(Exception):  # what a module has made up cannot be imported
            importlib.import_module(name)
else:
    atexit.register(lambda: noted.write_text(" ".join(sys.modules)))
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

ALONE = "a failing file, without start and imports"
COMMANDS: Mapping[str, Sequence[str]] = {
    "numpy": ("verify", "numpy"),
    "torch": ("verify", "torch"),
    "bitsandbytes": ("verify", "bitsandbytes"),
    "nothing named": ("verify",),
    "a failing file": ("verify", "failing.py"),
    ALONE: ("verify", "failing.py"),
    "--only S7, one function": ("verify", "numpy", "--only", "S7/dequantize_4bit*"),
    "pytest -n 2": ("-m", "pytest", "-q", "-n", "2"),  # on request: it takes long
}
LONG = ("pytest -n 2",)


class Times(NamedTuple):
    """What one command took, in seconds."""

    wall: float
    cpu: float


def main(
    commit: Annotated[str, Argument(help="The old commit, such as 708538e.")],
    only: Annotated[list[str], Option(help="This command alone; repeatable.")] = [],  # noqa: B006
    runs: Annotated[int, Option(help="Measured runs of each command.")] = 5,
) -> None:
    """Time the kit at an old commit and in this checkout, and print the table row by row."""
    names = only or [name for name in COMMANDS if name not in LONG]
    with _old(commit) as old:
        print(f"`qloracle` at {commit} and now, median of {runs}, seconds\n")
        print("| command | wall, old | wall, now | ratio | CPU, old | CPU, now | ratio |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        for name in names:
            pairs = [
                [_time(name, root, old.parent) for root in (old, ROOT)] for _ in range(runs + 1)
            ]
            print(_row(name, *zip(*pairs[1:], strict=True)), flush=True)  # the first is left out


@contextmanager
def _old(commit: str) -> Iterator[Path]:
    """A checkout of the old commit, which is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "old"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(place), commit], check=True, stdout=2)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def _time(name: str, root: Path, notes: Path) -> Times:
    """The time of a command, or what it takes beyond its start and imports."""
    command, text = COMMANDS[name], next(path for path in MAINS if (root / path).is_file())
    main = text.removeprefix("conformance/").removesuffix(".py").replace("/", ".")
    if command[0] == "-m":
        return _run(command, root, root)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "failing.py").write_text(FAILING)
        (Path(folder) / "idle.py").write_text(IDLE)
        if name != ALONE:
            return _run(("-m", main, *command), root, Path(folder))
        start = "-c", START, main, str(notes / ("now" if root == ROOT else "before"))
        whole, idle = (
            _run((*start, "verify", file), root, Path(folder)) for file in ("failing.py", "idle.py")
        )
        return Times(whole.wall - idle.wall, whole.cpu - idle.cpu)


def _run(arguments: Sequence[str], root: Path, folder: Path) -> Times:
    """Run Python in a folder, on the sources of a checkout."""
    paths = os.pathsep.join(str(root / source) for source in SOURCES)
    before, start = _cpu(), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "100"}, cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Times(time.perf_counter() - start, _cpu() - before)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(name: str, before: Sequence[Times], now: Sequence[Times]) -> str:
    cells = [name]
    for column in range(2):
        old, new = (statistics.median(times[column] for times in each) for each in (before, now))
        cells += [f"{old:.1f}", f"{new:.1f}", f"{new / old:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
