"""LoRA layers that differ from the reference and are right (S10)."""

import numpy as np

from qloracle_conformance.mutants.lora import steps
from qloracle_conformance.mutants.lora.steps import Layer, backward, forward, in_own_type, unscaled
from qloracle_conformance.mutants.parts import Array, variant
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import in_type_of_rows, wide

TRUNCATED = {"accumulate": "truncated"}


# ---- steps in another order ----------------------------------------------------------------------


def _ba(own: Layer) -> Array:
    return own.total(own.b, own.a.T)  # out, in


def _dw(own: Layer, dy: Array) -> Array:
    return own.total(dy.T, own.masked.T)  # out, in: the gradient of B A


def _one_sum(own: Layer) -> Array:
    rows = np.concatenate([own.x, own.s * own.h], axis=1)
    return own.total(rows, np.concatenate([own.w, own.b], axis=1))


# ---- every step a call of a library, which returns the type of x ---------------------------------


def _separate(own: Layer) -> Layer:
    masked = in_own_type(own.masked, own)
    return own._replace(masked=masked, h=in_own_type(own.total(masked, own.a), own))


def _separate_g(own: Layer, dy: Array) -> tuple[Array, Array]:
    scaled = in_own_type(own.s * dy, own)
    return scaled, in_own_type(own.total(scaled, own.b.T), own)


def separate_y(own: Layer) -> Array:
    """Base and branch in the type of x."""
    own = _separate(own)
    z = in_own_type(own.total(own.h, own.b), own)
    return in_own_type(own.total(own.x, own.w), own) + in_own_type(own.s * z, own)


def separate_dx(own: Layer, dy: Array, g: Array) -> Array:
    """Base and branch in the type of x."""
    inner = in_own_type(own.total(_separate_g(own, dy)[1], own.a.T), own)
    return in_own_type(own.total(dy, own.w.T), own) + in_own_type(inner * own.mask, own)


def separate_da(own: Layer, dy: Array, g: Array) -> Array:
    """Made of g in the type of x."""
    return own.total(_separate_g(own, dy)[1].T, _separate(own).masked.T)


def separate_db(own: Layer, dy: Array, g: Array) -> Array:
    """Made of s dy in the type of x."""
    return own.total(_separate_g(own, dy)[0].T, _separate(own).h.T)


# fmt: off
# ---- the variants --------------------------------------------------------------------------------

ScalingOnTheBranch = variant("", "The branch is scaled where it ends, and the library adds.",
    **forward(), **backward())
ScalingOnA = variant("", "s A is made first, one product after the other.",
    **forward(sides=lambda a, b, s: (np.float32(s) * wide(a), wide(b), np.float32(1)),
              total=sums.in_order))
ScalingOnB = variant("", "s B is made first, sums from the end.",
    **forward(sides=lambda a, b, s: (wide(a), np.float32(s) * wide(b), np.float32(1)),
              total=sums.from_the_end))
ScalingOnHidden = variant("", "h and g are scaled as soon as they are there; sums as trees.",
    **forward(hidden=lambda h, own: own.s * h, total=sums.tree,
              y=lambda own: steps.output(unscaled(own))),
    **backward(hidden=lambda h, own: own.s * h, total=sums.tree,
               dx=lambda own, dy, g: steps.x_gradient(unscaled(own), dy, g),
               da=lambda own, dy, g: steps.a_gradient(unscaled(own), dy, g),
               db=lambda own, dy, g: steps.b_gradient(unscaled(own), dy, g)))
BranchAddedOnTheWay = variant("", "One sum holds both: the branch's products follow those of x W'.",
    **forward(y=_one_sum, total=sums.in_order))
AdapterMultipliedFirst = variant("", "B A is made first: the three matrices in the other order.",
    **forward(
        y=lambda own: own.total(own.x, own.w) + own.s * own.total(own.masked, _ba(own))),
    **backward(
        dx=lambda own, dy, g: own.total(dy, own.w.T) + own.s * own.total(dy, _ba(own).T) * own.mask,
        da=lambda own, dy, g: own.s * own.total(own.b.T, _dw(own, dy).T),
        db=lambda own, dy, g: own.s * own.total(_dw(own, dy), own.a)))
LayerOnTensorCores = variant("accumulate: truncated",
    "All products on tensor cores, which cut off: found on a packed weight, else declared.",
    {"dialect": {"lora_forward": TRUNCATED, "lora_backward": TRUNCATED}},
    **forward(total=sums.tensor_core), **backward(total=sums.tensor_core))
PackedInTypeOfX = variant("product_weights: own", "The packed weight is decoded into x's type.",
    qlora_forward=forward(decode=in_type_of_rows)["qlora_forward"],
    qlora_backward=backward(decode=in_type_of_rows)["qlora_backward"])
HiddenInTypeOfX = variant("lora_rounding: hidden",
    "h and g are kept in the type of x between the two products.",
    **forward(hidden=in_own_type), **backward(hidden=in_own_type))
EveryStepInTypeOfX = variant("lora_rounding: separate",
    "Every step is a call of a library, which returns the type of x (a layer of torch).",
    **forward(y=separate_y), **backward(dx=separate_dx, da=separate_da, db=separate_db))
DeclaredMerge = variant("lora_merged: yes",
    "s B A is added to the weight in the type of x, declared.",
    {"dialect": {"lora_merged": "yes"}}, **forward(y=steps.merged))
