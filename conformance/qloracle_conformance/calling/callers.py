"""Two ways to reach an implementation: in a child process, or (our own mutants) in this one.

Both offer `call(case) -> Answer` and `settle() -> the results that changed after their return`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from qloracle_conformance.calling import worker
from qloracle_conformance.calling.calls import Calls, declarations, offered, plain
from qloracle_conformance.calling.loading import ask
from qloracle_conformance.contract.cases import Answer, Case, decode, encode
from qloracle_conformance.contract.errors import CannotRun, LoadError

IMPORT_LIMIT = 300.0  # seconds that an import may take


class Caller(Protocol):
    """What the rest of the kit sees of an implementation."""

    import_seconds: float
    compile_seconds: float

    @property
    def offers(self) -> Mapping[str, list[str] | None]:
        """The protocol functions offered, each with the parameters it takes (None: any)."""
        ...

    @property
    def forms(self) -> Mapping[str, Sequence[str]]:
        """The forms of arrays (rule P5) that can be tried on each function here."""
        ...

    @property
    def device(self) -> str:
        """The device on which its arrays lie; '' for NumPy's."""
        ...

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the implementation declares: limits, dialect, arrays, device."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries it loaded, and what else it says that it runs on."""
        ...

    def call(self, case: Case) -> Answer:
        """Call one function."""
        ...

    def settle(self) -> tuple[list[int], list[int]]:
        """Wait for the second readings: (the calls read again, those of them that changed)."""
        ...

    def close(self) -> None:
        """Let go of the implementation."""
        ...


class Readings:
    """First digests of results, compared with their second readings."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self.again: list[int] = []
        self.changed: list[int] = []

    def first(self, answer: Answer) -> None:
        """Remember what an answer held."""
        if answer.status == "OK":
            self._first[answer.call] = answer.digest

    def later(self, digests: Mapping[int, str]) -> None:
        """Compare later readings with the first."""
        for call, found in digests.items():
            first = self._first.pop(int(call), None)
            if first is not None:
                self.again.append(int(call))
                if first != found:
                    self.changed.append(int(call))

    def take(self) -> tuple[list[int], list[int]]:
        """Return and reset (calls read again, calls that changed)."""
        taken = self.again, self.changed
        self.again, self.changed = [], []
        return taken


class LocalCaller:
    """Calls an object in this process; for code that we trust, and for notebooks."""

    def __init__(self, target: Any, device: str = "") -> None:
        ask(target)
        self._calls = Calls(target, device)
        self._readings = Readings()
        self.offers, self.forms = offered(target), self._calls.forms
        self.device = self._calls.device if self._calls.framework != "numpy" else ""
        self.declared = plain(declarations(target))
        self.versions: dict[str, str] = {"numpy": np.__version__} | worker.told(target)
        self.import_seconds = self.compile_seconds = 0.0

    def call(self, case: Case) -> Answer:
        """Call on private copies."""
        arrays = {name: array.copy() for name, array in case.arrays.items()}
        answer = self._calls.perform(replace(case, arrays=arrays))
        self._readings.first(answer)
        self._readings.later(self._calls.read_again())
        return answer

    def settle(self) -> tuple[list[int], list[int]]:
        """Wait for the second readings."""
        self._readings.later(self._calls.read_again(settle=True))
        return self._readings.take()

    def close(self) -> None:
        """Nothing to let go of."""


class ChildCaller:
    """Calls an implementation in a child process, which may hang, crash or lie about nothing."""

    def __init__(
        self, spec: str, *, limit: float = 20.0, environment: Mapping[str, str] | None = None
    ):
        self._spec, self._limit = spec, limit
        # Waiting OpenMP threads that spin would compete with the judging parent for the cores.
        self._environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(environment or {})}
        self._readings = Readings()
        self._generation = 0
        self.compile_seconds = 0.0
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        command = [sys.executable, "-P", "-m", "qloracle_conformance.calling.worker", self._spec]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(
            target=_pump, args=(self._process.stdout, self._replies), daemon=True
        ).start()
        blob = self._receive(IMPORT_LIMIT)
        if not isinstance(blob, bytes):
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
        self.import_seconds: float = hello["seconds"]

    def call(self, case: Case) -> Answer:
        """Call in the child; a hang or a crash ends it, and the next call starts a new one."""
        if self._process.poll() is not None:
            self._restart()
        head = {"function": case.function, "options": dict(case.options), "form": case.form}
        message = encode(head, case.arrays)
        blob = self._exchange(message, self._limit)
        if not isinstance(blob, bytes):
            text = f"no answer within {self._limit:g} s" if blob == "TIMEOUT" else self._death()
            self.close()
            return Answer(blob, message=text)
        reply, arrays = decode(blob)
        self.compile_seconds += reply["compile_seconds"]
        answer = Answer(
            reply["status"],
            tuple(arrays[str(i)] for i in range(len(arrays))),
            reply["message"],
            tuple(reply["changed"]),
            reply["seconds"],
            reply["call"] + self._generation * 10**9,
        )
        self._readings.first(answer)
        self._note_later(reply["later"])
        return answer

    def settle(self) -> tuple[list[int], list[int]]:
        """Let the child read every kept result again."""
        if self._process.poll() is None:
            blob = self._exchange(encode({"settle": True}, {}), self._limit)
            if isinstance(blob, bytes):
                self._note_later(decode(blob)[0]["later"])
        return self._readings.take()

    def _note_later(self, later: Mapping[str, str]) -> None:
        base = self._generation * 10**9
        self._readings.later({int(call) + base: found for call, found in later.items()})

    def _restart(self) -> None:
        self._generation += 1
        try:
            self._start()
        except LoadError as error:
            raise LoadError(f"does not start again after a crash: {error}") from error

    def _exchange(self, message: bytes, limit: float) -> bytes | str:
        assert self._process.stdin is not None
        try:
            worker.send(self._process.stdin, message)  # type: ignore[arg-type]
        except (BrokenPipeError, OSError):
            return "CRASH"
        return self._receive(limit)

    def _receive(self, limit: float) -> bytes | str:
        try:
            blob = self._replies.get(timeout=limit)
        except queue.Empty:
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
        """End the child."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()


def _pump(stream: Any, replies: queue.Queue[bytes | None]) -> None:
    """Move messages from the pipe into a queue, so that waiting can have a time limit."""
    try:
        while (blob := worker.receive(stream)) is not None:
            replies.put(blob)
    except (OSError, ValueError):
        pass
    replies.put(None)
