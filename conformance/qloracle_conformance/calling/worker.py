"""The child process: loads one implementation and answers calls over its standard streams.

It answers in the order in which it is asked, each call as soon as it has returned; messages may
wait in its inbox meanwhile.  Whatever the implementation prints goes to stderr, so that it cannot
disturb the protocol.
"""

import contextlib
import gc
import inspect
import os
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType
from typing import Any, BinaryIO

from qloracle_conformance.calling.calls import SLOW, Calls, declarations, offered, plain
from qloracle_conformance.calling.loading import load
from qloracle_conformance.calling.wire import receive, send
from qloracle_conformance.contract.cases import Case, decode, pieces
from qloracle_conformance.contract.errors import CannotRun, LoadError

INSTALLED = {"site-packages", "dist-packages"}
LIBRARIES = (  # whose versions are told
    "numpy", "torch", "bitsandbytes", "torchao", "peft", "cupy", "jax", "optax", "qloracle",
)  # fmt: skip


def main(spec: str, imported: float = 0.0) -> None:
    """Serve calls on the implementation `spec` until the parent closes the pipe.

    `imported`: seconds that the import of its libraries took, which was done before.
    """
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    start = time.perf_counter() - imported
    gc.disable()  # what an import makes stays: to look for garbage takes a quarter of its time
    try:
        calls = Calls(load(spec), os.environ.get("QLORACLE_DEVICE", ""))
        hello = _hello(calls) | {"seconds": time.perf_counter() - start}
    except BaseException as error:  # SystemExit too: the parent must hear why
        reason = _one_line(f"does not import: {type(error).__name__}: {error}")[:500]
        reason = str(error) if isinstance(error, LoadError) else reason
        failed = {"failed": reason, "cannot_run": isinstance(error, CannotRun)}
        send(outbox, *pieces(failed, {}))
        return
    gc.freeze()
    gc.enable()
    send(outbox, *pieces(hello, {}))
    _serve(calls, inbox, outbox)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _hello(calls: Calls) -> dict[str, Any]:
    target = calls.target
    libraries = {name: _version(name) for name in LIBRARIES if name in sys.modules}
    return {
        "offers": offered(target),
        "forms": calls.forms,
        "device": calls.device if calls.framework != "numpy" else "",
        "declared": plain(declarations(target)),
        "files": _files(),
        "places": _places(target),
        "versions": libraries | own_versions(target),
    }


def own_versions(target: Any) -> dict[str, str]:
    """Return the `versions` that an implementation declares: what it runs on, under a name.

    >>> from types import SimpleNamespace
    >>> own_versions(SimpleNamespace(versions={"driver": 580}))
    {'driver': '580'}
    >>> own_versions(SimpleNamespace(versions=print))
    {}
    """
    versions = getattr(target, "versions", None)
    if not isinstance(versions, Mapping):  # a stranger's name, which means something else
        return {}
    return {_one_line(name): _one_line(version) for name, version in versions.items()}


def _files() -> list[str]:
    """The source files loaded until now, but for Python's, ours and those of installed packages."""
    fixed = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
    names = {str(vars(module).get("__file__") or "") for module in [*sys.modules.values()]}
    return sorted(
        name
        for name in names
        if name and not name.startswith(fixed) and not INSTALLED & {*Path(name).parts}
    )


def _places(target: Any) -> dict[str, tuple[str, int]]:
    """File and first line of each function that is written in Python."""
    found = {}
    for name in offered(target):
        with contextlib.suppress(ValueError):  # a decorator that wraps itself
            code = getattr(inspect.unwrap(getattr(target, name)), "__code__", None)
            if isinstance(code, CodeType):
                found[name] = code.co_filename, code.co_firstlineno
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return str(getattr(sys.modules[name], "__version__", "unknown"))


def _serve(calls: Calls, inbox: BinaryIO, outbox: BinaryIO) -> None:
    while (blob := receive(inbox)) is not None:
        text, arrays = decode(blob)
        if text.get("settle"):
            send(outbox, *pieces({"again": calls.read_again(settle=True)}, {}))
            continue
        case = Case(text["function"], arrays, text["options"], form=text["form"])
        answer, compile_seconds = calls.perform(case), 0.0
        if (
            answer.seconds > SLOW and "program" not in case.options
        ):  # compiled on the way?  The same call once more will tell
            _, fresh = decode(blob)
            again = calls.perform(replace(case, arrays=fresh))
            if again.seconds < answer.seconds / 2:
                compile_seconds = answer.seconds - again.seconds
        reply = {
            "status": answer.status,
            "message": answer.message,
            "changed": answer.changed_inputs,
            "seconds": answer.seconds,
            "compile_seconds": compile_seconds,
            "call": answer.call,
            "again": calls.read_again(),
        }
        send(outbox, *pieces(reply, {str(i): value for i, value in enumerate(answer.values)}))


if __name__ == "__main__":
    main(sys.argv[1])
