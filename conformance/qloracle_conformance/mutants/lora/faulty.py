"""Faulty LoRA layers: scalings, masks and gradients that went wrong (S10)."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, ClassVar

import numpy as np

import qloracle
from qloracle_conformance.mutants.lora.steps import (
    Layer,
    a_gradient,
    as_given,
    b_gradient,
    backward,
    forward,
    merged,
    output,
    x_gradient,
)
from qloracle_conformance.mutants.parts import Array, Right, Step
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import decoded, in_bfloat16, in_float16, wide
from qloracle_conformance.mutants.products.sums import Total

FEW = 3  # up to so many rows, a kernel for vectors is chosen


# ---- the scaling ---------------------------------------------------------------------------------


class ScalingLeftOut(Right):
    """The scaling is forgotten, forward and backward (FastVideo #870)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=lambda a, b, s: as_given(a, b, 1))
    lora_backward, qlora_backward = backward(sides=lambda a, b, s: as_given(a, b, 1))


class ScalingTwice(Right):
    """A is stored with the scaling in it, and the layer applies it again."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=lambda a, b, s: as_given(a, b, s * s))
    lora_backward, qlora_backward = backward(sides=lambda a, b, s: as_given(a, b, s * s))


class AlphaForScaling(Right):
    """alpha where alpha / r is due (LLMs-from-scratch #821)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=lambda a, b, s: as_given(a, b, s * len(a)))


class RankStabilisedIgnored(Right):
    """alpha / r where alpha / sqrt(r) was asked for (TensorRT-LLM #1668, vLLM #6909)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=lambda a, b, s: as_given(a, b, s / np.sqrt(len(a))))


class ScalingOnTheBaseToo(Right):
    """s (x W' + h B'): the base is scaled with the branch."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        y=lambda own: own.s * (own.total(own.x, own.w) + own.total(own.h, own.b))
    )


class ScalingInBFloat16(Right):
    """The scaling is read from a bfloat16 scalar."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        sides=lambda a, b, s: as_given(a, b, in_bfloat16(np.array(s)).item())
    )


class ScalingForwardOnly(Right):
    """The forward pass scales, the backward pass does not."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        da=lambda own, dy, g: own.total(g.T, own.masked.T),
        db=lambda own, dy, g: own.total(dy.T, own.h.T),
        dx=lambda own, dy, g: own.total(dy, own.w.T) + own.total(g, own.a.T) * own.mask,
    )


class ScalingNotInA(Right):
    """dA lacks the scaling, which dB and dx have."""

    kills = "S10"
    lora_backward, qlora_backward = backward(da=lambda own, dy, g: own.total(g.T, own.masked.T))


class ScalingTwiceInB(Right):
    """dB is made of the scaled dy and of the scaled h."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        db=lambda own, dy, g: own.s * own.total(own.s * dy.T, own.h.T)
    )


# ---- A and B -------------------------------------------------------------------------------------


def swapped(a: Array, b: Array, s: float) -> tuple[Array, Array, Any]:
    """B' for A and A' for B, where the shapes allow it."""
    square = a.shape[1] == b.shape[0]
    return as_given(b.T, a.T, s) if square else as_given(a, b, s)


def some_ranks(count: Step) -> Step:
    """Only the first `count(r)` ranks take part."""

    def sides(a: Array, b: Array, s: float) -> tuple[Array, Array, Any]:
        ranks = slice(count(len(a)))
        return wide(a)[ranks], wide(b)[:, ranks], np.float32(s)

    return sides


class SidesSwapped(Right):
    """In a square layer A and B have each other's place."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=swapped)


class AdapterStoredTransposed(Right):
    """A is read as if it were stored [in, r] (aprender #2138)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        sides=lambda a, b, s: as_given(a.reshape(a.shape[::-1]).T, b, s)
    )


class LastRankLeftOut(Right):
    """The loop over the ranks ends one too early."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=some_ranks(lambda r: r - 1))


