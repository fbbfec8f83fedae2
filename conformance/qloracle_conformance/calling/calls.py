"""One call of one function: what runs beside the implementation, in the child or in process.

Nothing in here knows an expected value.  A call gets private, writable copies, its inputs are
compared with what they were before, its results are read at once and again later.
"""

import contextlib
import inspect
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from qloracle_conformance.calling import frameworks, paging
from qloracle_conformance.contract.cases import WIRE_TYPES, Answer, Bits, Case, bits
from qloracle_conformance.contract.errors import CannotRun, LoadError
from qloracle_conformance.contract.protocol import FUNCTIONS, result_forms

LATER = 0.05  # seconds after its return at which a result is read again
SLOW = 0.5  # a call slower than this runs twice: what the second saves was compilation
KEPT_BYTES = 1 << 26  # of results held back for the second reading; a larger one is not held
LARGEST = 1 << 26  # bytes that a call's results may have


class FormError(TypeError):
    """A result that is no array at all, or not as many as expected."""


def offered(target: Any) -> dict[str, list[str] | None]:
    """List the protocol functions that `target` offers, each with its parameters (None: any)."""
    found = {}
    for name in FUNCTIONS:
        function = getattr(target, name, None)
        if callable(function):
            found[name] = parameters(function)
    for name in [name for name in found if FUNCTIONS[name].decoder]:
        taken = found[name]
        if not callable(getattr(target, FUNCTIONS[name].decoder, None)):
            del found[name]  # a state that nothing decodes shows nothing
        elif taken is not None:
            found[name] = [*taken, "dtype"]
    return found


def parameters(function: Callable[..., Any]) -> list[str] | None:
    """Name the parameters a function takes; None if it takes any or will not say."""
    found = _signature(function)
    if found is None or any(entry.kind is entry.VAR_KEYWORD for entry in found.values()):
        return None
    return [*found]


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    with contextlib.suppress(TypeError, ValueError):
        return inspect.signature(function).parameters
    return None


def declarations(target: Any) -> dict[str, Any]:
    """Read the optional declarations: arrays, device, limits, dialect."""
    names = ("arrays", "device", "limits", "dialect")
    return {name: getattr(target, name) for name in names if hasattr(target, name)}


def keywords(case: Case, framework: str = "numpy") -> dict[str, Any]:
    """Turn a case's options into what a caller with arrays of a framework would write."""
    options = {name: value for name, value in case.options.items() if name != "program"}
    if "dtype" in options:
        options["dtype"] = frameworks.dtype(options["dtype"], framework)
    if "shape" in options:
        options["shape"] = tuple(options["shape"])
    return options


def to_array(value: Any) -> np.ndarray:
    """Read one result as an array, forcing whatever is lazy; FormError if it is not one."""
    try:
        array = frameworks.take(value)
    except Exception as error:
        raise FormError(f"returned {_type(value)}, which cannot be read as an array") from error
    if array.dtype not in _READABLE:
        raise FormError(f"returned {_type(value)} of dtype {array.dtype}, not an array of numbers")
    return array


_READABLE = {np.dtype(kind) for kind in WIRE_TYPES.values()}


