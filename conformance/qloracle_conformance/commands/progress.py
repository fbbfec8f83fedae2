"""What a run shows while it works: one line that is rewritten, and the first failure at once."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qloracle_conformance.engine.verdicts import BAD, BROKEN

LATER = ("P1", "P2", "P3", "P4")  # rules that are not planned: they follow from all calls


class Watcher:
    """A line for each implementation in work: how far it is, and the first failure that it met.

    On a pipe there is no such line; there the first failure of each implementation is printed.
    """

    def __init__(self, errors: Console) -> None:
        name, count = TextColumn("{task.description}"), MofNCompleteColumn()
        columns = name, BarColumn(), count, TimeElapsedColumn()
        self._progress = Progress(*columns, console=errors, transient=True)
        self._console = errors
        self._tasks: dict[str, Any] = {}
        self._planned: dict[str, int] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> Watcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, planned: int, run: Any) -> None:
        """Take note of a check's result, or of the number of checks to come."""
        if run is None:
            self._plan(name, planned)
            return
        if run.rule not in LATER:
            self._progress.advance(self._tasks[name])
        if run.status in BAD + BROKEN and name not in self._failed:
            self._failed.add(name)
            self._first(name, f"{name}: {run.status} {run.id}: {run.message}")

    def done(self, name: str) -> None:
        """Take the line away: the verdict is printed."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def _plan(self, name: str, planned: int) -> None:
        """With several processes each of them says what it has planned."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=0)
        self._planned[name] = self._planned.get(name, 0) + planned
        self._progress.update(self._tasks[name], total=self._planned[name])

    def _first(self, name: str, text: str) -> None:
        if self._console.is_terminal:
            self._progress.update(self._tasks[name], description=text[:60])
        else:
            self._console.print(text, style="red", markup=False, highlight=False, no_wrap=True,
                                overflow="ellipsis")  # fmt: skip
