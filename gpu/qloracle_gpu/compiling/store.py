"""What was compiled before: files named by the digest of everything that they came from."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path


def folder() -> Path:
    """Return where compiled kernels are kept: in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "qloracle" / "kernels"


def kept(what: str, make: Callable[[], str]) -> str:
    """Return the text kept for `what`, made and kept if there is none.

    A folder that cannot be written costs time and nothing else.
    """
    path = folder() / sha256(what.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    made = make()
    with contextlib.suppress(OSError):
        _write(path, made)
    return made


def _write(path: Path, text: str) -> None:
    """Write aside and rename: another process sees a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
