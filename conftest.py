"""The tests' own settings, for what `pyproject.toml` cannot say."""

import os
import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Threads of torch and of OpenBLAS sleep while they wait: with as many test processes as cores they
# would take the cores from each other, spinning.  Read where the libraries are loaded, after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

# A shell that starts the tests in the background ignores Ctrl-C for them and for all they start;
# some of them press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_our_own(config):
    """Whether our tests are run: whoever names our packages in a run of his own loads this file."""
    return config.rootpath == HERE and not config.getoption("qloracle_impl", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the tests of a file to one process: what a file sets up is set up once."""
    from xdist.scheduler import LoadFileScheduling

    by_file = _is_our_own(config) and config.getvalue("dist") == "load"
    return LoadFileScheduling(config, log) if by_file else None


def pytest_ignore_collect(collection_path, config):
    """Of the packages import what has doctests: to import all takes as long as many tests."""
    if collection_path.suffix != ".py" or not _is_our_own(config):
        return None
    tests = "tests" in collection_path.relative_to(HERE).parts
    return None if tests or ">>>" in collection_path.read_text() else True
