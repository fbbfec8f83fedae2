"""A program runs on a pager: what happens in the child process for L5.

Where a step is run, the same program runs once more on plain arrays, with the same function: a
paged step must equal that, and no reference can know the bits of somebody else's Adam.  That comes
last, when the pager has answered: while it works, what is expected exists nowhere.  Whatever moves
bytes only is judged in the parent, by what plain arrays hold there.
"""

# mypy: allow-untyped-calls
import contextlib
import json
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.calling import frameworks, steps
from qloracle_conformance.calling.operations import Operations, Plain, through
from qloracle_conformance.contract import books, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import DONE, NOT_OFFERED, NOT_REACHED, RAISED, UNKNOWN

SAID = 300  # characters of an error


class Framework(NamedTuple):
    """Whose arrays an implementation takes, and where: the kind of `Operations`."""

    name: str
    device: str

    def dtype(self, name: str) -> Any:
        """A type by its name, the framework's own; NotImplementedError where it has another."""
        if self.name == "jax":
            import jax

            found = getattr(jax.numpy, name)
            if jax.dtypes.canonicalize_dtype(found) != found:
                raise NotImplementedError(f"JAX has no {name} here (jax_enable_x64)")
            return found
        return frameworks.dtype(name, "torch") if self.name == "torch" else np.dtype(name)

    def given(self, values: np.ndarray, side: str = "device") -> Any:
        """An array as the host or the device writes it."""
        if side != "host":
            return frameworks.convert(values, self.name, self.device)
        return frameworks.convert(values, "torch" if self.name == "torch" else "numpy", "cpu")

    def take(self, values: Any) -> np.ndarray:
        """What was read, as a NumPy array."""
        return frameworks.take(values)

    def step(self, target: Any, function: str) -> Any:
        """The implementation's own step where it offers one, else the kit's."""
        own = getattr(target, function, None)
        return own or through(getattr(steps, function), self.take, self.given)


def run(target: Any, case: Case, framework: str, device: str) -> tuple[np.ndarray, ...]:
    """Run a case's program on a pager of `target`.

    Returns the four results that `programs` describes.  NotImplementedError where the pager cannot
    do what the program needs.
    """
    kind, program = Framework(framework, device), programs.program_of(case)
    operations = Operations(target, case.arrays, kind)
    try:
        operations.make(*programs.sizes_of(case))
        log, words = _attempted(operations, program)
    finally:
        with contextlib.suppress(Exception):  # the pager has answered
            operations.open_ones.close()
    failed = log[-1][0] == RAISED and program[len(words) - 1][0] != "must_fail"
    missing = len(program) - len(words)
    words += [""] * missing
    log += [[NOT_REACHED] + [UNKNOWN] * (len(programs.LOG) - 1)] * missing
    plain = Operations(Plain(target, kind), case.arrays, Plain(target, kind))
    with contextlib.suppress(*[Exception] * failed):  # what failed may fail here, too
        plain.make(None, None)
        for operation in program if programs.steps_in(case) else ():
            plain.perform(operation)
    came, expected = (b"".join(array.tobytes() for array in o.found) for o in (operations, plain))
    texts = (np.frombuffer(text, np.uint8) for text in (came, json.dumps(words).encode(), expected))
    read, said, stepped = texts
    return read, np.array(log, np.int64), said, stepped


def _attempted(operations: Any, program: programs.Program) -> tuple[list[list[int]], list[str]]:
    """The log and the words of a program, up to an operation that fails and should not."""
    log, words = [[DONE, *books.books_of(operations.pager).values()]], list[str]()
    for operation in program:
        status, word = _attempt(operations, operation)
        log.append([status, *books.books_of(operations.pager).values()])
        words.append(word[:SAID] if status == RAISED else word)
        if operation[0] == "counters" and set(log[-1][-len(books.COUNTERS) :]) == {UNKNOWN}:
            raise NotImplementedError("the pager shows no counters")
        if status == RAISED and operation[0] != "must_fail":
            break
    return log, words


def _attempt(operations: Any, operation: programs.Operation) -> tuple[int, str]:
    """The status of an operation, and its word: its error, what it read, or what it loaded."""
    try:
        found = operations.perform(operation)
    except NotImplementedError:
        raise
    except Exception as error:
        return RAISED, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if found is NotImplemented:
        return NOT_OFFERED, ""
    match operation[0]:
        case "must_fail":
            return RAISED if found else DONE, found
        case "read":
            return DONE, programs.form_of(found)
        case "load":
            return DONE, json.dumps(found)
    return DONE, ""
