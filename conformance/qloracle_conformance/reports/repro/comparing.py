"""The part of a repro script that compares: the function `main`, which returns the exit code.

The expected value is in the script as a number, with the rule's formula and its values beside it.
"""

import ast
from collections.abc import Mapping

import numpy as np

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families import MEMBERS
from qloracle_conformance.families.calls.p1_form import LOOSE_SHAPE
from qloracle_conformance.judging.compare import Mismatch
from qloracle_conformance.judging.members import Shown
from qloracle_conformance.judging.text import number, value_of
from qloracle_conformance.judging.views import View
from qloracle_conformance.reports.repro.literals import wrapped

Lines = list[str]

ROUNDS = 10  # of calls, after which calls are taken to be right, or equal
LIMIT = 20  # seconds after which a call is taken to hang


# What is cached, raced or overwritten shows only between other calls.
OTHERS = """\
def fresh():
    return [{fresh} for array in ARRAYS]


def other(array):
    return np.zeros_like(array) if (array != 0).any() else np.ones_like(array)


def other_calls():
    for i in range(len(ARRAYS)):
        try:
            call(*fresh()[:i], *[{other} for array in ARRAYS[i:]])
        except Exception:
            pass  # other data are not at issue here


"""

JUDGED = (
    OTHERS
    + """\
def judged(results):
{lines}


def main():
    for _ in range({rounds}):
        other_calls()
        for _ in range(2):
            code, text = judged(call(*fresh()))
            if code:
                print(text)
                return code
    print(text)
    return 0
"""
)

INPUTS = """\
def memory(array):
    return {memory}


def main():
    arrays = [{fresh} for array in ARRAYS]
    before = [memory(array) for array in arrays]
    call(*arrays)
    after = [memory(array) for array in arrays]
    print("the call changed" if after != before else "the call did not change", "its input")
    return int(after != before)
"""

BITS = (
    OTHERS
    + """\
def bits(results):
    return [{read}(result).tobytes() for result in results]


"""
)

LASTING = (
    BITS
    + """\
def main():
    results = call(*fresh())
    before = bits(results)
    other_calls()
    time.sleep(0.05)
    changed = bits(results) != before
    print("read again after other calls:", "other results" if changed else "the same results")
    return int(changed)
"""
)

REPEAT = (
    BITS
    + """\
def main():
    before = bits(call(*fresh()))
    for _ in range({rounds}):
        other_calls()
        if any(bits(call(*fresh())) != before for _ in range(2)):
            print("the same call gave other bits")
            return 1
    print("equal calls gave equal bits")
    return 0
"""
)

ANSWER = """\
def fresh():
    return [{fresh} for array in ARRAYS]


def main():
    results = call(*fresh())
    arrays = [{read}(result) for result in results] if isinstance(results, tuple | list) else []
    numbers = all(array.dtype.kind not in "OSUMmc" for array in arrays)
    print("returned", ", ".join(f"{{a.dtype}}{{list(a.shape)}}" for a in arrays) or type(results))
    return int(len(arrays) != {count} or not numbers)
"""


# How a script passes its arrays and reads results: as NumPy's, or through `give` and `take`.
PLAINLY = {
    "fresh": "array.copy()", "other": "other(array)", "read": "np.asarray",
    "memory": "array.tobytes()",
}  # fmt: skip
THROUGH = {
    "fresh": "give(array.copy())", "other": "give(other(array))", "read": "take",
    "memory": "take(array).tobytes()",
}  # fmt: skip
WHOLE = {"torch": "bytes(array.untyped_storage().cpu().tolist())"}  # the gaps of a view, too


def main(check: CheckRun, failure: Failure, view: View | None, framework: str) -> Lines:
    """The comparison that a failure calls for."""
    how = PLAINLY if framework == "numpy" else THROUGH | {"memory": WHOLE.get(framework, "")}
    match check.rule:
        case _ if failure.mismatch.result == "call":
            return _answer(check, failure, how)
        case "P1":
            return _repeated(_form(failure, how["read"]), how)
        case "P2":
            return INPUTS.format(**how).splitlines()
        case "P3":
            return LASTING.format(**how).splitlines()
        case "P4":
            return REPEAT.format(rounds=ROUNDS, **how).splitlines()
    assert view is not None, f"{check.id} has no view"
    return _repeated(_element(failure, view, how["read"]), how)


def _repeated(lines: Lines, how: Mapping[str, str]) -> Lines:
    """Judge the call's results several times, between calls on other data."""
    body = "\n".join(f"    {line}" for line in lines)
    return JUDGED.format(lines=body, rounds=ROUNDS, **how).splitlines()


def _answer(check: CheckRun, failure: Failure, how: Mapping[str, str]) -> Lines:
    """The call itself went wrong: it raised, died, hung or returned no arrays."""
    count = len(FUNCTIONS[failure.case.function].results)
    text = ANSWER.format(count=count, **how).splitlines()
    why = wrapped(f"# {failure.mismatch.got}", 4, "# ")
    guard = [f"    faulthandler.dump_traceback_later({LIMIT}, exit=True)  # a hang is code 1"]
    at = text.index("def main():") + 1
    return [*text[:at], *why, *(guard if check.status in BROKEN else []), *text[at:]]


def _form(failure: Failure, read: str) -> Lines:
    """Type and shape of a result; an axis of length 1 is allowed, except on decoded values."""
    mismatch = failure.mismatch
    dtype, _, shape = mismatch.expected.partition("[")
    exact = not mismatch.result.endswith(LOOSE_SHAPE)
    expected = [n for n in ast.literal_eval(f"[{shape}") if exact or n != 1]
    kept = "list(result.shape)" if exact else "[n for n in result.shape if n != 1]"
    got = f"{mismatch.result} is {{result.dtype}}{{list(result.shape)}}"
    return [
        f"result = {read}(results[{_place(failure)}])",
        f'wrong = (str(result.dtype), {kept}) != ("{dtype}", {expected})',
        f'return int(wrong), f"{got}, expected {mismatch.expected}"',
    ]


def _element(failure: Failure, view: View, read: str) -> Lines:
    """One element: as its family compares it, or a number by its value."""
    mismatch = failure.mismatch
    shown = Shown(failure.case, failure.values, mismatch, view, read)
    own = MEMBERS[failure.case.function].script(shown) or _number(mismatch)
    return [
        f"result = {read}(results[{_place(failure)}]).reshape(-1)",
        *wrapped(f"# {mismatch.result}[{mismatch.index}]: {mismatch.reason}", 0, "# "),
        *(part for line in own for part in ([line] if len(line) < 97 else wrapped(line))),
    ]


def _number(mismatch: Mismatch) -> Lines:
    """A number is exact, or within its bound."""
    bound = number(np.float64(mismatch.bound))
    wrong = f"not abs(got - expected) <= {bound}" if mismatch.bound else "got != expected"
    return [
        f"got = float(result[{mismatch.index}])",
        f"expected = {number(np.float64(value_of(mismatch.expected)))}",
        'text = f"got {got} ({got.hex()}), expected {expected} ({expected.hex()})"',
        f"return int({wrong}), text",
    ]


def _place(failure: Failure) -> int:
    """Which of the results it is; codes come first."""
    name = failure.mismatch.result.removesuffix(" (second oracle)").split()[-1]
    results = FUNCTIONS[failure.case.function].results
    return 0 if name == "code" else results.index(name) if name in results else -1  # a read
