"""A 4-bit linear layer in steps of its own: a mutant replaces one and tells why.

`both` builds `matmul_4bit` and its gradient: decode the weight, read the rows, add up the products,
add the bias, round.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import BFLOAT16, Array, Step, decoder, rounded
from qloracle_conformance.mutants.products import sums

in_bfloat16 = partial(rounded, dtype=BFLOAT16)
in_float16 = partial(rounded, dtype=np.float16)


def decoded(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    """S7: the weight in float32 [out, in], whatever rows it is to meet."""
    return qloracle.dequantize_4bit(packed, absmax, **options)


def weights(**steps: Any) -> Step:
    """A decoding step from the steps of a decoder."""
    decode = decoder(**steps)
    return lambda packed, absmax, rows, **options: decode(packed, absmax, **options)


def wide(rows: Array) -> Array:
    """All leading axes as one, in float32."""
    return rows.reshape(-1, rows.shape[-1]).astype(np.float32)


def biased(y: Array, bias: Array | None, x: Array) -> Array:
    """Add the bias in float32."""
    return y if bias is None else y + bias.astype(np.float32)


def biased_in_type_of_x(y: Array, bias: Array | None, x: Array) -> Array:
    """Round the bias to the type of x, and add it in float32."""
    return biased(y, None if bias is None else bias.astype(x.dtype), x)


def finished(y: Array, x: Array) -> Array:
    """Round once, to the type of x, and give the leading axes back."""
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def forward(
    *, decode: Step = decoded, read: Step = wide, total: Step = sums.blas, add: Step = biased,
    end: Step = finished,
) -> Step:  # fmt: skip
    """Build matmul_4bit from its steps."""

    @np.errstate(all="ignore")
    def matmul_4bit(
        x: Array, packed: Array, absmax: Array, *, shape: tuple[int, int], blocksize: int = 64,
        quant_type: str = "nf4", bias: Array | None = None,
    ) -> Array:  # fmt: skip
        options = {"shape": shape, "blocksize": blocksize, "quant_type": quant_type}
        y = total(read(x), decode(packed, absmax, x, **options))
        return np.asarray(end(add(y, bias, x), x))

    return matmul_4bit


def backward(
    *, decode: Step = decoded, read: Step = wide, total: Step = sums.blas, end: Step = finished
) -> Step:
    """Build matmul_4bit_backward from its steps."""

    @np.errstate(all="ignore")
    def matmul_4bit_backward(
        dy: Array, packed: Array, absmax: Array, *, shape: tuple[int, int], blocksize: int = 64,
        quant_type: str = "nf4",
    ) -> Array:  # fmt: skip
        options = {"shape": shape, "blocksize": blocksize, "quant_type": quant_type}
        return np.asarray(end(total(read(dy), decode(packed, absmax, dy, **options).T), dy))

    return matmul_4bit_backward


def both(**steps: Any) -> tuple[Any, Any]:
    """The product and its gradient from the same steps."""
    return staticmethod(forward(**steps)), staticmethod(backward(**steps))


def in_type_of_rows(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    """The weight rounded to the type of x."""
    return rounded(decoded(packed, absmax, rows, **options), rows.dtype)


def factors_in_type_of_rows(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    """Level and scale rounded to the type of x, multiplied, and rounded again."""
    decode = decoder(
        levels=lambda kind: rounded(qloracle.codebook(kind), rows.dtype),
        multiply=lambda a, b, _: rounded(a * rounded(b, rows.dtype), rows.dtype),
    )
    return np.asarray(decode(packed, absmax, **options))
