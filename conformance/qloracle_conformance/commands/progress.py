"""What `verify` shows while it works: how far it is, and the first failure at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.engine.verdicts import BAD, BROKEN


class Progress(progress.Progress):
    """A bar for each implementation, and a line for the first failure of each.

    `doing` and `checked` are those of a `running.run.Listener`; it prints to the error stream.
    """

    def __init__(self, console: Console) -> None:
        name, count = progress.TextColumn("{task.description}"), progress.MofNCompleteColumn()
        columns = name, progress.BarColumn(), count, progress.TimeElapsedColumn()
        super().__init__(*columns, console=console, transient=True)
        self._bar_of: dict[str, progress.TaskID] = {}
        self._planned: Counter[str] = (
            Counter()
        )  # each of several processes says what it has planned
        self._failed: set[str] = set()

    def doing(self, name: str, what: str) -> None:
        """Show what is done with an implementation; '' ends it."""
        if what:
            bar = self._bar_of.get(name)
            bar = self._bar_of[name] = self.add_task("", total=None) if bar is None else bar
            self.update(bar, description=f"{name}: {what}")
        elif name in self._bar_of:
            self.remove_task(self._bar_of.pop(name))

    def checked(self, name: str, planned: int, check: CheckRun | None) -> None:
        """Take note of a check's result, or of the number of checks to come."""
        if check is None:
            self.doing(name, "judging")
            self._planned[name] += planned
            self.update(self._bar_of[name], total=self._planned[name])
            return
        if check.rule not in ("P1", "P2", "P3", "P4"):  # they were not planned apart
            self.advance(self._bar_of[name])
        if check.status in BAD + BROKEN and name not in self._failed:
            self._failed.add(name)
            text = f"{name}: {check.status} {check.id}: {check.message}"
            self.console.print(text, style="red", no_wrap=True, overflow="ellipsis")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bars while something else is printed."""
        self.stop()
        try:
            yield
        finally:
            self.start()
