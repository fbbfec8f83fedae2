"""An implementation as the page shows it."""

from dataclasses import dataclass
from functools import cached_property

from qloracle_conformance.engine.verdicts import worst
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry


@dataclass(frozen=True)
class Subject:
    """One implementation of a report: its data, and its number, after which its links are named."""

    data: Data
    number: int

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return str(self.data["name"])

    @property
    def anchor(self) -> str:
        """The id of its section."""
        return f"implementation-{self.number}"

    @property
    def judged(self) -> bool:
        """False where it could not be loaded: there is only a message to show then."""
        return bool(self.data["checks"]) or self.data["status"] == "OK"

    @cached_property
    def entries(self) -> list[Entry]:
        """Its failures, causes before what may follow from them."""
        return failures.entries(self.data)

    @property
    def missing(self) -> list[str]:
        """The functions that it does not offer."""
        return [row["name"] for row in self.data["functions"] if row["status"] == "MISSING"]

    def function(self, name: str) -> Data | None:
        """What the report says of a function; None where it says nothing."""
        return next((row for row in self.data["functions"] if row["name"] == name), None)

    def place(self, entry: int) -> str:
        """The id of a failure."""
        return f"failure-{self.number}-{entry}"

    @property
    def verdict(self) -> str:
        """One word for all: the worst of what is offered."""
        if self.data["status"] != "OK":
            return str(self.data["status"])
        offered = [row["status"] for row in self.data["functions"] if row["status"] != "MISSING"]
        return worst(offered) if offered else "MISSING"
