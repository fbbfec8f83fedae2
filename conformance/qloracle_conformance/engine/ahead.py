"""Cases in the order of their checks, some of them sent before their turn.

While the engine judges an answer, the child works on the next ones.  An implementation therefore
sees its calls in this order: those of the probe, then the cases of all checks as they are planned,
with the calls that a judgement needs (a plain form, a smaller input) coming up to `CASES` calls
after the one that they belong to; then the repetitions of P4.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from qloracle_conformance.contract.cases import Case

CASES = 16  # that are on their way at once: enough to keep both busy, and few to drop
BYTES = 1 << 20  # of their inputs

Cases = Generator[Case, None, None]


class Ahead:
    """The cases of several checks; `expect` hears of each early, `forget` of each dropped one."""

    def __init__(
        self,
        sources: Sequence[Callable[[], Iterator[Case]]],
        expect: Callable[[Case], None],
        forget: Callable[[Case], None],
    ) -> None:
        self._expect, self._forget = expect, forget
        self._queue: deque[tuple[int, Case]] = deque()
        self._bytes = 0
        self._now = 0  # the check whose turn it is
        self._rest = self._all(sources)

    def _all(self, sources: Sequence[Callable[[], Iterator[Case]]]) -> Iterator[tuple[int, Case]]:
        """The cases of all checks, but of no check whose turn is over."""
        for number, source in enumerate(sources):
            for case in source() if number >= self._now else ():
                yield number, case
                if number < self._now:
                    break

    def of(self, number: int) -> Cases:
        """The cases of a check, one by one; those of earlier checks are dropped.

        So are its own that are left when it has enough and closes this generator: a case that
        stayed expected could be taken for a later one at the same place in memory.
        """
        self._turn(number)
        try:
            self._fill()
            while self._queue and self._queue[0][0] == number:
                yield self._pop()
                self._fill()
        finally:
            self._turn(number + 1)

    def _turn(self, number: int) -> None:
        """Go on to a check, and drop what earlier ones have left."""
        self._now = number
        while self._queue and self._queue[0][0] < number:
            self._forget(self._pop())

    def _pop(self) -> Case:
        case = self._queue.popleft()[1]
        self._bytes -= _size(case)
        return case

    def _fill(self) -> None:
        """Let as many be on their way as may be, once half of them are back: they go together."""
        if len(self._queue) > CASES // 2:
            return
        while not self._queue or (len(self._queue) < CASES and self._bytes < BYTES):
            item = next(self._rest, None)
            if item is None:
                return
            self._queue.append(item)
            self._bytes += _size(item[1])
            self._expect(item[1])


def _size(case: Case) -> int:
    return sum(array.nbytes for array in case.arrays.values())
