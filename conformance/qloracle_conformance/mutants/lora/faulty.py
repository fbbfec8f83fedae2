"""Faulty LoRA layers: scalings, masks and gradients that went wrong (S10)."""

from functools import partial
from typing import Any

import numpy as np

from qloracle_conformance.contract.protocol import LORA
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.lora import steps
from qloracle_conformance.mutants.lora.steps import Layer, Lora, as_given, unscaled
from qloracle_conformance.mutants.parts import Array, each, fault, one_by_one, pooled
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import decoded, in_bfloat16, in_float16

NARROW = partial(sums.in_order, keep=in_bfloat16)
FEW = 3  # up to so many rows, a kernel for vectors is chosen


# ---- steps that go wrong -------------------------------------------------------------------------


def _some_ranks(a: Array, b: Array, s: float, count: int) -> tuple[Array, Array, Any]:
    a, b, scaling = as_given(a, b, s)
    return a[:count], b[:, :count], scaling


def _dx_with_dw(own: Layer) -> Array:
    dw = own.total(own.dy.T, own.x.T)  # out, in
    return steps.x_gradient(own) + dw[np.arange(len(own.dy)) % len(dw)]


def _first_axis(own: Layer) -> Layer:
    """The rows at the start of every leading axis but the first."""
    places = np.arange(len(own.x)).reshape(own.axes)
    rows = places.reshape(own.axes[0], -1)[:, 0] if places.size else places.reshape(-1)
    masked, h, dy, g = (part[rows] for part in (own.masked, own.h, own.dy, own.g))
    return own._replace(masked=masked, h=h, dy=dy, g=g)


# fmt: off
# ---- the scaling ---------------------------------------------------------------------------------

ScalingLeftOut = fault("S10", "The scaling is forgotten, forward and backward (FastVideo #870).",
    **Lora(sides=lambda a, b, s: as_given(a, b, 1)).both())
ScalingTwice = fault("S10", "A is stored with the scaling in it, and the layer applies it again.",
    **Lora(sides=lambda a, b, s: as_given(a, b, s * s)).both())
AlphaForScaling = fault("S10", "alpha instead of alpha / r (LLMs-from-scratch #821).",
    **Lora(sides=lambda a, b, s: as_given(a, b, s * len(a))).forward())
RankStabilisedIgnored = fault("S10",
    "alpha / r where alpha / sqrt(r) was asked for (TensorRT-LLM #1668, vLLM #6909).",
    **Lora(sides=lambda a, b, s: as_given(a, b, s / np.sqrt(len(a)))).forward())
ScalingOnTheBaseToo = fault("S10", "s (x W' + h B'): the base is scaled with the branch.",
    **Lora(y=lambda own: own.s * steps.output(unscaled(own))).forward())
ScalingInBFloat16 = fault("S10", "The scaling is read from a bfloat16 scalar.",
    **Lora(sides=lambda a, b, s: as_given(a, b, in_bfloat16(np.array(s)).item())).forward())
ScalingForwardOnly = fault("S10", "The forward pass scales, the backward pass does not.",
    **Lora(see=unscaled).backward())
ScalingNotInA = fault("S10", "dA lacks the scaling, which dB and dx have.",
    **Lora(da=lambda own: steps.a_gradient(unscaled(own))).backward())
ScalingTwiceInB = fault("S10", "dB is made of the scaled dy and of the scaled h.",
    **Lora(db=lambda own: own.s * steps.b_gradient(own)).backward())

# ---- A and B -------------------------------------------------------------------------------------

SidesSwapped = fault("S10", "In a square layer A and B have each other's place.",
    **Lora(sides=lambda a, b, s: as_given(
        *((b.T, a.T) if a.shape[1] == b.shape[0] else (a, b)), s)).forward())
AdapterStoredTransposed = fault("S10", "A is read as if it were stored [in, r] (aprender #2138).",
    **Lora(sides=lambda a, b, s: as_given(a.reshape(a.shape[::-1]).T, b, s)).forward())
LastRankLeftOut = fault("S10", "The loop over the ranks ends one too early.",
    **Lora(sides=lambda a, b, s: _some_ranks(a, b, s, len(a) - 1)).forward())
