"""What `verify` shows while it works: how far it is, and the first failure at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress
from rich.console import Console

from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN


class Progress:
    """A bar for each implementation, and a line for the first failure of each.

    Its methods are those of a `running.run.Listener`; it prints to the error stream.
    """

    def __init__(self, console: Console) -> None:
        name, count = progress.TextColumn("{task.description}"), progress.MofNCompleteColumn()
        columns = name, progress.BarColumn(), count, progress.TimeElapsedColumn()
        self._bars = progress.Progress(*columns, console=console, transient=True)
        self._console = console
        self._tasks: dict[str, Any] = {}
        self._planned: dict[str, int] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def doing(self, name: str, what: str) -> None:
        """Show what is done with an implementation; '' ends it."""
        if not what:
            if name in self._tasks:
                self._bars.remove_task(self._tasks.pop(name))
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task("", total=None)
        self._bars.update(self._tasks[name], description=f"{name}: {what}")

    def checked(self, name: str, planned: int, check: CheckRun | None) -> None:
        """Take note of a check's result, or of the number of checks to come."""
        if check is None:
            self._plan(name, planned)
            return
        if check.rule not in ("P1", "P2", "P3", "P4"):  # they were not planned apart
            self._bars.advance(self._tasks[name])
        if check.status in BAD + BROKEN and name not in self._failed:
            self._failed.add(name)
            text = f"{name}: {check.status} {check.id}: {check.message}"
            self._console.print(text, style="red", no_wrap=True, overflow="ellipsis")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bars while something else is printed."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()

    def _plan(self, name: str, planned: int) -> None:
        """With several processes each of them says what it has planned."""
        self.doing(name, "judging")
        self._planned[name] = self._planned.get(name, 0) + planned
        self._bars.update(self._tasks[name], total=self._planned[name])
