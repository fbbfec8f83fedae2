"""From the text IMPL to a live object that offers protocol functions.

`IMPL` is a short name (`numpy`, `bitsandbytes`), `module:NAME`, `pkg.mod:object`, `path/file.py`
or `path/file.py:object`.  A file's folder is never put on sys.path: a kernel that lies beside a
file named `torch.py` must not import that.
"""

import importlib
import os
import sys
import sysconfig
from functools import cache
from importlib import machinery
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from qloracle_conformance import adapters
from qloracle_conformance.contract.errors import CannotRun, UsageError


class Place(NamedTuple):
    """Where an implementation lies: a file or a module, and an object in it ('' for all of it)."""

    kind: str
    where: str
    member: str = ""


def parse(spec: str) -> Place:
    """Read IMPL without importing anything.

    Raises UsageError for a text that names nothing.

    >>> parse("module:my_kernels"), parse("my.kernels:fast"), parse("numpy")
    (Place(kind='module', where='my_kernels', member=''), \
Place(kind='module', where='my.kernels', member='fast'), \
Place(kind='module', where='qloracle', member=''))
    """
    adapter = adapters.find(spec)
    if adapter is not None:
        if not adapter.installed:
            raise UsageError(f"{spec}: not installed here (needs {', '.join(adapter.needs)})")
        return Place("module", adapter.module, adapter.member)
    path, _, member = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
    if spec.endswith(".py") or ".py:" in spec:
        path = path if path.endswith(".py") else path + ".py"
        if not Path(path).is_file():
            raise UsageError(f"{spec}: no such file")
        return Place("file", str(Path(path).resolve()), member)
    head, colon, tail = spec.partition(":")
    if not colon or not head or not tail or os.sep in spec:
        names = ", ".join(adapter.name for adapter in adapters.ADAPTERS)
        raise UsageError(
            f"{spec!r} is no implementation: give a short name ({names}), module:NAME, "
            "pkg.mod:object or path/file.py"
        )
    return Place("module", tail) if head == "module" else Place("module", head, tail)


def load(spec: str) -> Any:
    """Import the implementation that `spec` names; whatever its import raises goes through.

    CannotRun if the module, or the object in it that is meant, says that it cannot run here.
    """
    place = parse(spec)
    _read_texts_below(Path.cwd())
    if place.kind == "file":
        found = _load_file(Path(place.where))
    else:
        if str(Path.cwd()) not in sys.path:  # last: nothing here shadows an installed package
            sys.path.append(str(Path.cwd()))
        found = importlib.import_module(place.where)
    ask(found)
    for name in filter(None, place.member.split(".")):
        found = getattr(found, name)
        ask(found)
    return found


def ask(target: Any) -> None:
    """Raise CannotRun if an implementation says so.

    It may offer `unavailable()`, which returns in one line what this machine lacks, or ''.

    >>> from types import SimpleNamespace
    >>> ask(SimpleNamespace(unavailable=lambda: ""))
    >>> ask(SimpleNamespace(unavailable=lambda: "needs a driver"))
    Traceback (most recent call last):
        ...
    qloracle_conformance.contract.errors.CannotRun: needs a driver
    """
    reason = getattr(target, "unavailable", None)
    text = reason() if callable(reason) else ""
    if isinstance(text, str) and text:
        raise CannotRun(" ".join(text.split()))


class _TextLoader(machinery.SourceFileLoader):
    """Compiles a module's text as it is now: bytecode of an older text could hide a change."""

    def path_stats(self, path: str) -> dict[str, Any]:
        """Know of no time at which the text was written: then bytecode is not read, nor written."""
        raise OSError(f"{path}: bytecode is not wanted")


@cache
def _read_texts_below(folder: Path) -> None:
    """From now on import what lies below a folder from its text; installed packages as ever."""
    installed = [
        Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
    ]
    hook = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (_TextLoader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )

    def finder(path: str) -> Any:
        place = Path(path).resolve()
        if not place.is_relative_to(folder) or any(map(place.is_relative_to, installed)):
            raise ImportError(f"{path} is left to the other finders")
        return hook(path)

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()


def _load_file(path: Path) -> Any:
    """Run the file's text as it is now, like `_TextLoader`."""
    module = ModuleType(f"qloracle_impl_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickling look a module up by its name
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module
