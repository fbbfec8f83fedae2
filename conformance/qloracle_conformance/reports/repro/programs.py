"""Scripts for pagers: the program as plain Python statements, up to the operation that went wrong.

Nothing is left of the kit: the pager is made, arrays are written, read, stepped and saved one line
after the other, and what came is compared with what is due.  After a step that is what the same
statements make of plain arrays.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

from qloracle_conformance.calling import steps
from qloracle_conformance.contract import programs
from qloracle_conformance.contract.books import if_offered
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCK, LR, Operation
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.paging import plain_arrays, s12_paging, s12b_books
from qloracle_conformance.reports.repro.literals import string, type_name, wrapped
from qloracle_conformance.reports.repro.program_texts import FILES, FREED, ON_NUMPY, SHOWN, STEPS

Lines = list[str]

LIMIT = 20  # seconds after which a program is taken to hang


class Script:
    """The statements of a program, and the functions that they need."""

    def __init__(self, case: Case, framework: str, offers: list[str]) -> None:
        self.case, self.framework, self.offers = case, framework, offers
        self.program = programs.program_of(case)
        self.read = "np.array" if framework == "numpy" else "take"
        self.alive: list[str] = []
        self._nbytes: dict[str, int] = {}

    def lines(self, upto: int, books: bool = False, freed: bool = False) -> Lines:
        """The function `program`: the first `upto` operations; with `books` what was shown.

        With `freed` the resident pages that were freed are counted.
        """
        sizes = [
            f"{name}={value}" for name, value in self.case.options.items() if name != "program"
        ]
        body = [f"pager = make_pager({', '.join(sizes)})", "found = []"]
        body += ["freed = 0"] * books
        for number, operation in enumerate(self.program[:upto]):
            last = books and number == upto - 1
            body += ["before = shown(pager)"] * last
            body += self._freeing(operation) if freed else self._statements(operation)
            body += ["freed = 0"] * (books and operation[0] == "load")
        body += ["return before, shown(pager), freed"] if books else ["return found"]
        return ["def program(make_pager):", *(f"    {line}" for line in body)]

    def _freeing(self, operation: Operation) -> Lines:
        """A free whose pages are counted."""
        lines = self._statements(operation)
        if operation[0] != "free":
            return lines
        page = self.case.options.get("page_bytes", "shown(pager).page_bytes")
        pages = f"max(-(-{self._nbytes[operation[1]]} // page), 1)"
        count = f"freed += pages_freed(there, shown(pager), page, {pages})"
        return ["there = shown(pager)", *lines, f"page = {page}", count]

    def _statements(self, operation: Operation) -> Lines:
        match operation:
            case ["empty", name, shape, dtype]:
                self.alive.append(name)
                self._nbytes[name] = math.prod(shape) * programs.dtype_of(dtype).itemsize
                return [f"{name} = pager.empty({tuple(shape)}, {self._dtype(dtype)})"]
            case ["write", name, start, stop, values, side]:
                given = (
                    values if side == "host" and self.framework != "torch" else self._given(values)
                )
                return self._seen(name, side, f"{{}}{_where(start, stop)} = {given}")
            case ["read", name, start, stop, side]:
                text = f"found.append({self.read}({{}}{_where(start, stop)}))"
                return self._seen(name, side, text)
            case ["open", label, names]:
                use = f"{label}_context = pager.use({', '.join(names)})"
                return [use, f"{label} = {label}_context.__enter__()"]
            case ["close", label]:
                return [f"{label}_context.__exit__(None, None, None)"]
            case ["step", function, names, grads, first, count, part]:
                return self._step(function, names, grads, range(first, first + count), part)
            case ["must_fail", inner]:
                return _refused(self._statements_of_refused(inner))
        return self._others(operation)

    def _statements_of_refused(self, operation: Operation) -> Lines:
        if operation[0] == "empty":
            return [f"pager.empty({tuple(operation[2])}, {self._dtype(operation[3])})"]
        if operation[0] == "free":
            return [f"pager.free({operation[1]})"]
        if operation[0] == "read":
            text = f"{{}}{_where(*operation[2:4])}"
            return self._seen(operation[1], operation[4], text)
        return self._statements(operation)

    def _others(self, operation: Operation) -> Lines:
        """What moves pages, and what goes through files."""
        match operation:
            case ["prefetch", name, "device"]:
                return [f"pager.prefetch({name})"]
            case ["prefetch", name, "host"]:
                return [f'if_offered(pager, "prefetch", {name}, to="host")']
            case ["advise", name, preferred, mostly]:
                words = f"preferred={preferred!r}, read_mostly={mostly}"
                return [f'if_offered(pager, "advise", {name}, {words})']
            case ["shrink", capacity]:
                return [f'if_offered(pager, "shrink", {capacity})']
            case ["free", name]:
                self.alive.remove(name)
                return [f"pager.free({name})"]
            case ["save", file]:
                pairs = ", ".join(f"{string(name)}: {name}" for name in self.alive)
                return wrapped(f"save_state({string(file)}, pager, {{{pairs}}})")
            case ["load", file, capacity, page]:
                return self._load(file, capacity, page)
        return []

    def _load(self, file: str, capacity: int | None, page: int | None) -> Lines:
        sizes = {"capacity_bytes": capacity, "page_bytes": page}
        named = ", ".join(f"{name}={value}" for name, value in sizes.items() if value is not None)
        lines = [f"pager = make_pager({named})"]
        lines += [f"loaded, words = load_state({string(file)}, pager)"]
        lines += [f"{name} = loaded.pop({string(name)})" for name in self.alive]
        return [*lines, f'assert (loaded, words) == ({{}}, {{"file": {string(file)}}}), words']

    def _seen(self, name: str, side: str, text: str) -> Lines:
        """A statement on an array as one side sees it."""
        if side == "host":
            return [text.format(name)]
        if side == "device":
            inner = text.format("on_device")
            return [f"with pager.use({name}) as (on_device,):", f"    {inner}"]
        label, _, i = side.partition(".")
        return [text.format(f"{label}[{i}]")]

    def _step(
        self, function: str, names: list[str], grads: str, counts: range, part: int | None
    ) -> Lines:
        sizes = [
            BLOCK if function == "adam_step_8bit" and i in (2, 4) else 1 for i in range(len(names))
        ]
        plain = function if self.framework == "numpy" else f"on_numpy({function})"
        own = f"implementation.{function}" if function in self.offers else plain
        counted = f"range({counts.start}, {counts.stop})"
        text = f"run_steps(pager, {own}, ({', '.join(names)}), {sizes}, {self._given(grads)}, "
        return wrapped(f"{text}{counted}, {part})")

    def _given(self, name: str) -> str:
        return name if self.framework == "numpy" else f"give({name})"

    def _dtype(self, name: str) -> str:
        if self.framework in ("torch", "jax"):
            return f"{'torch' if self.framework == 'torch' else 'jax.numpy'}.{name}"
        return type_name(programs.dtype_of(name)).replace("np.bool", "np.bool_")

    # ---- the functions around it ---------------------------------------------------------------

    def functions(self, program: Lines, books: bool) -> Lines:
        """What the statements call."""
        verbs = {operation[0] for operation in self.program}
        text = self._stepping() if "step" in verbs else ""
        if "save" in verbs:
            torch = self.framework == "torch"
            of_type = "getattr(torch, str(values.dtype))" if torch else "values.dtype"
            filled = FILES.replace("EMPTY", of_type).replace("READ", self.read)
            text += filled.replace("GIVE", "give(values)" if torch else "values")
        if any("if_offered(" in line for line in program):
            text += f"{inspect.getsource(if_offered)}\n\n"
        text += SHOWN if books else ""
        text += FREED if any("pages_freed(" in line for line in program) else ""
        return text.splitlines()

    def _stepping(self) -> str:
        """The steps that the implementation does not offer, and the loop over slices."""
        used = {op[1] for op in self.program if op[0] == "step" and op[1] not in self.offers}
        needed = {"adam_step", *used} if used else set()
        text = "".join(f"{inspect.getsource(getattr(steps, name))}\n\n" for name in sorted(needed))
        text += ON_NUMPY if used and self.framework != "numpy" else ""
        empty = "np.zeros(shape, dtype)"
        if self.framework != "numpy":
            empty = f"{self.framework}.zeros(shape, dtype=dtype, device=DEVICE)"
            empty = empty.replace(", device=DEVICE", "") if self.framework == "cupy" else empty
        return text + STEPS.format(lr=LR, empty=empty)


def _where(start: int | None, stop: int | None) -> str:
    return "[...]" if start is None else f"[{start}:{stop}]"


def _refused(lines: Lines) -> Lines:
    """A statement that must fail: its error is found."""
    inner = [f"    {line}" for line in lines]
    said = ["except Exception as error:", "    found.append(str(error))"]
    return ["try:", *inner, *said, "else:", '    found.append("")']


# ---- the comparison ------------------------------------------------------------------------------


def body(check: CheckRun, failure: Failure, framework: str, offers: list[str]) -> Lines:
    """The functions `program` and `main`, and what they need."""
    script = Script(failure.case, framework, offers)
    count = len(script.program)
    if check.rule[0] == "P" or failure.mismatch.result == "call":
        return _whole(check, failure, script, count)
    if failure.mismatch.result == "operation":
        return _operation(failure, script)
    if check.rule == "S12b":
        return _law(failure, script)
    return _element(failure, script)


def _assembled(script: Script, program: Lines, main: Lines, books: bool = False) -> Lines:
    indented = [f"    {line}" for line in main]
    return [*script.functions(program, books), *program, "", "", "def main():", *indented]


def _element(failure: Failure, script: Script) -> Lines:
    """One element of the last read: by its bits."""
    case, i = failure.case, failure.mismatch.index
    wrong = (
        (k, read, due)
        for k, (read, got, due) in enumerate(s12_paging.compared(case, failure.values))
        if (got != due).any()
    )
    k, read, due = next(wrong)
    size = read.values.itemsize
    element = due[i * size : (i + 1) * size].tobytes()
    k += sum(op[0] == "must_fail" for op in script.program[: read.operation])
    main = [f"got = program(implementation.make_pager)[{k}].reshape(-1)[{i}]"]
    if programs.steps_in(case):
        main += [f"due = program(Plain)[{k}].reshape(-1)[{i}]"]
    else:
        kind = type_name(read.values.dtype).replace("np.bool", "np.bool_")
        main += [f"due = np.frombuffer(bytes.fromhex({string(element.hex())}), {kind})[0]"]
    main += [
        *wrapped(f"# {read.text}, element {i}: {failure.mismatch.reason}", 0, "# "),
        'print(f"got {got}, due {due}")',
        "return int(got.tobytes() != due.tobytes())",
    ]
    return _assembled(script, script.lines(read.operation + 1), main)


def _operation(failure: Failure, script: Script) -> Lines:
    """An operation that raised, did not raise, or loaded something else."""
    number = failure.mismatch.index
    program = script.lines(number + 1)
    if script.program[number][0] == "must_fail":
        main = [
            "said = program(implementation.make_pager)[-1]",
            'print(said or "no error, or one that says nothing")',
            "return int(not said)",
        ]
        return _assembled(script, program, main)
    main = [
        "try:",
        "    program(implementation.make_pager)",
        "except Exception as error:",
        '    print(f"{type(error).__name__}: {error}")',
        "    return 1",
        'print("no error")',
        "return 0",
    ]
    return _assembled(script, program, main)


def _law(failure: Failure, script: Script) -> Lines:
    """What the pager shows after the last operation."""
    broken = next(e for e in s12b_books.entered(failure.case, failure.values) if not _holds(e))
    law = broken.law
    main = [
        "before, now, freed = program(implementation.make_pager)",
        *wrapped(f"# {law.why}", 0, "# "),
        *_sums(law.formula),
        f"got = now.{law.column}",
        f"due = {law.formula}",
        f'print(f"{law.column} is {{got}}, due {s12b_books.RELATIONS[law.relation]}{{due}}")',
        f"return int(not got {law.relation} due)",
    ]
    program = script.lines(broken.number + 1, books=True, freed="freed" in law.formula)
    return _assembled(script, program, main, books=True)


def _sums(formula: str) -> Lines:
    """Pages that came and went, where a formula counts them."""
    sums = {"came": s12b_books.CAME, "went": s12b_books.WENT}
    return [
        f"{name} = {' + '.join(f'now.{column}' for column in columns)}"
        for name, columns in sums.items()
        if name in formula
    ]


def _holds(entry: s12b_books.Entry) -> bool:
    return entry.law.holds(entry.line)


def _whole(check: CheckRun, failure: Failure, script: Script, count: int) -> Lines:
    """The rules that look at a whole call: its form, its inputs, its repetition, its end."""
    program = script.lines(count)
    if failure.mismatch.result == "call":
        guard = f"faulthandler.dump_traceback_later({LIMIT}, exit=True)  # a hang is code 1"
        main = [guard] * (check.status in BROKEN)
        main += ["program(implementation.make_pager)", 'print("no error")', "return 0"]
        return _assembled(script, program, main)
    return _assembled(script, program, list(_of_rule(check, failure, script)))


def _of_rule(check: CheckRun, failure: Failure, script: Script) -> Iterator[str]:
    run, names = "program(implementation.make_pager)", ", ".join(failure.case.arrays)
    match check.rule:
        case "P1":
            k, due = _wrong_form(failure)
            k += sum(op[0] == "must_fail" for op in script.program[: due.operation])
            yield f"result = {run}[{k}]"
            yield 'got = f"{result.dtype}{list(result.shape)}"'
            yield f"due = {string(programs.form_of(due.values))}"
        case "P2":
            yield f"before = [array.tobytes() for array in ({names},)]"
            yield run
            yield f"wrong = before != [array.tobytes() for array in ({names},)]"
            yield 'got, due = ("other" if wrong else "the same"), "the same"'
        case _:
            yield f"due = [np.array(array).tobytes() for array in {run}]"
            yield "got = due"
            yield "for _ in range(10):"
            yield f"    again = [np.array(array).tobytes() for array in {run}]"
            yield "    got = again if again != due else got"
            yield 'got, due = ("other bits" if got != due else "equal bits"), "equal bits"'
    yield 'print(f"got {got}, due {due}")'
    yield "return int(got != due)"


def _wrong_form(failure: Failure) -> tuple[int, Any]:
    words = programs.written_out(failure.values)
    reads = plain_arrays.reads(failure.case)
    return next(
        (k, read)
        for k, read in enumerate(reads)
        if words[read.operation] != programs.form_of(read.values)
    )
