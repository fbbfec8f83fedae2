"""Double quantization, the scales of the scales: the launches of L1.

The rule is that of `qloracle.nested`, the kernels in `kernels/nested.cu`.  The offset is a sum in
float64 whose order depends on the number of scales only: the same scales give the same bits at
every call, which need not be the reference's (it rounds the exact sum), but keep far within S8's
bound.  The block size is a power of two from 32 to 4096, and values are not looked at.
"""

import numpy as np

from qloracle_gpu.devices import Array, Device
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations.blockwise import (
    CODED_SPAN,
    THREADS,
    blocks,
    launch,
    levels,
    log2,
    map_of,
)

SUMS = 256  # blocks of threads that add, at most: two for each multiprocessor


def quantize_absmax(
    device: Device, absmax: Array, *, codebook: Array | None = None, blocksize: int = 256
) -> tuple[Array, Array, Array]:
    """Quantize nb scales: codes uint8[nb], nested_absmax float32[ceil(nb / blocksize)], offset.

    absmax: float32[nb]; codebook: None for the signed dynamic map, else 2 to 256 float32 that never
    decrease; blocksize: a power of two from 32 to 4096. TypeError or ValueError otherwise. The
    offset is float32 of shape (); that of no scales is 0.

    Source: rule S8; `qloracle.quantize_absmax`.
    """
    step = check.blocksize(blocksize)
    table = levels(map_of(device, codebook))
    known = check.vector(device, "absmax", absmax, "float32")
    nb = check.count(known)
    codes = device.empty((nb,), "uint8")
    nested_absmax = device.empty((blocks(nb, step),), "float32")
    offset = _mean(device, known, nb)
    rest = *table, codes, nested_absmax, np.int64(nb), log2(step)
    launch(device, "quantize_absmax", nb, known, offset, *rest, span=CODED_SPAN)
    return codes, nested_absmax, offset


def dequantize_absmax(
    device: Device,
    codes: Array,
    nested_absmax: Array,
    offset: Array,
    *,
    codebook: Array | None = None,
    blocksize: int = 256,
) -> Array:
    """Decode the scales, float32[nb], with two roundings and no clamp.

    codes: uint8[nb]; nested_absmax: float32[ceil(nb / blocksize)]; offset: float32 of shape ();
    codebook and blocksize as in `quantize_absmax`.

    Source: rule S8; `qloracle.dequantize_absmax`.
    """
    step = check.blocksize(blocksize)
    table = levels(map_of(device, codebook))
    known = check.vector(device, "codes", codes, "uint8")
    nb = check.count(known)
    groups = check.vector(device, "nested_absmax", nested_absmax, "float32", blocks(nb, step))
    mean = check.scalar(device, "offset", offset)
    absmax = device.empty((nb,), "float32")
    rest = *table, absmax, np.int64(nb), log2(step)
    launch(device, "dequantize_absmax", nb, known, groups, mean, *rest)
    return absmax


def _mean(device: Device, absmax: Array, nb: int) -> Array:
    """Return the mean, float32 of shape (), in two launches; 0 for no scales."""
    if not nb:
        zero = device.table(np.zeros(1, np.float32))
        return (zero + zero).reshape(())  # an array of the caller's own: a table is kept
    size = min(blocks(nb, 4 * THREADS), SUMS)
    sums, offset = device.empty((size,), "float64"), device.empty((), "float32")
    device.launch("sum_absmax", size, THREADS, absmax, sums, np.int64(nb))
    device.launch("mean_absmax", 1, THREADS, sums, np.int64(size), offset, np.int64(nb))
    return offset
