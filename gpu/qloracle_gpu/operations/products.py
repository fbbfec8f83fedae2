"""The product with a packed weight that is never there as a whole: the launches of L2.

The rule is that of `qloracle.linear4bit`, the kernel in `kernels/product.cu`.

* Up to 16 rows of x take one launch, which decodes W as it goes. The order of its sums depends on
  the shape of W alone: a row has the same bits in any company, and wherever the arrays begin.
* More rows, and all gradients, meet W a few rows at a time: `dequantize_4bit` in float32, and the
  machine's own product. At most `device.chunk` decoded weights are there at once (or one row).
* The weights are the same in both: float32, as `dequantize_4bit` has them, whatever the type of x.
* In place of absmax, `nested=` is taken as `dequantize_4bit` takes it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from qloracle import arguments as plain
from qloracle.codebook import QUANT_TYPES
from qloracle_gpu.devices import Argument, Array, Arrays, Device, type_name
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations import blockwise
from qloracle_gpu.operations.blockwise import Nested, blocks, levels, log2
from qloracle_gpu.operations.nested import dequantize_absmax

FEW = 16  # rows of x that one launch takes
TILES = (1, 2, 4, 8, FEW)  # rows of x for which a kernel exists
COLUMNS, WARPS = 4, 8  # rows of W of a warp, warps of a block, as in product.cu
OCTET, SPAN = 8, 256  # elements of K of a lane and of a warp at a time
ENOUGH_WARPS = 4096  # to fill a large GPU
WIDEST = 1 << 30  # elements of a row that the kernel counts in 32 bits

Chunks: TypeAlias = Iterable[tuple[slice, Array]]  # rows of W, and W[rows] in float32
Added: TypeAlias = Callable[[slice], Array]  # what joins x W' before it is rounded, for rows of W


class Weight(NamedTuple):
    """A packed weight whose arguments have been checked."""

    packed: Array
    scales: tuple[Argument, ...]  # absmax; or codes, nested_absmax, offset, map and its size
    group: tuple[np.int32, ...]  # log2 of the size of nested groups; () where scales are plain
    shape: tuple[int, int]
    blocksize: int
    quant_type: str


def matmul_4bit(
    device: Device,
    x: Array,
    packed: Array,
    absmax: Array | None = None,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    bias: Array | None = None,
    nested: Nested | None = None,
) -> Array:
    """Return y = x W' + bias of shape (..., out), in x's type.

    x: float32, float16 or bfloat16 (..., in), any number of leading dimensions; packed, absmax,
    blocksize, quant_type and nested as in `dequantize_4bit`; shape: (out, in) of W; bias: None or
    (out,), x's type or float32. TypeError or ValueError otherwise.

    Source: rule S9; `qloracle.matmul_4bit`.
    """
    dims = plain.matrix_shape("shape", shape)
    known = check.rows(device, "x", x, dims[1], f"shape {dims}")
    weight = weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    bias = bias_of(device, bias, type_name(known), dims)
    x = as_matrix(known)
    if x.shape[0] <= FEW:
        y = _few(device, x, weight, bias)
    else:
        added = None if bias is None else device.cast(bias, "float32").__getitem__
        x32, rows = device.cast(x, "float32"), decoded(device, weight)
        y = times_rows(device, rows, dims[0], x32, added, type_name(x))
    return y.reshape((*known.shape[:-1], dims[0]))


def matmul_4bit_backward(
    device: Device,
    dy: Array,
    packed: Array,
    absmax: Array | None = None,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    nested: Nested | None = None,
) -> Array:
    """Return dx = dy W of shape (..., in), in dy's type; W and the bias get no gradient.

    dy: float32, float16 or bfloat16 (..., out); the rest as in `matmul_4bit`.

    Source: rule S9; `qloracle.matmul_4bit_backward`.
    """
    dims = plain.matrix_shape("shape", shape)
    known = check.rows(device, "dy", dy, dims[0], f"shape {dims}")
    weight = weight_of(device, packed, absmax, dims, blocksize, quant_type, nested)
    dx = backward(device, weight, device.cast(as_matrix(known), "float32"))
    return device.cast(dx, type_name(known)).reshape((*known.shape[:-1], dims[1]))


# ---- what the layers with an adapter share -------------------------------------------------------


def weight_of(
    device: Device,
    packed: Array,
    absmax: Array | None,
    shape: tuple[int, int],
    blocksize: int,
    quant_type: str,
    nested: Nested | None = None,
) -> Weight:
    """Check what describes a packed weight of this shape."""
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    step, n = check.blocksize(blocksize), shape[0] * shape[1]
    known = check.vector(device, "packed", packed, "uint8", (n + 1) // 2)
    scales, group = blockwise.scales(device, absmax, nested, blocks(n, step))
    return Weight(known, scales, group, shape, step, quant_type)


def bias_of(device: Arrays, bias: Array | None, dtype: str, shape: tuple[int, int]) -> Array | None:
    """Check a bias (out,), of x's type or float32."""
    if bias is None:
        return None
    known = check.floats(device, "bias", bias, dtype, "float32")
    return check.shaped("bias", known, shape[:1], f"shape {shape}")


