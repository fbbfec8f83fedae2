"""What Python code may hand over to be judged, made into what the command line names by a text."""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qloracle_conformance.calling.calls import declarations, offered
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS


def target(obj: object) -> Any:
    """A text IMPL, or an object that offers functions of the protocol.

    obj: a text or path (as on the command line), a module, class or instance, one function under
    its protocol name, a list of such functions, or a dict of them.  A bare function speaks for the
    declarations (`arrays`, `limits` ...) of the module or notebook that it was written in.
    UsageError for anything that offers no function of the protocol.

    >>> import qloracle
    >>> target("my_kernels.py"), target(qloracle) is qloracle
    ('my_kernels.py', True)
    >>> list(offered(target(qloracle.quantize_4bit)))
    ['quantize_4bit']
    """
    if isinstance(obj, str | Path):
        return str(obj)
    if isinstance(obj, types.FunctionType):
        found = _namespace([obj])
    elif isinstance(obj, Mapping):
        found = types.SimpleNamespace(**obj)
    elif isinstance(obj, Sequence) and obj:
        found = _namespace(obj)
    else:
        found = obj
    if not offered(found):
        raise UsageError(
            f"obj is {obj!r}, which offers no function of the protocol; give an IMPL as on the "
            f"command line, or an object with some of: {', '.join(FUNCTIONS)}"
        )
    return found


def _namespace(functions: Sequence[Any]) -> Any:
    """Functions under their own names, with the declarations of the module they come from."""
    named = {getattr(f, "__name__", repr(f)): f for f in functions}
    wrong = [name for name in named if name not in FUNCTIONS]
    if wrong:
        raise UsageError(
            f"obj holds {', '.join(wrong)}; allowed: functions named {', '.join(FUNCTIONS)}"
        )
    written_in = types.SimpleNamespace(**getattr(functions[0], "__globals__", {}))
    return types.SimpleNamespace(**named, **declarations(written_in))


def name_of(found: object) -> str:
    """How a target is called in reports.

    >>> import qloracle
    >>> name_of("numpy"), name_of(qloracle), name_of(target([qloracle.quantize_4bit]))
    ('numpy', 'qloracle', 'quantize_4bit')
    """
    if isinstance(found, str):
        return found
    if isinstance(found, types.ModuleType):
        return found.__name__
    if isinstance(found, types.SimpleNamespace):
        return ", ".join(offered(found))
    kind = found if isinstance(found, type) else type(found)
    return f"{kind.__module__}.{kind.__qualname__}"
