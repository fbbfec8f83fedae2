"""Times of the kernels on a GPU, beside their peers and the roof of the card, in one JSON.

    timing  several calls, interleaved, by any clock
    gpu     the clock of a card, its roofs, what it is
    cases   what is timed, and the bytes that it must move
    peers   bitsandbytes, Marlin, torch's fused Adam, where they are installed
    goals   what is aimed at
    checks  what only a GPU can show: streams, long arrays, the sanitizer
    roofs.cu  reads and writes in a given mix

`qloracle bench --device cuda` calls `run`.  A figure that is not in the JSON was not measured, and
the JSON says why.  Its form is `bench.schema.json`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qloracle_gpu.bench import goals
from qloracle_gpu.bench.timing import Clock, compare, ratio, said, self_ratio
from qloracle_gpu.devices.launching import unavailable

if TYPE_CHECKING:
    from qloracle_gpu.bench.cases import Case, Prepared
    from qloracle_gpu.bench.checks import Result

BENCH_VERSION = "1"
Tell = Callable[[str], None]

__all__ = ["BENCH_VERSION", "run", "unavailable"]


def run(only: str = "", tell: Tell = print) -> dict[str, Any]:
    """Measure everything whose name holds `only`, and return it as JSON-able data.

    RuntimeError, in one line, where the kernels cannot run.
    """
    reason = unavailable()
    if reason:
        raise RuntimeError(reason)
    from qloracle_gpu.bench import cases, checks, gpu

    wanted = {name: check for name, check in checks.CHECKS.items() if only in name}
    results = checks.run(wanted)
    clock = gpu.EventClock()
    roofs = gpu.roofs(clock)
    chosen = {name: case for name, case in cases.cases().items() if only in name}
    return report(gpu.machine(), roofs, timed(chosen, clock, roofs, tell, gpu.let_go), results)


def timed(
    cases: Mapping[str, Prepared],
    clock: Clock,
    roofs: Mapping[str, float],
    tell: Tell,
    let_go: Callable[[], None],
) -> list[dict[str, Any]]:
    """Time each case; one that cannot be prepared or run says why."""
    found = []
    for name, prepare in cases.items():
        try:
            found.append(timed_case(prepare(), clock, roofs))
        except Exception as error:  # out of memory, or a fault of the kernel: the rest goes on
            found.append({"case": name, "not_measured": said(error)})
        let_go()
        tell(line(found[-1]))
    return found


def timed_case(case: Case, clock: Clock, roofs: Mapping[str, float]) -> dict[str, Any]:
    """Time ours beside its peers, and put the times in relation to the bytes and the roofs."""
    calls, notes = dict(case.calls), []
    for name, prepare in case.peers.items():
        try:
            call = prepare()
            call()
        except Exception as error:  # not installed, or not made for this card
            notes.append(f"{name} not measured: {said(error)}")
        else:
            calls[name] = call
    timings = compare(calls, clock)
    speed = case.moved / timings["ours"].median
    figures = {
        goals.ROOF: speed / roofs[case.mix],
        goals.COPY: speed / roofs["1_1"],
        goals.SELF: self_ratio(timings),
        **{figure: ratio(timings, "ours", other) for figure, other in case.beside.items()},
        **{
            f"faster than {name}": ratio(timings, name, "ours")
            for name in case.peers
            if name in calls
        },
    }
    return {
        "case": case.name,
        "mix": case.mix,
        "bytes": case.moved,
        "bytes_per_second": speed,
        "seconds": {name: timing._asdict() for name, timing in timings.items()},
        "figures": figures,
        "notes": notes,
    }


def report(
    machine: Mapping[str, Any],
    roofs: Mapping[str, float],
    timings: list[dict[str, Any]],
    checks: Iterable[Result],
) -> dict[str, Any]:
    """Return the whole as data, with a verdict on every goal."""
    figures = {each["case"]: each["figures"] for each in timings if "figures" in each}
    return {
        "bench_version": BENCH_VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "roofs_bytes_per_second": dict(roofs),
        "timings": timings,
        "goals": [goal._asdict() | {"verdict": goal.verdict(figures)} for goal in goals.GOALS],
        "checks": [result._asdict() for result in checks],
    }


def line(timing: Mapping[str, Any]) -> str:
    """Tell of one case in a line.

    >>> line({"case": "adam", "not_measured": "OutOfMemoryError: 8 GiB"})
    'adam: not measured: OutOfMemoryError: 8 GiB'
    """
    if "not_measured" in timing:
        return f"{timing['case']}: not measured: {timing['not_measured']}"
    figures = ", ".join(f"{name} {value:.3f}" for name, value in timing["figures"].items())
    microseconds = 1e6 * timing["seconds"]["ours"]["median"]
    speed = timing["bytes_per_second"] / 1e9
    return "\n  ".join(
        [f"{timing['case']}: {microseconds:.1f} us, {speed:.0f} GB/s, {figures}", *timing["notes"]]
    )
