"""The right functions, whole and in steps: a mutant replaces one step and tells why.

`Right` offers every function as the reference has it.  `Encoder` and `Decoder` build the same
functions out of the steps of S4 to S7, so that a fault can stand where it stands in a kernel: in
the scale, in the comparison, in the packing, in the block index.
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

import qloracle
from qloracle.codebook import FP4_CODES, FP4_MAGNITUDES

Array = NDArray[Any]
Shape = tuple[int, ...]
Step = Callable[..., Any]
Widen = Callable[[Array], Array]  # any input -> flat
Peak = Callable[[Array, int], Array]  # flat, block size -> absmax
Scale = Callable[[Array, Array, int], Array]  # flat, absmax, block size -> q
Thresholds = Callable[[Array], Array]  # levels in their order -> what lies between them
Count = Callable[[Array, Array], Array]  # q, thresholds -> ranks
Pack = Callable[[Array], Array]  # codes -> bytes
Levels = Callable[[Any], Array]  # quant type -> table
Unpack = Callable[[Array, Shape], Array]  # bytes, shape -> codes
Index = Callable[[Shape, int], Array]  # shape, block size -> the block of each element
Multiply = Callable[[Array, Array, DTypeLike], Array]  # level and absmax of each element, type

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NF4 = qloracle.nf4_codebook()
MAGNITUDES = np.array(FP4_MAGNITUDES, np.float32)
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Right:
    """Every function as the reference has it."""

    kills: ClassVar[str] = ""  # the rule that is expected to kill the mutant
    adopts: ClassVar[str] = ""  # what the kit must print of a lawful variant
    lawful: ClassVar[bool] = False  # it differs and is right
    arrays: ClassVar[str] = "numpy"
    dialect: ClassVar[Mapping[str, Any]] = {}

    quantize_4bit: ClassVar[Any] = staticmethod(qloracle.quantize_4bit)
    dequantize_4bit: ClassVar[Any] = staticmethod(qloracle.dequantize_4bit)
    quantize_blockwise: ClassVar[Any] = staticmethod(qloracle.quantize_blockwise)
    dequantize_blockwise: ClassVar[Any] = staticmethod(qloracle.dequantize_blockwise)
    quantize_absmax: ClassVar[Any] = staticmethod(qloracle.quantize_absmax)
    dequantize_absmax: ClassVar[Any] = staticmethod(qloracle.dequantize_absmax)
    matmul_4bit: ClassVar[Any] = staticmethod(qloracle.matmul_4bit)
    matmul_4bit_backward: ClassVar[Any] = staticmethod(qloracle.matmul_4bit_backward)
    lora_forward: ClassVar[Any] = staticmethod(qloracle.lora_forward)
    lora_backward: ClassVar[Any] = staticmethod(qloracle.lora_backward)
    qlora_forward: ClassVar[Any] = staticmethod(qloracle.qlora_forward)
    qlora_backward: ClassVar[Any] = staticmethod(qloracle.qlora_backward)
    adam_step: ClassVar[Any] = staticmethod(qloracle.adam_step)
    adam_step_8bit: ClassVar[Any] = staticmethod(qloracle.adam_step_8bit)


def fault(
    kills: str, story: str, declared: Mapping[str, Any] = NOTHING, /, **functions: Step
) -> type[Right]:
    """A faulty implementation as one row: the rule that kills it, its story, what it replaces.

    The story says in one sentence what is wrong and ends in its source; `declared` holds arrays,
    dialect, limits.  The row gets its name from the variable that holds it (`catalogue`).

    >>> fault("S8", "The offset is lost.", dequantize_absmax=lambda codes, *_: codes).kills
    'S8'
    """
    return _row(story, functions, {"kills": kills, **declared})


def variant(
    adopts: str, story: str, declared: Mapping[str, Any] = NOTHING, /, **functions: Step
) -> type[Right]:
    """A lawful implementation as one row: what the kit must print, its story, its functions."""
    return _row(story, functions, {"adopts": adopts, "lawful": True, **declared})


def _row(story: str, functions: Mapping[str, Step], facts: Mapping[str, Any]) -> type[Right]:
    body = {name: staticmethod(function) for name, function in functions.items()}
    where = sys._getframe(2).f_globals["__name__"]  # the module that writes the row
    return type("Row", (Right,), {"__doc__": story, "__module__": where, **body, **facts})


# ---- changes around a whole function -------------------------------------------------------------


def then(function: Step, change: Step) -> Step:
    """The function, its result changed before it is returned; several results come one by one."""

    def changed(*arrays: Array, **options: Any) -> Any:
        result = function(*arrays, **options)
        return change(*result) if isinstance(result, tuple) else change(result)

    return changed


def insisting(function: Step, **fixed: Any) -> Step:
    """The function with some options fixed, whatever the caller asks for."""
    return lambda *arrays, **options: function(*arrays, **{**options, **fixed})


def refusing(function: Step, error: Exception, refused: Callable[..., Any]) -> Step:
    """The function, but for calls that are refused: those raise an error."""

    def call(*arrays: Array, **options: Any) -> Any:
        if refused(*arrays, **options):
            raise error.with_traceback(None)
        return function(*arrays, **options)

    return call


def each(change: Callable[[Step], Step], *names: str) -> dict[str, Step]:
    """Several of the right functions, changed in the same way."""
    return {name: change(getattr(qloracle, name)) for name in names}


def spoiling(spoil: Callable[[Array], Array]) -> Callable[[Step], Step]:
    """A function that leaves something else in its first array."""

    def changed(function: Step) -> Step:
        def call(first: Array, *others: Array, **options: Any) -> Any:
            result = function(first, *others, **options)
            first[...] = spoil(first)
            return result

        return call

    return changed


def one_by_one(function: Step, change: Callable[[int, Array], Array]) -> Step:
    """The function, each of its results changed; the change is told which one it is."""

    def call(*arrays: Array, **options: Any) -> Any:
        result = function(*arrays, **options)
        if isinstance(result, tuple):
            return tuple(itertools.starmap(change, enumerate(result)))
        return change(0, result)

    return call


def pooled(function: Step) -> Step:
    """The function with one buffer for each result and type, which the next call overwrites."""
    buffers: dict[Any, Array] = {}

    def kept(place: int, result: Array) -> Array:
        key = place, result.dtype
        if key not in buffers or buffers[key].size < result.size:
            buffers[key] = np.zeros(2 * result.size, result.dtype)
        buffer = buffers[key][: result.size]
        buffer[:] = result.reshape(-1)
        return buffer.reshape(result.shape)

    return one_by_one(function, kept)


# ---- the steps of a quantizer --------------------------------------------------------------------


def widened(x: Array) -> Array:
    """S4: a flat float32 copy."""
    return x.astype(np.float32).reshape(-1)


def peaks(flat: Array, blocksize: int) -> Array:
    """S4: the largest magnitude of each block."""
    return np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, blocksize))


def spread(absmax: Array, n: int, blocksize: int) -> Array:
    """S3: the absmax of each element's block."""
    return np.repeat(absmax, min(blocksize, max(n, 1)))[:n]


