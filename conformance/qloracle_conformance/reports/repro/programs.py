"""Scripts for pagers: the program as data, and the methods of `Operations` that perform it.

Nothing is left of the kit but text: the operations are performed up to the one that went wrong, by
the code that has performed them here, and what came is compared with what was expected: after a
step, with what the same operations make of plain arrays.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from qloracle_conformance.calling import operations, steps
from qloracle_conformance.calling.operations import Operations
from qloracle_conformance.contract import books, plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.paging import s12_paging, s12b_books
from qloracle_conformance.reports.repro.literals import string, type_name, wrapped

Lines = list[str]

LIMIT = 20  # seconds after which a program is taken to hang
RUN = "program(implementation, kind)"
FUNCTIONS = (  # they stand in a script as they stand in the kit, each before those that it calls
    operations.Plain, operations.through, books.pages_freed, books.pages_went, books.pages_came,
    books.if_offered, steps.run_steps, steps.adam_step_8bit, steps.adam_step,
)  # fmt: skip
PROGRAM = """\
def program(target, kind):
    operations = Operations(target, ARRAYS, kind)
    operations.make({capacity}, {page})
"""
PERFORMED = """\
    said = [operations.perform(operation) for operation in PROGRAM]
    return operations.found, said
"""
LOGGED = """\
    log = [shown(operations.pager)]
    for operation in PROGRAM:
        operations.perform(operation)
        log.append(shown(operations.pager))
    return log
"""


class Script(NamedTuple):
    """What a script is made of: a case, whose arrays are handed over, and which steps are there."""

    case: Case
    framework: str
    offers: list[str]

    def text(self, main: Iterable[str], upto: int | None = None, *, logged: bool = False) -> Lines:
        """The first operations of the program, `main`, and what they need.

        `program` returns what was read and what each operation returned; `logged`: what the pager
        has shown, a line at first and one after each operation.
        """
        rows = programs.program_of(self.case)[:upto]
        arrays = ", ".join(f"{string(name)}: {name}" for name in self.case.arrays)
        capacity, page = programs.sizes_of(self.case)
        own = PROGRAM.format(capacity=capacity, page=page) + (LOGGED if logged else PERFORMED)
        own = "\n".join([
            *wrapped(f"ARRAYS = {{{arrays}}}"), "PROGRAM = [",
            *(f"    {row},  # {programs.text_of(row)}" for row in rows), "]", *self._kind(rows),
            "", "", own, "", "def main():", *(f"    {line}" for line in main), "", "", "",
        ])  # fmt: skip
        own += (_shown() if logged else "") + _operations(rows)
        return [*own.splitlines(), *_needed(own).splitlines()]

    def _kind(self, rows: programs.Program) -> Lines:
        """How arrays are handed over and taken, and which steps are run."""
        numpy, module = self.framework == "numpy", FRAMEWORKS.get(self.framework)
        found = {row[1]: f"implementation.{row[1]}" for row in rows if row[0] == "step"}
        for function in found.keys() - set(self.offers):
            found[function] = function if numpy else f"through({function}, take, give)"
        pairs = ", ".join(f"{string(function)}: {text}" for function, text in found.items())
        given = "values" if numpy else "give(values)"
        host = "" if numpy or self.framework == "torch" else 'values if side == "host" else '
        dtype = '{"bfloat16": ml_dtypes.bfloat16}.get(name, name)'
        dtype = f"np.dtype({dtype if 'bfloat16' in str(rows) else 'name'})"
        return [
            "kind = types.SimpleNamespace(",
            f"    dtype=lambda name: {f'getattr({module}, name)' if module else dtype},",
            f'    given=lambda values, side="device": {host}{given},',
            f"    take={'np.array' if numpy else 'take'},",
            *[f"    step=lambda target, function: {{{pairs}}}[function],"] * bool(found),
            ")",
        ]


FRAMEWORKS = {"torch": "torch", "jax": "jax.numpy"}


def _shown() -> str:
    """What a script reads of a pager's books."""
    needed = books.whole_number, books.books_of
    functions = "\n\n".join(inspect.getsource(function) for function in needed)
    return f"""\
SIZES = {books.SIZES}
COUNTERS = {books.COUNTERS}


{functions}

def shown(pager):
    return types.SimpleNamespace(**books_of(pager))


"""


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


