"""Implementations forked from a process that has their libraries are as those that are not."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qloracle_conformance import adapters
from qloracle_conformance.adapters import Adapter
from qloracle_conformance.calling import nursery
from qloracle_conformance.calling.callers import ChildCaller, environment
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.errors import LoadError
from qloracle_conformance.running.verify import verify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a nursery is opened on Linux")

LIBRARIES = {
    "quiet": "import time; time.sleep(0.5)",
    "further": "import quiet",
    "threads": "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()",
    "broken": "raise RuntimeError('no such luck')",
    "deadly": "import os; os._exit(3)",
    "driver": "import ctypes; ctypes.CDLL(__file__.replace('driver.py', 'libcuda.so.1'))",
}  # fmt: skip
KERNEL = """
import {library}, os, sys
import numpy as np
versions = {{"loaded": [name for name in ("quiet", "further") if name in sys.modules]}}
device = os.environ.get("QLORACLE_DEVICE", "none")
def quantize_absmax(absmax):
    if absmax.size == 7:
        os.kill(os.getpid(), 11)
    return absmax
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A kernel for each library, which its row in the table of adapters says that it needs."""
    for name, text in LIBRARIES.items():
        (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / f"on_{name}.py").write_text(KERNEL.format(library=name))
    needs = {name: (name,) for name in LIBRARIES} | {"further": ("quiet", "further")}
    rows = (Adapter(f"module:on_{name}", f"on_{name}", need) for name, need in needs.items())
    monkeypatch.setattr(adapters, "ADAPTERS", (*adapters.ADAPTERS, *rows))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def opened(kernels):
    with nursery.opened(environment(), []):
        yield


def opened_kernel(library, **options):
    return ChildCaller(f"module:on_{library}", **options)


def forked(caller):
    return isinstance(caller._process, nursery.Forked)


def test_each_has_the_libraries_that_it_needs_and_no_other(opened):
    for library, loaded in (("further", "['quiet', 'further']"), ("quiet", "['quiet']")):
        caller = opened_kernel(library)
        assert forked(caller)
        assert caller.versions["loaded"] == loaded
        assert caller.import_seconds > 0.5  # though it was imported before
        caller.close()


@pytest.mark.parametrize("library", ["threads", "driver"])
def test_what_does_not_survive_a_fork_is_not_forked(opened, kernels, library):
    loaded = Path("/proc/self/maps").read_text().split()
    harmless = next(word for word in loaded if "/libm" in word)
    shutil.copy(harmless, kernels / "libcuda.so.1")
    caller = opened_kernel(library)
    assert not forked(caller)
    assert "quantize_absmax" in caller.offers
    caller.close()


def test_an_import_that_fails_says_why(opened):
    with pytest.raises(LoadError, match="RuntimeError: no such luck"):
        opened_kernel("broken")
    with pytest.raises(LoadError, match="exit code 3"):
        opened_kernel("deadly")
    caller = opened_kernel("quiet")  # which is none the worse
    assert forked(caller)
    caller.close()


def test_a_crash_is_told_and_the_next_process_starts_at_once(opened):
    caller = opened_kernel("quiet")
    first = caller._process.pid
    crash = caller.call(Case("quantize_absmax", {"absmax": np.zeros(7, np.float32)}))
    assert (crash.status, "signal 11" in crash.message) == ("CRASH", True)
    start = time.perf_counter()
    answer = caller.call(Case("quantize_absmax", {"absmax": np.zeros(3, np.float32)}))
    assert answer.status in ("OK", "ERROR")
    assert time.perf_counter() - start < 0.4  # without another import
    assert forked(caller)
    assert caller._process.pid != first
    caller.close()


def test_libraries_are_loaded_before_they_are_asked_for(kernels):
    with nursery.opened(environment(), ["module:on_further", "module:on_broken"]):
        time.sleep(2)
        start = time.perf_counter()
        caller = opened_kernel("further")
        assert time.perf_counter() - start < 0.4
        assert caller.import_seconds > 0.5
        caller.close()


def test_the_end_is_told(opened):
    caller = opened_kernel("quiet")
    assert caller._process.poll() is None
    os.kill(caller._process.pid, signal.SIGTERM)
    assert caller._process.wait() == caller._process.poll() == -signal.SIGTERM
    caller.close()


def test_the_device_reaches_it(opened):
    caller = opened_kernel("quiet", device="cpu:7")
    assert caller.declared["device"] == "cpu:7"
    caller.close()


def test_nothing_is_left_of_it(kernels, alive):
    with nursery.opened(environment(), []):
        caller = opened_kernel("quiet")
        pid = caller._process.pid
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        caller.close()
    assert not alive(pid)
    assert not alive(parent)
    plain = opened_kernel("quiet")
    assert not forked(plain)
    plain.close()


def test_one_that_is_open_stays_the_only_one_until_it_is_closed(kernels, alive):
    with nursery.opened(environment(), ["module:on_quiet"]):
        doors = nursery.doors()
        with nursery.opened(environment(), []):
            assert nursery.doors() == doors
        caller = opened_kernel("quiet")
        assert forked(caller)
        caller.close()
        nursery.close()
        plain = opened_kernel("quiet")
        assert not forked(plain)
        plain.close()


def test_a_run_with_it_gives_what_a_run_without_it_gives():
    def plain(report):
        (data,) = report.to_dict()["implementations"]
        keys = ("name", "versions", "declared", "offers", "functions", "device")
        return {key: data[key] for key in keys}

    several = verify(["torch.optim"], only="S11", processes=2)
    assert plain(several) == plain(verify(["torch.optim"], only="S11"))
