"""Times of several calls, fairly: interleaved, from a cold cache, by the device's own clock.

A clock measures one call.  `compare` goes round the calls many times, in an order that changes, and
enters the first of them twice: a difference as small as that pair's cannot be resolved.  Before
that each is called once: the first call compiles, allocates and sends tables.

>>> times = iter([9.0, 9.0, 2.0, 1.6, 2.0, 2.0, 1.6, 2.0])
>>> class Stopped:
...     def __call__(self, call):
...         return Reading(next(times), 0.0, True)
>>> found = compare({"ours": print, "theirs": print}, Stopped(), rounds=2)
>>> found["ours"], ratio(found, "theirs", "ours")
(Timing(median=2.0, low=2.0, high=2.0, rounds=2, cold=True), 0.8)
"""

from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple, Protocol

Call = Callable[[], object]
AGAIN = " again"  # the second entry of a call that is compared with itself


class Reading(NamedTuple):
    """One measurement: seconds on the device and on the host; was all queued before it began?"""

    device: float
    host: float
    queued: bool


class Clock(Protocol):
    """Measures a call that begins with a cold cache."""

    def __call__(self, call: Call) -> Reading:
        """Run the call once."""


class Timing(NamedTuple):
    """Seconds of a call: the median, and the quartiles.

    `cold`: every round was queued before it began, so that it holds no gap of the host's.
    """

    median: float
    low: float
    high: float
    rounds: int
    cold: bool


def compare(calls: Mapping[str, Call], clock: Clock, rounds: int = 30) -> dict[str, Timing]:
    """Time each call; the first one twice, under its name and its name + AGAIN."""
    first = next(iter(calls))
    entries = [*calls.items(), (first + AGAIN, calls[first])]
    readings: dict[str, list[Reading]] = {name: [] for name, _ in entries}
    for call in calls.values():
        clock(call)
    for turn in range(rounds):
        for name, call in entries if turn % 2 == 0 else reversed(entries):
            readings[name].append(clock(call))
    return {name: _timing(found) for name, found in readings.items()}


def _timing(readings: list[Reading]) -> Timing:
    seconds = [reading.device for reading in readings]
    low, _, high = quantiles(seconds, n=4) if len(seconds) > 2 else (min(seconds), 0, max(seconds))
    queued = all(reading.queued for reading in readings)
    return Timing(median(seconds), low, high, len(seconds), queued)


def ratio(timings: Mapping[str, Timing], one: str, other: str) -> float:
    """Return how much longer one takes than the other."""
    return timings[one].median / timings[other].median


def said(error: Exception) -> str:
    """Return an error as one line, and not too long a one."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def self_ratio(timings: Mapping[str, Timing]) -> float:
    """Return the ratio of the call that was entered twice to itself: 1 if nothing disturbs."""
    (again,) = [name for name in timings if name.endswith(AGAIN)]
    return ratio(timings, again, again.removesuffix(AGAIN))