def forward(device: Device, weight: Weight, x: Array, added: Added, dtype: str) -> Array:
    """Return x W' + added, dtype[M, out], of float32 x [M, in]."""
    if x.shape[0] <= FEW:
        return device.cast(_few(device, x, weight, None) + added(slice(None)), dtype)
    return times_rows(device, decoded(device, weight), weight.shape[0], x, added, dtype)


def backward(device: Device, weight: Weight, dy: Array) -> Array:
    """Return dy W, float32[M, in], of float32 dy [M, out]."""
    return times(device, decoded(device, weight), weight.shape[1], dy)


@np.errstate(all="ignore")  # NumPy is one of the machines
def times_rows(
    device: Arrays, chunks: Chunks, out: int, x: Array, added: Added | None, dtype: str
) -> Array:
    """Return x W' + added, dtype[M, out], of float32 x [M, in]: one rounding to dtype."""
    y = device.empty((x.shape[0], out), dtype)
    for rows, w in chunks:
        part = device.product(x, w.T)
        y[:, rows] = device.cast(part if added is None else part + added(rows), dtype)
    return y


@np.errstate(all="ignore")
def times(device: Arrays, chunks: Chunks, width: int, dy: Array) -> Array:
    """Return dy W, float32[M, in], of float32 dy [M, out]."""
    dx = device.product(dy[:, :0], device.empty((0, width), "float32"))  # zeros
    for rows, w in chunks:
        dx += device.product(dy[:, rows], w)
    return dx


def decoded(device: Device, weight: Weight) -> Iterator[tuple[slice, Array]]:
    """Decode W a few rows at a time: yields the slice of rows and float32[rows, in].

    Rows need not start with a block: decoding starts with the block in which they do.
    """
    width, step = weight.shape[1], weight.blocksize
    absmax: Array = weight.scales[0]
    if weight.group:
        codes, groups, offset, levels_of_map, _ = weight.scales
        absmax = dequantize_absmax(device, codes, groups, offset, codebook=levels_of_map)
    for rows in heights(*weight.shape, device.chunk):
        start, stop = rows.start * width, rows.stop * width
        first = start // step  # block
        flat = blockwise.dequantize_4bit(
            device,
            weight.packed[first * step // 2 : (stop + 1) // 2],
            absmax[first : blocks(stop, step)],
            shape=(stop - first * step,),
            blocksize=step,
            quant_type=weight.quant_type,
        )
        yield rows, flat[start - first * step :].reshape((rows.stop - rows.start, width))


def heights(out: int, width: int, chunk: int) -> list[slice]:
    """Cut the rows of W into slices of about `chunk` elements.

    >>> heights(5, 50, chunk=100)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    height = max(chunk // max(width, 1), 1)
    return [slice(top, min(top + height, out)) for top in range(0, out, height)]


def as_matrix(x: Array) -> Array:
    """Return x with all leading dimensions as one."""
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


# ---- one launch for a few rows -------------------------------------------------------------------


def _few(device: Device, x: Array, weight: Weight, bias: Array | None) -> Array:
    """Return x W' + bias, [M, out] in x's type, for at most FEW rows."""
    (m, width), out = tuple(x.shape), weight.shape[0]
    y = device.empty((m, out), type_name(x))
    if not m or not out:
        return y
    if width > WIDEST:
        raise ValueError(f"shape must have rows of at most 2**30 elements, got {weight.shape}")
    aligned = device.address(x) % 16 == 0 and device.address(weight.packed) % 4 == 0
    octets = aligned and width % OCTET == 0  # rows of W begin with one, and wide loads may be used
    tile = next(tile for tile in TILES if tile >= m) if octets else 0
    splits = _splits(*weight.shape)
    grid = blocks(out, COLUMNS * WARPS // splits) * (1 if tile else m)
    table = levels(device.table(blockwise.in_code_order(weight.quant_type)))
    own_type = bias is None or type_name(bias) == type_name(x)
    biases = (bias, None) if own_type else (None, bias)
    sizes = np.int64(m), np.int64(out), np.int32(width), np.int32(splits)
    unnested = (*weight.scales, *[None] * 4, np.int32(0), np.int32(0))  # of both, one is null
    scales = (None, *weight.scales, *weight.group) if weight.group else unnested
    kernel = f"product_4bit_{tile or 'any'}_{type_name(x)}"
    device.launch(
        kernel,
        grid,
        WARPS * 32,
        x,
        weight.packed,
        *scales,
        *table,
        log2(weight.blocksize),
        *biases,
        y,
        *sizes,
    )
    return y


def _splits(out: int, width: int) -> int:
    """Return how many warps share K: enough to fill a GPU, each with two spans of its own or more.

    The shape of W alone decides, since the order of the sums does not depend on more.

    >>> _splits(4096, 4096), _splits(14336, 4096), _splits(1024, 4096), _splits(64, 513)
    (4, 2, 8, 2)
    """
    splits = 1
    while (
        splits < WARPS
        and blocks(out, COLUMNS) * splits < ENOUGH_WARPS
        and 2 * splits * SPAN < width
    ):
        splits *= 2
    return splits
