"""Faulty LoRA layers: scalings, masks and gradients that went wrong (S10)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants.lora import steps
from qloracle_conformance.mutants.lora.steps import Layer, as_given, backward, forward, unscaled
from qloracle_conformance.mutants.parts import Array, Step, fault
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import decoded, in_bfloat16, in_float16, one_buffer

NARROW = partial(sums.in_order, keep=in_bfloat16)
IN_TF32 = sums.narrowed(sums.tf32)
FEW = 3  # up to so many rows, a kernel for vectors is chosen


# ---- steps that go wrong -------------------------------------------------------------------------


def _swapped(a: Array, b: Array, s: float) -> tuple[Array, Array, Any]:
    square = a.shape[1] == b.shape[0]
    return as_given(b.T, a.T, s) if square else as_given(a, b, s)


def _some_ranks(a: Array, b: Array, s: float, count: int) -> tuple[Array, Array, Any]:
    a, b, scaling = as_given(a, b, s)
    return a[:count], b[:, :count], scaling


def _dx_with_dw(own: Layer, dy: Array, g: Array) -> Array:
    dw = own.total(dy.T, own.x.T)  # out, in
    return steps.x_gradient(own, dy, g) + dw[np.arange(len(dy)) % len(dw)]


def _new_b(own: Layer, dy: Array, g: Array) -> Array:
    return np.asarray(own.b - np.float32(2.0**-10) * steps.b_gradient(own, dy, g))


def _first_axis(own: Layer) -> Array:
    """The rows at the start of every leading axis but the first."""
    places = np.arange(len(own.x)).reshape(own.axes)
    return places.reshape(own.axes[0], -1)[:, 0] if places.size else places.reshape(-1)


def _da_of_the_first_axis(own: Layer, dy: Array, g: Array) -> Array:
    rows = _first_axis(own)
    return steps.a_gradient(own._replace(masked=own.masked[rows]), dy[rows], g[rows])


def _db_of_the_first_axis(own: Layer, dy: Array, g: Array) -> Array:
    rows = _first_axis(own)
    return steps.b_gradient(own._replace(h=own.h[rows]), dy[rows], g[rows])


def _in_half(packed: Array, absmax: Array, rows: Array, **options: Any) -> Array:
    return in_float16(decoded(packed, absmax, rows, **options))


# ---- around the values ---------------------------------------------------------------------------


def _each(change: Callable[[Step], Step]) -> dict[str, Step]:
    names = ("lora_forward", "qlora_forward", "lora_backward", "qlora_backward")
    return {name: change(getattr(qloracle, name)) for name in names}


def _to_results(function: Step, change: Callable[[int, Array], Array]) -> Step:
    def call(*arrays: Array, **options: Any) -> Any:
        result = function(*arrays, **options)
        if isinstance(result, tuple):
            return tuple(change(place, part) for place, part in enumerate(result))
        return change(0, result)

    return call


def _widened(function: Step) -> Step:
    return _to_results(function, lambda _, part: part.astype(np.float32))


def _scribbling(function: Step) -> Step:
    def call(first: Array, *arrays: Array, **options: Any) -> Any:
        result = function(first, *arrays, **options)
        first[..., -1:] = 0
        return result

    return call


def _pooled(function: Step) -> Step:
    kept = [one_buffer() for _ in range(3)]
    return _to_results(function, lambda place, part: kept[place](part))


def _racing() -> sums.Total:
    chunks = partial(sums.chunks, size=8)
    return sums.taking_turns(sums.in_order, chunks, sums.from_the_end, sums.tree, sums.blas)


# fmt: off
# ---- the scaling ---------------------------------------------------------------------------------

ScalingLeftOut = fault("S10", "The scaling is forgotten, forward and backward (FastVideo #870).",
    **forward(sides=lambda a, b, s: as_given(a, b, 1)),
    **backward(sides=lambda a, b, s: as_given(a, b, 1)))
ScalingTwice = fault("S10", "A is stored with the scaling in it, and the layer applies it again.",
    **forward(sides=lambda a, b, s: as_given(a, b, s * s)),
    **backward(sides=lambda a, b, s: as_given(a, b, s * s)))
AlphaForScaling = fault("S10", "alpha instead of alpha / r (LLMs-from-scratch #821).",
    **forward(sides=lambda a, b, s: as_given(a, b, s * len(a))))
RankStabilisedIgnored = fault("S10",
    "alpha / r where alpha / sqrt(r) was asked for (TensorRT-LLM #1668, vLLM #6909).",
    **forward(sides=lambda a, b, s: as_given(a, b, s / np.sqrt(len(a)))))
ScalingOnTheBaseToo = fault("S10", "s (x W' + h B'): the base is scaled with the branch.",
    **forward(y=lambda own: own.s * steps.output(unscaled(own))))
ScalingInBFloat16 = fault("S10", "The scaling is read from a bfloat16 scalar.",
    **forward(sides=lambda a, b, s: as_given(a, b, in_bfloat16(np.array(s)).item())))
ScalingForwardOnly = fault("S10", "The forward pass scales, the backward pass does not.",
    **backward(dx=lambda own, dy, g: steps.x_gradient(unscaled(own), dy, g),
               da=lambda own, dy, g: steps.a_gradient(unscaled(own), dy, g),
               db=lambda own, dy, g: steps.b_gradient(unscaled(own), dy, g)))
ScalingNotInA = fault("S10", "dA lacks the scaling, which dB and dx have.",
    **backward(da=lambda own, dy, g: steps.a_gradient(unscaled(own), dy, g)))
ScalingTwiceInB = fault("S10", "dB is made of the scaled dy and of the scaled h.",
    **backward(db=lambda own, dy, g: steps.b_gradient(own, own.s * dy, g)))

# ---- A and B -------------------------------------------------------------------------------------

SidesSwapped = fault("S10", "In a square layer A and B have each other's place.",
    **forward(sides=_swapped))
AdapterStoredTransposed = fault("S10", "A is read as if it were stored [in, r] (aprender #2138).",
    **forward(sides=lambda a, b, s: as_given(a.reshape(a.shape[::-1]).T, b, s)))
LastRankLeftOut = fault("S10", "The loop over the ranks ends one too early.",
    **forward(sides=lambda a, b, s: _some_ranks(a, b, s, len(a) - 1)))
RanksByFour = fault("S10", "Ranks are taken four at a time, and what remains is left out.",
    **forward(sides=lambda a, b, s: _some_ranks(a, b, s, len(a) // 4 * 4)))
AdaptersInBFloat16 = fault("S10",
    "float32 adapters are cast to bfloat16 (aprender #2189: the type was assumed).",
    **forward(sides=lambda a, b, s: as_given(in_bfloat16(a), in_bfloat16(b), s)))
OneRowWithoutAdapter = fault("S10", "The kernel for few rows applies the base alone.",
    **forward(y=lambda own: own.total(own.x, own.w) if len(own.x) <= FEW else steps.output(own)))

# ---- the mask ------------------------------------------------------------------------------------

MaskIgnored = fault("S10", "Dropout is left out of the branch.",
    **forward(cover=lambda x, mask: x))
MaskInverted = fault("S10", "What should be dropped is kept, and the other way round.",
    **forward(cover=lambda x, mask: x * (mask.max() * (mask == 0))))
MaskOnTheBaseToo = fault("S10", "x is masked before the layer: the base loses entries as well.",
    **forward(y=lambda own: steps.output(own._replace(x=own.masked))))
MaskWithoutItsFactor = fault("S10", "The mask is used as 0 and 1, without 1 / (1 - p).",
    **forward(cover=lambda x, mask: np.where(mask != 0, x, 0)))
MaskOnHidden = fault("S10", "The mask's first columns are applied to h, and x is left whole.",
    **forward(cover=lambda x, mask: x, hidden=lambda h, own: h * own.mask[:, : h.shape[1]]))
MaskOfTheFirstRow = fault("S10", "The first row's mask serves for all rows.",
    **forward(cover=lambda x, mask: x * mask[:1]))
MaskOfTheLastCall = fault("S10", "The mask is off by one row, as from a generator that ran on.",
    **backward(cover=lambda x, mask: x * np.roll(mask, 1, axis=0)))
MaskNotInDx = fault("S10", "dx passes through entries that were dropped.",
    **backward(dx=lambda own, dy, g: own.total(dy, own.w.T) + own.s * own.total(g, own.a.T)))
MaskNotInDa = fault("S10", "dA is made of x instead of x * mask.",
    **backward(da=lambda own, dy, g: steps.a_gradient(own._replace(masked=own.x), dy, g)))
MaskNotInDb = fault("S10", "dB is made of h without dropout.",
    **backward(
        db=lambda own, dy, g: steps.b_gradient(own._replace(h=own.total(own.x, own.a)), dy, g)))
MergedUnderAMask = fault("S10",
    "s B A is added to the weight, declared, also where a mask forbids it (peft #3586).",
    {"dialect": {"lora_merged": "yes"}},
    **forward(y=lambda own: steps.merged(own._replace(given=False))))

# ---- gradients -----------------------------------------------------------------------------------

WeightGradientInDx = fault("S10", "The unwanted gradient of W lands in the buffer of dx.",
    **backward(dx=_dx_with_dw))
DxOfTheBaseAlone = fault("S10", "dx is dy W: the gradient through the adapter is lost.",
    **backward(dx=lambda own, dy, g: own.total(dy, own.w.T)))
DaThroughNewB = fault("S10", "dA is made with B after its step: B - 2^-10 dB.",
    **backward(
        da=lambda own, dy, g: steps.a_gradient(own, dy, own.total(dy, _new_b(own, dy, g).T))))
SummedOverTheFirstAxis = fault("S10",
    "dA and dB are summed over the first axis of a batch, at the start of the others.",
    **backward(da=_da_of_the_first_axis, db=_db_of_the_first_axis))
MeanOverRows = fault("S10", "dA and dB are means over the rows, not sums.",
    **backward(da=lambda own, dy, g: steps.a_gradient(own, dy, g) / np.float32(len(dy)),
               db=lambda own, dy, g: steps.b_gradient(own, dy, g) / np.float32(len(dy))))
BackwardWeightInFloat16 = fault("S10",
    "The backward pass decodes W into float16, whatever the gradient's type.",
    qlora_backward=backward(decode=_in_half)["qlora_backward"])

# ---- narrow arithmetic ---------------------------------------------------------------------------

HiddenInBFloat16 = fault("S10", "h and g are kept in bfloat16 beside float32 x.",
    **forward(hidden=lambda h, own: in_bfloat16(h)),
    **backward(hidden=lambda h, own: in_bfloat16(h)))
BaseInBFloat16 = fault("S10", "x W' is in bfloat16 when the branch is added, whatever x's type.",
    **forward(y=lambda own: in_bfloat16(own.total(own.x, own.w)) + own.s * own.total(own.h, own.b)))
BranchInTF32 = fault("S10", "The adapter's products take TF32's ten bits, the base is in float32.",
    **forward(total=IN_TF32,
              y=lambda own: sums.blas(own.x, own.w) + own.s * own.total(own.h, own.b)),
    **backward(total=IN_TF32,
        dx=lambda own, dy, g: sums.blas(dy, own.w.T) + own.s * own.total(g, own.a.T) * own.mask))
MergedUndeclared = fault("S10", "s B A is added to the weight in the type of x, undeclared.",
    **forward(y=steps.merged))
GradientsAccumulatedInBFloat16 = fault("S10", "dA and dB are summed over the rows in bfloat16.",
    **backward(da=lambda own, dy, g: steps.a_gradient(own._replace(total=NARROW), dy, g),
               db=lambda own, dy, g: steps.b_gradient(own._replace(total=NARROW), dy, g)))

# ---- around the values: P1 to P4 -----------------------------------------------------------------

AllInFloat32 = fault("P1", "Every result is float32, whatever the types of x and A.",
    **_each(_widened))
DropoutInPlace = fault("P2", "The last column of x (of dy, backward) is dropped in place.",
    **_each(_scribbling))
OneGradientBuffer = fault("P3",
    "Results live in one buffer for each place and type, which the next call overwrites.",
    **_each(_pooled))
AtomicGradients = fault("P4", "Sums by atomic additions: lawful values, other bits in each call.",
    **forward(total=_racing()), **backward(total=_racing()))
