"""A 4-bit linear layer in steps: a mutant replaces one of them and says why.

Decode the weight, read the rows, add up the products, add the bias, round.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import qloracle
from qloracle_conformance.mutants.parts import BFLOAT16, Array, Decoder, Step, rounded
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
    decode = Decoder(
        levels=lambda kind: rounded(qloracle.codebook(kind), rows.dtype),
        multiply=lambda a, b, _: rounded(a * rounded(b, rows.dtype), rows.dtype),
    ).four_bit
    return np.asarray(decode(packed, absmax, **options))


def weights(**steps: Step) -> Decode:
    """A decoding step from the steps of a decoder."""
    decode = Decoder(**steps).four_bit
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


class Linear(NamedTuple):
    """The steps of a layer."""

    decode: Decode = decoded
    read: Read = wide
    total: Total = sums.blas
    add: Add = biased
    end: End = finished

    @np.errstate(all="ignore")
    def product(
        self, x: Array, packed: Array, absmax: Array, *, bias: Array | None = None, **options: Any
    ) -> Array:
        """matmul_4bit."""
        y = self.total(self.read(x), self.decode(packed, absmax, x, **options))
        return np.asarray(self.end(self.add(y, bias, x), x))

    @np.errstate(all="ignore")
    def gradient(self, dy: Array, packed: Array, absmax: Array, **options: Any) -> Array:
        """matmul_4bit_backward."""
        dx = self.total(self.read(dy), self.decode(packed, absmax, dy, **options).T)
        return np.asarray(self.end(dx, dy))

    def forward(self) -> dict[str, Step]:
        """The product alone, by name."""
        return {"matmul_4bit": self.product}

    def backward(self) -> dict[str, Step]:
        """Its gradient alone."""
        return {"matmul_4bit_backward": self.gradient}

    def both(self) -> dict[str, Step]:
        """Both functions."""
        return self.forward() | self.backward()
