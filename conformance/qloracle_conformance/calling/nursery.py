"""Processes that have loaded libraries, from which those of several implementations are forked.

To import torch takes a second, bitsandbytes two more, and most implementations import one of them.
The processes are a tree: the first has loaded the kit's own worker, every further one a library
more than the one that it was forked from.  An implementation's process is forked from the one that
has loaded what its adapter needs, and no more.

Threads and GPU contexts do not survive a fork.  Where an import starts a thread, loads a GPU's
driver or fails, nothing is forked: an implementation that needs it has a new interpreter, as all
have where no nursery is open.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from qloracle_conformance import adapters
from qloracle_conformance.calling import worker

DRIVERS = ("libcuda.so", "libhsa-runtime", "libze_loader")  # of NVIDIA's, AMD's and Intel's GPUs
PARTS = {"torch": ["torch._dynamo"]}  # loaded at the first call of an optimizer or an operator
LONGEST = 1 << 16  # bytes of a message
GRACE = 1.0  # seconds that the tree may take to end, before it is killed

_doors: list[socket.socket] = []  # to the first process of the tree; none: no nursery is open


# ---- where implementations are opened ------------------------------------------------------------


@contextlib.contextmanager
def opened(environment: Mapping[str, str], specs: Sequence[str]) -> Iterator[None]:
    """Keep a nursery meanwhile, and load at once what some implementations need.

    If they are several, libraries are loaded with their `PARTS`.  One that is open stays the only
    one.
    """
    if sys.platform != "linux" or _doors:
        yield
        return
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(its.fileno()), "several" * (len(specs) > 1)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment, pass_fds=[its.fileno()], start_new_session=True,
    )  # fmt: skip
    its.close()
    _doors.append(ours)
    try:
        for spec in specs:
            Order(needs(spec), spec).send(ours, [])
        yield
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        close()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it is importing
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def close() -> None:
    """Let the processes of the tree end, which takes a while: nobody will be forked any more."""
    while _doors:
        _doors.pop().close()


def doors() -> list[int]:
    """The file descriptor by which another process reaches this nursery, if one is open."""
    return [door.fileno() for door in _doors]


def adopt(descriptors: list[int]) -> None:
    """Use the nursery of the process that handed its `doors()` over; once is enough."""
    if not _doors:
        _doors.extend(socket.socket(fileno=descriptor) for descriptor in descriptors)


def needs(spec: str) -> list[str]:
    """The libraries that an implementation needs, as far as that is known without loading it."""
    adapter = adapters.find(spec)
    return [*adapter.needs] if adapter else []


class Forked:
    """An implementation's process, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, stdin: int, stdout: int, told: int) -> None:
        self.pid, self._told = pid, told
        self.stdin, self.stdout = os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0)
        self._ended: int | None = None

    def poll(self, seconds: float | None = 0) -> int | None:
        """The exit code, or None while it runs."""
        if self._ended is None and select.select([self._told], [], [], seconds)[0]:
            self._ended = _number(self._told, -signal.SIGKILL)
            os.close(self._told)
        return self._ended

    def wait(self) -> int | None:
        """Wait for its end."""
        return self.poll(None)


def fork(spec: str, device: str, log: IO[bytes]) -> Forked | None:
    """Fork an implementation's process; None if no nursery is open, or its libraries forbid it."""
    if not _doors:
        return None
    (inbox, stdin), (stdout, outbox), (told, teller) = os.pipe(), os.pipe(), os.pipe()
    Order(needs(spec), spec, device).send(_doors[0], [inbox, outbox, log.fileno(), teller])
    _close(inbox, outbox, teller)
    pid = _number(told, 0)
    if pid:
        return Forked(pid, stdin, stdout, told)
    _close(stdin, stdout, told)
    return None


def _number(pipe: int, otherwise: int) -> int:
    """The next number that is told, or another one where nobody is left to tell it."""
    told = os.read(pipe, 4)
    return struct.unpack("<i", told)[0] if told else otherwise


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


