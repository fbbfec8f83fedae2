"""What a pager shows of itself, as numbers, and what it need not have.

These functions stand as they are in the scripts that reproduce a failure.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import inspect

SIZES = ("capacity", "page_bytes", "resident_bytes")
COUNTERS = (
    "faults", "prefetched", "evictions", "host_faults", "host_prefetched", "bytes_to_device",
    "bytes_to_host",
)  # fmt: skip


def books_of(pager: object) -> dict[str, int]:
    """Each number by its name: -1 where nothing is shown, -2 where it is no whole number."""
    try:
        counters = getattr(pager, "counters", None)
    except Exception:
        counters = None
    found = {name: whole_number(pager, name) for name in SIZES}
    return found | {name: whole_number(counters, name) for name in COUNTERS}


def whole_number(owner: object, name: str) -> int:
    """A number of an object or a mapping."""
    try:
        value = owner.get(name) if hasattr(owner, "get") else getattr(owner, name, None)
        if value is None:
            return -1
        return int(value) if 0 <= value == int(value) < 2**63 else -2
    except NotImplementedError:
        return -1
    except Exception:
        return -2


def pages_came(line):
    """Pages that came to the device."""
    return line.faults + line.prefetched


def pages_went(line):
    """Pages that left it, but for those that were freed."""
    return line.evictions + line.host_faults + line.host_prefetched


def pages_freed(log, frees, page):
    """Pages that were resident when they were freed: of each free its line and its pages."""
    freed = 0
    for i, pages in frees:
        before, after = log[i], log[i + 1]
        moved = (pages_came(after) - pages_went(after)) - (pages_came(before) - pages_went(before))
        lost = (before.resident_bytes - after.resident_bytes) // page
        freed += min(max(lost + moved, 0), pages)
    return freed


def if_offered(pager: object, name: str, *arguments: object, **options: object) -> object:
    """Call a method that a pager need not have, nor with these options: NotImplemented then."""
    method = getattr(pager, name, None)
    if not callable(method):
        return NotImplemented
    try:
        inspect.signature(method).bind(*arguments, **options)
    except TypeError:
        return NotImplemented
    try:
        return method(*arguments, **options)
    except NotImplementedError:
        return NotImplemented
