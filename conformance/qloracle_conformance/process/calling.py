"""One call of one function: what runs beside the implementation, in the child or in process.

Nothing in here knows an expected value.  A call gets private, writable copies, its inputs are
hashed before and after, its results are read at once and again later.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qloracle_conformance.cases import WIRE_TYPES, Answer, Case, digest
from qloracle_conformance.protocol import FLOAT_TYPES, FUNCTIONS

LATER = 0.05  # seconds after its return at which a result is read again
SLOW = 0.5  # a call slower than this runs twice: what the second saves was compilation
KEPT_BYTES = 1 << 26  # results held back for the second reading


class FormError(TypeError):
    """A result that is no array at all, or not as many as are due."""


def offered(target: Any) -> dict[str, list[str] | None]:
    """List the protocol functions that `target` offers, each with its parameters (None: any)."""
    found = {}
    for name in FUNCTIONS:
        function = getattr(target, name, None)
        if callable(function):
            found[name] = parameters(function)
    return found


def parameters(function: Callable[..., Any]) -> list[str] | None:
    """Name the parameters a function takes; None if it takes any or will not say."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    return [parameter.name for parameter in found]


def declarations(target: Any) -> dict[str, Any]:
    """Read the optional declarations: arrays, device, limits, dialect."""
    names = ("arrays", "device", "limits", "dialect")
    return {name: getattr(target, name) for name in names if hasattr(target, name)}


def keywords(case: Case) -> dict[str, Any]:
    """Turn a case's options into what a NumPy caller would write."""
    options = dict(case.options)
    if "dtype" in options:
        options["dtype"] = FLOAT_TYPES[options["dtype"]].type
    if "shape" in options:
        options["shape"] = tuple(options["shape"])
    return options


def to_array(value: Any) -> np.ndarray:
    """Read one result as an array, forcing whatever is lazy; FormError if it is none."""
    try:
        array = np.array(value)  # a copy: a later change of the result must not reach the reading
    except Exception as error:
        raise FormError(f"returned {_type(value)}, which cannot be read as an array") from error
    if array.dtype not in _READABLE:
        raise FormError(f"returned {_type(value)} of dtype {array.dtype}, not an array of numbers")
    return array


_READABLE = {np.dtype(kind) for kind in WIRE_TYPES.values()}


def _type(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def read(result: Any, function: str) -> tuple[np.ndarray, ...]:
    """Read a call's results as arrays; FormError if they are not as many as are due."""
    due = FUNCTIONS[function].results
    parts = tuple(result) if isinstance(result, tuple | list) and len(due) > 1 else (result,)
    if len(parts) != len(due):
        raise FormError(f"returned {len(parts)} result(s), {len(due)} are due: {', '.join(due)}")
    return tuple(to_array(part) for part in parts)


class Calls:
    """The calls made on one implementation, and the results held back for a second reading."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self._count = 0
        self._kept: list[tuple[int, str, float, Any]] = []

    def perform(self, case: Case) -> Answer:
        """Call once; everything that the implementation does wrong ends in the answer."""
        self._count += 1
        call = self._count
        start = time.perf_counter()
        before = {name: digest((array,)) for name, array in case.arrays.items()}
        try:
            result = self._invoke(case)
            values = read(result, case.function)
        except NotImplementedError as error:
            return Answer("UNSUPPORTED", message=_line(error), call=call)
        except FormError as error:
            return Answer("ERROR", message=str(error), call=call)
        except Exception as error:
            return Answer("ERROR", message=f"raised {_line(error)}", call=call)
        seconds = time.perf_counter() - start
        changed = tuple(k for k, array in case.arrays.items() if digest((array,)) != before[k])
        self._keep(call, case.function, result, values)
        return Answer("OK", values, "", changed, seconds, call)

    def _invoke(self, case: Case) -> Any:
        function = FUNCTIONS[case.function]
        positional = [case.arrays[name] for name in function.arrays]
        named = {k: v for k, v in case.arrays.items() if k not in function.arrays}
        result = getattr(self.target, case.function)(*positional, **named, **keywords(case))
        synchronize = getattr(self.target, "synchronize", None)
        if callable(synchronize):
            synchronize()
        return result

    def _keep(self, call: int, function: str, result: Any, values: tuple[np.ndarray, ...]) -> None:
        if sum(value.nbytes for value in values) <= KEPT_BYTES // 8:
            self._kept.append((call, function, time.perf_counter(), result))
        del self._kept[: max(0, len(self._kept) - 256)]

    def read_again(self, *, settle: bool = False) -> dict[int, str]:
        """Hash once more every kept result that is old enough; with `settle` wait for them all."""
        if settle and self._kept:
            time.sleep(max(0.0, self._kept[-1][2] + LATER - time.perf_counter()))
        old = [k for k in self._kept if time.perf_counter() - k[2] >= LATER]
        self._kept = self._kept[len(old) :]
        return {call: self._digest(result, function) for call, function, _, result in old}

    @staticmethod
    def _digest(result: Any, function: str) -> str:
        try:
            return digest(read(result, function))
        except Exception as error:  # a result that can be read only once has changed, too
            return f"unreadable: {error}"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def plain(value: Any) -> Any:
    """Make a declaration JSON-able: tuples to lists, dtypes and the rest to text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)
