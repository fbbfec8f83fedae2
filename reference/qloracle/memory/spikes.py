"""Memory over time: spikes, and what paging does about them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qloracle import arguments as check
from qloracle.memory.models import Configuration
from qloracle.memory.parts import RANK, block_bytes, logit_bytes, memory_parts, stored_bytes

LINK = 16e9  # bytes a second: PCIe 3.0 with 16 lanes
REACHED = 0.5  # of the link that paging uses at best, says the documentation of bitsandbytes
PAGE_BYTES = 2**21  # what CUDA moves at once when it can
STEP = "step"


class Event(NamedTuple):
    """One phase of a micro-batch: what is in memory at its peak, and what moved to get there."""

    micro_batch: int  # from 1; the optimizer's step has the last one's number
    phase: str  # forward, loss, backward or step
    fixed: int  # weights, adapters and gradients
    transient: int  # activations, logits and decoded weights
    resident: int  # optimizer state in the device's memory
    moved_out: int  # bytes of optimizer state
    moved_in: int
    seconds: float  # for the transfers alone
    fits: bool

    @property
    def total(self) -> int:
        """Bytes in the device's memory."""
        return self.fixed + self.transient + self.resident


def timeline(
    config: Configuration,
    lengths: Sequence[int],
    capacity: int,
    *,
    paging: bool,
    method: str = "qlora",
    rank: int = RANK,
    checkpointing: bool = True,
    fused: bool = True,
    moment_bytes: int = 8,
    page_bytes: int = PAGE_BYTES,
    link: float = LINK,
) -> list[Event]:
    """Return the phases of micro-batches of these lengths, in tokens, and of the step after them.

    capacity: bytes; paging: whether optimizer state may be evicted, in pages of page_bytes, least
    recently used first; link: bytes a second; fused: False adds a buffer for one decoded layer to
    forward and backward; the others as in `memory_parts`. The list ends with the first event that
    does not fit. ValueError for numbers out of range.

    Gradients and moments are there from the start, as they are from the second step on. Forward
    holds what it stores, the loss adds logits and their gradient, backward adds the one block that
    is computed again. Each is an arithmetic lower bound.

    >>> from qloracle.memory import MODELS
    >>> llama, lengths = MODELS["llama-33b"], (512, 512, 1024, 512)
    >>> timeline(llama, lengths, 24 * 10**9, paging=False)[-1][:2]  # the last: it does not fit
    (3, 'forward')
    >>> for event in timeline(llama, lengths, 24 * 10**9, paging=True):
    ...     if event.seconds:
    ...         moved = event.moved_out / 1e9, event.moved_in / 1e9
    ...         print(event.micro_batch, event.phase, "%.2f GB out, %.2f GB in" % moved)
    3 forward 0.08 GB out, 0.00 GB in
    3 loss 0.26 GB out, 0.00 GB in
    4 step 0.00 GB out, 0.35 GB in
    >>> timeline(llama, lengths, 24 * 10**9, paging=False, fused=False)[-1][:2]  # 239 MB more
    (1, 'backward')
    """
    limit = check.integer("capacity", capacity, least=1)
    size = check.integer("page_bytes", page_bytes, least=1)
    check.boolean("paging", paging)
    parts = memory_parts(
        config, method, rank=rank, checkpointing=checkpointing, fused=fused,
        moment_bytes=moment_bytes,
    )  # fmt: skip
    fixed, pages = parts.static - parts.optimizer, -(-parts.optimizer // size)
    resident = max(min(pages, (limit - fixed) // size), 0)
    events: list[Event] = []
    for micro_batch, phase, transient in _phases(config, parts.decode, lengths, checkpointing):
        out = back = 0
        if paging:
            free = (limit - fixed - transient) // size
            resident, out, back = _moves(phase, pages, resident, free)
        here = resident * size if paging else parts.optimizer
        fits = fixed + transient + here <= limit and (resident > 0 or phase != STEP)
        seconds = transfer_seconds((out + back) * size, link)
        moved = out * size, back * size
        events.append(Event(micro_batch, phase, fixed, transient, here, *moved, seconds, fits))
        if not fits:
            break
    return events


def longest(config: Configuration, capacity: int, *, paging: bool, **options: Any) -> int:
    """Return the most tokens that a micro-batch may have in this capacity; 0 if none fits.

    options: those of `timeline`.

    >>> from qloracle.memory import MODELS
    >>> llama = MODELS["llama-33b"]
    >>> [longest(llama, 24 * 10**9, paging=paging) for paging in (False, True)]
    [696, 4395]
    """

    def fails(tokens: int) -> bool:
        return not timeline(config, (tokens,), capacity, paging=paging, **options)[-1].fits

    return bisect_left(range(1, 2**40), True, key=fails)


def transfer_seconds(nbytes: int, link: float = LINK) -> float:
    """Return the time that paging takes to move so many bytes, at half the speed of the link.

    nbytes: at least 0; link: bytes a second, above 0. ValueError otherwise.

    >>> transfer_seconds(10**9)
    0.125
    """
    if check.at_least("link", link, 0) == 0:
        raise ValueError(f"link must be above 0, got {link}")
    return check.integer("nbytes", nbytes) / (link * REACHED)


def _phases(
    config: Configuration, decode: int, lengths: Sequence[int], checkpointing: bool
) -> Iterator[tuple[int, str, int]]:
    """Yield micro-batch, phase, and the bytes that come and go in it."""
    if not lengths:
        raise ValueError("lengths must hold at least one micro-batch, got none")
    for i, length in enumerate(lengths, 1):
        tokens = check.integer("lengths", length, least=1)
        stored = stored_bytes(config, tokens, checkpointing=checkpointing)
        again = block_bytes(config, tokens) if checkpointing else 0
        yield i, "forward", stored + decode
        yield i, "loss", stored + logit_bytes(config, tokens)
        yield i, "backward", stored + again + decode
    yield len(lengths), STEP, 0


def _moves(phase: str, pages: int, resident: int, free: int) -> tuple[int, int, int]:
    """Return the pages of state resident after a phase, those evicted, and those brought in.

    A step touches all of them in order. If they do not all fit, each has been evicted by the time
    its turn comes, even those that were resident at the start.
    """
    if phase == STEP and pages > free:
        kept = max(free, 0)
        return kept, resident + pages - kept, pages
    if phase == STEP:
        return pages, 0, pages - resident
    kept = max(min(resident, free), 0)
    return kept, resident - kept, 0
