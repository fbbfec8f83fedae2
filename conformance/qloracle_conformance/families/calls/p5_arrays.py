"""P5. Arrays in any form: a result does not depend on how its inputs lie in memory, nor on where.

An implementation that takes the arrays of torch or CuPy is also handed views: *strided* (every
second element of a larger array), *transposed* (the axes lie in the opposite order), *offset* (64
elements into their memory: who reads the storage from its start reads something else), *unaligned*
(one element into it: who loads 16 bytes at a time must not) and *expanded* (equal elements that are
one in memory: who reads the next one reads what is not the tensor's).  On a GPU of torch the same
calls are made on a *side_stream*, on which the inputs arrive late, and on a *second_device*
that is not the current one, if there is one.  The memory around a view must not change (P2).

A function that takes `out` is called with buffers for it (of several results a tuple) that hold
other bits before: they must hold the results afterwards, and what is returned, if anything, must be
the same.

Every array of the call has the form.  The data are those of S3 and S8, whole numbers for products
and LoRA layers, whose results no lawful rounding can move, and ordinary steps of Adam; what is
wrong in the plain form as well is left to the rule that found it there.  An implementation that
refuses views declares so: ``limits = {"views": []}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.dialects import ADAPTERS, LINEAR
from qloracle_conformance.contract.forms import FORMS
from qloracle_conformance.contract.protocol import FLOAT_TYPES
from qloracle_conformance.families.adam import inputs as adam
from qloracle_conformance.families.adam import s11_adam as s11
from qloracle_conformance.families.adam import s11b_adam_8bit as s11b
from qloracle_conformance.families.codes import s03_blocks as s3
from qloracle_conformance.families.codes.cases import encode_case
from qloracle_conformance.families.codes.judge import judge_decoded, judge_encoded
from qloracle_conformance.families.lora import inputs as lora
from qloracle_conformance.families.lora import s10_lora as s10
from qloracle_conformance.families.nested import s08_nested as s8
from qloracle_conformance.families.products import inputs as products
from qloracle_conformance.families.products import s09_products as s9
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.checks import Check, Plan
from qloracle_conformance.judging.compare import Judge, Outcome, Values
from qloracle_conformance.judging.views import View

SHAPES = ((192,), (2, 128), (3, 130), (5, 7, 9), (128, 128))
BLOCKSIZES = (64, 256)


def encode(plan: Plan) -> Iterator[Case]:
    """Quantize arrays of one to three axes, with a short last block or without."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            x = s3.ramp(plan, shape, blocksize)
            for dtype in FLOAT_TYPES.values():
                yield encode_case(plan, x.astype(dtype), blocksize, f"shape {shape}")
    equal = np.full((5, 70), plan.view.levels.max(), np.float32)
    yield encode_case(plan, equal, 64, "all equal")


def decode(plan: Plan) -> Iterator[Case]:
    """Decode into the same shapes and types."""
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            for dtype in FLOAT_TYPES:
                yield s3.decode_case(plan, shape, blocksize, dtype, f"shape {shape}")
    case = s3.decode_case(plan, (5, 70), 64, "float32", "all scales equal")
    yield case.with_arrays(absmax=np.full_like(case.arrays["absmax"], 3))


def encode_nested(plan: Plan) -> Iterator[Case]:
    """Double quantization of a full group, of more than one, and of fewer than a vector's lanes."""
    for n in (256, 600, 5):
        yield s8.quantize_case(s8.group_ramp(plan.rng, n), f"{n} absmax")
    yield s8.quantize_case(np.full(70, 0.5, np.float32), "all equal")


def decode_nested(plan: Plan) -> Iterator[Case]:
    """The same sizes back."""
    for n in (256, 600, 5):
        yield s8.decode_case(plan, n, 256, None)
    case = s8.decode_case(plan, 600, 256, None)
    yield case.with_arrays(nested_absmax=np.full(3, 0.5, np.float32))