class RanksByFour(Right):
    """Ranks are taken four at a time, and what remains is left out."""

    kills = "S10"
    lora_forward, qlora_forward = forward(sides=some_ranks(lambda r: r // 4 * 4))


class AdaptersInBFloat16(Right):
    """float32 adapters are cast to bfloat16 (aprender #2189: the type was assumed)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        sides=lambda a, b, s: as_given(in_bfloat16(a), in_bfloat16(b), s)
    )


class OneRowWithoutAdapter(Right):
    """The kernel for few rows knows the base alone."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        y=lambda own: own.total(own.x, own.w) if len(own.x) <= FEW else output(own)
    )


# ---- the mask ------------------------------------------------------------------------------------


class MaskIgnored(Right):
    """Dropout is left out of the branch."""

    kills = "S10"
    lora_forward, qlora_forward = forward(cover=lambda x, mask: x)


class MaskInverted(Right):
    """What should be dropped is kept, and the other way round."""

    kills = "S10"
    lora_forward, qlora_forward = forward(cover=lambda x, mask: x * (mask.max() * (mask == 0)))


class MaskOnTheBaseToo(Right):
    """x is masked before the layer: the base loses entries as well."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        y=lambda own: own.total(own.masked, own.w) + own.s * own.total(own.h, own.b)
    )


class MaskWithoutItsFactor(Right):
    """The mask is used as 0 and 1, without 1 / (1 - p)."""

    kills = "S10"
    lora_forward, qlora_forward = forward(cover=lambda x, mask: np.where(mask != 0, x, 0))


class MaskOnHidden(Right):
    """The mask's first columns are applied to h, and x is left whole."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        cover=lambda x, mask: x, hidden=lambda h, own: h * own.mask[:, : h.shape[1]]
    )


class MaskOfTheFirstRow(Right):
    """The first row's mask serves for all rows."""

    kills = "S10"
    lora_forward, qlora_forward = forward(cover=lambda x, mask: x * mask[:1])


class MaskOfTheLastCall(Right):
    """The mask is rolled by one row, as a generator that ran on would draw it."""

    kills = "S10"
    lora_backward, qlora_backward = backward(cover=lambda x, mask: x * np.roll(mask, 1, axis=0))


class MaskNotInDx(Right):
    """dx passes through entries that were dropped."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        dx=lambda own, dy, g: own.total(dy, own.w.T) + own.s * own.total(g, own.a.T)
    )


class MaskNotInDa(Right):
    """dA is made of x where x * mask is due."""

    kills = "S10"
    lora_backward, qlora_backward = backward(da=lambda own, dy, g: own.s * own.total(g.T, own.x.T))


class MaskNotInDb(Right):
    """dB is made of h without dropout."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        db=lambda own, dy, g: own.s * own.total(dy.T, own.total(own.x, own.a).T)
    )


class MergedUnderAMask(Right):
    """s B A is added to the weight, declared, also where a mask forbids it (peft #3586)."""

    kills = "S10"
    dialect: ClassVar[dict[str, str]] = {"lora_merged": "yes"}
    lora_forward, qlora_forward = forward(y=lambda own: merged(own._replace(given=False)))


# ---- gradients -----------------------------------------------------------------------------------


class WeightGradientInDx(Right):
    """The gradient of W, which nobody wants, lands in the buffer of dx."""

    kills = "S10"

    @staticmethod
    def _dx(own: Layer, dy: Array, g: Array) -> Array:
        dw = own.total(dy.T, own.x.T)  # out, in
        return x_gradient(own, dy, g) + dw[np.arange(len(dy)) % len(dw)]

    lora_backward, qlora_backward = backward(dx=_dx)


class DxOfTheBaseAlone(Right):
    """dx is dy W: the gradient through the adapter is lost."""

    kills = "S10"
    lora_backward, qlora_backward = backward(dx=lambda own, dy, g: own.total(dy, own.w.T))


class DaThroughNewB(Right):
    """dA is made with B after its step: B - 2^-10 dB."""

    kills = "S10"

    @staticmethod
    def _da(own: Layer, dy: Array, g: Array) -> Array:
        newer = own.b - np.float32(2.0**-10) * b_gradient(own, dy, g)
        return np.asarray(own.s * own.total(own.total(dy, newer.T).T, own.masked.T))

    lora_backward, qlora_backward = backward(da=_da)


def first_axis(own: Layer) -> Array:
    """The rows at the start of every leading axis but the first."""
    places = np.arange(len(own.x)).reshape(own.axes)
    return places.reshape(own.axes[0], -1)[:, 0] if places.size else places.reshape(-1)


class SummedOverTheFirstAxis(Right):
    """dA and dB are summed over the first axis of a batch, at the start of the others."""

    kills = "S10"

    @staticmethod
    def _da(own: Layer, dy: Array, g: Array) -> Array:
        rows = first_axis(own)
        return a_gradient(own._replace(masked=own.masked[rows]), dy[rows], g[rows])

    @staticmethod
    def _db(own: Layer, dy: Array, g: Array) -> Array:
        rows = first_axis(own)
        return b_gradient(own._replace(h=own.h[rows]), dy[rows], g[rows])

    lora_backward, qlora_backward = backward(da=_da, db=_db)


class MeanOverRows(Right):
    """dA and dB are means over the rows, not sums."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        da=lambda own, dy, g: a_gradient(own, dy, g) / np.float32(len(dy)),
        db=lambda own, dy, g: b_gradient(own, dy, g) / np.float32(len(dy)),
    )


class BackwardWeightInFloat16(Right):
    """The backward pass decodes W into float16, whatever the gradient's type."""

    kills = "S10"
    qlora_backward = backward(
        decode=lambda packed, absmax, rows, **options: in_float16(
            decoded(packed, absmax, rows, **options)
        )
    )[1]


