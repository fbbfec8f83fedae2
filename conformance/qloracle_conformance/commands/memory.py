"""The `memory` command: bytes by part, the papers' numbers, a timeline; pictures where asked."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table

from qloracle import memory
from qloracle.examples import memory_pictures
from qloracle.memory import Configuration, Event, Parts
from qloracle_conformance.contract.errors import UsageError

CARDS = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)  # GB of common cards
GB = 10**9
NO_LIMIT = 2**62
PICTURES = ("memory.png", "timeline.png")
WITHOUT_PICTURES = "No pictures: matplotlib is not installed; pip install 'qloracle[examples]'"


def run(model: str, seq: int, capacity_gb: float | None, out: Path | None, console: Console) -> int:
    """Print the tables, draw the pictures in a folder if one is given, and return 0.

    capacity_gb: None for the smallest common card that holds what QLoRA always keeps in memory.
    Where matplotlib is missing, a line says so in place of the pictures.
    """
    _check(model, seq, capacity_gb)
    config = memory.MODELS[model]
    parts = {method: memory.memory_parts(config, method, tokens=seq) for method in memory.METHODS}
    fitting = (gb for gb in CARDS if gb * GB > parts["qlora"].static)
    smallest = next(fitting, -(-parts["qlora"].static // GB))
    card = round((smallest if capacity_gb is None else capacity_gb) * GB)
    lengths = (seq, seq, 2 * seq, seq)
    plain, paged = (
        memory.timeline(config, lengths, card, paging=paging) for paging in (False, True)
    )
    spike = f"micro-batches of {', '.join(map(str, lengths))} tokens on {card / GB:g} GB"
    head = f"{model}, {seq} tokens, rank 64, in GB (1e9 bytes): an arithmetic lower bound"
    titles = f"{model}, {seq} tokens: bytes by part", f"{model}, QLoRA: {spike}"
    pictures = _draw(out, titles, parts, plain, paged, card) if out is not None else []
    methods = [memory_pictures.NAMES[method] for method in parts]
    _show(console, head, methods, _parts(config, seq, parts))
    _show(console, "Published numbers", ("published", "here", ""), _claims(), "left")
    columns = ("without paging", "with paging", "GB out", "GB in", "seconds")
    _show(console, f"QLoRA, products fused, {spike}", columns, _timeline(plain, paged))
    without, with_it = (memory.longest(config, card, paging=paging) for paging in (False, True))
    longest = f"Longest micro-batch: {without:,} tokens without paging, {with_it:,} with it."
    for line in (*_verdicts(plain, paged), longest, *pictures):
        typer.echo(line)
    return 0


def _check(model: str, seq: int, capacity_gb: float | None) -> None:
    if model not in memory.MODELS:
        raise UsageError(f"--model is {model!r}; allowed: {', '.join(memory.MODELS)}")
    if not 1 <= seq < 10**9:
        raise UsageError(f"--seq is {seq}; allowed: a whole number of tokens from 1 to 999999999")
    if capacity_gb is not None and not 0.001 <= capacity_gb <= 10**6:
        raise UsageError(f"--capacity is {capacity_gb:g}; allowed: GB from 0.001 to 1000000")


# ---- tables --------------------------------------------------------------------------------------


def _show(
    console: Console, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]],
    justify: Literal["left", "right"] = "right",
) -> None:  # fmt: skip
    """Print a table; the first column has no head."""
    console.print(f"\n{title}", style="bold", highlight=False)
    table = Table("", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, justify=justify)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _parts(config: Configuration, seq: int, parts: dict[str, Parts]) -> Iterator[Sequence[str]]:
    names = memory_pictures.NAMES | {"static": "all the time"}
    names |= {"activations": "activations, checkpointed"}
    for field in ("weights", "adapters", "gradients", "optimizer", "static", "activations",
                  "logits", "decode"):  # fmt: skip
        yield names.get(field, field), *(_gb(getattr(each, field), "-") for each in parts.values())
    yield "at the peak", *(_gb(_peak(config, method, seq)) for method in parts)
    kept = memory.activation_bytes(config, seq, checkpointing=False)
    yield "activations, if all are kept", *[_gb(kept)] * len(parts)


def _peak(config: Configuration, method: str, seq: int) -> int:
    """The bytes at the peak: what comes and goes is never all there at once."""
    events = memory.timeline(config, (seq,), NO_LIMIT, paging=False, method=method, fused=False)
    return max(event.total for event in events)


def _claims() -> Iterator[Sequence[str]]:
    for source, claims in groupby(memory.claims(), key=lambda claim: claim.source):
        yield (source,)
        for claim in claims:
            verdict = "reproduced" if claim.reproduced else "NOT reproduced"
            yield f"  {claim.what}", claim.published, claim.ours, verdict


def _timeline(plain: list[Event], paged: list[Event]) -> Iterator[Sequence[str]]:
    for i, event in enumerate(paged):
        beside = _total(plain[i]) if i < len(plain) else ""
        seconds = f"{event.seconds:.3f}" if event.seconds else ""
        moved = _gb(event.moved_out), _gb(event.moved_in)
        yield _name(event), beside, _total(event), *moved, seconds


def _gb(count: int, none: str = "") -> str:
    return f"{count / GB:.2f}" if count else none


def _name(event: Event) -> str:
    return event.phase if event.phase == "step" else f"{event.phase} {event.micro_batch}"


def _total(event: Event) -> str:
    return f"{event.total / GB:.2f}" + ("" if event.fits else " out of memory")


# ---- sentences and pictures ----------------------------------------------------------------------


def _verdicts(plain: list[Event], paged: list[Event]) -> list[str]:
    """Say of both timelines in a sentence each how they end."""
    ends = ["it fits" if e[-1].fits else f"out of memory, {_name(e[-1])}" for e in (plain, paged)]
    out, back, seconds = (
        sum(getattr(event, field) for event in paged)
        for field in ("moved_out", "moved_in", "seconds")
    )
    moved = f"; {out / GB:.2f} GB leave, {back / GB:.2f} GB come back, {seconds:.3f} s"
    return [f"Without paging: {ends[0]}.", f"With paging: {ends[1]}{moved if seconds else ''}."]


def _draw(
    out: Path, titles: tuple[str, str], parts: dict[str, Parts], plain: list[Event],
    paged: list[Event], card: int,
) -> list[str]:  # fmt: skip
    """Draw the pictures in a folder, and say where they are, or why there are none."""
    if find_spec("matplotlib") is None:
        return [WITHOUT_PICTURES]
    paths = [out / name for name in PICTURES]
    try:
        out.mkdir(parents=True, exist_ok=True)
        memory_pictures.draw_parts(titles[0], parts, paths[0])
        memory_pictures.draw_timeline(titles[1], plain, paged, card, paths[1])
    except OSError as error:
        why = f"{error.strerror}; allowed: a folder to write to"
        raise UsageError(f"--out is {str(out)!r}: {why}") from error
    return [str(path) for path in paths]
