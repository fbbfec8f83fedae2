"""Scripts for pagers: the program as data, and the methods of `Operations` that perform it.

Nothing is left of the kit but text: the operations are performed up to the one that went wrong, by
the code that has performed them here, and what came is compared with what was expected: after a
step, with what the same operations make of plain arrays.
"""

import inspect
import json
import re

from qloracle_conformance.calling import paging, steps
from qloracle_conformance.calling.paging import Operations
from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.paging import s12_paging, s12b_books
from qloracle_conformance.reports.repro.comparing import LIMIT
from qloracle_conformance.reports.repro.literals import string, type_name, wrapped

Lines = list[str]

RUN = "program(implementation, kind)"
LOG = f"log = {RUN}[1]"
FUNCTIONS = (  # they stand in a script as they stand in the kit, each before those that it calls
    paging.plainly, paging.through, paging.said_by, paging.books_of, paging.whole_number,
    paging.if_offered, s12b_books.pages_freed, s12b_books.pages_went, s12b_books.pages_came,
    steps.run_steps, steps.adam_step_8bit, steps.adam_step,
)  # fmt: skip
PROGRAM = """\
def program(target, kind):
    operations = Operations(ARRAYS, target, kind)
    operations.make({capacity}, {page})
    told = [{first}]
    for operation in PROGRAM:
        said = operations.perform(operation)
        told.append({each})
    return operations.found, told
"""


FRAMEWORKS = {"torch": "torch", "jax": "jax.numpy"}


def body(check: CheckRun, failure: Failure, framework: str, offers: list[str]) -> Lines:
    """The functions `program` and `main`, and what they need.

    `program` performs the operations up to the one that went wrong.  It returns what was read, and
    what each operation returned, or for the books what the pager has shown: a line at first, and
    one after each operation.
    """
    case, logged, shown = failure.case, "", Lines()
    main, last = _comparison(check, failure)
    if LOG in main:
        logged = "types.SimpleNamespace(**books_of(operations.pager))"
        shown = [f"SIZES = {programs.SIZES}", f"COUNTERS = {programs.COUNTERS}"]
    rows = programs.program_of(case)[: last + 1]
    arrays = ", ".join(f"{string(name)}: {name}" for name in case.arrays)
    capacity, page = programs.sizes_of(case)
    own = "\n".join([
        *wrapped(f"ARRAYS = {{{arrays}}}"), "PROGRAM = [",
        *(f"    {row},  # {programs.text_of(row)}" for row in rows), "]", *shown,
        *_kind(rows, framework, offers), "", "",
        PROGRAM.format(capacity=capacity, page=page, first=logged, each=logged or "said"), "",
        "def main():", *(f"    {line}" for line in main), "", "", _operations(rows),
    ])  # fmt: skip
    return [*own.splitlines(), *_needed(own).splitlines()]


def _kind(rows: programs.Program, framework: str, offers: list[str]) -> Lines:
    """How arrays are handed over and taken, and which steps are run."""
    numpy, module = framework == "numpy", FRAMEWORKS.get(framework)
    found = {row[1]: f"implementation.{row[1]}" for row in rows if row[0] == "step"}
    for function in found.keys() - set(offers):
        found[function] = function if numpy else f"through({function}, take, give)"
    pairs = ", ".join(f"{string(function)}: {text}" for function, text in found.items())
    given = "values" if numpy else "give(values)"
    host = "" if numpy or framework == "torch" else 'values if side == "host" else '
    dtype = '{"bfloat16": ml_dtypes.bfloat16}.get(name, name)'
    dtype = f"np.dtype({dtype if 'bfloat16' in str(rows) else 'name'})"
    return [
        "kind = types.SimpleNamespace(",
        f"    dtype=lambda name: {f'getattr({module}, name)' if module else dtype},",
        f'    given=lambda values, side="device": {host}{given},',
        f"    take={'np.array' if numpy else 'take'},",
        *[f"    step=lambda function: {{{pairs}}}[function],"] * bool(found),
        ")",
    ]


def _operations(rows: programs.Program) -> str:
    """The class, with the methods that a program needs."""
    verbs = {"__init__", "make", "perform", *(row[0] for row in rows)}
    verbs |= {row[1][0] for row in rows if row[0] == "must_fail"}
    calls = {"load": "empty", "read": "seen", "write": "seen"}
    verbs |= {calls[verb] for verb in verbs & calls.keys()}
    methods = (
        inspect.getsource(method) for name, method in vars(Operations).items() if name in verbs
    )
    return f'class Operations:\n    """{Operations.__doc__}"""\n\n' + "\n".join(methods)


