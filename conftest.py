"""The tests' own settings, for what `pyproject.toml` cannot say."""

import os
from pathlib import Path

import pytest

# Whoever names a package of this folder in a run of his own loads this file, too.
HERE = Path(__file__).parent

# Threads of torch and of OpenBLAS sleep while they wait: with as many test processes as cores they
# would take the cores from each other, spinning.  Read where the libraries are loaded, after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the tests of a file to one process: what a file sets up is set up once."""
    from xdist.scheduler import LoadFileScheduling

    ours = config.rootpath == HERE and config.getvalue("dist") == "load"
    return LoadFileScheduling(config, log) if ours else None


def pytest_ignore_collect(collection_path, config):
    """Of the packages import what has doctests: to import all takes as long as many tests."""
    if collection_path.suffix != ".py" or config.rootpath != HERE:
        return None
    tests = "tests" in collection_path.relative_to(HERE).parts
    return None if tests or ">>>" in collection_path.read_text() else True