# ---- in the tree ---------------------------------------------------------------------------------


class Order(NamedTuple):
    """What to fork, and the libraries that must be loaded first."""

    needs: list[str]
    spec: str
    device: str = ""

    def send(self, door: socket.socket, streams: list[int]) -> None:
        """Hand it over, with the process's stdin, stdout and stderr, and where to tell its end.

        Without these the libraries are loaded, and nothing is forked.
        """
        with contextlib.suppress(OSError):  # it died of an import: nobody will tell anything
            socket.send_fds(door, [json.dumps(self).encode()], streams)


class Node:
    """One process of the tree."""

    def __init__(self, door: socket.socket, several: bool) -> None:
        self.door, self.several = door, several
        self.fit, self.seconds = True, 0.0
        self._branches: dict[str, socket.socket] = {}
        self._living: dict[int, tuple[int, int]] = {}  # by pidfd: its process, where to tell

    def serve(self) -> NoReturn:
        """Fork what is asked for, and tell how it ended, until the door is closed."""
        while True:
            ready, _, _ = select.select([self.door.fileno(), *self._living], [], [])
            for end in ready:
                self._tell(end) if end in self._living else self._take()

    def _take(self) -> None:
        message, streams, _, _ = socket.recv_fds(self.door, LONGEST, 4)
        if not message:
            self._end()
        order = Order(*json.loads(message))
        if order.needs:
            name, *rest = order.needs
            if name not in self._branches:
                self._grow(name, streams)
            order._replace(needs=rest).send(self._branches[name], streams)
        elif self.fit and streams:
            self._bear(order, streams)
        _close(*streams)

    def _end(self) -> NoReturn:
        """End with all that grew from it, which counts their time in its own."""
        for branch in self._branches.values():
            branch.close()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)

    def _grow(self, name: str, streams: list[int]) -> None:
        """Fork a process that loads one library more."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            self._leave(streams, ours)
            self.door, self._branches, self._living = its, {}, {}
            self._load(name)
            self.serve()
        its.close()
        self._branches[name] = ours

    def _load(self, name: str) -> None:
        start = time.perf_counter()
        try:
            for part in (name, *PARTS.get(name, ()) * self.several):
                importlib.import_module(part)
        except BaseException:  # who needs it will say why
            self.fit = False
        threads, loaded = [*Path("/proc/self/task").iterdir()], Path("/proc/self/maps").read_text()
        self.fit &= len(threads) == 1 and not any(driver in loaded for driver in DRIVERS)
        self.seconds += time.perf_counter() - start
        sys.stdout.flush()  # what an import printed is not printed again by others
        gc.freeze()  # to look for garbage in what was loaded would copy its memory

    def _bear(self, order: Order, streams: list[int]) -> None:
        """Fork the process of an implementation."""
        *standard, teller = streams
        pid = os.fork()
        if not pid:
            os.setsid()
            for number, stream in enumerate(standard):
                os.dup2(stream, number)
            self._leave(streams)
            if order.device:
                os.environ["QLORACLE_DEVICE"] = order.device
            worker.main(order.spec, self.seconds)
            os._exit(0)
        os.write(teller, struct.pack("<i", pid))
        self._living[os.pidfd_open(pid)] = pid, os.dup(teller)

    def _leave(self, streams: list[int], *doors: socket.socket) -> None:
        """Close, in a process that was just forked, what belongs to the one it came from."""
        for door in (self.door, *self._branches.values(), *doors):
            door.close()
        _close(*streams, *self._living, *(teller for _, teller in self._living.values()))

    def _tell(self, end: int) -> None:
        pid, teller = self._living.pop(end)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(teller, struct.pack("<i", os.waitstatus_to_exitcode(status)))
        _close(end, teller)


if __name__ == "__main__":
    os.close(os.pidfd_open(os.getpid()))  # a system without them has no nursery
    gc.disable()  # as in a worker that loads
    Node(socket.socket(fileno=int(sys.argv[1])), bool(sys.argv[2])).serve()
