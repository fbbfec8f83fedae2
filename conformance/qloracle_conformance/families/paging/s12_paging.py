"""S12. Paging changes no bit: paged arrays hold what plain arrays hold, whatever is done to them.

A pager hands out arrays whose pages lie with the host or with the device, as many of them as the
device holds.  Whatever is written is read again, bit for bit, by either side, at any capacity from
one page up, at any size of page, in any order of allocating, writing, reading, prefetching,
advising, shrinking and freeing; no array shows what belongs to another one, and no write is lost.
What one `use` names twice, or two that are open name, is one array.  While it is in use, it is the
step's alone: what the host would see is not judged.

A step on paged state equals the plain step: 200 steps of Adam and of 8-bit Adam (20 in the profile
smoke), slice by slice, at several capacities, and the same when state is saved on the way, loaded
into a fresh pager of other sizes, and stepped on.  The step is the implementation's own function
where it offers one, else a plain one of the kit's; the same function steps plain arrays, after the
pager has answered, and that is what is expected.

To free twice, to use what was freed, to ask for more memory than there is or to write what does not
fit is an error with a text, and leaves everything else as it was: what was alive reads as before.

How a program is written down is told in `qloracle_conformance.contract.programs`.  Its reads are
judged: arrays of all types with bytes of all values, so that every bit of every page counts; a page
that is lost, late, swapped, cut or shared with another array is another number.  Programs are
directed (pages, types, sharing, moving), and drawn by Hypothesis (search), which shrinks what
fails.

The size of a page and the capacity are asked for; an implementation that cannot have them says
NotImplementedError, and these programs are counted as unsupported.  What else shows on a pager that
has counters is rule S12b.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import DONE, LOGGED, PLAIN, RAISED, READ
from qloracle_conformance.families.paging import directed
from qloracle_conformance.families.paging.drafts import programs_of
from qloracle_conformance.judging.checks import Check, no_cases
from qloracle_conformance.judging.compare import Mismatch, Outcome, Values
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

Array = NDArray[Any]

# ---- the judgement -------------------------------------------------------------------------------


def judge(case: Case, values: Values, view: View) -> Outcome:
    """What an operation may do and must refuse, then all bytes that were read."""
    outcome = judge_operations(case, values)
    for number, like, got, expected in compared(case, values):
        outcome += _compare(case.options["program"], number, like.dtype, got, expected)
    return outcome


def judge_operations(case: Case, values: Values) -> Outcome:
    """Only what must fail raises; a file holds what was saved under the same names."""
    words, status = programs.written_out(values), values[LOGGED][1:, 0]  # row 0: a new pager
    outcome = Outcome(0)
    for number, (operation, word) in enumerate(zip(programs.program_of(case), words, strict=True)):
        if operation[0] == "must_fail":
            outcome += _refusal(operation[1], number, int(status[number]), word)
        elif status[number] == RAISED:
            return outcome + _operation(operation, number, word, "no error")
        elif operation[0] == "load" and status[number] == DONE:
            expected = json.dumps([sorted(operation[2]), {"file": operation[1]}])
            loaded = word == expected
            outcome += Outcome(1) if loaded else _operation(operation, number, word, expected)
    return outcome


def _operation(operation: programs.Operation, number: int, got: str, expected: str) -> Outcome:
    """An operation that went wrong as a whole."""
    text = f"{programs.text_of(operation)}: {got}"
    return Outcome(1, 1, Mismatch("operation", number, text, expected))


def _refusal(operation: programs.Operation, number: int, status: int, word: str) -> Outcome:
    """An error is expected, and it says something; Python's own MemoryError has no text."""
    if status == RAISED and (word.partition(": ")[2] or word == "MemoryError: "):
        return Outcome(1)
    if status not in (DONE, RAISED):
        return Outcome(0)
    got = word.replace(": ", " without a text") if status == RAISED else "no error"
    return _operation(operation, number, got, "an error that says why")


def compared(case: Case, values: Values) -> Iterator[tuple[int, Array, Array, Array]]:
    """What was read: by which operation, of which form, bytes that came and that are expected."""
    stepped, at = programs.steps_in(case), 0
    for number, like in plain_arrays.reads(case).items():
        part = slice(at, at + like.nbytes)
        plain = values[PLAIN][part] if stepped else like.reshape(-1).view(np.uint8)
        if values[READ][part].size != like.nbytes or plain.size != like.nbytes:
            break  # an operation before it failed, or its form is wrong: P1 has seen that
        at = part.stop
        yield number, like, values[READ][part], plain


def _compare(
    program: programs.Program, number: int, kind: np.dtype[Any], got: Array, expected: Array
) -> Outcome:
    """Byte by byte; the element of the first wrong one is told."""
    wrong = np.flatnonzero(got != expected)
    if not wrong.size:
        return Outcome(got.size)
    i = int(wrong[0]) // kind.itemsize
    came, wanted = (_shown(data.copy().view(kind)[i]) for data in (got, expected))
    why = f"operation {number} of {len(program)}; {wrong.size} of {got.size} bytes are wrong"
    text = programs.text_of(program[number])
    return Outcome(got.size, wrong.size, Mismatch(text, i, came, wanted, why))


def _shown(value: Any) -> str:
    """A number; a NaN by its bits, which are to be kept, too."""
    if np.isnan(np.float64(value)):
        return f"nan (0x{value.tobytes()[::-1].hex()})"
    return show(value)


def wrong_read(case: Case, values: Values) -> Mismatch | None:
    """Rule P1: the first part of an array that was read in another form than it has."""
    words, program = programs.written_out(values), programs.program_of(case)
    for number, like in plain_arrays.reads(case).items():
        got, expected = words[number], programs.form_of(like)
        if values[LOGGED][number + 1, 0] == DONE and got != expected:
            text = programs.text_of(program[number])
            return Mismatch(text, number, got, expected, f"operation {number}")
    return None


# ---- the checks ----------------------------------------------------------------------------------


CHECKS = (  # one a kind of program
    *(Check("S12", n, "make_pager", c, judge, (READ,)) for n, c in directed.DIRECTED.items()),
    Check(
        "S12", "search", "make_pager", no_cases, judge, (READ,),
        search=lambda _: programs_of(counted=False), directed=False,
    ),
)  # fmt: skip