def _type(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def read(result: Any, function: str) -> tuple[np.ndarray, ...]:
    """Read a call's results as arrays; FormError if they are more, fewer or far too large."""
    names = FUNCTIONS[function].results
    parts = tuple(result) if isinstance(result, tuple | list) and len(names) > 1 else (result,)
    if len(parts) != len(names):
        text = f"returned {len(parts)} result(s), expected {len(names)}: {', '.join(names)}"
        raise FormError(text)
    values = tuple(to_array(part) for part in parts)
    nbytes = sum(value.nbytes for value in values)
    if nbytes > LARGEST:
        raise FormError(f"returned {nbytes:,} bytes, more than any call of the kit asks for")
    return values


class Kept(NamedTuple):
    """A result that is held back for a second reading."""

    call: int
    function: str
    returned: float
    nbytes: int
    result: Any
    values: tuple[np.ndarray, ...]


class Calls:
    """The calls made on one implementation, and the results held back for a second reading.

    `device` overrules the device that the implementation declares.  CannotRun if this machine has
    no such device or no such framework; LoadError for the name of an unknown framework.
    """

    def __init__(self, target: Any, device: str = "") -> None:
        self.target = target
        self.framework, self.device = _framework(target, device)
        forms = frameworks.forms(self.framework, self.device)
        self.forms = {
            name: [*forms, *["out"] * ("out" in (_signature(getattr(target, name)) or ()))]
            for name in offered(target)
        }
        self._count = 0
        self._kept: deque[Kept] = deque()
        self._kept_bytes = 0

    def perform(self, case: Case) -> Answer:
        """Call once; everything that the implementation does wrong ends in the answer."""
        self._count += 1
        call = self._count
        start = time.perf_counter()
        device = frameworks.device_for(self.device, case.form)
        given = {
            name: frameworks.give(array, self.framework, device, case.form)
            for name, array in case.arrays.items()
        }
        if FUNCTIONS[case.function].tool:  # its arrays become the host's or the device's at a write
            given = {name: (array, array) for name, array in case.arrays.items()}
        memory = {name: whole for name, (_, whole) in given.items()}
        before = _bits_of(memory)
        arguments = {name: argument for name, (argument, _) in given.items()}
        try:
            with frameworks.queue(case.form, device, list(arguments.values())):
                result = self._invoke(case, arguments, device)
                values = read(result, case.function)
        except NotImplementedError as error:
            return Answer("UNSUPPORTED", message=_line(error), call=call)
        except FormError as error:
            return Answer("ERROR", message=str(error), call=call)
        except Exception as error:
            return Answer("ERROR", message=f"raised {_line(error)}", call=call)
        seconds = time.perf_counter() - start
        after = _bits_of(memory)
        changed = tuple(name for name in memory if after[name] != before[name])
        if not FUNCTIONS[case.function].tool:
            self._keep(call, case.function, result, values)
        return Answer("OK", values, "", changed, seconds, call)

    def _invoke(self, case: Case, arguments: Mapping[str, Any], device: str) -> Any:
        function = FUNCTIONS[case.function]
        if function.tool:
            return paging.run(self.target, case, self.framework, device)
        positional = [arguments[name] for name in function.arrays]
        named = {name: a for name, a in arguments.items() if name not in function.arrays}
        named |= keywords(case, self.framework)
        if case.form == "out":  # a buffer for the result, or a tuple of them for several
            forms = result_forms(case.function, case.arrays, case.options)
            empty = (frameworks.poisoned(form.shape, form.dtype) for form in forms)
            out = [frameworks.convert(array, self.framework, device) for array in empty]
            named["out"] = tuple(out) if len(out) > 1 else out[0]
        dtype = named.pop("dtype", None) if function.decoder else None
        result = getattr(self.target, case.function)(*positional, **named)
        if dtype is not None:
            result = getattr(self.target, function.decoder)(result, dtype)
        synchronize = getattr(self.target, "synchronize", None)
        if callable(synchronize):
            synchronize()
        return result if "out" not in named else _written(named["out"], result, case.function)

    def _keep(self, call: int, function: str, result: Any, values: tuple[np.ndarray, ...]) -> None:
        nbytes = sum(value.nbytes for value in values)
        if nbytes <= KEPT_BYTES // 8:
            kept = Kept(call, function, time.perf_counter(), nbytes, result, values)
            self._kept.append(kept)
            self._kept_bytes += nbytes

    def let_go(self) -> None:
        """Keep no result for a second reading."""
        self._kept.clear()
        self._kept_bytes = 0

    def read_again(self, *, settle: bool = False) -> dict[int, bool]:
        """Read every kept result once more that is old enough: whether it is as it was, by call.

        With `settle` wait for them all.  While there are too many bytes wait for the oldest: what
        is read again must not depend on the speed.
        """
        found = dict[int, bool]()
        while self._kept:
            rest = self._kept[0].returned + LATER - time.perf_counter()
            if rest > 0:
                if not settle and self._kept_bytes <= KEPT_BYTES:
                    break
                time.sleep(rest)  # never for nothing: to sleep for 0 s takes 0.1 ms
            kept = self._kept.popleft()
            self._kept_bytes -= kept.nbytes
            found[kept.call] = False
            with contextlib.suppress(Exception):  # one that can be read only once has changed, too
                found[kept.call] = bits(read(kept.result, kept.function)) == bits(kept.values)
        return found


def _framework(target: Any, device: str) -> tuple[str, str]:
    """The framework and the device of the arrays to hand over, tried once."""
    name = getattr(target, "arrays", None) or "numpy"
    if name not in frameworks.NAMES:
        raise LoadError(f"declares arrays = {name!r}; allowed: {', '.join(frameworks.NAMES)}")
    usual = "cuda" if name == "cupy" else "cpu"
    chosen = str(device or getattr(target, "device", None) or usual)
    try:
        frameworks.convert(np.zeros(1, np.float32), name, chosen)
        frameworks.make_current(name, chosen)
    except Exception as error:
        raise CannotRun(f"no {name} array on device {chosen!r} here: {_line(error)}") from error
    return name, chosen


def _bits_of(memory: Mapping[str, Any]) -> dict[str, Bits]:
    return {  # NumPy's arrays are looked at where they lie
        name: bits([whole if type(whole) is np.ndarray else frameworks.take(whole)])
        for name, whole in memory.items()
    }


def _written(buffers: Any, result: Any, function: str) -> Any:
    """The buffers; a result that is returned as well must hold the same."""
    if result is not None and bits(read(result, function)) != bits(read(buffers, function)):
        raise FormError("returned other values than it wrote into out")
    return buffers


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