def product(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a 4-bit layer, with rows and without, with a bias and without."""
    rng, view = plan.rng, plan.view
    for columns, others, lead in ((70, 17, (5,)), (64, 8, (2, 3)), (130, 5, ())):
        shape = products.facing(view, columns, others)
        codes = rng.choice(products.whole_codes(view), shape[0] * shape[1]).astype(np.uint8)
        weight = products.layer(view, codes, expected.f32(1, 2, 4), shape, 64)
        for dtype in FLOAT_TYPES.values():
            x = rng.integers(-3, 4, (*lead, columns)).astype(dtype)
            bias = None if products.backward(view) else np.arange(others).astype(dtype)
            yield products.call(view, x, weight, f"whole numbers {[*lead, columns]}", bias)
    yield products.call(view, np.ones((3, columns), np.float32), weight, "all equal")


def adapter(plan: Plan) -> Iterator[Case]:
    """Whole numbers through a LoRA layer, with a mask and without."""
    for dtype in FLOAT_TYPES:
        for masked in (False, True):
            yield lora.whole(plan.rng, plan.view, (12, 5, 2, (4,), 2, 1), dtype, masked)
            yield lora.whole(plan.rng, plan.view, (70, 17, 2, (2, 3), 1, 1), "float32", masked)


def step(plan: Plan) -> Iterator[Case]:
    """A step of Adam on vectors and matrices, and on equal numbers."""
    for shape in ((257,), (33, 17), (4, 128)):
        for types in (("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")):
            case = adam.ordinary(plan.rng, shape, f"shape {shape}", step=3, weight_decay=0.1)
            yield adam.typed(case, *types)
    one, half = np.ones((4, 128), np.float32), np.full((4, 128), 0.5, np.float32)
    yield adam.stepped(one, half, half, half, "all equal", step=3)


def step_8bit(plan: Plan) -> Iterator[Case]:
    """The same on 8-bit states, of one block and of a few."""
    for shape in ((257,), (256,), (33, 17), (4, 256)):
        yield adam.ordinary_8bit(plan.rng, shape, f"shape {shape}", step=3)
    one, zero = np.ones((2, 256), np.float32), adam.fresh(512)
    yield adam.coded(one, one, zero, "all equal")


def judge_nested(case: Case, values: Values, view: View) -> Outcome:
    """All of S8: offset, scales and codes."""
    return s8.judge_nested(case, values, view) + s8.judge_offset(case, values, view)


WITH_AXES = (encode, product, adapter, step, step_8bit)  # arrays of one axis have no transpose


def _checks(
    function: str,
    table: str,
    cases: Callable[[Plan], Iterator[Case]],
    judge: Judge,
    judged: tuple[int, ...] = (0,),
) -> list[Check]:
    tables = (table,) if table else ()
    forms = [form for form in FORMS if form != "transposed" or cases in WITH_AXES]
    return [
        Check("P5", form, function, cases, judge, judged, tables, directed=False, form=form)
        for form in forms
    ]


CHECKS = (
    *_checks("quantize_4bit", "nf4", encode, judge_encoded, (0, 1)),
    *_checks("dequantize_4bit", "nf4", decode, judge_decoded),
    *_checks("quantize_blockwise", "signed", encode, judge_encoded, (0, 1)),
    *_checks("dequantize_blockwise", "signed", decode, judge_decoded),
    *_checks("quantize_absmax", "", encode_nested, judge_nested, (0, 1, 2)),
    *_checks("dequantize_absmax", "", decode_nested, s8.judge_denested),
    *(c for name in LINEAR for c in _checks(name, "nf4", product, s9.judge_only_result)),
    *(
        c
        for name in ADAPTERS
        for c in _checks(name, "nf4" if "qlora" in name else "", adapter, s10.judge_only_results)
    ),
    *_checks("adam_step", "", step, s11.judge_all, (0, 1, 2)),
    *_checks("adam_step_8bit", "", step_8bit, s11b.judge_all, (0, 1, 2, 3, 4)),
)
