"""The result of one check, and the failing input that it ends in."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.engine.maps import ErrorMap
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values


@dataclass
class Failure:
    """A failing input, as small as the reducer could make it, and what came back.

    `others` are failing inputs as they were met, and `map` shows the largest of them whole.
    """

    case: Case
    values: Values
    mismatch: Mismatch
    others: list[tuple[Case, Values]] = field(default_factory=list)
    map: ErrorMap | None = None


# Makes a failing case small; the last argument judges what comes back for a smaller one.
Reduce = Callable[[Case, Values, Mismatch, Callable[[Case, Values], Outcome]], Failure]


@dataclass
class CheckRun:
    """The result of one check: it starts as NOT_RUN, and only comparisons can make it PASS."""

    id: str
    rule: str
    function: str
    table: str
    status: str = "NOT_RUN"
    message: str = ""
    cases: int = 0
    unsupported: int = 0
    comparisons: int = 0
    wrong: int = 0
    band: int = 0
    recorded: int = 0
    use: float = 0.0
    failure: Failure | None = None
    seconds: float = 0.0
    known: str = ""
    looks_like: list[str] = field(default_factory=list)
    repro: str = ""  # its script, seen from the report's folder

    def fail(self, message: str, failure: Failure, wrong: int = 1) -> None:
        """Make it a failure."""
        self.status, self.message, self.failure, self.wrong = "FAIL", message, failure, wrong