def body(check: CheckRun, failure: Failure, framework: str, offers: list[str]) -> Lines:
    """The functions `program` and `main`, and what they need."""
    script = Script(failure.case, framework, offers)
    if failure.mismatch.result == "call":
        return script.text(_call(check))
    if check.rule[0] == "P":
        return script.text(_of_rule(check, failure))
    if failure.mismatch.result == "operation":
        return _operation(check, failure, script)
    return _law(failure, script) if check.rule == "S12b" else _element(failure, script)


def _element(failure: Failure, script: Script) -> Lines:
    """One element of the last read: by its bits."""
    i, found = failure.mismatch.index, enumerate(s12_paging.compared(failure.case, failure.values))
    k, read, wanted = next((k, read, e) for k, (read, got, e) in found if (got != e).any())
    if programs.steps_in(failure.case):
        right = f"program(*[Plain(implementation, kind)] * 2)[0][{k}].reshape(-1)[{i}]"
    else:
        element = wanted[i * read.values.itemsize :][: read.values.itemsize].tobytes()
        kind = type_name(read.values.dtype).replace("np.bool", "np.bool_")
        right = f"np.frombuffer(bytes.fromhex({string(element.hex())}), {kind})[0]"
    main = [
        f"got = {RUN}[0][{k}].reshape(-1)[{i}]",
        f"expected = {right}",
        *wrapped(f"# {read.text}, element {i}: {failure.mismatch.reason}", 0, "# "),
        'print(f"got {got}, expected {expected}")',
        "return int(got.tobytes() != expected.tobytes())",
    ]
    return script.text(main, read.operation + 1)


def _operation(check: CheckRun, failure: Failure, script: Script) -> Lines:
    """An operation that raised, did not raise, or loaded something else."""
    number = failure.mismatch.index
    said = f"got = {RUN}[1][-1]"
    match failure.case.options["program"][number][0], failure.mismatch.expected:
        case "must_fail", _:
            main = [f'{said}.partition(": ")[2]', *REFUSED]
        case _, "no error":
            main = _call(check)
        case _, expected:
            main = [said, f"expected = {json.loads(expected)}", *COMPARED]
    return script.text(main, number + 1)


REFUSED = 'print(got or "no error, or one that says nothing")', "return int(not got)"
COMPARED = 'print(f"got {got}, expected {expected}")', "return int(got != expected)"


def _law(failure: Failure, script: Script) -> Lines:
    """What the pager shows after the last operation."""
    broken = s12b_books.entered(failure.case, failure.values)[1][0]
    column, relation = broken.law.column, broken.law.relation
    freed = "freed = pages_freed(log, {frees}, {page})".format_map(broken.facts)
    main = [
        f"log = {RUN}",
        "before, now = log[-2:]",
        *wrapped(f"# {broken.why}", 0, "# "),
        *[freed] * ("freed" in broken.formula),
        f"got = now.{column}",
        f"expected = {broken.formula}",
        f'print(f"{column} is {{got}}, expected {s12b_books.RELATIONS[relation]}{{expected}}")',
        f"return int(not got {relation} expected)",
    ]
    return script.text(main, broken.number + 1, logged=True)


def _call(check: CheckRun) -> Lines:
    """What raises, crashes or hangs: the script ends as it does."""
    guard = f"faulthandler.dump_traceback_later({LIMIT}, exit=True)  # a hang is code 1"
    return [*[guard] * (check.status in BROKEN), RUN, 'print("no error")', "return 0"]


def _of_rule(check: CheckRun, failure: Failure) -> Iterator[str]:
    """The rules that look at all calls: their form, their inputs, their repetition."""
    match check.rule:
        case "P1":
            words, found = programs.written_out(failure.values), plain_arrays.reads(failure.case)
            forms = [(words[read.operation], programs.form_of(read.values)) for read in found]
            k, wrong = next((k, e) for k, (got, e) in enumerate(forms) if got != e)
            yield f"result = {RUN}[0][{k}]"
            yield 'got = f"{result.dtype}{list(result.shape)}"'
            yield f"expected = {string(wrong)}"
        case "P2":
            yield "before = {name: array.tobytes() for name, array in ARRAYS.items()}"
            yield RUN
            yield "wrong = before != {name: array.tobytes() for name, array in ARRAYS.items()}"
            yield 'got, expected = ("other" if wrong else "the same"), "the same"'
        case _:
            yield f"runs = [[np.array(a).tobytes() for a in {RUN}[0]] for _ in range(11)]"
            yield 'got = "equal bits" if runs.count(runs[0]) == 11 else "other bits"'
            yield 'expected = "equal bits"'
    yield from COMPARED
