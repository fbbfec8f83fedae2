"""A stand-in for CuPy and a card, so that the host code before a launch runs without either.

What it shows: which text is compiled with which options, and that every launch names a kernel of
the text and passes what that kernel takes, in its order and its widths, at addresses where the
numbers are.  The kernels themselves run on the CPU, compiled by g++.  What it cannot show: streams,
devices, NVRTC, and anything about time.
"""

import contextlib
import ctypes
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import qloracle_gpu
from qloracle_gpu import cupy_backend
from qloracle_gpu.bench import cases
from qloracle_gpu.devices import launching
from qloracle_gpu.devices.gcc import build
from qloracle_gpu.devices.gcc import machine as host

WIDTHS = {"f": 4, "i": 4, "j": 4, "d": 8, "x": 8, "y": 8}  # bytes of a C++ type, by its letter


class StandInArray(np.ndarray):
    """NumPy's array with what the backend uses of CuPy's."""

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self):
        return np.array(self)


class StandInModule:
    """A module of CuPy's: compiles by g++, and launches what is passed by value."""

    def __init__(self, *, code, options):
        self.code, self.options, self.launches = code, options, []
        self._library = host._load(str(build.shared_object(code, "plain")))

    def get_function(self, name):
        entry = self._library.kernels[name]

        def launch(grid, block, arguments):
            assert len(grid) == len(block) == 1
            assert len(arguments) == len(entry.parameters), f"{name} takes other arguments"
            for parameter, argument in zip(entry.parameters, arguments, strict=True):
                assert isinstance(argument, np.generic), parameter
                pointer = parameter.type.startswith("P")
                assert isinstance(argument, np.uint64) == pointer, parameter
                assert argument.itemsize == (8 if pointer else WIDTHS[parameter.type]), parameter
            self.launches.append(name)
            self._run(entry, grid[0], block[0], [np.array(a) for a in arguments])

        return launch

    def _run(self, entry, grid, block, values):
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        fault = host._Fault()
        failed = self._library.launch(entry.body, pointers, grid, block, 0, ctypes.byref(fault))
        if failed:
            raise fault.error(entry.body)


class StandInStream:
    """A stream; `entered` are the handles of those that were current at a launch."""

    entered: list = []  # noqa: RUF012 (made anew for each test)

    def __init__(self, handle):
        self.handle = handle

    @classmethod
    def from_external(cls, foreign):
        version, handle = foreign.__cuda_stream__()
        assert version == 0
        return cls(handle)

    def __enter__(self):
        StandInStream.entered.append(self.handle)

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass


def stand_in_cupy():
    """The parts of CuPy that the backends use, on NumPy."""

    def poisoned(shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array.view(StandInArray)

    modules = []

    def raw_module(**options):
        modules.append(StandInModule(**options))
        return modules[-1]

    types = {"compute": 0}
    core = SimpleNamespace(
        get_compute_type=lambda _: types["compute"],
        set_compute_type=lambda _, kind: types.update(compute=kind),
    )
    runtime = SimpleNamespace(
        getDevice=lambda: 0, getDeviceCount=lambda: 1, driverGetVersion=lambda: 13000
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        Device=lambda index=0: contextlib.nullcontext(index),
        Stream=StandInStream,
        get_current_stream=lambda: StandInStream(0),
    )
    return SimpleNamespace(
        __version__="14.0.0",
        ndarray=StandInArray,
        RawModule=raw_module,
        asarray=lambda values: np.array(values).view(StandInArray),
        empty=poisoned,
        matmul=lambda a, b: np.matmul(a, b).view(StandInArray),
        cuda=cuda,
        _core=core,
        modules=modules,
        types=types,
    )


@pytest.fixture
def stand_in(monkeypatch):
    """CuPy and a card, played by NumPy and g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on this machine")
    cupy = stand_in_cupy()
    for name in [name for name in sys.modules if name.startswith("cupy")]:
        monkeypatch.delitem(
            sys.modules, name
        )  # the real one's parts load each other when looked at
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(launching, "find_spec", lambda name: name)
    monkeypatch.setattr(StandInStream, "entered", [])
    for machine in (cases.MACHINE, cupy_backend.quantize_4bit.args[0]):
        monkeypatch.setattr(machine, "_tables", {})  # what is kept must not meet a real card
    kept = launching.module, launching.kernel, launching.ready
    for function in kept:
        function.cache_clear()
    yield cupy
    for function in kept:
        function.cache_clear()


COPIED = ("torch_backend", "operations", "devices")


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """Import a copy of the torch backend, under a name of its own, with one text replaced."""
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(qloracle_gpu.__file__).parent

    def imported(name, old, new):
        found = 0
        for path in (path for folder in COPIED for path in (source / folder).glob("*.py")):
            text = path.read_text()
            found += text.count(old)
            changed = text.replace(old, new)
            for folder in COPIED:
                changed = changed.replace(f"qloracle_gpu.{folder}", f"{name}.{folder}")
            changed = changed.replace("qloracle_gpu import operations", f"{name} import operations")
            # operators of its own: over ours, torch would destroy ours
            changed = changed.replace('"qloracle::', f'"{name}::')
            (tmp_path / name / path.parent.name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path.parent.name / path.name).write_text(changed)
        assert found == 1, f"the text {old!r} stands {found} times"
        return importlib.import_module(f"{name}.torch_backend")

    return imported