RanksByFour = fault("S10", "Ranks are taken four at a time, and what remains is left out.",
    **Lora(sides=lambda a, b, s: _some_ranks(a, b, s, len(a) // 4 * 4)).forward())
AdaptersInBFloat16 = fault("S10",
    "float32 adapters are cast to bfloat16 (aprender #2189: the type was assumed).",
    **Lora(sides=lambda a, b, s: as_given(in_bfloat16(a), in_bfloat16(b), s)).forward())
OneRowWithoutAdapter = fault("S10", "The kernel for few rows applies the base alone.",
    **Lora(y=lambda own:
        own.total(own.x, own.w) if len(own.x) <= FEW else steps.output(own)).forward())

# ---- the mask ------------------------------------------------------------------------------------

MaskIgnored = fault("S10", "Dropout is left out of the branch.",
    **Lora(cover=lambda x, mask: x).forward())
MaskInverted = fault("S10", "What should be dropped is kept, and the other way round.",
    **Lora(cover=lambda x, mask: x * (mask.max() * (mask == 0))).forward())
MaskOnTheBaseToo = fault("S10", "x is masked before the layer: the base loses entries as well.",
    **Lora(see=lambda own: own._replace(x=own.masked)).forward())
MaskWithoutItsFactor = fault("S10", "The mask is used as 0 and 1, without 1 / (1 - p).",
    **Lora(cover=lambda x, mask: np.where(mask != 0, x, 0)).forward())
MaskOnHidden = fault("S10", "The mask's first columns are applied to h, and x is left whole.",
    **Lora(cover=lambda x, mask: x, hidden=lambda h, own: h * own.mask[:, : h.shape[1]]).forward())
MaskOfTheFirstRow = fault("S10", "The first row's mask serves for all rows.",
    **Lora(cover=lambda x, mask: x * mask[:1]).forward())
MaskOfTheLastCall = fault("S10", "The mask is off by one row, as from a generator that ran on.",
    **Lora(cover=lambda x, mask: x * np.roll(mask, 1, axis=0)).backward())
MaskNotInDx = fault("S10", "dx passes through entries that were dropped.",
    **Lora(dx=lambda own: steps.x_gradient(own._replace(mask=np.ones_like(own.mask)))).backward())
MaskNotInDa = fault("S10", "dA is made of x instead of x * mask.",
    **Lora(da=lambda own: steps.a_gradient(own._replace(masked=own.x))).backward())
MaskNotInDb = fault("S10", "dB is made of h without dropout.",
    **Lora(db=lambda own: steps.b_gradient(own._replace(h=own.total(own.x, own.a)))).backward())
MergedUnderAMask = fault("S10",
    "s B A is added to the weight, declared, also where a mask forbids it (peft #3586).",
    {"dialect": {"lora_merged": "yes"}},
    **Lora(y=lambda own: steps.merged(own._replace(given=False))).forward())

# ---- gradients -----------------------------------------------------------------------------------

WeightGradientInDx = fault("S10", "The unwanted gradient of W lands in the buffer of dx.",
    **Lora(dx=_dx_with_dw).backward())
DxOfTheBaseAlone = fault("S10", "dx is dy W: the gradient through the adapter is lost.",
    **Lora(dx=lambda own: own.total(own.dy, own.w.T)).backward())
DaThroughNewB = fault("S10", "dA is made with B after its step: B - 2^-10 dB.",
    **Lora(da=lambda own: steps.a_gradient(own._replace(g=own.total(
        own.dy, (own.b - np.float32(2.0**-10) * steps.b_gradient(own)).T)))).backward())
SummedOverTheFirstAxis = fault("S10",
    "dA and dB are summed over the first axis of a batch, at the start of the others.",
    **Lora(da=lambda own: steps.a_gradient(_first_axis(own)),
           db=lambda own: steps.b_gradient(_first_axis(own))).backward())
MeanOverRows = fault("S10", "dA and dB are means over the rows, not sums.",
    **Lora(da=lambda own: steps.a_gradient(own) / np.float32(len(own.dy)),
           db=lambda own: steps.b_gradient(own) / np.float32(len(own.dy))).backward())
BackwardWeightInFloat16 = fault("S10",
    "The backward pass decodes W into float16, whatever the gradient's type.",
    qlora_backward=Lora(decode=lambda *state, **options:
        in_float16(decoded(*state, **options))).backward()["qlora_backward"])

# ---- narrow arithmetic ---------------------------------------------------------------------------

HiddenInBFloat16 = fault("S10", "h and g are kept in bfloat16 beside float32 x.",
    **Lora(hidden=lambda h, own: in_bfloat16(h)).both())
BaseInBFloat16 = fault("S10", "x W' is in bfloat16 when the branch is added, whatever x's type.",
    **Lora(y=lambda own:
        in_bfloat16(own.total(own.x, own.w)) + own.s * own.total(own.h, own.b)).forward())
BranchInTF32 = fault("S10", "The adapter's products take TF32's ten bits, the base is in float32.",
    **Lora(total=sums.narrowed(sums.tf32),
           y=lambda own: sums.blas(own.x, own.w) + own.s * own.total(own.h, own.b),
           dx=lambda own: sums.blas(own.dy, own.w.T) + own.s * own.total(own.g, own.a.T) * own.mask,
        ).both())
MergedUndeclared = fault("S10", "s B A is added to the weight in the type of x, undeclared.",
    **Lora(y=steps.merged).forward())
GradientsAccumulatedInBFloat16 = fault("S10", "dA and dB are summed over the rows in bfloat16.",
    **Lora(da=lambda own: steps.a_gradient(own._replace(total=NARROW)),
           db=lambda own: steps.b_gradient(own._replace(total=NARROW))).backward())

# ---- around the values: P1 to P4 -----------------------------------------------------------------

AllInFloat32 = fault("P1", "Every result is float32, whatever the types of x and A.",
    **each(lambda function: one_by_one(function, lambda _, part: part.astype(np.float32)), *LORA))
DropoutInPlace = fault("P2", "The last column of x (of dy, backward) is dropped in place.",
    **each(parts.spoiling(lambda x:
        np.where(np.arange(x.shape[-1]) < x.shape[-1] - 1, x, np.zeros(1, x.dtype))), *LORA))
OneGradientBuffer = fault("P3",
    "Results live in one buffer for each place and type, which the next call overwrites.",
    **each(pooled, *LORA))
AtomicGradients = fault("P4", "Sums by atomic additions: lawful values, other bits in each call.",
    **Lora(total=sums.taking_turns(sums.in_order, partial(sums.chunks, size=8),
        sums.from_the_end, sums.tree, sums.blas)).both())
