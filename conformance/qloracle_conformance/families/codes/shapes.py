"""Shapes around every edge: the byte, the 16-lane vector, the block, the row."""

from collections.abc import Iterator

Shape = tuple[int, ...]


def counts(blocksize: int) -> list[int]:
    """Element counts around the byte, the lane and the block.

    >>> counts(64)[:12]
    [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 62, 63]
    """
    lanes = [15, 16, 17, 31, 32, 33]
    edges = [blocksize * k + d for k in (1, 2, 3) for d in (-2, -1, 0, 1, 2)]
    return sorted({0, 1, 2, 3, *lanes, *edges, 7 * blocksize + 5})


def matrices(blocksize: int) -> Iterator[Shape]:
    """Matrices whose rows are no multiple of the block, and some whose rows are.

    The columns are derived from the block, never from a list of known faults: b/2, 3b/2, b+1,
    2b-2 and their odd neighbours, with three rows and more, so that blocks cross rows.
    """
    b = blocksize
    for columns in (b // 2, 3 * b // 2, b + 1, 2 * b - 2, b, 5 * b // 4, b // 2 + 1):
        yield (3, columns)
    for columns in (b // 4, b // 2, 3 * b // 2):
        yield (8, columns)
    yield (7, 33)


def blocks_and_rows(blocksize: int) -> Iterator[Shape]:
    """All shapes that are tried at one block size."""
    yield from ((n,) for n in counts(blocksize))
    yield from matrices(blocksize)
    yield from ((2, 3, 5), (3, 4, blocksize // 2 + 1), (2, 2, 2, blocksize // 4), ())
    yield from ((1, 2), (2, 1), (1, 1))  # a whole matrix in one byte


def long_rows() -> Iterator[tuple[Shape, int]]:
    """Rows longer than 4,096 that are no multiple of an ordinary block."""
    for blocksize in (64, 128, 256):
        yield (3, 4096 + blocksize // 2), blocksize
        yield (2, 4096 + blocksize + 16), blocksize
        yield (2, 5003), blocksize


MANY_BLOCKS = ((65_537 * 32 + 7,), 32)  # more blocks than a 16-bit grid index can count
