"""Work in several processes: each item has a fresh one, which sends back what it finds, pickled.

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
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from qloracle_conformance.calling.wire import receive, send

T = TypeVar("T")
Send = Callable[[Any], None]
Message = tuple[int, str, Any]  # number of the item, SENT or DONE or FAILED, object or reason
SENT, DONE, FAILED = "sent", "done", "failed"
GRACE = 10.0  # seconds that a process may take to let go, before it is killed


class JobError(RuntimeError):
    """A process raised what nobody expected, or died; the text is its traceback, or how it died."""


def stream(
    work: Callable[[T, Send], None], items: Sequence[T], processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Call ``work(item, send)`` for each item in a process of its own, so many at once.

    Yields (number of the item, object) for each object sent, as it comes; the objects of one item
    come in their order.  work: a function of a module; what it takes and sends can be pickled.
    JobError if one of them fails.  However this ends, none of the processes is left.
    """
    waiting = list(enumerate(items))
    running: dict[int, subprocess.Popen[bytes]] = {}
    messages: queue.Queue[Message] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number, item = waiting.pop(0)
                running[number] = _start(number, pickle.dumps((work, item)), messages)
            number, kind, value = messages.get()
            if kind == SENT:
                yield number, value
                continue
            _stop(running.pop(number))
            if kind == FAILED:
                raise JobError(value)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            _stop(process)


def _start(number: int, order: bytes, messages: queue.Queue[Message]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    threading.Thread(target=_pump, args=(number, process, messages), daemon=True).start()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as inbox:  # _pump says how it died
        send(inbox, order)  # type: ignore[arg-type]
    return process


def _pump(number: int, process: subprocess.Popen[bytes], messages: queue.Queue[Message]) -> None:
    """Move a process's messages into the queue; one that ends without a last word has failed."""
    assert process.stdout is not None
    kind = SENT
    with process.stdout as outbox:
        try:
            while kind == SENT and (blob := receive(outbox)) is not None:  # type: ignore[arg-type]
                kind, value = pickle.loads(blob)
                messages.put((number, kind, value))
        except Exception:
            kind = FAILED
            messages.put((number, kind, traceback.format_exc()))
    if kind == SENT:
        code = process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        messages.put((number, FAILED, f"a process of the run died ({how})"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended; kill it if it does not."""
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
        work, item = pickle.loads(receive(sys.stdin.buffer) or b"")
        work(item, lambda value: tell(SENT, value))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except BaseException:  # SystemExit too: the parent must hear why
        tell(FAILED, traceback.format_exc())
    else:
        tell(DONE, None)


if __name__ == "__main__":
    main()
