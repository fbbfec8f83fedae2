"""How probes ask quantizers and decoders: by ranks instead of codes, and by shapes of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.codes.cases import encode_case, packed_case
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View


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
    got = ask.values(packed_case(view, codes, scale, shape, size, dtype or ask.dtype(view)))
    return None if got is None or got[0].size != codes.size else got[0].reshape(shape)
