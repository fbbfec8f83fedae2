"""Two ways to reach an implementation: in a child process, or (our own mutants) in this one.

A call that takes longer than `limit` seconds is a TIMEOUT: a child is ended for it, an object in
this process cannot be interrupted.  LoadError if an implementation does not load, CannotRun if this
machine cannot run it.  Both say the same of it::

    offers      the protocol functions offered, each with the parameters it takes (None: any)
    forms       the forms of arrays (rule P5) that can be tried on each function here
    declared    what it declares: limits, dialect, arrays, device
    device      the device on which its arrays lie; '' for NumPy's
    versions    of the libraries it loaded, and what else it says that it runs on
    places      file and line of each function, as far as they are known
    files       the source files that it was loaded from, but for installed ones

A child can be sent cases before their turn (`expect`), and works while its parent judges.  It makes
its calls in the order in which they were sent.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qloracle_conformance.calling import nursery, worker
from qloracle_conformance.calling.calls import Calls, declarations, offered, plain
from qloracle_conformance.calling.loading import ask
from qloracle_conformance.calling.wire import Wire
from qloracle_conformance.contract.cases import Answer, Case, decode, pieces
from qloracle_conformance.contract.errors import CannotRun, LoadError

LIMIT = 20.0  # seconds that one call may take, where nothing else is said
IMPORT_LIMIT = 300.0  # seconds that an import may take
# Waiting threads that spin would compete with the judging parent for the cores.
FEW_SPINNERS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}


def environment() -> dict[str, str]:
    """The environment of an implementation's process."""
    return FEW_SPINNERS | os.environ


def too_slow(case: Case, limit: float) -> str:
    """Say which call took too long: its largest array, and how to wait longer.

    >>> too_slow(Case("adam_step", {"m": np.zeros(1), "param": np.zeros((9, 8))}), 20)
    'no answer within 20 s for param float64[9x8]; --limit 60 waits longer'
    """
    text = f"no answer within {limit:g} s"
    if case.arrays:
        name, array = max(case.arrays.items(), key=lambda item: item[1].size)
        text += f" for {name} {array.dtype.name}[{'x'.join(map(str, array.shape))}]"
    return f"{text}; --limit {3 * limit:g} waits longer"


def _taken(again: dict[int, bool]) -> tuple[list[int], list[int]]:
    """Empty the second readings: (the calls read again, those of them that changed)."""
    changed = [call for call, same in again.items() if not same]
    every = list(again)
    again.clear()
    return every, changed


class LocalCaller:
    """Calls an object in this process; for code that we trust, and for notebooks."""

    def __init__(self, target: Any, device: str = "", limit: float = math.inf) -> None:
        ask(target)
        self._limit = limit
        self.places: dict[str, tuple[str, int]] = {}
        self.files: list[str] = []
        self._calls = Calls(target, device)
        self._again: dict[int, bool] = {}  # whether results are as they were, by call
        self.offers, self.forms = offered(target), self._calls.forms
        self.device = self._calls.device if self._calls.framework != "numpy" else ""
        self.declared = plain(declarations(target))
        self.versions: dict[str, str] = {"numpy": np.__version__} | worker.own_versions(target)
        self.import_seconds = self.compile_seconds = 0.0

    def call(self, case: Case) -> Answer:
        """Call on private copies."""
        arrays = {name: array.copy() for name, array in case.arrays.items()}
        answer = self._calls.perform(replace(case, arrays=arrays))
        if answer.seconds > self._limit:
            answer = Answer("TIMEOUT", message=too_slow(case, self._limit), call=answer.call)
        self._again |= self._calls.read_again()
        return answer

    def expect(self, case: Case) -> None:
        """Nothing is gained by calling early in this process."""

    def forget(self, case: Case) -> None:
        """Nothing was called."""

    def settle(self) -> tuple[list[int], list[int]]:
        """Wait for the second readings: (the calls read again, those of them that changed)."""
        self._again |= self._calls.read_again(settle=True)
        return _taken(self._again)

    def close(self) -> None:
        """Nothing to let go of."""


