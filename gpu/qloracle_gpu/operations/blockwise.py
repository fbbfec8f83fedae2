"""A block, its absmax, and the nearest level: the launches of L0.

The rules are those of `qloracle.blockwise`, the kernels in `kernels/quantize.cu` and
`kernels/dequantize.cu`.  Where these functions differ from the reference's:

* blocksize is a power of two from 32 to 4096;
* values are not looked at: that x is finite and a codebook never decreases is the caller's word,
  and a code that names no level of a codebook decodes to NaN;
* `dequantize_4bit` takes `nested=` in place of absmax, and decodes the scales in the same launch.
"""

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np

from qloracle import arguments as plain
from qloracle import codebook as codebook_of
from qloracle import dynamic_codebook
from qloracle.arguments import Float32
from qloracle.codebook import FP4_CODES, FP4_MAGNITUDES, QUANT_TYPES
from qloracle_gpu.devices import Argument, Array, Device, type_name
from qloracle_gpu.operations import arguments as check

THREADS = 256  # of a block; the kernels take any multiple of a warp up to this
SPAN = THREADS * 8 * 4  # elements of a block: 4 octets a thread keep many bytes on their way
CODED_SPAN = 2 * SPAN  # of one that codes 8 bits: it fills a table of 1024 bins first
GROUP = 256  # scales that share one nested_absmax, where `nested=` is given

# codes, nested_absmax, offset, codebook (None: the signed dynamic map), as of `quantize_absmax`
Nested: TypeAlias = Sequence[Array]


