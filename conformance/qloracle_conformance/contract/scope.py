"""The scope that an implementation declares: its limits, and the parameters it takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import BLOCKSIZES, FUNCTIONS, GROUP_SIZES, VIEWS

NUMBERS = ("multiple", "row_multiple", "max_elements")  # limits that are one number, not a list
LISTS_OF_NUMBERS = ("blocksize", "ndim")
KEYS = (
    "blocksize", "dtype", "quant_type", "multiple", "row_multiple", "ndim", "max_elements",
    "codebook", "sign", "views",
)  # fmt: skip


class Scope:
    """Decides whether a case lies outside what an implementation says it supports."""

    def __init__(self, limits: Mapping[str, Any], offers: Mapping[str, Sequence[str] | None]):
        self._offers = offers
        self._limits = {name: _limits_of(limits, name) for name in FUNCTIONS}

    def outside(self, case: Case) -> str:
        """Say why a case is out of scope, in a few words; '' if it is inside."""
        taken = self._offers.get(case.function)
        for name, default in FUNCTIONS[case.function].options.items():
            value = case.arrays.get(name, case.options.get(name, default))
            usual = isinstance(value, type(default)) and bool(value == default)
            if taken is not None and name not in taken and not usual and default is not ...:
                return f"takes no {name}"
        for key, allowed in self._limits[case.function].items():
            reason = _outside(case, key, allowed)
            if reason:
                return reason
        return ""

    def accepted(self, case: Case) -> Case:
        """Leave out the options that the function does not take (they have their defaults)."""
        taken = self._offers.get(case.function)
        if taken is None:
            return case
        options = {k: v for k, v in case.options.items() if k in taken or k in ("shape", "program")}
        return case if len(options) == len(case.options) else replace(case, options=options)

    def choose(self, function: str, key: str, wishes: tuple[Any, ...]) -> Any:
        """Pick the first wish that the limits allow (else the first allowed value)."""
        taken = self._offers.get(function)
        default = FUNCTIONS[function].options.get(key, wishes[-1] if key == "dtype" else wishes[0])
        if taken is not None and key not in taken and key in FUNCTIONS[function].options:
            return default
        allowed = self._limits[function].get(key)
        if allowed is None:
            return wishes[0]
        return next((wish for wish in wishes if wish in allowed), allowed[0])

    def describe(self, function: str) -> str:
        """The declared scope of a function in words, '' if there is no limit.

        >>> limits = {"blocksize": [64], "dtype": ["bfloat16"]}
        >>> Scope(limits, {"quantize_4bit": None}).describe("quantize_4bit")
        'blocksize {64}, bfloat16'
        """
        parts = []
        for key, allowed in self._limits[function].items():
            demanded = GROUP_SIZES if FUNCTIONS[function].level == "L1" else BLOCKSIZES
            if key == "blocksize" and set(demanded) <= set(allowed):
                continue
            values = _listing(allowed) if isinstance(allowed, list) else f"{{{allowed}}}"
            parts.append(values.strip("{}") if key == "dtype" else f"{key} {values}")
        taken = self._offers.get(function)
        options = FUNCTIONS[function].options
        missing = [
            k for k, v in options.items() if taken is not None and k not in taken and v != ...
        ]
        return ", ".join(parts + [f"{k} {options[k]}" for k in missing])


def _listing(allowed: Sequence[Any]) -> str:
    """Values in braces, a run of whole numbers as a range.

    >>> _listing([1, 2, 3, 4]), _listing([64, 128])
    ('1..4', '{64, 128}')
    """
    if len(allowed) > 2 and list(allowed) == list(range(allowed[0], allowed[0] + len(allowed))):
        return f"{allowed[0]}..{allowed[-1]}"
    return f"{{{', '.join(str(v) for v in allowed)}}}"


def check_limits(limits: Any) -> None:
    """Refuse limits with an unknown key, or of another type (UsageError)."""
    if not isinstance(limits, Mapping):
        raise UsageError(f"limits must be a dict, got {limits!r}")
    for key, value in limits.items():
        if isinstance(value, Mapping) and key in FUNCTIONS:
            check_limits(value)
        elif key not in KEYS:
            raise UsageError(f"limits has no key {key!r}; it has {', '.join(KEYS)}")
        elif key in NUMBERS and (type(value) not in (int, float) or not value >= 1):
            raise UsageError(f"limits[{key!r}] is {value!r}; allowed: a number from 1")
        elif isinstance(value, list | tuple) and not value and key != "views":
            raise UsageError(f"limits[{key!r}] is empty; it lists what is supported")
        elif key in LISTS_OF_NUMBERS and not all(type(entry) is int for entry in _listed(value)):
            raise UsageError(f"limits[{key!r}] is {value!r}; allowed: whole numbers")


def _limits_of(limits: Mapping[str, Any], function: str) -> dict[str, Any]:
    """A function's own limits and those of all functions, which are about arrays: no tool's."""
    own, common = limits.get(function, {}), {} if FUNCTIONS[function].tool else limits
    merged = {**{k: v for k, v in common.items() if k not in FUNCTIONS}, **own}
    return {k: v if k in NUMBERS else _listed(v) for k, v in merged.items()}


def _listed(value: Any) -> Any:
    """The entries of a limit; one alone may stand without a list."""
    return value if isinstance(value, list | tuple) else [value]


def _outside(case: Case, key: str, allowed: Any) -> str:
    """Compare one limit with a case."""
    if FUNCTIONS[case.function].tool:  # of what a program on it reads and writes, the types
        types = {array.dtype.name for array in case.arrays.values()}
        return ", ".join(sorted(types - set(allowed))) if key == "dtype" else ""
    first = next(iter(case.arrays.values()))
    shape, n = case.shape, math.prod(case.shape)
    match key:
        case "blocksize" | "quant_type":
            value = case.options.get(key, FUNCTIONS[case.function].options.get(key))
            fits, words = value is None or value in allowed, f"{key} {value}"
        case "dtype":
            value = case.options.get("dtype", first.dtype.name)
            coded = first.dtype == np.uint8 and "dtype" not in case.options
            fits, words = value in allowed or coded, str(value)
        case "multiple":
            fits, words = n % allowed == 0, f"n {n}"
        case "max_elements":
            fits, words = n <= allowed, f"n {n}"
        case "row_multiple":
            row = shape[-1] if shape else 1
            fits, words = row % allowed == 0, f"rows of {row}"
        case "ndim":
            meant = case.function.endswith(("bit", "wise"))
            fits, words = not meant or len(shape) in allowed, f"{len(shape)} dimensions"
        case "codebook":
            size = case.arrays["codebook"].size if "codebook" in case.arrays else "default"
            fits, words = size in allowed, f"codebook of {size}"
        case "views":
            fits, words = case.form not in VIEWS or case.form in allowed, f"{case.form} views"
        case _:  # sign
            fits, words = bool((first >= 0).all()), "negative input"
    return "" if fits else words
