"""Scripts for pagers: the program as plain Python statements, up to the operation that went wrong.

Nothing is left of the kit: the pager is made, arrays are written, read, stepped and saved one line
after the other, and what came is compared with what was expected: after a step, with what the same
statements make of plain arrays.
"""
# ruff: noqa: D102 (the verbs are explained in `contract.programs`)

from collections.abc import Iterator

from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCKS, Operation, Part, index, perform, walk
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.paging import s12_paging, s12b_books
from qloracle_conformance.reports.repro.literals import string, type_name, wrapped
from qloracle_conformance.reports.repro.program_texts import needed

Lines = list[str]

LIMIT = 20  # seconds after which a program is taken to hang
RUN = "program(implementation.make_pager)"


class Script:
    """A handler that says each operation in lines of Python: `found` gets what is read."""

    def __init__(self, case: Case, framework: str, offers: list[str]) -> None:
        self.case, self.framework, self.offers = case, framework, offers
        self.program = programs.program_of(case)
        self._alive: list[str] = []

    def text(self, main: Lines, upto: int, *, logged: bool = False) -> Lines:
        """The functions `program`, of the first `upto` operations, and `main`, and what they call.

        `program` returns what it found, or, `logged`, what the pager has shown: a line at first and
        one after each operation.
        """
        body = [f"pager = make_pager({_sizes(*programs.sizes_of(self.case))})", "found = []"]
        body += ["log = [shown(pager)]"] * logged
        for lines in walk(self.program[:upto], self):
            body += [*(lines or ()), *["log.append(shown(pager))"] * logged]
        body += ["return log" if logged else "return found"]
        lines = ["def program(make_pager):", *_indented(body), "", "", "def main():"]
        lines += _indented(main)
        return [*needed("\n".join(lines), self.framework).splitlines(), *lines]

    def empty(self, name: str, shape: list[int], dtype: str) -> Lines:
        self._alive.append(name)
        framework = {"torch": "torch", "jax": "jax.numpy"}.get(self.framework)
        kind = f"{framework}.{dtype}" if framework else _type_name(dtype)
        return [f"{name} = pager.empty({tuple(shape)}, {kind})"]

    def write(self, name: str, part: Part, data: str, side: str) -> Lines:
        given = data if side == "host" and self.framework != "torch" else self._given(data)
        return _seen(name, side, f"{{}}{index(part)} = {given}")

    def read(self, name: str, part: Part, side: str) -> Lines:
        take = "np.array" if self.framework == "numpy" else "take"
        return _seen(name, side, f"found.append({take}({{}}{index(part)}))")

    def open(self, label: str, names: list[str]) -> Lines:
        use = f"{label}_context = pager.use({', '.join(names)})"
        return [use, f"{label} = {label}_context.__enter__()"]

    def close(self, label: str) -> Lines:
        return [f"{label}_context.__exit__(None, None, None)"]

    def step(
        self, function: str, names: list[str], grads: str, first: int, count: int, part: int | None
    ) -> Lines:
        plain = function if self.framework == "numpy" else f"on_numpy({function})"
        step_of = f"implementation.{function}" if function in self.offers else plain
        state = f"({', '.join(names)}), {BLOCKS[function]}, {self._given(grads)}"
        counts = f"range({first}, {first + count})"
        return wrapped(f"run_steps(pager, {step_of}, {state}, {counts}, {part})")

    def prefetch(self, name: str, to: str) -> Lines:
        whole = f'if_offered(pager, "prefetch", {name}, to="host")'
        return [f"pager.prefetch({name})" if to == "device" else whole]

    def advise(self, name: str, side: str | None, mostly: bool) -> Lines:
        words = f"preferred={side!r}, read_mostly={mostly}"
        return [f'if_offered(pager, "advise", {name}, {words})']

    def shrink(self, capacity: int) -> Lines:
        return [f'if_offered(pager, "shrink", {capacity})']

    def free(self, name: str) -> Lines:
        self._alive = [other for other in self._alive if other != name]
        return [f"pager.free({name})"]

    def save(self, file: str) -> Lines:
        pairs = ", ".join(f"{string(name)}: {name}" for name in self._alive)
        return wrapped(f"save_state({string(file)}, pager, {{{pairs}}})")

    def load(self, file: str, capacity: int | None, page: int | None) -> Lines:
        lines = [f"pager = make_pager({_sizes(capacity, page)})"]
        lines += [f"loaded, words = load_state({string(file)}, pager)"]
        lines += [f"{name} = loaded.pop({string(name)})" for name in self._alive]
        return [*lines, f'assert (loaded, words) == ({{}}, {{"file": {string(file)}}}), words']

    def must_fail(self, operation: Operation) -> Lines:
        """Its error is found."""
        alive = list(self._alive)
        refused = _indented(perform(operation, self))
        self._alive = alive
        said = ["except Exception as error:", "    found.append(str(error))"]
        return ["try:", *refused, *said, "else:", '    found.append("")']

    def _given(self, name: str) -> str:
        return name if self.framework == "numpy" else f"give({name})"


