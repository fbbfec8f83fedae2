"""The part of a repro script that compares: the function `main`, which returns the exit code.

What is due is in the script as a number, together with the rule's formula and its values.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import numpy as np

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BROKEN
from qloracle_conformance.families.calls.p1_form import EXACT_SHAPE
from qloracle_conformance.judging import compare as judging
from qloracle_conformance.judging.views import View
from qloracle_conformance.reports.repro.literals import number, wrapped

Lines = list[str]

MOMENT = "second moment of "  # how the result is called whose error is judged as a whole
ROUNDS = 10  # of calls, after which calls are taken to be right, or equal
LIMIT = 20  # seconds after which a call is taken to hang

NIBBLES = {
    "high_first": "np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)",
    "low_first": "np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)",
}

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
    "fresh": "array.copy()",
    "other": "other(array)",
    "read": "np.asarray",
    "memory": "array.tobytes()",
}
THROUGH = {
    "fresh": "give(array.copy())",
    "other": "give(other(array))",
    "read": "take",
    "memory": "take(array).tobytes()",
}
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
    """Type and shape of a result; an axis of length 1 is allowed but on decoded values."""
    mismatch = failure.mismatch
    dtype, _, shape = mismatch.expected.partition("[")
    exact = mismatch.result in EXACT_SHAPE
    due = [n for n in ast.literal_eval(f"[{shape}") if exact or n != 1]
    kept = "list(result.shape)" if exact else "[n for n in result.shape if n != 1]"
    got = f"{mismatch.result} is {{result.dtype}}{{list(result.shape)}}"
    return [
        f"result = {read}(results[{_place(failure)}])",
        f'wrong = (str(result.dtype), {kept}) != ("{dtype}", {due})',
        f'return int(wrong), f"{got}, due {mismatch.expected}"',
    ]


def _element(failure: Failure, view: View, read: str) -> Lines:
    """One element: a code by the codes that name its level, another number by its value."""
    mismatch = failure.mismatch
    compare = {"code": _code, "packed": _byte}.get(mismatch.result, _number)
    if mismatch.result.startswith(MOMENT):
        compare = _moment
    return [
        f"result = {read}(results[{_place(failure)}]).reshape(-1)",
        *wrapped(f"# {mismatch.result}[{mismatch.index}]: {mismatch.reason}", 0, "# "),
        *compare(failure, view, read),
    ]


def _number(failure: Failure, view: View, read: str) -> Lines:
    """A number is exact, or within its bound."""
    mismatch = failure.mismatch
    bound = number(np.float64(mismatch.bound))
    wrong = f"not abs(got - due) <= {bound}" if mismatch.bound else "got != due"
    return [
        f"got = float(result[{mismatch.index}])",
        f"due = {number(np.float64(value(mismatch.expected)))}",
        f'return int({wrong}), f"got {{got}} ({{got.hex()}}), due {{due}} ({{due.hex()}})"',
    ]


def _moment(failure: Failure, view: View, read: str) -> Lines:
    """The mean square of the error over K, in units of u times the root of the sum of squares."""
    case, backward = failure.case, failure.case.function.endswith("backward")
    x = "dy" if backward else "x"
    levels = ", ".join(number(level) for level in view.levels)
    return [
        *wrapped(f"levels = np.array([{levels}], np.float32)", 0),
        NIBBLES[view.dialect["nibble_order"]].replace("np.stack", "codes = np.stack", 1),
        f"n, shape = {int(np.prod(case.options['shape']))}, {tuple(case.options['shape'])}",
        f"scale = np.repeat(absmax, {case.options.get('blocksize', 64)})[:n]",
        "w = (levels[codes[:n]] * scale).reshape(shape).astype(np.float64)",
        f"w, rows = w{'' if backward else '.T'}, {x}.reshape(-1, {case.arrays[x].shape[-1]})",
        "rows = rows.astype(np.float64)",
        "got = result.reshape(rows.shape[0], -1).astype(np.float64)",
        "error = (got - rows @ w) / (2.0**-24 * np.sqrt(rows**2 @ w**2))",
        "moment = float(np.mean(error**2)) / rows.shape[1]",
        f'return int(not moment <= {failure.mismatch.bound}), f"second moment {{moment:.3g}}"',
    ]


def _code(failure: Failure, view: View, read: str) -> Lines:
    """A code, unpacked where it was packed, that was judged on the implementation's own scale."""
    levels = failure.case.arrays.get("codebook", view.levels)
    due = levels == levels[int(value(failure.mismatch.expected))]  # FP4's 0 and 8 are one level
    order = view.dialect.get("nibble_order", "high_first")
    unpack = ["packed = result.astype(np.uint8)", f"result = {NIBBLES[order]}  # {order}"]
    return [
        *_basis(failure, view, read),
        *(unpack if view.quant_type else []),
        f"got = int(result[{failure.mismatch.index}])",
        f"due = {np.flatnonzero(due).tolist()}",
        "return int(got not in due), f\"got {got}, due {' or '.join(map(str, due))}\"",
    ]


def _basis(failure: Failure, view: View, read: str) -> Lines:
    """With another scale (or offset) than the one it was judged on, another code may be due."""
    case = failure.case
    options = {"blocksize": FUNCTIONS[case.function].options["blocksize"], **case.options}
    blocks = judging.blocks_of(case.with_options(**options), view)
    block = int(blocks.index[failure.mismatch.index])
    lines = []
    for i, name in enumerate(FUNCTIONS[case.function].results[1:], 1):
        own, at = failure.values[i].reshape(-1), 0 if name == "offset" else block
        if at < own.size and np.isfinite(own[at]):
            lines += [
                f"{name} = float({read}(results[{i}]).reshape(-1)[{at}])",
                f"if {name} != {number(own[at])}:",
                f'    return 2, f"{name} is {{{name}}} now: the code must be judged anew"',
            ]
    return lines


def _byte(failure: Failure, view: View, read: str) -> Lines:
    """A packed byte, but for the nibble after an odd last element, which may hold anything."""
    i, due = failure.mismatch.index, int(value(failure.mismatch.expected))
    mask = 0xFF
    if 2 * i + 1 == failure.case.arrays["x"].size:
        found = [finding.expected for finding in view.findings if finding.field == "nibble_order"]
        order = [*found, view.dialect["nibble_order"]][0]
        mask = 0xF0 if order == "high_first" else 0x0F
    spare = "" if mask == 0xFF else f" & 0x{mask:02x}  # the other nibble is spare"
    return [
        f"got = int(result[{i}]){spare}",
        f"due = 0x{due & mask:02x}",
        'return int(got != due), f"got 0x{got:02x}, due 0x{due:02x}"',
    ]


def value(text: str) -> float:
    """Read back a number that `judging.show` wrote; nothing is lost.

    >>> value("0.1 (0x1.99999a0000000p-4)"), value("0x3f"), value("-2.0"), value("inf")
    (0.10000000149011612, 63.0, -2.0, inf)
    """
    exact = re.search(r"\((\S+)\)$", text)
    if exact:
        return float.fromhex(exact[1])
    return float(int(text, 16)) if text.startswith("0x") else float(text)


def _place(failure: Failure) -> int:
    """Which of the results it is; codes come first."""
    name = failure.mismatch.result.removesuffix(" (second oracle)").removeprefix(MOMENT)
    return 0 if name == "code" else FUNCTIONS[failure.case.function].results.index(name)
