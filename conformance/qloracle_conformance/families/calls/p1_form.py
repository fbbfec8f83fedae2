"""P1. The form of a result: as many arrays as are due, each of the due type and shape.

`quantize_4bit` returns packed uint8[ceil(n/2)] and absmax float32[ceil(n/blocksize)],
`dequantize_4bit` an array of exactly the shape and dtype asked for, and so on: the table is
`qloracle_conformance.contract.protocol`.  Two liberties only: an axis of length 1 may stay on
packed bytes, codes or scales, and an offset may be a 0-d array or a NumPy scalar.  A decoded array
has no such liberty, because its shape is what the caller reads.  Of a pager, what `a[...]` and
`a[i:j]` return has the type that `empty` was asked for, and the shape of the part.

Where only the form is wrong, this rule fails and the values are judged all the same.  Every call
that any other rule makes is looked at.
"""

from __future__ import annotations

import numpy as np

from qloracle_conformance.contract import plain_arrays, programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FUNCTIONS, Due, block_count, due_results
from qloracle_conformance.judging.compare import Mismatch, Values
from qloracle_conformance.judging.views import View

EXACT_SHAPE = ("values", "y", "dx", "da", "db", "param", "m", "v")


def wrong_form(case: Case, values: Values, view: View) -> Mismatch | None:
    """The first result whose type or shape is not the due one; of a pager, the first read."""
    if case.function == "make_pager":
        return _wrong_read(case, values)
    for due, got in zip(_due(case, view), values, strict=True):
        typed = got.dtype == due.dtype or (
            due.name == "absmax" and got.dtype.name == view.dialect.get("absmax_type")
        )
        if not typed or _shape(got, due) != due.shape:
            return Mismatch(due.name, 0, f"{got.dtype}{list(got.shape)}", str(due).split(" ", 1)[1])
    return None


def _shape(got: np.ndarray, due: Due) -> tuple[int, ...]:
    if due.name in EXACT_SHAPE or got.shape == due.shape:
        return got.shape
    kept = tuple(n for n in got.shape if n != 1) if got.ndim > len(due.shape) else got.shape
    return due.shape if kept in (due.shape, tuple(n for n in due.shape if n != 1)) else got.shape


def _due(case: Case, view: View) -> tuple[Due, ...]:
    due = due_results(case.function, case.arrays, case.options)
    if view.dialect.get("layout") != "per_row" or due[-1].name != "absmax":
        return due
    default = FUNCTIONS[case.function].options["blocksize"]
    shape, size = case.arrays["x"].shape, case.options.get("blocksize", default)
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    scales = rows * block_count(shape[-1] if shape else 1, size)
    return (due[0], Due("absmax", due[1].dtype, (scales,)))


def _wrong_read(case: Case, values: Values) -> Mismatch | None:
    """The first part of a paged array that was read in another form than it has."""
    words = programs.written_out(values)
    for read in plain_arrays.reads(case):
        got, due = words[read.operation], programs.form_of(read.values)
        if values[programs.LOGGED][read.operation + 1, 0] == programs.DONE and got != due:
            return Mismatch(read.text, 0, got, due, f"operation {read.operation}")
    return None
