"""Two pictures: where the memory goes, and how it changes over time (`qloracle[examples]`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qloracle.memory import METHODS, Event, Parts

GB = 1e9
COLORS = {
    "weights": "#9aa0a6",
    "adapters": "#56b4e9",
    "gradients": "#009e73",
    "optimizer": "#0072b2",
    "activations": "#e69f00",
    "logits": "#d55e00",
    "decode": "#cc79a7",
}
NAMES = {
    "full": "full",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "optimizer": "optimizer state",
    "decode": "decoded weights",
}
INK, OVER = "#333333", "#b00020"
FEWEST = 6  # bars to leave space for: a single one would be as wide as the page


def draw_parts(title: str, parts: dict[str, Parts], path: Path) -> None:
    """Draw the parts of the three methods as bars on one scale, then the small ones enlarged.

    parts: of each method of `METHODS`.
    """
    figure = _figure(title, (10, 5.2))
    whole, enlarged = figure.subplots(2, 1, height_ratios=(3, 2))
    smaller = METHODS[1:]
    for axes, methods in ((whole, METHODS), (enlarged, smaller)):
        _bars(axes, {method: parts[method] for method in methods})
    enlarged.set_title("LoRA and QLoRA, enlarged", loc="left", fontsize=10)
    enlarged.set_xlabel("GB (10⁹ bytes), at least: what is always there + what comes and goes")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path)


def _bars(axes: Any, parts: dict[str, Parts]) -> None:
    methods = list(parts)[::-1]
    rows, left = range(len(methods)), [0.0] * len(methods)
    for field, color in COLORS.items():
        widths = [getattr(parts[method], field) / GB for method in methods]
        axes.barh(rows, widths, left=left, color=color, label=NAMES.get(field, field), height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, method, total in zip(rows, methods, left, strict=True):
        static = parts[method].static / GB
        words = f"{static:.1f} + {total - static:.1f} GB"
        axes.annotate(words, (total, row), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [NAMES[method] for method in methods])
    axes.set_xlim(0, 1.18 * max(left))
    axes.spines[["top", "right"]].set_visible(False)


def draw_timeline(
    title: str, plain: Sequence[Event], paged: Sequence[Event], capacity: int, path: Path
) -> None:
    """Draw two timelines one above the other: without paging, and with it.

    plain, paged: events of `timeline` for the same micro-batches; capacity: bytes.
    """
    figure = _figure(title, (10, 6.2))
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    low, high = _limits([*plain, *paged], capacity)
    below.set_ylim(low, high)
    below.set_xlim(-0.6, max(len(paged), FEWEST) - 0.4)
    for axes, events, name in ((above, plain, "without paging"), (below, paged, "with paging")):
        _stack(axes, events, capacity)
        axes.axhline(capacity / GB, color=INK, linewidth=1, linestyle="--")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("GB, at least")
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xticks(range(len(paged)), [_phase(event) for event in paged], fontsize=8)
    begins = f"; the axis begins at {low:g} GB" if low else ""
    below.set_xlabel(f"phase; the dashed line is the card, {capacity / GB:g} GB{begins}")
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    figure.savefig(path)


def _phase(event: Event) -> str:
    """Name a phase, and under the middle one its micro-batch."""
    return event.phase + (f"\nmicro-batch {event.micro_batch}" if event.phase == "loss" else "\n")


def _stack(axes: Any, events: Sequence[Event], capacity: int) -> None:
    x = range(len(events))
    layers = {
        "weights, adapters,\ngradients": ("#9aa0a6", [event.fixed / GB for event in events]),
        "optimizer state\non the card": ("#0072b2", [event.resident / GB for event in events]),
        "activations, logits": ("#e69f00", [event.transient / GB for event in events]),
    }
    bottom = [0.0] * len(events)
    for name, (color, heights) in layers.items():
        axes.bar(x, heights, 0.92, bottom=bottom, color=color, label=name)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    for i, (event, top) in enumerate(zip(events, bottom, strict=True)):
        _annotate(axes, i, max(top, capacity / GB), event)


def _annotate(axes: Any, i: int, above: float, event: Event) -> None:
    """Write what moved, or that it does not fit, above a bar and the line of the card."""
    words = []
    if event.moved_out:
        words.append(f"{event.moved_out / GB:.2f} GB\nout")
    if event.moved_in:
        words.append(f"{event.moved_in / GB:.2f} GB\nback")
    if not event.fits:
        words = ["out of\nmemory"]
    color = INK if event.fits else OVER
    axes.annotate(
        "\n".join(words), (i, above), (0, 3), textcoords="offset points", ha="center", va="bottom",
        fontsize=8, color=color,
    )  # fmt: skip


def _limits(events: Sequence[Event], capacity: int) -> tuple[float, float]:
    """Return where the axis starts and ends: spikes are small beside the weights."""
    high = max(capacity, *(event.total for event in events)) / GB
    floor = min(capacity, *(event.fixed for event in events)) / GB
    low = max(int(floor - 0.15 * (high - floor)), 0)
    return low, high + 0.2 * (high - low)


def _figure(title: str, size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    # its own white background: a page may be dark
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    return figure
