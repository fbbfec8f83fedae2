"""A program runs on a pager: what happens in the child process for L5.

The lines of an operation are executed, one operation after the other, where their names mean the
pager's functions and the case's arrays.  Where a step is run, the same lines run once more on plain
arrays, with the same function: a paged step must equal that, and no reference can know the bits of
somebody else's Adam.  That comes last, when the pager has answered: while it works, what is
expected exists nowhere.  Whatever moves bytes only is judged in the parent, by what plain arrays
hold there.

From `plainly` on all of this needs only NumPy, and stands as it is in the scripts that reproduce a
failure.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import collections
import contextlib
import inspect
import json
import pathlib
import tempfile
import types
from functools import lru_cache, partial
from typing import Any

import numpy as np

from qloracle_conformance.calling import frameworks, steps
from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.programs import BLOCKS, COUNTERS, DONE, RAISED, SIZES, UNKNOWN

SAID = 300  # characters of an error
compiled = lru_cache(maxsize=1 << 12)(compile)


def run(target: Any, case: Case, framework: str, device: str) -> tuple[np.ndarray, ...]:
    """Run a case's program on a pager of `target`.

    Returns the four results that `programs` describes.  NotImplementedError where the pager cannot
    do what the program needs.
    """
    program, make = programs.program_of(case), programs.making(*programs.sizes_of(case))
    lines = ("\n".join(programs.lines_of(operation)) for operation in program)
    codes = [compiled(text, "program", "exec") for text in lines]
    paged, plain = _names(target, case, framework, device)
    with contextlib.ExitStack() as scratch:
        if any(operation[0] == "save" for operation in program):
            folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            paged["folder"] = plain["folder"] = pathlib.Path(scratch.enter_context(folder))
        try:
            exec(make, paged)
            log, words, failed = _attempted(paged, case, codes)
        finally:
            for use in reversed(paged["opened"].values()):
                with contextlib.suppress(Exception):  # the pager has answered
                    use.close()
    if programs.steps_in(case):
        with contextlib.suppress(*[Exception] * failed):  # what failed may fail here, too
            exec(make, plain)
            for operation, code in zip(program, codes, strict=True):
                if operation[0] != "must_fail":
                    exec(code, plain)
    read, stepped = (b"".join(a.tobytes() for a in names["found"]) for names in (paged, plain))
    texts = (np.frombuffer(text, np.uint8) for text in (read, json.dumps(words).encode(), stepped))
    came, said, expected = texts
    return came, np.array(log, np.int64), said, expected


def _names(target: Any, case: Case, framework: str, device: str) -> list[dict[str, Any]]:
    """What the names in lines mean: of a pager of `target`, and of plain arrays.

    The host writes NumPy's arrays, or tensors.  A step is the implementation's own where it offers
    one, else the kit's.
    """
    give = partial(frameworks.convert, framework=framework, device=device)
    host = partial(give, framework="torch" if framework == "torch" else "numpy", device="cpu")
    own = framework in ("torch", "jax")  # types
    dtype = partial(frameworks.dtype, framework=framework) if own else np.dtype
    take = frameworks.take
    names: dict[str, Any] = {**case.arrays, "run_steps": steps.run_steps}
    names |= {"give": give, "host": host, "dtype": dtype, "take": take}
    for function in BLOCKS:
        plain = through(getattr(steps, function), take, give)
        names[function] = getattr(target, function, None) or plain
    return [
        {
            **names, "make_pager": pagers.make_pager, "found": [],
            "files": pagers if hasattr(pagers, "load_paged") else in_memory(dtype, host, take),
            "opened": collections.defaultdict(contextlib.ExitStack),
        }
        for pagers in (target, plainly(give, take))
    ]  # fmt: skip


def _attempted(
    names: dict[str, Any], case: Case, codes: list[types.CodeType]
) -> tuple[list[list[int]], list[str], bool]:
    """The log and the words of a program, and whether an operation failed that should not."""
    log, words, failed = [[DONE, *books_of(names["pager"]).values()]], list[str](), False
    if case.options.get("counted") and set(log[0][-len(COUNTERS) :]) == {UNKNOWN}:
        raise NotImplementedError("the pager shows no counters")
    for operation, code in zip(programs.program_of(case), codes, strict=True):
        status, word = (programs.NOT_REACHED, "") if failed else _attempt(names, operation, code)
        log.append([status, *books_of(names["pager"]).values()])
        words.append(word)
        failed |= status == RAISED and operation[0] != "must_fail"
    return log, words, failed


def _attempt(
    names: dict[str, Any], operation: programs.Operation, code: types.CodeType
) -> tuple[int, str]:
    """The status of an operation, and its word: its error, what it read, or what it loaded."""
    refused = operation[0] == "must_fail"
    verb, *arguments = operation[1] if refused else operation
    optional = verb in programs.OPTIONAL and arguments[-1] != "device"
    try:
        if optional and not _taken(getattr(names["pager"], verb, None), verb):
            return programs.NOT_OFFERED, ""
        exec(code, names)
        match operation[0]:
            case "read":
                return DONE, programs.form_of(names["found"][-1])
            case "load":
                return DONE, json.dumps([sorted(names["loaded"]), dict(names["words"])])
        return DONE, ""
    except Exception as error:
        if isinstance(error, NotImplementedError) and not refused:
            if not optional:
                raise
            return programs.NOT_OFFERED, ""
        return RAISED, said_by(error)


def _taken(method: Any, verb: str) -> bool:
    """Whether there is such a method, and takes the options that are asked for."""
    try:
        inspect.signature(method).bind(None, **dict.fromkeys(programs.OPTIONAL[verb]))
    except TypeError:
        return False
    return True


def said_by(error: Exception) -> str:
    """What an error is called and says, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:SAID]


