"""Calls of a quantizer or a decoder under the table of a view."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Arrays, Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View


def encode_case(view: View, x: NDArray[Any], blocksize: int, note: str = "") -> Case:
    """A quantizer's call on x: a 4-bit type by its name, an 8-bit map as an array."""
    if view.quant_type:
        options = {"blocksize": blocksize, "quant_type": view.table}
        return Case("quantize_4bit", {"x": x}, options, note)
    arrays = {"x": x, "codebook": view.levels}
    return Case("quantize_blockwise", arrays, {"blocksize": blocksize}, note)


def packed_case(
    view: View, codes: NDArray[np.uint8], scale: Float32, shape: tuple[int, ...],
    blocksize: int, dtype: str, note: str = "",
) -> Case:  # fmt: skip
    """A decoder's call on codes, packed where the function takes packed bytes."""
    options: dict[str, Any] = {"shape": list(shape), "blocksize": blocksize, "dtype": dtype}
    if view.quant_type:
        packed = expected.pack(codes, view.dialect["nibble_order"])
        four_bit: Arrays = {"packed": packed, "absmax": scale}
        return Case("dequantize_4bit", four_bit, options | {"quant_type": view.table}, note)
    coded: Arrays = {"codes": codes, "absmax": scale, "codebook": view.levels}
    return Case("dequantize_blockwise", coded, options, note)


def bytes_case(
    view: View, packed: NDArray[np.uint8], scale: Float32, n: int, dtype: str, note: str
) -> Case:
    """A 4-bit decoder's call on bytes as they are, n elements in blocks of 64."""
    options = {"shape": [n], "blocksize": 64, "quant_type": view.table, "dtype": dtype}
    return Case("dequantize_4bit", {"packed": packed, "absmax": scale}, options, note)


def plain_encode(ask: Asker, view: View) -> Case:
    """A call that every quantizer should take: one full block, from -1 to 1."""
    size = ask.blocksize(view)
    x = np.linspace(-1, 1, size, dtype=np.float32).astype(FLOAT_TYPES[ask.dtype(view)])
    return encode_case(view, x, size)


def plain_decode(ask: Asker, view: View) -> Case:
    """A call that every decoder should take: one full block of the first code, at scale 1."""
    size = ask.blocksize(view)
    codes, one = np.zeros(size, np.uint8), np.ones(1, np.float32)
    return packed_case(view, codes, one, (size,), size, ask.dtype(view))


# ---- asking: by ranks instead of codes, with as many scales as the layout needs ------------------


def encode(
    ask: Asker, view: View, x: NDArray[Any], blocksize: int = 0
) -> tuple[NDArray[np.int64], Float32] | None:
    """Encode x, in a type that the function takes; return (ranks of all elements, absmax)."""
    got = ask.values(typed_case(ask, view, x, blocksize))
    if got is None:
        return None
    codes = got[0].reshape(-1)
    if view.quant_type:
        codes = expected.unpack(codes.astype(np.uint8), x.size, view.dialect["nibble_order"])
    if codes.size != x.size:
        return None
    return view.coder.ranks_of(codes), got[1].reshape(-1).astype(np.float32)


def typed_case(ask: Asker, view: View, x: NDArray[Any], blocksize: int = 0) -> Case:
    """A quantizer's call on x, in a type that it takes."""
    x = x.astype(FLOAT_TYPES[ask.dtype(view, x.dtype.name)])
    return encode_case(view, x, blocksize or ask.blocksize(view))


def decode(
    ask: Asker, view: View, codes: NDArray[np.uint8], scale: Float32, shape: tuple[int, ...],
    dtype: str = "", blocksize: int = 0,
) -> NDArray[Any] | None:  # fmt: skip
    """Decode codes; the scales are repeated if the layout needs more of them."""
    size = blocksize or ask.blocksize(view)
    blocks = expected.blocks_of(shape, size, view.dialect["layout"]).sizes.size
    scale = np.resize(scale, max(blocks, scale.size)).astype(np.float32)
    case = packed_case(view, codes, scale, shape, size, dtype or ask.dtype(view))
    got = ask.first(case, codes.size)
    return None if got is None else got.reshape(shape)
