"""P1. The form of a result: as many arrays as the protocol says, each of its type and shape.

`quantize_4bit` returns packed uint8[ceil(n/2)] and absmax float32[ceil(n/blocksize)],
`dequantize_4bit` an array of exactly the shape and dtype asked for, and so on: the table is
`qloracle_conformance.contract.protocol`.  Two liberties only: an axis of length 1 may stay on
packed bytes, codes or scales, and an offset may be a 0-d array or a NumPy scalar.  A decoded array
has no such liberty, because its shape is what the caller reads.  Of a pager, what `a[...]` and
`a[i:j]` return has the type that `empty` was asked for, and the shape of the part.

Where only the form is wrong, this rule fails and the values are judged all the same.  Every call
that any other rule makes is looked at.
"""

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import ResultForm, result_forms
from qloracle_conformance.judging.compare import Mismatch, Values
from qloracle_conformance.judging.views import View

LOOSE_SHAPE = ("packed", "codes", "absmax", "offset")  # how the names of such results end


def wrong_form(case: Case, values: Values, view: View) -> Mismatch | None:
    """The first result whose type or shape is not the expected one."""
    for form, got in zip(expected_forms(case, view), values, strict=True):
        typed = got.dtype == form.dtype or (
            form.name == "absmax" and got.dtype.name == view.dialect.get("absmax_type")
        )
        if not typed or _shape(got, form) != form.shape:
            text = f"{form.dtype}{list(form.shape)}"
            return Mismatch(form.name, 0, f"{got.dtype}{list(got.shape)}", text)
    return None


def _shape(got: np.ndarray, form: ResultForm) -> tuple[int, ...]:
    """The shape of a result, without axes of length 1 where the rule allows them."""
    if not form.name.endswith(LOOSE_SHAPE) or got.shape == form.shape:
        return got.shape
    kept = tuple(n for n in got.shape if n != 1) if got.ndim > len(form.shape) else got.shape
    return form.shape if kept in (form.shape, tuple(n for n in form.shape if n != 1)) else got.shape


def expected_forms(case: Case, view: View) -> tuple[ResultForm, ...]:
    """The form of each result; where rows restart the blocks, there are more scales."""
    forms = result_forms(case.function, case.arrays, case.options)
    if view.dialect.get("layout") != "per_row" or forms[-1].name != "absmax":
        return forms
    shape, size = case.arrays["x"].shape, case.option("blocksize")
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    scales = rows * -(-(shape[-1] if shape else 1) // size)
    return (forms[0], ResultForm("absmax", forms[1].dtype, (scales,)))
