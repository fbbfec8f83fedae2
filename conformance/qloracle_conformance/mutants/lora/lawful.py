"""LoRA layers that differ from the reference and are right (S10)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qloracle_conformance.mutants.lora.steps import Layer, backward, forward, in_own_type, merged
from qloracle_conformance.mutants.parts import Array, Right
from qloracle_conformance.mutants.products import sums
from qloracle_conformance.mutants.products.steps import in_type_of_rows, wide


class ScalingOnTheBranch(Right):
    """The branch is scaled where it ends, and the library adds."""

    lawful = True
    lora_forward, qlora_forward = forward()
    lora_backward, qlora_backward = backward()


class ScalingOnA(Right):
    """s A is made first, one product after the other."""

    lawful = True
    lora_forward, qlora_forward = forward(
        sides=lambda a, b, s: (np.float32(s) * wide(a), wide(b), np.float32(1)),
        total=sums.in_order,
    )


class ScalingOnB(Right):
    """s B is made first, sums from the end."""

    lawful = True
    lora_forward, qlora_forward = forward(
        sides=lambda a, b, s: (wide(a), np.float32(s) * wide(b), np.float32(1)),
        total=sums.from_the_end,
    )


class ScalingOnHidden(Right):
    """h and g are scaled as soon as they are there; sums as trees."""

    lawful = True
    lora_forward, qlora_forward = forward(
        hidden=lambda h, own: own.s * h,
        y=lambda own: own.total(own.x, own.w) + own.total(own.h, own.b),
        total=sums.tree,
    )
    lora_backward, qlora_backward = backward(
        hidden=lambda h, own: own.s * h,
        dx=lambda own, dy, g: own.total(dy, own.w.T) + own.total(g, own.a.T) * own.mask,
        da=lambda own, dy, g: own.total(g.T, own.masked.T),
        db=lambda own, dy, g: own.total(dy.T, own.h.T),
        total=sums.tree,
    )


class BranchAddedOnTheWay(Right):
    """One sum holds both: the products of the branch are added to those of x W'."""

    lawful = True

    @staticmethod
    def _y(own: Layer) -> Array:
        rows = np.concatenate([own.x, own.s * own.h], axis=1)
        return own.total(rows, np.concatenate([own.w, own.b], axis=1))

    lora_forward, qlora_forward = forward(y=_y, total=sums.in_order)


class AdapterMultipliedFirst(Right):
    """B A is made before x is there: the other order of the three matrices."""

    lawful = True

    @staticmethod
    def _y(own: Layer) -> Array:
        return np.asarray(
            own.total(own.x, own.w) + own.s * own.total(own.masked, own.total(own.b, own.a.T))
        )

    @staticmethod
    def _dx(own: Layer, dy: Array, g: Array) -> Array:
        both = own.total(own.b, own.a.T)  # out, in
        return np.asarray(own.total(dy, own.w.T) + own.s * own.total(dy, both.T) * own.mask)

    @staticmethod
    def _da(own: Layer, dy: Array, g: Array) -> Array:
        return np.asarray(own.s * own.total(own.b.T, own.total(dy.T, own.masked.T).T))

    @staticmethod
    def _db(own: Layer, dy: Array, g: Array) -> Array:
        return np.asarray(own.s * own.total(own.total(dy.T, own.masked.T), own.a))

    lora_forward, qlora_forward = forward(y=_y)
    lora_backward, qlora_backward = backward(dx=_dx, da=_da, db=_db)


class LayerOnTensorCores(Right):
    """All products on tensor cores, which cut off: found on a packed weight, else declared."""

    lawful = True
    adopts = "accumulate: truncated"
    dialect: ClassVar[dict[str, dict[str, str]]] = {
        "lora_forward": {"accumulate": "truncated"},
        "lora_backward": {"accumulate": "truncated"},
    }
    lora_forward, qlora_forward = forward(total=sums.tensor_core)
    lora_backward, qlora_backward = backward(total=sums.tensor_core)


class PackedInTypeOfX(Right):
    """The packed weight is decoded into the type of x."""

    lawful = True
    adopts = "product_weights: own"
    qlora_forward = forward(decode=in_type_of_rows)[1]
    qlora_backward = backward(decode=in_type_of_rows)[1]


class HiddenInTypeOfX(Right):
    """h and g are kept in the type of x between the two products."""

    lawful = True
    adopts = "lora_rounding: hidden"
    lora_forward, qlora_forward = forward(hidden=in_own_type)
    lora_backward, qlora_backward = backward(hidden=in_own_type)


class EveryStepInTypeOfX(Right):
    """Every step is a call of a library, which returns the type of x (a layer of torch)."""

    lawful = True
    adopts = "lora_rounding: separate"

    @staticmethod
    def _masked(own: Layer) -> Layer:
        masked = in_own_type(own.masked, own)
        return own._replace(masked=masked, h=in_own_type(own.total(masked, own.a), own))

    @staticmethod
    def _y(own: Layer) -> Array:
        own = EveryStepInTypeOfX._masked(own)
        z = in_own_type(own.total(own.h, own.b), own)
        base = in_own_type(own.total(own.x, own.w), own)
        return base + in_own_type(own.s * z, own)

    @staticmethod
    def _scaled(own: Layer, dy: Array) -> tuple[Array, Array]:
        scaled = in_own_type(own.s * dy, own)
        return scaled, in_own_type(own.total(scaled, own.b.T), own)

    @staticmethod
    def _dx(own: Layer, dy: Array, g: Array) -> Array:
        _, g = EveryStepInTypeOfX._scaled(own, dy)
        inner = in_own_type(own.total(g, own.a.T), own)
        return in_own_type(own.total(dy, own.w.T), own) + in_own_type(inner * own.mask, own)

    @staticmethod
    def _da(own: Layer, dy: Array, g: Array) -> Array:
        _, g = EveryStepInTypeOfX._scaled(own, dy)
        return own.total(g.T, EveryStepInTypeOfX._masked(own).masked.T)

    @staticmethod
    def _db(own: Layer, dy: Array, g: Array) -> Array:
        scaled, _ = EveryStepInTypeOfX._scaled(own, dy)
        return own.total(scaled.T, EveryStepInTypeOfX._masked(own).h.T)

    lora_forward, qlora_forward = forward(y=_y)
    lora_backward, qlora_backward = backward(dx=_dx, da=_da, db=_db)


class DeclaredMerge(Right):
    """s B A is added to the weight, in the type of x: declared."""

    lawful = True
    adopts = "lora_merged: yes"
    dialect: ClassVar[dict[str, str]] = {"lora_merged": "yes"}
    lora_forward, qlora_forward = forward(y=merged)