class ChildCaller:
    """Calls an implementation in a child process, which may hang or crash: the run goes on."""

    def __init__(self, spec: str, device: str = "", limit: float = LIMIT) -> None:
        self._spec, self._limit, self._device = spec, limit, device
        self._again: dict[int, bool] = {}  # whether results are as they were, by call
        self._generation = 0
        self._sent: dict[int, Case] = {}  # by identity, the oldest first: not answered yet
        self._answers: dict[int, tuple[Case, Answer]] = {}  # that nobody has asked for yet
        self._unwanted: set[int] = set()
        self.compile_seconds = 0.0
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        forked = nursery.fork(self._spec, self._device, self._log)
        self._process = forked or self._new_interpreter()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._wire = Wire(self._process.stdin, self._process.stdout)  # type: ignore[arg-type]
        blob = self._receive(IMPORT_LIMIT)
        if isinstance(blob, str):
            reason = "took too long to import" if blob == "TIMEOUT" else self._death()
            self.close()
            raise LoadError(reason)
        hello, _ = decode(blob)
        if "failed" in hello:
            self.close()
            raise (CannotRun if hello["cannot_run"] else LoadError)(hello["failed"])
        self.offers, self.forms = hello["offers"], hello["forms"]
        self.device: str = hello["device"]
        self.declared, self.versions = hello["declared"], hello["versions"]
        self.places: dict[str, tuple[str, int]] = hello["places"]
        self.files: list[str] = hello["files"]
        self.import_seconds: float = hello["seconds"]

    def _new_interpreter(self) -> subprocess.Popen[bytes]:
        own = {"QLORACLE_DEVICE": self._device} if self._device else {}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__, self._spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment() | own,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )

    def call(self, case: Case) -> Answer:
        """Call in the child; a hang or a crash ends it, and the next call starts a new one.

        What was expected and is lost in a crash is sent again when it is called.
        """
        while id(case) not in self._answers:
            if id(case) not in self._sent:
                self._send(case)
            self._hear()
        return self._answers.pop(id(case))[1]

    def expect(self, case: Case) -> None:
        """Send a case before its turn; the call must be on this very object."""
        if self._sent or self._process.poll() is None:
            self._send(case)

    def forget(self, case: Case) -> None:
        """Drop a case that was expected: whatever its answer is, nobody wants it."""
        if self._answers.pop(id(case), None) is None and id(case) in self._sent:
            self._unwanted.add(id(case))

    def settle(self) -> tuple[list[int], list[int]]:
        """Let the child read every kept result again, and return what `LocalCaller` does."""
        while self._sent:
            self._hear()
        if self._process.poll() is None:
            self._wire.post(pieces({"settle": True}, {}))
            blob = self._receive(self._limit)
            if not isinstance(blob, str):
                self._note(decode(blob)[0]["again"])
        return _taken(self._again)

    def _send(self, case: Case) -> None:
        if not self._sent and self._process.poll() is not None:
            self._generation += 1
            try:
                self._start()
            except LoadError as error:
                raise LoadError(f"does not start again after a crash: {error}") from error
        head = {"function": case.function, "options": dict(case.options), "form": case.form}
        self._wire.post(pieces(head, case.arrays))
        self._sent[id(case)] = case

    def _hear(self) -> None:
        """Take the answer to the oldest case that was sent; what was sent to the dead is lost."""
        key, case = next(iter(self._sent.items()))
        answer = self._answer(case, self._receive(self._limit))
        lost = list(self._sent) if answer.status in ("CRASH", "TIMEOUT") else [key]
        for sent in lost:
            del self._sent[sent]
        if key not in self._unwanted:
            self._answers[key] = case, answer
        self._unwanted.difference_update(lost)

    def _answer(self, case: Case, blob: bytearray | str) -> Answer:
        if isinstance(blob, str):
            text = too_slow(case, self._limit) if blob == "TIMEOUT" else self._death()
            self.close()
            return Answer(blob, message=text)
        reply, arrays = decode(blob)
        self.compile_seconds += reply["compile_seconds"]
        self._note(reply["again"])
        return Answer(
            reply["status"],
            tuple(arrays[str(i)] for i in range(len(arrays))),
            reply["message"],
            tuple(reply["changed"]),
            reply["seconds"],
            reply["call"] + self._generation * 10**9,
        )

    def _note(self, again: Mapping[str, bool]) -> None:
        base = self._generation * 10**9
        self._again |= {int(call) + base: same for call, same in again.items()}

    def _receive(self, limit: float) -> bytearray | str:
        try:
            blob = self._wire.take(limit)
        except TimeoutError:
            return "TIMEOUT"
        return "CRASH" if blob is None else blob

    def _death(self) -> str:
        """Say in one line how the child died: exit code or signal, and its last words."""
        deadline = time.monotonic() + 5
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._process.poll()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the process died ({how})" + (f": {lines[-1][:200]}" if lines else "")

    def close(self) -> None:
        """End the child and what it has started: it leads a process group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()


Caller = ChildCaller | LocalCaller
