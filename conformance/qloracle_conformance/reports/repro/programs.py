"""Scripts for pagers: the lines that were performed here, up to the operation that went wrong.

What came of them is compared with what was expected: after a step, with what the same lines make of
plain arrays.  Nothing is left of the kit but text.
"""

import inspect
import json
import re
from typing import NamedTuple

from qloracle_conformance.calling import paging, steps
from qloracle_conformance.contract import programs
from qloracle_conformance.contract.programs import LOGGED, NOT_OFFERED, Operation, Spelling
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.paging import s12_paging, s12b_books
from qloracle_conformance.reports.repro import comparing
from qloracle_conformance.reports.repro.literals import string, type_name, wrapped

Lines = list[str]

RUN = "call(*ARRAYS)"
FUNCTIONS = (  # they stand in a script as they stand in the kit, each before those that it calls
    paging.plainly, paging.in_memory, paging.through, paging.books_of, paging.whole_number,
    s12b_books.pages_left, s12b_books.pages_went, s12b_books.pages_came,
    steps.run_steps, steps.adam_step_8bit, steps.adam_step,
)  # fmt: skip
FIRST = {  # what a program begins with, if its lines have these words
    "pagers.": "pagers = pagers or implementation",
    "found": "found = []",
    "opened[": "opened = collections.defaultdict(contextlib.ExitStack)",
    "folder /": "scratch = tempfile.TemporaryDirectory()",
    "(folder /": "folder = pathlib.Path(scratch.name)",
    "files.": 'files = pagers if hasattr(pagers, "load_paged") else in_memory(dtype, host, take)',
}
SHOWN = "types.SimpleNamespace(**books_of(pager))"
NUMPY = Spelling('np.dtype("{}")', "{}", "{}", "np.array({})")
CONVERTING = "\n\ndef dtype(name):\n    return {}\n\n\ndef host(values):\n    return {}"
KINDS = {
    "numpy": "dtype, give, host, take = np.dtype, np.array, np.array, np.array",
    "torch": CONVERTING.format("getattr(torch, name)", "give(values).cpu()"),
    "cupy": CONVERTING.format("np.dtype(name)", "values"),
    "jax": CONVERTING.format("getattr(jax.numpy, name)", "values"),
}


class Comparison(NamedTuple):
    """The lines of `main`, up to which operation it needs a program, and what of it."""

    main: Lines
    last: int
    result: str = "found"


def body(check: CheckRun, failure: Failure, framework: str, offers: list[str]) -> Lines:
    """The functions `call`, which is the program, and `main`, and those that they call."""
    compared, numpy = _comparison(check, failure), framework == "numpy"
    rows = programs.program_of(failure.case)
    own = {row[1] for row in rows if row[0] == "step"} <= {*offers}
    step = "implementation.{}" if own else "{}" if numpy else "through({}, take, give)"
    spelling = (NUMPY if numpy else Spelling())._replace(step=step)
    text = "\n".join([*_call(failure, spelling, compared), "", "", *compared.main])
    if numpy:  # which knows this type by its name only where it was imported
        text = text.replace('"bfloat16"', "ml_dtypes.bfloat16")
    text += _needed(text)
    known = [f"ARRAYS = [{', '.join(failure.case.arrays)}]"]
    if "SIZES" in text:
        known += [f"SIZES = {programs.SIZES}", *wrapped(f"COUNTERS = {programs.COUNTERS}")]
    if not numpy or "take)" in text:
        known += KINDS[framework].splitlines()
    return [*known, "", "", *text.splitlines()]


def _call(failure: Failure, spelling: Spelling, compared: Comparison) -> Lines:
    """The function `call`: the lines of all operations, but for what the pager does not offer."""
    case, status = failure.case, failure.values and failure.values[LOGGED][1:, 0]
    rows = enumerate(programs.program_of(case)[: compared.last + 1])
    offered = (row for i, row in rows if not len(status) or status[i] != NOT_OFFERED)
    making = programs.making(*programs.sizes_of(case))
    *before, last = [making], *(_written(row, spelling) for row in offered)
    if compared.result == "before, now":
        last = [f"before = {SHOWN}", *last, f"now = {SHOWN}"]
    text = "\n".join([*(line for lines in (*before, last) for line in lines)])
    text = f"{text}\nreturn {compared.result}".replace("= make_pager", "= pagers.make_pager")
    first = [line for word, line in FIRST.items() if word in text]
    arguments = ", ".join([*case.arrays, "pagers=None"])
    return _function(f"call({arguments})", [*first, *text.splitlines()])


