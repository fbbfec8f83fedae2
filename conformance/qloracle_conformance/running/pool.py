"""Work in several processes, which take one item after the other and send back what they find.

A process is a new interpreter and no fork: threads and GPU contexts do not survive a fork.  It has
a session of its own, so that Ctrl-C reaches the parent alone, which then ends the others; SIGTERM
is to them what Ctrl-C is to the parent: they let go of what they hold.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from qloracle_conformance.calling.wire import receive, send

T = TypeVar("T")
Send = Callable[[Any], None]
Process = subprocess.Popen[bytes]
Message = tuple[Process, str, Any]  # who says it, SENT or DONE or FAILED, object or reason
SENT, DONE, FAILED = "sent", "done", "failed"
GRACE = 10.0  # seconds that a process may take to let go, before it is killed


class JobError(RuntimeError):
    """A process raised what nobody expected, or died; the text is its traceback, or how it died."""


def stream(
    work: Callable[[T, Send], None], items: Sequence[T], processes: int, share: Sequence[int] = ()
) -> Generator[tuple[int, Any], None, None]:
    """Call ``work(item, send)`` for each item, in so many processes at once.

    Yields (number of the item, object) for each object sent, as it comes; the objects of one item
    come in their order.  work: a function of a module; what it takes and sends can be pickled.
    share: file descriptors that the processes have, too.
    JobError if one of them fails.  However this ends, none of the processes is left.
    """
    waiting = deque(enumerate(items))
    busy: dict[Process, int] = {}  # the item of each process
    messages: queue.Queue[Message] = queue.Queue()
    try:
        while len(busy) < min(processes, len(items)):
            process = _start(messages, share)
            busy[process] = _next(process, work, waiting)
        while busy:
            process, kind, value = messages.get()
            if process not in busy:  # it has ended, as it should
                continue
            if kind == SENT:
                yield busy[process], value
            elif kind == FAILED:
                raise JobError(value)
            elif waiting:
                busy[process] = _next(process, work, waiting)
            else:
                del busy[process]
                _stop(process)
    finally:
        for process in busy:
            process.terminate()
        for process in busy:
            _stop(process)


def _next(process: Process, work: Callable[[T, Send], None], waiting: deque[tuple[int, T]]) -> int:
    """Give a process the next item, and return that one's number."""
    number, item = waiting.popleft()
    with contextlib.suppress(BrokenPipeError):  # _pump says how it died
        send(process.stdin, pickle.dumps((work, item)))  # type: ignore[arg-type]
    return number


def _start(messages: queue.Queue[Message], share: Sequence[int]) -> Process:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=share, start_new_session=True,
    )  # fmt: skip
    threading.Thread(target=_pump, args=(process, messages), daemon=True).start()
    return process


def _pump(process: Process, messages: queue.Queue[Message]) -> None:
    """Move a process's messages into the queue; the last one says how it died, if it did."""
    assert process.stdout is not None
    with process.stdout as outbox:
        try:
            while (blob := receive(outbox)) is not None:  # type: ignore[arg-type]
                messages.put((process, *pickle.loads(blob)))
        except Exception:
            messages.put((process, FAILED, traceback.format_exc()))
    code = process.wait()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    messages.put((process, FAILED, f"a process of the run died ({how})"))


def _stop(process: Process) -> None:
    """Let a process end, and wait until it has; kill it if it does not."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Do the work that the parent sends, in this process."""
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints must not disturb the messages
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def tell(kind: str, value: Any) -> None:
        send(outbox, pickle.dumps((kind, value)))

    try:
        while (order := receive(sys.stdin.buffer)) is not None:
            work, item = pickle.loads(order)
            work(item, lambda value: tell(SENT, value))
            tell(DONE, None)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except BaseException:  # SystemExit too: the parent must hear why
        tell(FAILED, traceback.format_exc())


if __name__ == "__main__":
    main()
