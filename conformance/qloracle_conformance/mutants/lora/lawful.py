"""LoRA layers that differ from the reference and are right (S10)."""

import numpy as np

from qloracle_conformance.mutants.lora import steps
from qloracle_conformance.mutants.lora.steps import Layer, Lora, in_own_type, unscaled
from qloracle_conformance.mutants.parts import Array, variant
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import in_type_of_rows, wide

TRUNCATED = {"accumulate": "truncated"}


# ---- steps in another order ----------------------------------------------------------------------


def _ba(own: Layer) -> Array:
    return own.total(own.b, own.a.T)  # out, in


def _dw(own: Layer) -> Array:
    return own.total(own.dy.T, own.masked.T)  # out, in: the gradient of B A


# ---- every step a call of a library, which returns the type of x ---------------------------------


def _separate(own: Layer) -> Layer:
    """x * mask, h, s dy and g, each in the type of x; what is left to scale has a scaling of 1."""
    masked, scaled = in_own_type(own.masked, own), in_own_type(own.s * own.dy, own)
    h = in_own_type(own.total(masked, own.a), own)
    g = in_own_type(own.total(scaled, own.b.T), own)
    return unscaled(own._replace(masked=masked, h=h, dy=scaled, g=g))


def _separate_y(own: Layer) -> Array:
    z = in_own_type(own.total(_separate(own).h, own.b), own)
    return in_own_type(own.total(own.x, own.w), own) + in_own_type(own.s * z, own)


def _separate_dx(own: Layer) -> Array:
    inner = in_own_type(own.total(_separate(own).g, own.a.T), own)
    return in_own_type(own.total(own.dy, own.w.T), own) + in_own_type(inner * own.mask, own)


SEPARATE = Lora(
    y=_separate_y,
    dx=_separate_dx,
    da=lambda own: steps.a_gradient(_separate(own)),
    db=lambda own: steps.b_gradient(_separate(own)),
)


# fmt: off
# ---- the variants --------------------------------------------------------------------------------

ScalingOnTheBranch = variant("", "The branch is scaled where it ends, and the library adds.",
    **Lora().both())
ScalingOnA = variant("", "s A is made first, one product after the other.",
    **Lora(sides=lambda a, b, s: (np.float32(s) * wide(a), wide(b), np.float32(1)),
           total=sums.in_order).forward())
ScalingOnB = variant("", "s B is made first, sums from the end.",
    **Lora(sides=lambda a, b, s: (wide(a), np.float32(s) * wide(b), np.float32(1)),
           total=sums.from_the_end).forward())
ScalingOnHidden = variant("", "h and g are scaled as soon as they are there; sums as trees.",
    **Lora(hidden=lambda h, own: own.s * h, see=unscaled, total=sums.tree).both())
BranchAddedOnTheWay = variant("", "One sum holds both: the branch's products follow those of x W'.",
    **Lora(total=sums.in_order, y=lambda own: own.total(
        np.concatenate([own.x, own.s * own.h], axis=1),
        np.concatenate([own.w, own.b], axis=1))).forward())
AdapterMultipliedFirst = variant("", "B A is made first: the three matrices in the other order.",
    **Lora(
        y=lambda own: own.total(own.x, own.w) + own.s * own.total(own.masked, _ba(own)),
        dx=lambda own:
            own.total(own.dy, own.w.T) + own.s * own.total(own.dy, _ba(own).T) * own.mask,
        da=lambda own: own.s * own.total(own.b.T, _dw(own).T),
        db=lambda own: own.s * own.total(_dw(own), own.a)).both())
LayerOnTensorCores = variant("accumulate: truncated",
    "All products on tensor cores, which cut off: found on a packed weight, else declared.",
    {"dialect": {"lora_forward": TRUNCATED, "lora_backward": TRUNCATED}},
    **Lora(total=sums.tensor_core).both())
PackedInTypeOfX = variant("product_weights: own", "The packed weight is decoded into x's type.",
    qlora_forward=Lora(decode=in_type_of_rows).forward()["qlora_forward"],
    qlora_backward=Lora(decode=in_type_of_rows).backward()["qlora_backward"])
HiddenInTypeOfX = variant("lora_rounding: hidden",
    "h and g are kept in the type of x between the two products.",
    **Lora(hidden=in_own_type).both())
EveryStepInTypeOfX = variant("lora_rounding: separate",
    "Every step is a call of a library, which returns the type of x (a layer of torch).",
    **SEPARATE.both())
DeclaredMerge = variant("lora_merged: yes",
    "s B A is added to the weight in the type of x, declared.",
    {"dialect": {"lora_merged": "yes"}}, **Lora(y=steps.merged).forward())
