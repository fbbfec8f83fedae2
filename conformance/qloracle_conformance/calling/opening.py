"""How an implementation is opened: a text in a child process, an object in this one."""

from typing import Any

from qloracle_conformance.calling.callers import Caller, ChildCaller, LocalCaller

LIMIT = 20.0  # seconds that one call may take, where nothing else is said


def open(impl: Any, device: str = "", limit: float = LIMIT) -> Caller:
    """Open what `objects.target` returned: a text IMPL, or an object that offers functions.

    A call that takes longer than `limit` seconds is a TIMEOUT; a child is ended for it, an object
    in this process cannot be interrupted.  LoadError if it does not load, CannotRun if this
    machine cannot run it.

    >>> import qloracle
    >>> caller = open(qloracle)
    >>> "quantize_4bit" in caller.offers, type(caller).__name__
    (True, 'LocalCaller')
    """
    if not isinstance(impl, str):
        return LocalCaller(impl, device, limit)
    return ChildCaller(impl, limit=limit, device=device)
