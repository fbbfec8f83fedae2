"""Asking an implementation small questions within its scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.contract.cases import Answer, Arrays, Case
from qloracle_conformance.contract.dialects import OPTIMIZERS, PACKED
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.contract.scope import Scope
from qloracle_conformance.families.adam import inputs as adam
from qloracle_conformance.families.lora import inputs as lora
from qloracle_conformance.families.nested import inputs as roundtrip
from qloracle_conformance.families.paging import directed as paging
from qloracle_conformance.families.products import inputs as products
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.views import View

Call = Callable[[Case], Answer]
Found = dict[str, tuple[str, str]]  # field -> (its value, the evidence)
UNNAMED = "none of the named"


class Asker:
    """Calls within the declared scope; None stands for every question without an answer."""

    def __init__(self, call: Call, scope: Scope) -> None:
        self._call, self._scope = call, scope

    def blocksize(self, view: View) -> int:
        """A small block size that the function takes."""
        return int(self._scope.choose(view.function, "blocksize", (64, 32, 128, 256)))

    def dtype(self, view: View, *prefer: str) -> str:
        """A type that the function takes, float32 unless another is preferred."""
        wishes = (*prefer, "float32", "bfloat16", "float16")
        return str(self._scope.choose(view.function, "dtype", wishes))

    def values(self, case: Case) -> tuple[NDArray[Any], ...] | None:
        """The results of a call."""
        if self._scope.outside(case):
            return None
        answer = self._call(case)
        return answer.values if answer.status == "OK" else None

    def trial(self, view: View) -> str:
        """Why the function cannot be judged under this table at all; '' if it can."""
        case = self._plain_case(view)
        outside = self._scope.outside(case)
        if outside:
            return outside
        answer = self._call(case)
        optional = view.quant_type not in ("", "nf4")  # only nf4 is demanded of everybody
        if answer.status == "UNSUPPORTED" or (optional and answer.status == "ERROR"):
            return answer.message or "not supported"
        return ""

    def _plain_case(self, view: View) -> Case:
        """A call that every implementation of the function should take: one full block."""
        size, dtype = self.blocksize(view), self.dtype(view)
        one, codes = np.ones(1, np.float32), np.zeros(size, np.uint8)
        options: dict[str, Any] = {"blocksize": size}
        if view.quant_type:
            options["quant_type"] = view.table
        match view.function:
            case "quantize_4bit" | "quantize_blockwise":
                return self.encode_case(view, np.linspace(-1, 1, size, dtype=np.float32))
            case "dequantize_4bit" | "dequantize_blockwise":
                arrays = coded(view, codes, one)
                return Case(view.function, arrays, options | {"shape": [size], "dtype": dtype})
            case "quantize_absmax":
                return Case(view.function, {"absmax": np.ones(256, np.float32)}, {"blocksize": 256})
            case "quantize_nested":
                return next(roundtrip.levels(view.levels))
            case "make_pager":
                return paging.plain()
            case function if function in OPTIMIZERS:
                return adam.plain(function, dtype)
            case function if "lora" in function:
                return lora.plain(view, dtype, size)
            case function if function in PACKED:
                return products.plain(view, dtype, size)
        arrays = {"codes": codes[:1], "nested_absmax": one, "offset": np.zeros((), np.float32)}
        return Case(view.function, arrays, {"blocksize": 256})

    # ---- encoding ------------------------------------------------------------------------------

    def encode_case(self, view: View, x: NDArray[Any], blocksize: int = 0) -> Case:
        """A quantizer's call on x, in a type that it takes."""
        options: dict[str, Any] = {"blocksize": blocksize or self.blocksize(view)}
        x = x.astype(FLOAT_TYPES[self.dtype(view, x.dtype.name)])
        if view.quant_type:
            return Case(view.function, {"x": x}, options | {"quant_type": view.table})
        return Case(view.function, {"x": x, "codebook": view.levels}, options)

    def encode(
        self, view: View, x: NDArray[Any], blocksize: int = 0
    ) -> tuple[NDArray[np.int64], Float32] | None:
        """Encode and return (ranks of all elements, absmax)."""
        got = self.values(self.encode_case(view, x, blocksize))
        if got is None:
            return None
        codes = got[0].reshape(-1)
        if view.quant_type:
            codes = expected.unpack(codes.astype(np.uint8), x.size, view.dialect["nibble_order"])
        if codes.size != x.size:
            return None
        return view.coder.ranks_of(codes), got[1].reshape(-1).astype(np.float32)

    # ---- decoding ------------------------------------------------------------------------------

    def decode(
        self, view: View, codes: NDArray[np.uint8], scale: Float32, shape: tuple[int, ...],
        dtype: str = "", blocksize: int = 0,
    ) -> NDArray[Any] | None:  # fmt: skip
        """Decode codes; the scales are repeated if the layout needs more of them."""
        options: dict[str, Any] = {
            "shape": list(shape),
            "blocksize": blocksize or self.blocksize(view),
            "dtype": dtype or self.dtype(view),
        }
        if view.quant_type:
            options["quant_type"] = view.table
        layout = view.dialect["layout"]
        due = expected.blocks_of(shape, options["blocksize"], layout).sizes.size
        scale = np.resize(scale, max(due, scale.size)).astype(np.float32)
        got = self.values(Case(view.function, coded(view, codes, scale), options))
        return None if got is None or got[0].size != codes.size else got[0].reshape(shape)


def coded(view: View, codes: NDArray[np.uint8], scale: Float32) -> Arrays:
    """A decoder's arrays: packed bytes, or codes and their codebook."""
    if view.quant_type:
        return {"packed": expected.pack(codes, view.dialect["nibble_order"]), "absmax": scale}
    return {"codes": codes, "absmax": scale, "codebook": view.levels}
