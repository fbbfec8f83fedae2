"""Memory that checks every access: the heap of arrays, and what a block or a thread has alone.

Arrays lie in a heap with gaps between, so that an element past an end belongs to none.  They keep
the alignment that they have in NumPy, which decides whether a kernel may load 16 bytes at once.
Whatever nobody wrote is 0xFF: a NaN, if a float is read from it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qloracle_gpu.devices.ptx.arithmetic import Lanes
from qloracle_gpu.devices.ptx.errors import Misuse
from qloracle_gpu.devices.ptx.parse import Variable

GAP = 256  # bytes between two arrays, and the alignment that an array of its own has
POISON = 0xFF


class Piece(NamedTuple):
    """A variable or an array in a window: bytes `start` to `end`."""

    name: str
    start: int
    end: int
    writable: bool = True


class Window:
    """Bytes from address `base` on, of which those of the pieces may be read and written.

    Each of `rows` blocks has such bytes of its own, for `threads` lanes; 0: one row for all.
    """

    def __init__(
        self, name: str, base: int, pieces: Sequence[Piece], threads: int = 0, rows: int = 1
    ):
        self.name, self.base, self._pieces, self._threads = name, base, pieces, threads
        self.starts = np.array([piece.start for piece in pieces], np.int64)
        self.ends = np.array([piece.end for piece in pieces], np.int64)
        self.size = _up(int(self.ends[-1]) + GAP) if pieces else 0
        self.bytes = np.full(rows * self.size, POISON, np.uint8)

    def load(self, at: Lanes, dtype: np.dtype[Any], count: int, lane: Lanes) -> list[Lanes]:
        """Return `count` neighbours at the addresses `at`, in each lane's row; Misuse."""
        first = self._checked(at, dtype, count, lane, "reads")
        view = self.bytes.view(dtype)
        return [view.take(first + k if k else first) for k in range(count)]

    def store(
        self, at: Lanes, dtype: np.dtype[Any], count: int, lane: Lanes, values: Sequence[Lanes]
    ) -> None:
        """Write `count` neighbours at the addresses `at`, in each lane's row; Misuse."""
        first = self._checked(at, dtype, count, lane, "writes")
        view = self.bytes.view(dtype)
        for k, value in enumerate(values):
            place = first + k if k else first  # of one lane for all, where the address is uniform
            view[np.broadcast_to(place, np.broadcast_shapes(place.shape, value.shape))] = value

    def _checked(
        self, at: Lanes, dtype: np.dtype[Any], count: int, lane: Lanes, verb: str
    ) -> Lanes:
        """Return the index of each first element; Misuse unless all lie in one piece, aligned."""
        at = at - self.base
        size = dtype.itemsize * count
        low, high = int(at.min()), int(at.max())
        piece = int(self.starts.searchsorted(low, "right")) - 1
        inside = piece >= 0 and high + size <= self.ends[piece]
        lawful = inside and (verb == "reads" or self._pieces[piece].writable)
        if not lawful or int(np.bitwise_or.reduce(at)) % size:
            self._judge(at, size, verb)
        offset = at + lane // self._threads * self.size if self._threads else at
        return offset >> (dtype.itemsize.bit_length() - 1)

    def _judge(self, at: Lanes, size: int, verb: str) -> None:
        """Judge each lane by itself: they may be in several pieces, all lawfully."""
        piece: Lanes = self.starts.searchsorted(at, "right") - 1
        inside = (piece >= 0) & (at + size <= np.append(self.ends, 0)[piece])
        if not inside.all():
            first = int(np.argmin(inside))
            raise Misuse(f"{verb} {size} bytes {self._word(int(at[first]))}", first)
        open_ = np.array([verb == "reads" or p.writable for p in self._pieces])[piece]
        if not open_.all():
            first = int(np.argmin(open_))
            raise Misuse(
                f"writes {self._pieces[int(piece[first])].name}, which is read-only", first
            )
        aligned = at % size == 0
        if not aligned.all():
            first = int(np.argmin(aligned))
            address = hex(int(at[first]) + self.base)
            raise Misuse(f"{verb} {size} bytes at {address}, which is not aligned to {size}", first)

    def _word(self, at: int) -> str:
        """Say where an address lies that belongs to no piece."""
        address = f"at {hex((at + self.base) & (2**64 - 1))} of {self.name} memory"
        near = [p for p in self._pieces if p.start - GAP <= at < p.end + GAP]
        if not near:
            return f"{address}, where no array lies"
        piece = min(near, key=lambda p: max(p.start - at, at - p.end))
        if at >= piece.end:
            place = f"{at - piece.end} bytes past the end"
        elif at < piece.start:
            place = f"{piece.start - at} bytes before the start"
        else:
            place = f"{piece.end - at} bytes before the end"
        return f"{address}: {place} of {piece.name}, which has {piece.end - piece.start} bytes"


def layout(variables: Iterable[Variable]) -> list[Piece]:
    """Return where each variable lies, with gaps between."""
    pieces, end = [], 0
    for name, _, alignment, size in variables:
        start = _up(end + GAP)
        assert start % alignment == 0, f"{name} wants {alignment}"
        end = start + size
        pieces.append(Piece(name, start, end))
    return pieces


def _up(n: int) -> int:
    """Round up to a multiple of GAP."""
    return -(-n // GAP) * GAP


class Heap:
    """The arrays of one launch, copied in, and copied back when it is over.

    `arrays` are contiguous, each with the name that a message shall give it.
    """

    def __init__(self, base: int, arrays: Sequence[tuple[str, np.ndarray]]):
        """Place the arrays; those that overlap share one place."""
        pieces: list[Piece] = []
        self._arrays = arrays
        self._regions: list[tuple[int, Piece]] = []
        for region in _regions(arrays):
            low = region.start
            start = _up((pieces[-1].end if pieces else 0) + GAP) + low % GAP
            pieces.append(region._replace(start=start, end=start + region.end - low))
            self._regions.append((low, pieces[-1]))
        self.window = Window("global", base, pieces)
        for _, array in arrays:
            self.put(array)

    def put(self, array: np.ndarray) -> None:
        """Copy an array that was placed into the heap."""
        self._here(array)[:] = array.reshape(-1).view(np.uint8)

    def address(self, array: np.ndarray) -> int:
        """Return the address of an array that was placed."""
        return self.window.base + self._place(array)

    def copy_back(self) -> None:
        """Copy back every array that may be written."""
        for _, array in self._arrays:
            if array.flags.writeable:
                array.reshape(-1).view(np.uint8)[:] = self._here(array)

    def _here(self, array: np.ndarray) -> Lanes:
        place = self._place(array)
        return self.window.bytes[place : place + array.nbytes]

    def _place(self, array: np.ndarray) -> int:
        pointer = array.ctypes.data
        for low, piece in self._regions:
            start = piece.start + pointer - low
            if low <= pointer and start + array.nbytes <= piece.end:
                return start
        raise AssertionError("an array that was not placed")


def _regions(arrays: Sequence[tuple[str, np.ndarray]]) -> list[Piece]:
    """Return the stretches of NumPy's memory that arrays take, those joined that overlap."""
    joined: list[Piece] = []
    for name, array in sorted(arrays, key=lambda named: named[1].ctypes.data):
        low = array.ctypes.data
        own = Piece(name, low, low + array.nbytes, array.flags.writeable)
        if joined and low < joined[-1].end:
            last = joined.pop()
            both = last.name if (low, own.end) == last[1:3] else f"{last.name} and {name}"
            own = Piece(both, last.start, max(last.end, own.end), last.writable or own.writable)
        joined.append(own)
    return joined
