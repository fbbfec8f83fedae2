"""Work in several processes, which take one item after the other and send back what they find.

A process is a new interpreter and no fork: threads and GPU contexts do not survive a fork.  It has
a session of its own, so that Ctrl-C reaches the parent alone, which then ends the others; SIGTERM
is to them what Ctrl-C is to the parent: they let go of what they hold.
"""

import gc
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
Message = tuple[int, str, Any]  # number of the item; SENT, DONE or FAILED; object or reason
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
    waiting, left = deque([*enumerate(items), *[None] * processes]), len(items)
    messages: queue.Queue[Message] = queue.Queue()
    running = [_start(share) for _ in range(min(processes, left))]
    try:
        for process in running:
            arguments = (process, work, waiting, messages)
            threading.Thread(target=_feed, args=arguments, daemon=True).start()
        while left:
            number, kind, value = messages.get()
            if kind == FAILED:
                raise JobError(value)
            if kind == SENT:
                yield number, value
            else:
                left -= 1
    finally:
        waiting.clear()
        for process in running if left else ():
            process.terminate()
        for process in running:
            _stop(process)


def _start(share: Sequence[int]) -> Process:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=share, start_new_session=True,
    )  # fmt: skip


def _feed(
    process: Process,
    work: Callable[[T, Send], None],
    waiting: deque[tuple[int, T] | None],
    messages: queue.Queue[Message],
) -> None:
    """Give a process one item after the other, and pass on what it says, or how it died."""
    number = -1
    try:
        with process.stdin as inbox, process.stdout as outbox:  # type: ignore[union-attr]
            while (numbered := waiting.popleft()) is not None:
                number, item = numbered
                send(inbox, pickle.dumps((work, item)))  # type: ignore[arg-type]
                kind = SENT
                while kind == SENT:
                    blob = receive(outbox)  # type: ignore[arg-type]
                    kind, value = pickle.loads(blob) if blob else (FAILED, _death(process))
                    messages.put((number, kind, value))
    except BrokenPipeError:
        messages.put((number, FAILED, _death(process)))
    except Exception:
        messages.put((number, FAILED, traceback.format_exc()))


def _death(process: Process) -> str:
    code = process.wait()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"a process of the run died ({how})"


def _stop(process: Process) -> None:
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
    gc.set_threshold(50_000)  # a judge makes many objects and hardly any garbage

    def tell(kind: str, value: Any) -> None:
        send(outbox, pickle.dumps((kind, value)))

    try:
        while (order := receive(sys.stdin.buffer)) is not None:
            work, item = pickle.loads(order)
            work(item, lambda value: tell(SENT, value))
            tell(DONE, None)
        os._exit(0)  # the interpreter's own end takes 0.03 s, for which the parent would wait
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except BaseException:  # SystemExit too: the parent must hear why
        tell(FAILED, traceback.format_exc())


if __name__ == "__main__":
    main()