def _needed(text: str) -> str:
    """The functions that a script calls, and those that they call."""
    found = ""
    for function in FUNCTIONS:
        if re.search(rf"(?<![.\w]){function.__name__}[(),}}]", f"{found}{text}"):
            found += f"\n\n{inspect.getsource(function)}"
    return found


# ---- the comparison ------------------------------------------------------------------------------


def _comparison(check: CheckRun, failure: Failure) -> tuple[Lines, int]:
    """The lines of `main`, and the number of the last operation that they need."""
    mismatch = failure.mismatch
    if mismatch.result == "call" or check.rule[0] == "P":
        main = _call(check) if mismatch.result == "call" else _of_rule(check, failure)
        return main, len(failure.case.options["program"])
    if mismatch.result == "operation":
        return _operation(check, failure), mismatch.index
    if check.rule == "S12":
        return _element(failure)
    broken = s12b_books.entered(failure.case, failure.values)[1][0]
    return _law(broken), broken.number


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
    return [*before, *values, f'print(f"{form}")', f"return int({wrong})"]


def _call(check: CheckRun) -> Lines:
    """What raises, crashes or hangs: the script ends as it does."""
    guard = f"faulthandler.dump_traceback_later({LIMIT}, exit=True)  # a hang is code 1"
    return [*[guard] * (check.status in BROKEN), RUN, 'print("no error")', "return 0"]


def _element(failure: Failure) -> tuple[Lines, int]:
    """One element of the last read, which operation `number` was: by its bits."""
    i, found = failure.mismatch.index, enumerate(s12_paging.compared(failure.case, failure.values))
    k, number, like, wanted = next(
        (k, number, like, due) for k, (number, like, got, due) in found if (got != due).any()
    )
    if programs.steps_in(failure.case):
        right = f"program(*plainly(kind))[0][{k}].reshape(-1)[{i}]"
    else:
        element = wanted[i * like.itemsize :][: like.itemsize].tobytes()
        kind = type_name(like.dtype).replace("np.bool", "np.bool_")
        right = f"np.frombuffer(bytes.fromhex({string(element.hex())}), {kind})[0]"
    why = f"{failure.mismatch.result}, element {i}: {failure.mismatch.reason}"
    wrong = "got.tobytes() != expected.tobytes()"
    return _main(f"{RUN}[0][{k}].reshape(-1)[{i}]", right, why=why, wrong=wrong), number


def _operation(check: CheckRun, failure: Failure) -> Lines:
    """An operation that raised, did not raise, or loaded something else."""
    expected = failure.mismatch.expected
    if failure.case.options["program"][failure.mismatch.index][0] == "must_fail":
        said = f'{RUN}[1][-1].partition(": ")[2] or "no error, or one that says nothing"'
        return _main(said, string(expected), wrong='got.startswith("no error, or")')
    if expected == "no error":
        return _call(check)
    return _main(f"{RUN}[1][-1]", json.loads(expected))


def _law(broken: s12b_books.Entry) -> Lines:
    """What the pager shows after the last operation."""
    law, facts = broken.law, broken.facts
    before = [LOG, "before, now = log[-2:]"]
    if "freed" in law.formula:
        before.append("freed = pages_freed(log, {frees}, {page})".format_map(facts))
    return _main(
        f"now.{law.column}", law.formula.format_map(facts), *before,
        why=law.why.format_map(facts), wrong=f"not got {law.relation} expected",
        form=f"{law.column} is {{got}}, expected {s12b_books.RELATIONS[law.relation]}{{expected}}",
    )  # fmt: skip


def _of_rule(check: CheckRun, failure: Failure) -> Lines:
    """The rules that look at all calls: their form, their inputs, their repetition."""
    if check.rule == "P1":
        words, found = programs.written_out(failure.values), plain_arrays.reads(failure.case)
        k = [words[i] == programs.form_of(like) for i, like in found.items()].index(False)
        form = 'f"{result.dtype}{list(result.shape)}"'
        return _main(form, string(failure.mismatch.expected), f"result = {RUN}[0][{k}]")
    if check.rule == "P2":
        bits = "{name: array.tobytes() for name, array in ARRAYS.items()}"
        same = f'"the same" if before == {bits} else "other"'
        return _main(same, '"the same"', f"before = {bits}", RUN)
    runs = f"runs = [[np.array(a).tobytes() for a in {RUN}[0]] for _ in range(11)]"
    same = '"equal bits" if runs.count(runs[0]) == 11 else "other bits"'
    return _main(same, '"equal bits"', runs)