@np.errstate(all="ignore")
def divided(flat: Array, absmax: Array, blocksize: int) -> Array:
    """S5: q = x / absmax, +0 in a block of zeros."""
    scale = spread(absmax, flat.size, blocksize)
    return np.where(scale == 0, np.float32(0), flat / scale)


@np.errstate(all="ignore")
def inverted(flat: Array, absmax: Array, blocksize: int) -> Array:
    """q = x * (1 / absmax), as most kernels scale; +0 in a block of zeros."""
    scale = spread(absmax, flat.size, blocksize)
    return np.where(scale == 0, np.float32(0), flat * (np.float32(1) / scale))


def counted(q: Array, thresholds: Array) -> Array:
    """S5: the number of thresholds below q; a NaN lies above none."""
    return np.where(np.isnan(q), 0, np.searchsorted(thresholds, q, side="left"))


def packed_pairs(codes: Array) -> Array:
    """S6: the first of two codes in the high nibble, a spare nibble filled with 0."""
    pairs = np.append(codes, np.zeros(codes.size % 2, np.uint8)).reshape(-1, 2)
    return np.asarray(pairs[:, 0] << 4 | pairs[:, 1])


def coded(q: Array, table: Array, quant_type: str, thresholds: Thresholds, count: Count) -> Array:
    """S5 for a 4-bit type: FP4 by sign and magnitude, others by the rank of a level."""
    if quant_type == "fp4":
        size = np.array(FP4_CODES)[count(np.abs(q), thresholds(MAGNITUDES))]
        return np.asarray(size | (q < 0) << 3, np.uint8)
    order = np.argsort(table)
    return order[count(q, thresholds(table[order]))].astype(np.uint8)