# ---- what lines are about ------------------------------------------------------------------------


def plainly(give, take):
    """What makes a pager that pages nothing: a step sees its own kind of arrays."""

    class Plain:
        def __init__(self, shape, dtype):
            name = str(getattr(dtype, "dtype", dtype)).removeprefix("torch.")
            self.values = np.zeros(shape, name)

        def __getitem__(self, where):
            return give(self.values[where].copy())

        def __setitem__(self, where, values):
            self.values[where] = take(values)

    def nothing(*arguments, **named):
        return pager

    pager = types.SimpleNamespace(
        make_pager=nothing, free=nothing, prefetch=nothing, advise=nothing, shrink=nothing,
        empty=Plain, use=lambda *arrays: contextlib.nullcontext(arrays),
    )  # fmt: skip
    return pager


def in_memory(dtype, host, take):
    """What saves and loads arrays of a pager whose implementation does not."""
    files = {}

    def save_paged(path, arrays, words):
        files[path] = {name: take(array[...]) for name, array in arrays.items()}, words

    def load_paged(path, pager):
        saved, words = files[path]
        arrays = {name: pager.empty(a.shape, dtype(a.dtype.name)) for name, a in saved.items()}
        for name, array in arrays.items():
            array[...] = host(saved[name])
        return arrays, words

    return types.SimpleNamespace(save_paged=save_paged, load_paged=load_paged)


def through(step_of, there, back):
    """A step on arrays of another kind than it is written for."""

    def step(*arrays, **numbers):
        return [back(values) for values in step_of(*map(there, arrays), **numbers)]

    return step


def books_of(pager: object) -> dict[str, int]:
    """Each number by its name: -1 where nothing is shown, -2 where it is no whole number."""
    counters = None
    with contextlib.suppress(Exception):
        counters = getattr(pager, "counters", None)
    found = {name: whole_number(pager, name) for name in SIZES}
    return found | {name: whole_number(counters, name) for name in COUNTERS}


def whole_number(owner: object, name: str) -> int:
    """A number of an object or a mapping."""
    try:
        value = owner.get(name) if hasattr(owner, "get") else getattr(owner, name, None)
        if value is None:
            return -1
        return int(value) if 0 <= value == int(value) < 2**63 else -2
    except NotImplementedError:
        return -1
    except Exception:
        return -2