def _function(head: str, lines: Lines) -> Lines:
    return [f"def {head}:", *(f"    {line}" for line in lines)]


def _written(operation: Operation, spelling: Spelling) -> Lines:
    """The lines of an operation, which may have to fail."""
    lines = programs.lines_of(operation, spelling)
    if operation[0] != "must_fail":
        return lines
    tried = [f"    {line}" for line in lines]
    return ['said = ""', "try:", *tried, "except Exception as error:", "    said = str(error)"]


def _needed(text: str) -> str:
    """The functions that a script calls, and those that they call."""
    found = ""
    for function in FUNCTIONS:
        if re.search(rf"(?<![.\w]){function.__name__}[(),}}]", f"{found}{text}"):
            found += f"\n\n\n{inspect.getsource(function).rstrip()}"
    return found


# ---- the comparison ------------------------------------------------------------------------------


def _comparison(check: CheckRun, failure: Failure) -> Comparison:
    """The comparison that a failure calls for."""
    mismatch, end = failure.mismatch, len(failure.case.options["program"])
    if mismatch.result == "call":
        return Comparison(_raised(check), end)
    if check.rule[0] == "P":
        last = mismatch.index if check.rule == "P1" else end
        return Comparison(comparing.main(check, failure, None, "numpy"), last)
    if mismatch.result == "operation":
        return _operation(check, failure)
    if check.rule == "S12":
        return _element(failure)
    return _law(s12b_books.entered(failure.case, failure.values)[1][0])


def _main(
    got: str,
    expected: object,
    *before: str,
    why: str = "",
    wrong: str = "got != expected",
    form: str = "got {got}, expected {expected}",
) -> Lines:
    """Every comparison: two expressions, what comes before them, why, and when it fails."""
    comment = wrapped(f"# {why}", 0, "# ") if why else []
    values = f"got = {got}", *comment, f"expected = {expected}"
    lines = [*before, *values, f'print(f"{form}")', f"return int({wrong})"]
    return _function("main()", lines)


def _raised(check: CheckRun) -> Lines:
    """What raises, crashes or hangs: the script ends as it does."""
    guard = f"faulthandler.dump_traceback_later({comparing.LIMIT}, exit=True)  # a hang is code 1"
    lines = [*[guard] * (check.status in BROKEN), RUN, 'print("no error")', "return 0"]
    return _function("main()", lines)


def _element(failure: Failure) -> Comparison:
    """One element of the last read, by its bits."""
    i, found = failure.mismatch.index, s12_paging.compared(failure.case, failure.values)
    number, like, _, wanted = next(read for read in found if (read[2] != read[3]).any())
    if programs.steps_in(failure.case):
        right = f"call(*ARRAYS, plainly(give, take))[-1].reshape(-1)[{i}]"
    else:
        element = wanted[i * like.itemsize :][: like.itemsize].tobytes()
        kind = type_name(like.dtype).replace("np.bool", "np.bool_")
        right = f"np.frombuffer(bytes.fromhex({string(element.hex())}), {kind})[0]"
    why = f"{failure.mismatch.result}, element {i}: {failure.mismatch.reason}"
    wrong = "got.tobytes() != expected.tobytes()"
    return Comparison(_main(f"{RUN}[-1].reshape(-1)[{i}]", right, why=why, wrong=wrong), number)


def _operation(check: CheckRun, failure: Failure) -> Comparison:
    """An operation that raised, did not raise, or loaded something else."""
    number, expected = failure.mismatch.index, failure.mismatch.expected
    if failure.case.options["program"][number][0] == "must_fail":
        said = f'{RUN} or "no error, or one that says nothing"'
        main = _main(said, string(expected), wrong='got.startswith("no error, or")')
        return Comparison(main, number, "said")
    if expected == "no error":
        return Comparison(_raised(check), number)
    return Comparison(_main(RUN, json.loads(expected)), number, "[sorted(loaded), dict(words)]")


def _law(broken: s12b_books.Entry) -> Comparison:
    """What the pager shows after the last operation."""
    law, facts, zeros = broken.law, broken.facts, "dict.fromkeys((*SIZES, *COUNTERS), 0)"
    main = _main(
        f"now.{law.column}", law.formula.format_map(facts), f"before, now = {RUN}",
        *[f"before = types.SimpleNamespace(**{zeros})  # a new pager"] * facts["new"],
        why=law.why.format_map(facts), wrong=f"not got {law.relation} expected",
        form=f"{law.column} is {{got}}, expected {s12b_books.RELATIONS[law.relation]}{{expected}}",
    )  # fmt: skip
    return Comparison(main, broken.number, "before, now")