class Encoder(NamedTuple):
    """Both quantizers of L0 out of the same steps."""

    widen: Widen = widened
    peak: Peak = peaks
    scale: Scale = divided
    levels: Levels = qloracle.codebook
    thresholds: Thresholds = qloracle.thresholds
    rank: Count = counted
    pack: Pack = packed_pairs

    @np.errstate(all="ignore")
    def four_bit(
        self, x: Array, *, blocksize: int = 64, quant_type: str = "nf4"
    ) -> tuple[Array, Array]:
        """quantize_4bit."""
        q, absmax = self._scaled(x, blocksize)
        table = self.levels(quant_type)
        return self.pack(coded(q, table, quant_type, self.thresholds, self.rank)), absmax

    @np.errstate(all="ignore")
    def eight_bit(self, x: Array, codebook: Array, *, blocksize: int = 256) -> tuple[Array, Array]:
        """quantize_blockwise."""
        q, absmax = self._scaled(x, blocksize)
        return self.rank(q, self.thresholds(codebook)).astype(np.uint8), absmax

    def _scaled(self, x: Array, blocksize: int) -> tuple[Array, Array]:
        flat = self.widen(x)
        absmax = self.peak(flat, blocksize)
        return self.scale(flat, absmax, blocksize), absmax

    def both(self) -> dict[str, Step]:
        """The two, by name."""
        return {"quantize_4bit": self.four_bit, "quantize_blockwise": self.eight_bit}


# ---- the steps of a decoder ----------------------------------------------------------------------


def unpacked(packed: Array, shape: Shape) -> Array:
    """S6: the codes of all elements, the high nibble first."""
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[: math.prod(shape)]


def block_index(shape: Shape, blocksize: int) -> Array:
    """S3: the block of each element, whatever the shape."""
    return np.arange(math.prod(shape)) // blocksize


def product(levels: Array, scale: Array, dtype: DTypeLike) -> Array:
    """S7: one float32 product, rounded once to the output type."""
    return (levels * scale).astype(dtype)


def table(known: Any) -> Array:
    """S1: the levels of a 4-bit type by its name, or those that are passed in."""
    return qloracle.codebook(known) if isinstance(known, str) else known


class Decoder(NamedTuple):
    """Both decoders of L0 out of the same steps; an index beyond the end reads the last scale."""

    levels: Levels = table
    unpack: Unpack = unpacked
    block: Index = block_index
    multiply: Multiply = product

    @np.errstate(all="ignore")
    def four_bit(
        self, packed: Array, absmax: Array, *, shape: Shape, blocksize: int = 64,
        quant_type: str = "nf4", dtype: DTypeLike = np.float32,
    ) -> Array:  # fmt: skip
        """dequantize_4bit."""
        codes = self.unpack(packed, shape)
        return self.eight_bit(
            codes, absmax, quant_type, shape=shape, blocksize=blocksize, dtype=dtype
        )

    @np.errstate(all="ignore")
    def eight_bit(
        self, codes: Array, absmax: Array, codebook: Any, *, shape: Shape, blocksize: int = 256,
        dtype: DTypeLike = np.float32,
    ) -> Array:  # fmt: skip
        """dequantize_blockwise."""
        scale = absmax.take(self.block(shape, blocksize), mode="clip")
        values = self.multiply(self.levels(codebook)[codes], scale, dtype)
        return np.asarray(values).reshape(shape)

    def both(self) -> dict[str, Step]:
        """The two, by name."""
        return {"dequantize_4bit": self.four_bit, "dequantize_blockwise": self.eight_bit}


# ---- small tools ---------------------------------------------------------------------------------


def rounded(values: Array, dtype: DTypeLike) -> Array:
    """Round to a narrow type and widen again."""
    return values.astype(dtype).astype(np.float32)


def blocks_of_rows(shape: Shape, blocksize: int) -> Array:
    """The block of each element if each row starts a block of its own."""
    row, column, length = rows_and_columns(shape)
    return np.asarray(row * -(-length // blocksize) + column // blocksize)


def rows_and_columns(shape: Shape) -> tuple[Array, Array, int]:
    """Row and column of each element, and the length of a row."""
    length = max(shape[-1] if shape else 1, 1)
    place = np.arange(math.prod(shape))
    return place // length, place % length, length
