"""A report as plain data: what report.json holds, and what every other output is written from.

Its form is published in `report.schema.json` beside this file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from qloracle_conformance.calling.calls import keywords
from qloracle_conformance.contract import programs
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import FORMS, FUNCTIONS
from qloracle_conformance.engine.faults import faults
from qloracle_conformance.engine.maps import ErrorMap
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import Judgement, function_rows, level_rows, verdict
from qloracle_conformance.judging.text import show
from qloracle_conformance.judging.views import View

REPORT_VERSION = "1"
SHOWN = 64  # elements of an array that a report shows; the repro script holds them all


def implementation(judgement: Judgement) -> dict[str, Any]:
    """One implementation as JSON-able data."""
    plain = ("name", "status", "message", "partial", "device")
    times = ("seconds", "import_seconds", "compile_seconds")
    return {name: getattr(judgement, name) for name in plain} | {
        **{name: round(getattr(judgement, name), 3) for name in times},
        "verdict": verdict(judgement),
        "versions": dict(judgement.versions),
        "declared": dict(judgement.declared),
        "offers": list(judgement.offers),
        "levels": level_rows(judgement),
        "functions": function_rows(judgement),
        "dialects": [_dialect(view) for view in judgement.views],
        "checks": [_check(check) for check in judgement.checks],
        "faults": [
            {
                part: [check.id for check in getattr(fault, part)]
                for part in ("checks", "consequences")
            }
            for fault in faults(judgement)
        ],
    }


def _dialect(view: View) -> dict[str, Any]:
    return {
        "view": view.name,
        "function": view.function,
        "table": view.table,
        "label": view.label,
        "unsupported": view.unsupported,
        "fields": dict(view.dialect),
        "findings": [asdict(finding) | {"declare": finding.declare} for finding in view.findings],
    }


def _check(check: CheckRun) -> dict[str, Any]:
    data = vars(check) | {
        "seconds": round(check.seconds, 3),
        "looks_like": list(check.looks_like),
        "failure": failure_dict(check.failure) if check.failure is not None else None,
    }
    data["bound_use"] = data.pop("use")
    if not check.repro:
        del data["repro"]
    return data


def failure_dict(failure: Failure) -> dict[str, Any]:
    """A failing input with its numbers, whole where it is small."""
    observed, ratio = failure.mismatch.observed, failure.mismatch.ratio
    return asdict(failure.mismatch) | {
        "input": case_dict(failure.case),
        "call": call_text(failure.case),
        "observed": observed if np.isfinite(observed) else str(observed),
        "ratio": ratio if np.isfinite(ratio) else "inf",
        "map": _map(failure.map) if failure.map is not None else None,
    }


def _map(drawn: ErrorMap) -> dict[str, Any]:
    return {
        "result": drawn.wrong.result,
        "call": call_text(drawn.case),
        "wrong": int(drawn.wrong.at.size),
        "elements": drawn.wrong.size,
        "blocksize": drawn.blocks.blocksize,
        "blocks": int(drawn.blocks.sizes.size),
        "first": drawn.first,
        "lanes": drawn.lanes,
        "rows": drawn.rows,
        "flips": [list(flip) for flip in drawn.flips],
    }


def case_dict(case: Case) -> dict[str, Any]:
    """A case as data: floats as hex floats, whole numbers as they are, long arrays cut."""
    return {
        "function": case.function,
        "note": case.note,
        "form": case.form,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in case.options.items()},
        "arrays": {name: array_dict(array) for name, array in case.arrays.items()},
    }


def array_dict(array: np.ndarray) -> dict[str, Any]:
    """An array as data, its first elements in a form that loses nothing."""
    flat = array.reshape(-1)[:SHOWN]
    whole = np.issubdtype(array.dtype, np.integer)
    values = [int(v) for v in flat] if whole else [float(v).hex() for v in flat]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def call_text(case: Case) -> str:
    """The call in one readable line; of a pager the whole program.

    >>> call_text(Case("quantize_4bit", {"x": np.float32([1, 0])}, {"blocksize": 64}))
    'quantize_4bit(x=[1.0, 0.0] float32[2], blocksize=64)'
    """
    parts = [f"{name}={_array_text(array)}" for name, array in case.arrays.items()]
    if FUNCTIONS[case.function].tool:
        return programs.text_of_case(case) + (f"; {', '.join(parts)}" if parts else "")
    for name, value in keywords(case).items():
        parts.append(f"{name}={getattr(value, '__name__', None) or repr(value)}")
    form = f" with arrays {FORMS[case.form]}" if case.form else ""
    return f"{case.function}({', '.join(parts)}){form}"


def _array_text(array: np.ndarray) -> str:
    """A small array whole, a large one by what is the same or not zero in it, if that is little.

    >>> _array_text(np.eye(1, 70, 3, dtype=np.float32))
    '0 but 1.0 at 3, float32[1x70]'
    """
    shape = "x".join(str(n) for n in array.shape)
    text = f"{array.dtype.name}[{shape}]"
    flat = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
        equal = flat.size > 1 and bool((flat == flat[0]).all())
    if equal:
        return f"{show(flat[0])} everywhere, {text}"
    if flat.size > 8:
        used = np.flatnonzero(flat)
        few = ", ".join(f"{show(flat[i])} at {i}" for i in used[:4])
        return f"0 but {few}, {text}" if used.size <= 4 else text
    return f"[{', '.join(show(v) for v in flat)}] {text}"


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON.

    >>> print(to_json({"ratio": float("inf")}))
    {
     "ratio": "inf"
    }
    <BLANKLINE>
    """
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Write inf and nan as text: JSON has no numbers for them."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