def quantize_4bit(
    device: Device, x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Array, Array]:
    """Quantize to 4 bits: packed uint8[ceil(n / 2)], absmax float32[ceil(n / blocksize)].

    x: float32, float16 or bfloat16 of any shape, n elements; blocksize: a power of two from 32 to
    4096; quant_type: nf4 or fp4. TypeError or ValueError otherwise.

    Source: rules S3 to S6; `qloracle.quantize_4bit`.
    """
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    step = check.blocksize(blocksize)
    known = check.floats(device, "x", x)
    n = check.count(known)
    packed = device.empty(((n + 1) // 2,), "uint8")
    absmax = device.empty((blocks(n, step),), "float32")
    ordered, names = _in_order(quant_type)
    table = levels(device.table(ordered))
    rest = *table, np.int32(names), packed, absmax, np.int64(n), log2(step)
    launch(device, f"quantize_4bit_{type_name(known)}", n, known, *rest)
    return packed, absmax


def dequantize_4bit(
    device: Device,
    packed: Array,
    absmax: Array | None = None,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: object = "float32",
    nested: Nested | None = None,
) -> Array:
    """Decode packed 4-bit codes to dtype[shape].

    packed: uint8[ceil(n / 2)], n the product of shape; absmax: float32[ceil(n / blocksize)], or in
    its place nested=(codes, nested_absmax, offset, codebook), what `quantize_absmax` made of it and
    the codebook that it was given; dtype: float32, float16 or bfloat16, by name or as a dtype of
    NumPy's or torch's. TypeError or ValueError otherwise.

    Source: rules S6 to S8; `qloracle.dequantize_4bit`.
    """
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    step = check.blocksize(blocksize)
    wanted = check.float_type("dtype", dtype)
    dims, n = plain.dimensions("shape", shape)
    known = check.vector(device, "packed", packed, "uint8", (n + 1) // 2)
    scale, group = scales(device, absmax, nested, blocks(n, step))
    values = device.empty(dims, wanted)
    table = levels(device.table(in_code_order(quant_type)))
    kernel = f"dequantize_4bit_{'nested_' if group else ''}{wanted}"
    launch(device, kernel, n, known, *scale, *table, values, np.int64(n), log2(step), *group)
    return values


def quantize_blockwise(
    device: Device, x: Array, codebook: Array, *, blocksize: int = 256
) -> tuple[Array, Array]:
    """Quantize to any sorted codebook: codes uint8[n], absmax float32[ceil(n / blocksize)].

    codebook: 2 to 256 float32 that never decrease; x and blocksize as in `quantize_4bit`.

    Source: rules S3 to S5; `qloracle.quantize_blockwise`.
    """
    step = check.blocksize(blocksize)
    table = levels(check.codebook(device, "codebook", codebook))
    known = check.floats(device, "x", x)
    n = check.count(known)
    codes = device.empty((n,), "uint8")
    absmax = device.empty((blocks(n, step),), "float32")
    kernel = f"quantize_blockwise_{type_name(known)}"
    rest = *table, codes, absmax, np.int64(n), log2(step)
    launch(device, kernel, n, known, *rest, span=CODED_SPAN)
    return codes, absmax


def dequantize_blockwise(
    device: Device,
    codes: Array,
    absmax: Array,
    codebook: Array,
    *,
    shape: Sequence[int],
    blocksize: int = 256,
    dtype: object = "float32",
) -> Array:
    """Decode codes uint8[n] to dtype[shape]; absmax, dtype and blocksize as in `dequantize_4bit`.

    Source: rule S7; `qloracle.dequantize_blockwise`.
    """
    step = check.blocksize(blocksize)
    wanted = check.float_type("dtype", dtype)
    table = levels(check.codebook(device, "codebook", codebook))
    dims, n = plain.dimensions("shape", shape)
    known = check.vector(device, "codes", codes, "uint8", n)
    scale = check.vector(device, "absmax", absmax, "float32", blocks(n, step))
    values = device.empty(dims, wanted)
    kernel = f"dequantize_blockwise_{wanted}"
    launch(device, kernel, n, known, scale, *table, values, np.int64(n), log2(step))
    return values


# ---- what the launches of other levels share -----------------------------------------------------


def launch(device: Device, kernel: str, n: int, *arguments: Argument, span: int = SPAN) -> None:
    """Run a kernel on n elements, `span` of them to a block of threads; nothing runs for none."""
    if n:
        device.launch(kernel, blocks(n, span), THREADS, *arguments)


def blocks(n: int, step: int) -> int:
    """Count the blocks that n elements fill, the last one perhaps short."""
    return -(-n // step)


def log2(step: int) -> np.int32:
    """Return the exponent of a power of two, as kernels take block sizes."""
    return np.int32(step.bit_length() - 1)


def levels(table: Array) -> tuple[Array, np.int32]:
    """Return a codebook as kernels take it: the levels and their number."""
    return table, np.int32(table.shape[0])


def map_of(
    device: Device, codebook: Array | None, name: str = "codebook", *, signed: bool = True
) -> Array:
    """Return an 8-bit map: the dynamic one, signed or not, unless another was passed in."""
    if codebook is None:
        return device.table(_dynamic_map(signed=signed))
    return check.codebook(device, name, codebook)


def scales(
    device: Device, absmax: Array | None, nested: Nested | None, size: int
) -> tuple[tuple[Argument, ...], tuple[np.int32, ...]]:
    """Check the scales of `size` blocks, plain or nested, and return them as kernels take them.

    The second part is what follows the block size: of nested scales, the size of their groups.
    """
    if (absmax is None) == (nested is None):
        given = "neither" if nested is None else "both"
        raise TypeError(f"absmax or nested must be given, and not both, got {given}")
    if nested is None:
        return (check.vector(device, "absmax", absmax, "float32", size),), ()
    if not isinstance(nested, tuple | list) or len(nested) != 4:
        raise TypeError(f"nested must be (codes, nested_absmax, offset, codebook), got {nested!r}")
    codes, nested_absmax, offset, codebook = nested
    known = (
        check.vector(device, "the codes of nested", codes, "uint8", size),
        check.vector(device, "nested_absmax", nested_absmax, "float32", blocks(size, GROUP)),
        check.scalar(device, "offset", offset),
    )
    return (*known, *levels(map_of(device, codebook))), (log2(GROUP),)


# ---- codebooks: the same NumPy array at every call, of which a machine keeps one copy ------------


@cache
def _in_order(quant_type: str) -> tuple[Float32, int]:
    """Return levels in order, and their names: of FP4 its magnitudes, with codes as nibbles."""
    if quant_type != "fp4":
        return codebook_of(quant_type), 0
    names = sum(code << 4 * rank for rank, code in enumerate(FP4_CODES))
    return np.array(FP4_MAGNITUDES, np.float32), names


in_code_order, _dynamic_map = cache(codebook_of), cache(dynamic_codebook)
