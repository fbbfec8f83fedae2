"""A 4-bit linear layer in steps: a mutant replaces one of them and says why.

`both` builds `matmul_4bit` and its gradient: decode the weight, read the rows, add up the products,
add the bias, round.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import BFLOAT16, Array, Step, decoder, rounded
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.sums import Total

Decode = Callable[..., Array]  # packed, absmax, rows and the options of `dequantize_4bit`
Read = Callable[[Array], Array]
Add = Callable[[Array, Array | None, Array], Array]  # the sums, the bias, x
End = Callable[[Array, Array], Array]  # the sums, x

in_bfloat16 = partial(rounded, dtype=BFLOAT16)
in_float16 = partial(rounded, dtype=np.float16)


def decoded(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    """S7: the weight in float32 [out, in], whatever rows it is to meet."""
    return qloracle.dequantize_4bit(packed, absmax, **options)


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


def weights(**steps: Step) -> Decode:
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
    """Round once, to the type of x, and restore the leading axes."""
    return y.astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def forward(
    *, decode: Decode = decoded, read: Read = wide, total: Total = sums.blas, add: Add = biased,
    end: End = finished,
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
    *, decode: Decode = decoded, read: Read = wide, total: Total = sums.blas, end: End = finished
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


def both(
    *, decode: Decode = decoded, read: Read = wide, total: Total = sums.blas, end: End = finished
) -> dict[str, Step]:
    """The product and its gradient from the same steps, by name."""
    return {
        "matmul_4bit": forward(decode=decode, read=read, total=total, end=end),
        "matmul_4bit_backward": backward(decode=decode, read=read, total=total, end=end),
    }


def one_buffer() -> Callable[[Array], Array]:
    """Keep results of one type in one buffer, which the next of them overwrites."""
    buffers: dict[Any, Array] = {}

    def kept(result: Array) -> Array:
        buffer = buffers.get(result.dtype)
        if buffer is None or buffer.size < result.size:
            buffer = buffers[result.dtype] = np.zeros(2 * result.size, result.dtype)
        view = buffer[: result.size]
        view[:] = result.reshape(-1)
        return view.reshape(result.shape)

    return kept
