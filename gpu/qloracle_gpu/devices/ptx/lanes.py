"""What lanes do together: shuffles, and who has to be there.

`lane` is the number of each lane among the threads of the blocks that run at once, in rising order.
"""

from functools import cache

import numpy as np

from qloracle_gpu.devices.ptx.arithmetic import Lanes
from qloracle_gpu.devices.ptx.errors import Misuse

WARP = 32
ALL = 0xFFFFFFFF


def shuffle(x: Lanes, by: Lanes, clamp: Lanes, mask: Lanes, lane: Lanes) -> tuple[Lanes, Lanes]:
    """shfl.sync.bfly: each lane's value of another lane, and whether that lies in its segment.

    >>> x = np.arange(32, dtype=np.uint32)
    >>> one, all_, everyone = np.uint32([[1], [31], [ALL]])
    >>> shuffle(x, one, all_, everyone, np.arange(32))[0][[0, 1, 30, 31]]
    array([ 1,  0, 31, 30], dtype=uint32)
    """
    whole = by.size == clamp.size == mask.size == 1 and int(mask[0]) == ALL
    if whole and x.size == lane.size and lane.size % WARP == 0:  # whole warps, as most are
        source, inside = _pattern(int(by[0]), int(clamp[0]))
        return x.reshape(-1, WARP)[:, source].reshape(-1), np.tile(inside, lane.size // WARP)
    source, inside = _sources(by, clamp, lane % WARP)
    named = (mask.astype(np.int64) >> source) & 1
    if not np.all(named):
        first = int(np.argmin(np.broadcast_to(named, lane.shape)))
        raise Misuse(f"the lane that is read, {source[first]}, is not in the mask", first)
    if x.size == 1:
        return x, inside
    return x[np.searchsorted(lane, lane - lane % WARP + source)], inside


@cache
def _pattern(by: int, clamp: int) -> tuple[Lanes, Lanes]:
    return _sources(np.array([by], np.uint32), np.array([clamp], np.uint32), np.arange(WARP))


def _sources(by: Lanes, clamp: Lanes, lane: Lanes) -> tuple[Lanes, Lanes]:
    """Return the lane of the warp that each reads, and whether it lies within the segment."""
    segment, most = (clamp.astype(np.int64) >> 8) & 31, clamp.astype(np.int64) & 31
    source = lane ^ (by.astype(np.int64) & 31)
    inside = source <= (lane & segment) | (most & ~segment)
    return np.where(inside, source, lane), inside


def warps_present(mask: Lanes, lane: Lanes) -> Lanes:
    """Return for each lane whether all lanes that its mask names are here; Misuse if it names not
    the lane itself.

    >>> warps_present(np.uint32([0xB, 0x3, 0xF, 0x4]), np.array([0, 1, 3, 34]))
    array([ True,  True, False,  True])
    """
    word = np.broadcast_to(mask, lane.shape)
    warp, bit = lane // WARP, (lane % WARP).astype(np.uint32)
    own = word >> bit & 1
    if not own.all():
        raise Misuse("the mask does not name the lane itself", int(np.argmin(own)))
    here = np.zeros(int(warp.max()) + 1, np.uint32)  # bits of the lanes of each warp
    np.bitwise_or.at(here, warp, np.uint32(1) << bit)
    return here[warp] & word == word


def blocks_present(lane: Lanes, threads: int) -> Lanes:
    """Return for each lane whether all threads of its block are here."""
    block = lane // threads
    return np.bincount(block)[block] == threads
