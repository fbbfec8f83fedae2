"""An implementation as the page shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from qloracle_conformance import families
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.verdicts import worst
from qloracle_conformance.reports import failures
from qloracle_conformance.reports.failures import Data, Entry
from qloracle_conformance.reports.page.markup import Markup, status

View = tuple[str, str]  # a function, and one of its tables or ""


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

    @cached_property
    def views(self) -> list[View]:
        """The functions that are offered: each alone (its table is ""), then with its tables."""
        rows = (*self.data["dialects"], *self.data["checks"])
        pairs = [(row["function"], row["table"]) for row in rows]
        functions = [name for name in FUNCTIONS if name in self.data["offers"]]
        tables = {f: dict.fromkeys(t for g, t in pairs if g == f and t) for f in functions}
        return [(function, table) for function in functions for table in ("", *tables[function])]

    @cached_property
    def rules(self) -> list[str]:
        """The rules of its checks, in the order of the specification."""
        seen = {check["rule"] for check in self.data["checks"]}
        return sorted(seen, key=lambda rule: (rule[0] == "P", list(families.RULES).index(rule)))

    def word(self, view: View, rule: str) -> str:
        """The status of a rule on a function and table, or why there is none."""
        found = [check["status"] for check in self._checks.get((*view, rule), ())]
        if found:
            return worst(found)
        if view[0] not in self.data["offers"]:
            return "MISSING"
        return "UNSUPPORTED" if self.unsupported(view) else ""

    def unsupported(self, view: View) -> str:
        """Why a function was not judged with a table; "" if it was."""
        for row in self.data["dialects"]:
            if (row["function"], row["table"]) == view:
                return str(row["unsupported"]).removeprefix("NotImplementedError: ")
        return ""

    def cell(self, view: View, rule: str) -> Markup:
        """That word, with a link to the first failure behind it."""
        word = self.word(view, rule)
        targets = [self._targets.get(check["id"]) for check in self._checks.get((*view, rule), ())]
        return status(word, next(filter(None, targets), "")) if word else Markup()

    @cached_property
    def _checks(self) -> Mapping[tuple[str, str, str], list[Data]]:
        found: dict[tuple[str, str, str], list[Data]] = {}
        for check in self.data["checks"]:
            place = check["function"], check["table"], check["rule"]
            found.setdefault(place, []).append(check)
        return found

    @cached_property
    def _targets(self) -> Mapping[str, str]:
        """The failure that holds a check."""
        numbered = enumerate(self.entries)
        return {c["id"]: f"#{self.place(n)}" for n, entry in numbered for c in entry.checks}
