"""The pipes to a child process: messages in both directions, neither of which waits for the other.

Each message is a length (8 bytes, little endian) and a blob of `contract.cases`.  What is posted
waits here until its answer is asked for, and then until the child takes it: a child that is still
writing an answer never blocks its parent, and several messages wake it once.
"""

import contextlib
import fcntl
import itertools
import os
import select
import struct
import time
from collections import deque
from collections.abc import Iterable
from typing import BinaryIO

PIPE_BYTES = 1 << 20  # of each pipe's buffer, where the system lets it be so large
PIECES = 64  # that are written at once
LONGEST = 1 << 36  # bytes; a longer one is no message: something else wrote to the pipe

Piece = bytes | bytearray | memoryview


class Wire:
    """The parent's end of a child's standard streams."""

    def __init__(self, to_child: BinaryIO, from_child: BinaryIO) -> None:
        self._to, self._from = to_child.fileno(), from_child.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._unsent: deque[memoryview] = deque()

    def post(self, pieces: Iterable[Piece]) -> None:
        """Send a message: it goes with all that is unsent at the next `take`."""
        self._unsent += _message(pieces)

    def take(self, limit: float) -> bytearray | None:
        """Return a message, or None if the child is gone.  TimeoutError after `limit` s."""
        self._write()
        deadline = time.monotonic() + limit
        head = self._read(8, deadline)
        if head is None:
            return None
        (length,) = struct.unpack("<Q", head)
        return self._read(length, deadline) if length < LONGEST else None

    def _write(self) -> None:
        try:
            _write(self._to, self._unsent)
        except BlockingIOError:
            pass  # the child has enough to read
        except (BrokenPipeError, ConnectionResetError):  # `take` will find its end closed
            self._unsent.clear()

    def _read(self, count: int, deadline: float) -> bytearray | None:
        blob = bytearray(count)
        rest = memoryview(blob)
        while rest.nbytes:
            try:
                done = os.readv(self._from, [rest])
            except BlockingIOError:
                self._wait(deadline)
                continue
            if not done:
                return None
            rest = rest[done:]
        return blob

    def _wait(self, deadline: float) -> None:
        """Until there is something to read, writing meanwhile what has not been sent."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if self._unsent:
            poll.register(self._to, select.POLLOUT)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            raise TimeoutError
        if any(pipe == self._to for pipe, _ in ready):
            self._write()


def _message(pieces: Iterable[Piece]) -> list[memoryview]:
    """A message as it is written: its length, and the pieces."""
    views = [memoryview(piece) for piece in pieces]
    return [memoryview(struct.pack("<Q", sum(view.nbytes for view in views))), *views]


def _write(pipe: int, unsent: deque[memoryview]) -> None:
    """Write what is unsent, all at once if the pipe takes it: each write wakes who reads."""
    while unsent:
        done = os.writev(pipe, list(itertools.islice(unsent, PIECES)))
        while unsent and unsent[0].nbytes <= done:
            done -= unsent.popleft().nbytes
        if done:
            unsent[0] = unsent[0][done:]


def send(stream: BinaryIO, *pieces: Piece) -> None:
    """Write one message into a stream that blocks and has no buffer: the child's side."""
    _write(stream.fileno(), deque(_message(pieces)))


def receive(stream: BinaryIO) -> bytearray | None:
    """Read one message; None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    blob = bytearray(*struct.unpack("<Q", head))
    rest = memoryview(blob)
    while rest.nbytes:
        done = stream.readinto(rest)  # type: ignore[attr-defined]
        if not done:
            return None
        rest = rest[done:]
    return blob