# ---- narrow arithmetic ---------------------------------------------------------------------------


class HiddenInBFloat16(Right):
    """h and g are kept in bfloat16 beside float32 x."""

    kills = "S10"
    lora_forward, qlora_forward = forward(hidden=lambda h, own: in_bfloat16(h))
    lora_backward, qlora_backward = backward(hidden=lambda h, own: in_bfloat16(h))


class BaseInBFloat16(Right):
    """x W' is kept in bfloat16 before the branch is added, whatever the type of x."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        y=lambda own: in_bfloat16(own.total(own.x, own.w)) + own.s * own.total(own.h, own.b)
    )


class BranchInTF32(Right):
    """The adapter's products take TF32's ten bits, the base is in float32."""

    kills = "S10"
    lora_forward, qlora_forward = forward(
        total=sums.narrowed(sums.tf32),
        y=lambda own: sums.blas(own.x, own.w) + own.s * own.total(own.h, own.b),
    )
    lora_backward, qlora_backward = backward(
        total=sums.narrowed(sums.tf32),
        dx=lambda own, dy, g: sums.blas(dy, own.w.T) + own.s * own.total(g, own.a.T) * own.mask,
    )


class MergedUndeclared(Right):
    """s B A is added to the weight in the type of x, without a word."""

    kills = "S10"
    lora_forward, qlora_forward = forward(y=merged)


class GradientsAccumulatedInBFloat16(Right):
    """dA and dB are summed over the rows in bfloat16."""

    kills = "S10"
    lora_backward, qlora_backward = backward(
        da=lambda own, dy, g: own.s * sums.in_order(g.T, own.masked.T, keep=in_bfloat16),
        db=lambda own, dy, g: own.s * sums.in_order(dy.T, own.h.T, keep=in_bfloat16),
    )


# ---- around the values: P1 to P4 -----------------------------------------------------------------


def _each(change: Step) -> list[Any]:
    """The four functions of the reference, each changed in one way."""
    names = ("lora_forward", "qlora_forward", "lora_backward", "qlora_backward")
    return [staticmethod(change(getattr(qloracle, name))) for name in names]


def _parts(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _like(result: Any, parts: list[Array]) -> Any:
    return tuple(parts) if isinstance(result, tuple) else parts[0]


class AllInFloat32(Right):
    """Every result is float32, whatever the types of x and A."""

    kills = "P1"

    @staticmethod
    def _wide(function: Step) -> Step:
        def call(*arrays: Array, **options: Any) -> Any:
            result = function(*arrays, **options)
            return _like(result, [part.astype(np.float32) for part in _parts(result)])

        return call

    lora_forward, qlora_forward, lora_backward, qlora_backward = _each(_wide)


class DropoutInPlace(Right):
    """The last column of x (of dy, backward) is dropped in place."""

    kills = "P2"

    @staticmethod
    def _scribbles(function: Step) -> Step:
        def call(first: Array, *arrays: Array, **options: Any) -> Any:
            result = function(first, *arrays, **options)
            first[..., -1:] = 0
            return result

        return call

    lora_forward, qlora_forward, lora_backward, qlora_backward = _each(_scribbles)


class OneGradientBuffer(Right):
    """Results live in one buffer for each place and type, which the next call overwrites."""

    kills = "P3"

    @staticmethod
    def _pooled(function: Step) -> Step:
        pool: dict[Any, Array] = {}

        def keep(place: int, part: Array) -> Array:
            key = place, part.dtype
            if key not in pool or pool[key].size < part.size:
                pool[key] = np.zeros(2 * part.size, part.dtype)
            view = pool[key][: part.size]
            view[:] = part.reshape(-1)
            return view.reshape(part.shape)

        def call(*arrays: Array, **options: Any) -> Any:
            result = function(*arrays, **options)
            return _like(result, [keep(i, part) for i, part in enumerate(_parts(result))])

        return call

    lora_forward, qlora_forward, lora_backward, qlora_backward = _each(_pooled)


def _racing() -> Total:
    """Sums whose order changes from call to call: a call makes three of them, or six."""
    chunks = partial(sums.chunks, size=8)
    orders: list[Total] = [sums.in_order, chunks, sums.from_the_end, sums.tree, sums.blas]
    turns = itertools.cycle(orders)

    def total(rows: Array, matrix: Array) -> Array:
        return next(turns)(rows, matrix)

    return total


class AtomicGradients(Right):
    """Sums by atomic additions: lawful values, other bits in each call."""

    kills = "P4"
    lora_forward, qlora_forward = forward(total=_racing())
    lora_backward, qlora_backward = backward(total=_racing())
