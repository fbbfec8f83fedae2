"""The `memory` command: bytes by part, the papers' numbers, a timeline, and both as pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qloracle import memory
from qloracle.examples import memory_pictures
from qloracle_conformance.errors import UsageError

CARDS = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)  # GB of common cards
GB = 10**9


def run(model: str, seq: int, capacity_gb: float, out: Path | None, console: Console) -> int:
    """Print the tables and, where `out` is a folder's name, draw the pictures there.

    capacity_gb: 0 for the smallest common card that holds what QLoRA keeps all the time.
    """
    _check(model, seq, capacity_gb, out)
    config = memory.MODELS[model]
    parts = {method: memory.memory_parts(config, method, tokens=seq) for method in memory.METHODS}
    capacity = round(capacity_gb * GB) or _smallest_card(parts["qlora"].static)
    lengths = (seq, seq, 2 * seq, seq)
    plain, paged = (
        memory.timeline(config, lengths, capacity, paging=paging) for paging in (False, True)
    )
    head = f"{model}, {seq} tokens: GB (1e9 bytes), an arithmetic lower bound"
    _show(head, _parts_table(parts), console)
    _show("Published numbers", _claims_table(), console)
    spike = f"micro-batches of {', '.join(map(str, lengths))} tokens on {capacity / GB:g} GB"
    _show(f"QLoRA, products fused, {spike}", _timeline_table(plain, paged), console)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        where, when = out / "memory.png", out / "timeline.png"
        title = f"{model}, {seq} tokens: bytes by part"
        memory_pictures.draw_parts(title, parts, where)
        memory_pictures.draw_timeline(f"{model}, QLoRA: {spike}", plain, paged, capacity, when)
        console.print(f"{where}\n{when}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _check(model: str, seq: int, capacity_gb: float, out: Path | None) -> None:
    if model not in memory.MODELS:
        raise UsageError(f"--model is {model!r}; allowed: {', '.join(memory.MODELS)}")
    if seq < 1:
        raise UsageError(f"--seq is {seq}; allowed: a whole number from 1")
    if not 0 <= capacity_gb < 1e6:
        raise UsageError(f"--capacity is {capacity_gb:g}; allowed: GB above 0, up to 1e6")
    if out and find_spec("matplotlib") is None:
        raise UsageError("matplotlib is not installed: pip install 'qloracle[examples]'")


def _smallest_card(needed: int) -> int:
    return next((gb * GB for gb in CARDS if gb * GB > needed), -(-needed // GB) * GB)


def _show(title: str, table: Table, console: Console) -> None:
    console.print(f"\n{title}", style="bold", highlight=False)
    console.print(table)


def _parts_table(parts: dict[str, memory.Parts]) -> Table:
    names = [*memory.Parts._fields[:4], "static", *memory.Parts._fields[4:], "sum"]
    table = _table("", *names)
    for method, of in parts.items():
        numbers = [*of[:4], of.static, *of[4:], sum(of)]
        table.add_row(method, *(f"{number / GB:.2f}" for number in numbers))
    return table


def _claims_table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "published", "here", "", "source"):
        table.add_column(name)
    for claim in memory.claims():
        verdict = "reproduced" if claim.reproduced else "NOT reproduced"
        table.add_row(claim.what, claim.published, claim.ours, verdict, claim.source)
    return table


def _timeline_table(plain: list[memory.Event], paged: list[memory.Event]) -> Table:
    table = _table("", "without paging", "with paging", "moved out", "moved in", "seconds")
    for i, event in enumerate(paged):
        beside = _total(plain[i]) if i < len(plain) else ""
        moved = (f"{n / GB:.2f}" if n else "" for n in (event.moved_out, event.moved_in))
        seconds = f"{event.seconds:.3f}" if event.seconds else ""
        name = f"{event.phase} {event.micro_batch}" if event.phase != "step" else "step"
        table.add_row(name, beside, _total(event), *moved, seconds)
    return table


def _total(event: memory.Event) -> str:
    return f"{event.total / GB:.2f}" + ("" if event.fits else " out of memory")


def _table(first: str, *names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table
