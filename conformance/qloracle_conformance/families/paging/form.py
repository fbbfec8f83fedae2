"""Rule P1 on a pager: the form of what a program reads."""

from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.judging.compare import Mismatch, Values


def wrong_read(case: Case, values: Values) -> Mismatch | None:
    """The first part of a paged array that was read in another form than it has."""
    words = programs.written_out(values)
    for read in plain_arrays.reads(case):
        got, expected = words[read.operation], programs.form_of(read.values)
        if values[programs.LOGGED][read.operation + 1, 0] == programs.DONE and got != expected:
            return Mismatch(read.text, 0, got, expected, f"operation {read.operation}")
    return None