def _sizes(capacity: int | None, page: int | None) -> str:
    sizes = {"capacity_bytes": capacity, "page_bytes": page}
    return ", ".join(f"{name}={value}" for name, value in sizes.items() if value is not None)


def _seen(name: str, side: str, text: str) -> Lines:
    """A statement on an array as one side sees it."""
    label, _, i = side.partition(".")
    if side == "device":
        return [f"with pager.use({name}) as (on_device,):", f"    {text.format('on_device')}"]
    return [text.format(name if side == "host" else f"{label}[{i}]")]


def _indented(lines: Lines) -> Lines:
    return [f"    {line}" for line in lines]


def _type_name(dtype: str) -> str:
    return type_name(programs.dtype_of(dtype)).replace("np.bool", "np.bool_")


# ---- the comparison ------------------------------------------------------------------------------


def body(check: CheckRun, failure: Failure, framework: str, offers: list[str]) -> Lines:
    """The functions `program` and `main`, and what they need."""
    script = Script(failure.case, framework, offers)
    if failure.mismatch.result == "call":
        return script.text(_call(check), len(script.program))
    if check.rule[0] == "P":
        return script.text(list(_of_rule(check, failure, script)), len(script.program))
    if failure.mismatch.result == "operation":
        return _operation(check, failure, script)
    return _law(failure, script) if check.rule == "S12b" else _element(failure, script)


def _element(failure: Failure, script: Script) -> Lines:
    """One element of the last read: by its bits."""
    i, found = failure.mismatch.index, enumerate(s12_paging.compared(failure.case, failure.values))
    k, read, wanted = next((k, read, e) for k, (read, got, e) in found if (got != e).any())
    at = f"[{k + _refusals(script, read)}].reshape(-1)[{i}]"
    right = f"program(Plain){at}"
    if not programs.steps_in(failure.case):
        element = wanted[i * read.values.itemsize :][: read.values.itemsize].tobytes()
        kind = _type_name(read.values.dtype.name)
        right = f"np.frombuffer(bytes.fromhex({string(element.hex())}), {kind})[0]"
    main = [
        f"got = {RUN}{at}",
        f"expected = {right}",
        *wrapped(f"# {read.text}, element {i}: {failure.mismatch.reason}", 0, "# "),
        'print(f"got {got}, expected {expected}")',
        "return int(got.tobytes() != expected.tobytes())",
    ]
    return script.text(main, read.operation + 1)


def _refusals(script: Script, read: plain_arrays.Read) -> int:
    """How many errors are found before a read."""
    return sum(operation[0] == "must_fail" for operation in script.program[: read.operation])


def _operation(check: CheckRun, failure: Failure, script: Script) -> Lines:
    """An operation that raised, did not raise, or loaded something else."""
    number = failure.mismatch.index
    if script.program[number][0] != "must_fail":
        return script.text(_call(check), number + 1)
    said = f"said = {RUN}[-1]", 'print(said or "no error, or one that says nothing")'
    return script.text([*said, "return int(not said)"], number + 1)


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


def _of_rule(check: CheckRun, failure: Failure, script: Script) -> Iterator[str]:
    """The rules that look at all calls: their form, their inputs, their repetition."""
    names = ", ".join(failure.case.arrays)
    match check.rule:
        case "P1":
            k, read = _wrong_form(failure)
            yield f"result = {RUN}[{k + _refusals(script, read)}]"
            yield 'got = f"{result.dtype}{list(result.shape)}"'
            yield f"expected = {string(programs.form_of(read.values))}"
        case "P2":
            yield f"before = [array.tobytes() for array in ({names},)]"
            yield RUN
            yield f"wrong = before != [array.tobytes() for array in ({names},)]"
            yield 'got, expected = ("other" if wrong else "the same"), "the same"'
        case _:
            yield f"expected = [np.array(array).tobytes() for array in {RUN}]"
            yield "got = expected"
            yield "for _ in range(10):"
            yield f"    again = [np.array(array).tobytes() for array in {RUN}]"
            yield "    got = again if again != expected else got"
            yield 'got = "other bits" if got != expected else "equal bits"'
            yield 'expected = "equal bits"'
    yield 'print(f"got {got}, expected {expected}")'
    yield "return int(got != expected)"


def _wrong_form(failure: Failure) -> tuple[int, plain_arrays.Read]:
    words, reads = programs.written_out(failure.values), plain_arrays.reads(failure.case)
    wrong = (words[read.operation] != programs.form_of(read.values) for read in reads)
    return next((k, read) for k, (read, bad) in enumerate(zip(reads, wrong, strict=True)) if bad)
