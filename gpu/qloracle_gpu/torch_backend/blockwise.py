"""A block, its absmax, and the nearest level, in the words of torch.

The rules are those of `qloracle.blockwise`; here is how tensors carry them out.

* Blocks are rows. The flat tensor is seen as a matrix of `blocksize` columns, so that a scale meets
  its block by broadcasting; a short last block is a matrix of one row. These are views: nothing is
  padded, nothing is repeated.
* S5 counts the thresholds below q, and that is `torch.bucketize` with right=False.
* A byte holds two codes, so it names a pair of levels: S6 and S7 together are one look-up in a
  table of 256 pairs.

>>> x = torch.tensor([0.5, -2.0, 0.0, 1.0])
>>> rows = x.view(-1, 2)  # blocks of two
>>> absmax = rows.abs().amax(dim=1)
>>> q = (rows / absmax[:, None]).view(-1)
>>> torch.bucketize(q, table("thresholds", "nf4", x.device))
tensor([10,  0,  7, 15])

Memory. Large tensors are handled in parts of whole blocks, about PART elements each, so that what
is needed beside input and result hardly grows with them. Measured on a CPU: 8 to 12 MiB, and for
each element 1.5 bytes in `quantize_4bit` (its codes before they are packed) and 1 byte in
`dequantize_4bit` where it unpacks first (odd block sizes). A block is never cut: one huge
block is one part, and takes up to 16 bytes for each of its elements.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

import qloracle
from qloracle import arguments as plain
from qloracle.codebook import QUANT_TYPES
from qloracle_gpu.devices.on_torch import Tensors
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.torch_backend import values
from qloracle_gpu.torch_backend.operators import operator
from qloracle_gpu.torch_backend.tables import table

PART = 1 << 20  # elements handled at a time
Blocks: TypeAlias = tuple[Tensor, Tensor]  # codes, packed or not, and absmax


def _fake(n: int, x: Tensor, blocksize: int) -> Blocks:
    """Return n codes and the scales of x, without numbers."""
    scales = x.new_empty(-(-x.numel() // blocksize), dtype=torch.float32)
    return x.new_empty(n, dtype=torch.uint8), scales


@operator(lambda x, blocksize, _: _fake(-(-x.numel() // 2), x, blocksize))
def quantize_4bit(
    x: Tensor, *, blocksize: int = 64, quant_type: str = "nf4"
) -> tuple[Tensor, Tensor]:
    """Quantize to 4 bits: packed uint8[ceil(n / 2)], absmax float32[ceil(n / blocksize)].

    x: float32, float16 or bfloat16 of any shape, n elements, all finite; blocksize: any int >= 1;
    quant_type: nf4 or fp4. TypeError or ValueError otherwise.

    Source: rules S3 to S6; `qloracle.quantize_4bit`.

    >>> packed, absmax = quantize_4bit(torch.tensor([[1.0, -1.0, 3.0]]), blocksize=2)
    >>> packed.tolist(), absmax.tolist()  # the spare nibble holds the code of zero
    ([240, 247], [1.0, 3.0])
    """
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    encode = partial(_codes_4bit, quant_type=quant_type)
    codes, absmax = _quantize(x, blocksize, encode)  # n, ceil(n / blocksize)
    if codes.numel() % 2:  # the spare nibble holds the code of zero
        codes = torch.cat([codes, encode(absmax.new_zeros(1))])
    return codes[::2] << 4 | codes[1::2], absmax


@operator(lambda packed, absmax, shape, *form: packed.new_empty(shape, dtype=form[-1]))
def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    *,
    shape: Sequence[int],
    blocksize: int = 64,
    quant_type: str = "nf4",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Decode packed 4-bit codes to dtype[shape].

    packed: uint8[ceil(n / 2)], n the product of shape; absmax: finite float32[ceil(n / blocksize)],
    which may be negative after double quantization; dtype: torch.float32, torch.float16 (65520 and
    more becomes inf) or torch.bfloat16. TypeError or ValueError otherwise.

    Source: rules S6 and S7; `qloracle.dequantize_4bit`.

    >>> packed, absmax = torch.tensor([0x0F], dtype=torch.uint8), torch.tensor([2.0])
    >>> dequantize_4bit(packed, absmax, shape=(2,)).tolist()
    [-2.0, 2.0]
    """
    plain.choice("quant_type", quant_type, QUANT_TYPES)
    plain.integer("blocksize", blocksize, least=1)
    dims, n = plain.dimensions("shape", shape)
    here = values.beside(packed)
    known = check.vector(here, "packed", packed, "uint8", (n + 1) // 2)
    if blocksize % 2:  # two blocks may share a byte
        codes = torch.stack([known >> 4, known & 15], dim=1).view(-1)[:n]
        levels = table("levels", quant_type, known.device)
        return _decode(levels, codes, absmax, n, blocksize, dtype).view(dims)
    pairs = table("pairs", quant_type, known.device)  # 256, each the two levels that a byte names
    return _decode(pairs, known, absmax, n, blocksize, dtype).view(dims)


@operator(lambda x, codebook, blocksize: _fake(x.numel(), x, blocksize))
def quantize_blockwise(
    x: Tensor, codebook: Tensor, *, blocksize: int = 256
) -> tuple[Tensor, Tensor]:
    """Quantize to any sorted codebook: codes uint8[n], absmax float32[ceil(n / blocksize)].

    codebook: 2 to 256 finite float32 that never decrease; x and blocksize as in `quantize_4bit`.

    Source: rules S3 to S5; `qloracle.quantize_blockwise`.

    >>> levels = torch.tensor([-1.0, 0.0, 1.0])
    >>> codes, absmax = quantize_blockwise(torch.tensor([4.0, 2.0, -2.5]), levels)
    >>> codes.tolist(), absmax.tolist()  # 2 / 4 is a tie
    ([2, 1, 0], [4.0])
    """
    here, known = values.beside(x), check.floats(Tensors(values.place_of(x)), "x", x)
    return quantize_by(map_of(here, "codebook", codebook)[1], known, blocksize)


@operator(lambda codes, absmax, codebook, shape, _, dtype: codes.new_empty(shape, dtype=dtype))
def dequantize_blockwise(
    codes: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    *,
    shape: Sequence[int],
    blocksize: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Decode codes uint8[n] to dtype[shape]; absmax and dtype as in `dequantize_4bit`.

    Source: rule S7; `qloracle.dequantize_blockwise`.

    >>> levels, scale = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([4.0])
    >>> codes = torch.tensor([2, 1, 0], dtype=torch.uint8)
    >>> dequantize_blockwise(codes, scale, levels, shape=(3,)).tolist()
    [4.0, 0.0, -4.0]
    """
    here = values.beside(codes)
    here.array("codes", codes)
    levels, _ = map_of(here, "codebook", codebook)
    dims, n = plain.dimensions("shape", shape)
    known = check.vector(here, "codes", codes, "uint8", n)
    return dequantize_by(levels, known, absmax, blocksize, dtype).view(dims)


def map_or(
    dynamic: str, here: Tensors, name: str, codebook: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return levels and thresholds: of a codebook that was passed in, else of a dynamic map."""
    if codebook is not None:
        return map_of(here, name, codebook)
    return table("levels", dynamic, here.place), table("thresholds", dynamic, here.place)


def map_of(here: Tensors, name: str, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return levels and thresholds of a codebook that was passed in."""
    # checked as the reference checks it, in NumPy: it is small
    known = plain.codebook(name, check.vector(here, name, codebook, "float32").cpu().numpy())
    both = known, qloracle.thresholds(known)
    levels, thresholds = (torch.from_numpy(part).to(here.place) for part in both)
    return levels, thresholds


def quantize_by(thresholds: Tensor, x: Tensor, blocksize: int) -> Blocks:
    """Quantize to the codebook of these thresholds, which are known to be in order."""
    return _quantize(x, blocksize, lambda q: _count_below(thresholds, q).to(torch.uint8))


def dequantize_by(
    levels: Tensor,
    codes: Tensor,
    absmax: Tensor,
    blocksize: int,
    dtype: torch.dtype,
    name: str = "codes",
) -> Tensor:
    """Decode codes uint8[n] by `levels`, which are known to be a codebook; dtype[n]."""
    known = values.codes_below(name, codes, levels.numel())
    return _decode(levels, known, absmax, known.numel(), blocksize, dtype)


def _quantize(
    x: Tensor, blocksize: int, encode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Scale each block by its absmax and encode q = x / absmax, in [-1, 1] (S3 to S5)."""
    step = plain.integer("blocksize", blocksize, least=1)
    flat = check.floats(Tensors(values.place_of(x)), "x", x).reshape(-1)  # n
    codes, absmax = torch.empty_like(flat, dtype=torch.uint8), []
    for rows, coded in zip(_parts(flat, step), _parts(codes, step), strict=True):
        wide = rows.float()  # exact for all three types
        largest = wide.abs().amax(dim=1)
        divisor = largest.masked_fill(largest == 0, 1)  # 0 / 0 is never asked
        coded.copy_(encode(wide / divisor[:, None]))
        absmax.append(largest)
    scale = torch.cat(absmax)  # ceil(n / blocksize)
    values.finite("x", flat, shown_by=scale)
    return codes, scale


def _codes_4bit(q: Tensor, quant_type: str) -> Tensor:
    """Apply S5 to the named types. FP4 is the one whose codes are not in order."""
    thresholds = table("thresholds", quant_type, q.device)
    if quant_type != "fp4":
        return _count_below(thresholds, q).to(torch.uint8)
    smaller = _count_below(thresholds, q.abs())  # so ties go toward zero
    magnitude = table("codes", "fp4", q.device).index_select(0, smaller.view(-1))
    return magnitude.view_as(q) | (q < 0).to(torch.uint8) << 3


def _count_below(thresholds: Tensor, q: Tensor) -> Tensor:
    """Count for each q the thresholds strictly below it, int32: S5's code."""
    return torch.bucketize(q, thresholds, out_int32=True, right=False)


def _decode(
    named: Tensor, stored: Tensor, absmax: Tensor, n: int, blocksize: int, dtype: torch.dtype
) -> Tensor:
    """Return level * absmax, rounded to float32 and then once more to dtype (S7), dtype[n].

    An entry of `named` holds the levels that one stored byte names: one, or a pair.
    """
    wanted = values.float_type("dtype", dtype)
    step = plain.integer("blocksize", blocksize, least=1)
    scale = check.vector(values.beside(stored), "absmax", absmax, "float32", -(-n // step))
    result = torch.empty(n, dtype=wanted, device=stored.device)
    parts, each = _parts(result, step), named.itemsize // 4
    scales = scale.split([len(rows) for rows in parts])
    codes = stored.split([-(-rows.numel() // each) for rows in parts])
    for rows, own, some in zip(parts, scales, codes, strict=True):
        levels = named.index_select(0, some.int()).view(torch.float32)[: rows.numel()]
        torch.mul(levels.view(rows.shape), own[:, None], out=rows)
    return result


def _parts(flat: Tensor, step: int) -> list[Tensor]:
    """See n elements as blocks (S3), each a row: parts of whole ones, then a short one alone."""
    n = flat.numel()
    step = min(step, max(n, 1))  # a block beyond the end is one short block
    whole = n // step * step
    parts = [*flat[:whole].view(-1, step).split(max(PART // step, 1))]
    return [*parts, flat[whole:].view(1, -1)] if whole < n else parts
