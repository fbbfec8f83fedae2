"""What was compiled before: folders of the user's, each named by the digest of all it came from.

A folder is made aside and renamed, so that one that is there is whole, and several processes may
make the same one at once: the first to finish wins. What nobody has asked for in `UNUSED_DAYS` goes
when something new comes. A cache that cannot be written costs time and nothing else: the process
then keeps a folder of its own, and takes it along when it ends.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

UNUSED_DAYS = 60


def digest_of(*parts: str) -> str:
    """Name a folder by all that goes into it.

    >>> digest_of("a", "b") == digest_of("ab")
    False
    """
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def users_folder() -> Path:
    """Return where compiled kernels are kept: $XDG_CACHE_HOME/qloracle or ~/.cache/qloracle."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qloracle"


def kept(kind: str, digest: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of this kind and digest, filled by `make` if there is none.

    What `make` raises comes through, and nothing is kept then.
    """
    made = _place(kind) / digest
    if made.is_dir():
        with contextlib.suppress(OSError):
            os.utime(made)  # it is still of use
        return made
    aside = Path(tempfile.mkdtemp(dir=made.parent))
    try:
        make(aside)
        aside.rename(made)
    except OSError:
        if not made.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _forget_the_unused(made.parent)
    return made


def _place(kind: str) -> Path:
    """Return the folder that holds those of a kind: the user's, where it can be written."""
    for base in (users_folder, _of_this_process):
        place = base() / kind
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    raise OSError(f"{place} cannot be written")


@cache
def _of_this_process() -> Path:
    place = Path(tempfile.mkdtemp(prefix="qloracle-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _forget_the_unused(place: Path) -> None:
    """Remove what is older than UNUSED_DAYS: each use makes a folder young again."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for each in place.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            if each.stat().st_mtime < oldest:
                shutil.rmtree(each, ignore_errors=True)
