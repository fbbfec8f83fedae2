"""Dialect fields: the lawful ways in which implementations differ, each a closed list of values.

A *format* field decides whether bytes can be exchanged.  A value other than the specification's
must be declared; undeclared it fails, and judging goes on under what was found.  A *rounding*
field is found by the probe, adopted and printed, as in ``PASS[full: reciprocal]``.  Which fields a
function has is said by its row of the protocol.

A declaration is a dict in the implementation, for all functions that have the field or for one::

    dialect = {"nibble_order": "low_first", "quantize_4bit[fp4]": {"thresholds": "cuda"}}
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS


class Field(NamedTuple):
    """One dialect field; the first value is the specification's."""

    name: str
    kind: str
    layer: str  # the rule, and its layer of checks, in which an undeclared value is a failure
    values: tuple[str, ...]
    meaning: str

    @property
    def rule(self) -> str:
        """The rule that the field belongs to."""
        return self.layer.partition("/")[0]


NORMALISATIONS = (
    "divide", "reciprocal", "approx(rcp)", "approx(div)", "approx(div2.5)", "approx(rcp2.5)",
)  # fmt: skip
BANDS = {"approx(rcp)": 2, "approx(div)": 2, "approx(div2.5)": 3, "approx(rcp2.5)": 5}

FIELDS = (
    Field(
        "codebook", "format", "S1/levels", ("pinned", "four_decimals", "paper", "bfloat16"),
        "the levels: S1's bits, or rounded to four decimals, the paper's offset, or bfloat16",
    ),
    Field(
        "map_8bit", "format", "S1/map", ("fused", "baseline"),
        "the default 8-bit map: S1's single rounding, or product and sum rounded apart",
    ),
    Field(
        "nibble_order", "format", "S6", ("high_first", "low_first"),
        "which nibble of a byte holds the first of two elements",
    ),
    Field(
        "layout", "format", "S3/shapes", ("flat", "per_row"),
        "blocks run over the flattened array, or start again at each row",
    ),
    Field(
        "absmax_type", "format", "S4/scales", ("float32", "float16", "bfloat16"),
        "the type to which absmax is rounded before it is stored",
    ),
    Field(
        "zero_block", "format", "S5/zeros", ("zero", "first", "last"),
        "the code of a block of zeros: that of q = +0, the first or the last",
    ),
    Field(
        "nested_scale", "format", "S8/scales", ("dynamic", "linear"),
        "how an opaque state codes its scales: by the dynamic map, or in 256 equal steps",
    ),
    Field(
        "normalisation_full", "rounding", "S5/full", NORMALISATIONS,
        "how a full block is scaled: x / absmax, x * (1 / absmax), or an approximation",
    ),
    Field(
        "normalisation_partial", "rounding", "S5/partial", NORMALISATIONS,
        "the same for a short last block",
    ),
    Field(
        "thresholds", "rounding", "S2/powers", ("midpoint", "nearest", "literal", "cuda"),
        "float32 midpoints, argmin of float32 distances, or published decimals as a C compiler "
        "rounds them (literal: NF4; cuda: FP4)",
    ),
    Field(
        "fp4_ties", "rounding", "S2/powers", ("toward_zero", "lower_signed"),
        "where a tie between two negative FP4 levels goes",
    ),
    Field(
        "input_type", "rounding", "S5/16bit", ("float32", "own"),
        "the type in which x is scaled: float32, or the type of x",
    ),
    Field(
        "subnormal_input", "rounding", "S5/extremes", ("kept", "flushed"),
        "subnormal elements: kept, or read as zero",
    ),
    Field(
        "subnormal_scale", "rounding", "S5/extremes", ("kept", "flushed"),
        "a subnormal absmax: kept, or taken as zero when scaling",
    ),
    Field(
        "subnormal_output", "rounding", "S7/extremes", ("kept", "flushed", "flushed_bfloat16"),
        "a subnormal float32 product: kept, or returned as zero (in every type, or by the "
        "conversion to bfloat16 alone, as AVX-512's instruction does)",
    ),
    Field(
        "decode", "rounding", "S7/mantissas", ("separate", "output_type", "fma"),
        "product in float32 then rounded; factors rounded to the output type first; "
        "for nested scales, product and offset in one rounding",
    ),
    Field(
        "product_weights", "rounding", "S9/weights", ("float32", "own", "own_factors"),
        "the weights of a product: float32, rounded to the type of x, or levels and scales so "
        "rounded before they are multiplied",
    ),
    Field(
        "bias_type", "rounding", "S9/weights", ("kept", "own"),
        "a float32 bias is added as it is, or rounded to the type of x first",
    ),
    Field(
        "accumulate", "rounding", "S9/weights", ("float32", "truncated"),
        "sums in float32, each addition rounded to nearest, or truncated, as tensor cores do",
    ),
    Field(
        "order", "rounding", "S9/weights",
        ("any", "pairwise", "chunk(16)", "chunk(32)", "chunk(64)", "chunk(128)", "chunk(256)"),
        "the order of summation; one that is declared has a tighter bound, and is not probed",
    ),
    Field(
        "lora_rounding", "rounding", "S10/rounding", ("once", "hidden", "separate"),
        "what is rounded to a 16-bit type: the result alone, also the hidden h, or the result of "
        "every step",
    ),
    Field(
        "lora_merged", "rounding", "S10/rounding", ("no", "yes"),
        "whether s B A is added to the weight before the product; it is not probed",
    ),
    Field(
        "betas", "rounding", "S11/moments", ("float64", "float32"),
        "the type in which 1 - beta and the powers of beta are computed from",
    ),
    Field(
        "bias_correction", "rounding", "S11/step", ("float64", "float32"),
        "the type in which 1 - beta^t is computed",
    ),
    Field(
        "decay_order", "rounding", "S11/decay", ("before", "after"),
        "decoupled decay multiplies the parameter before the update is subtracted, or after",
    ),
    Field(
        "decay_mode", "format", "S11/decay", ("as_asked", "decoupled", "coupled"),
        "decay as `decoupled_weight_decay` asks for it, or always in one way",
    ),
    Field(
        "sign_nudge", "rounding", "S11b/states", ("no", "yes"),
        "whether a code of m is moved by one where its level has not the sign of m",
    ),
    Field(
        "state_used", "rounding", "S11b/step", ("exact", "rounded"),
        "whether the parameter moves by the new moments, or by what their codes say",
    ),
)  # fmt: skip

OF_TABLE = {"fp4_ties": "fp4", "codebook": "nf4"}  # fields of one 4-bit type only
BY_NAME = {field.name: field for field in FIELDS}

Dialect = dict[str, str]


def fields_of(function: str, quant_type: str = "") -> list[Field]:
    """List the fields that a function has; some are one table's alone.

    >>> [field.name for field in fields_of("dequantize_blockwise")]
    ['layout', 'subnormal_output', 'decode']
    """
    own = FUNCTIONS[function].dialect if function in FUNCTIONS else ()
    found = [field for field in FIELDS if field.name in own]
    return [field for field in found if OF_TABLE.get(field.name, quant_type) == quant_type]


def specification(function: str, quant_type: str = "") -> Dialect:
    """Return the specification's value of every field of a function."""
    return {field.name: field.values[0] for field in fields_of(function, quant_type)}


def declared_for(declared: Mapping[str, Any], function: str, quant_type: str = "") -> Dialect:
    """Pick from a declaration what concerns one function, the more specific entry winning.

    Raises UsageError for an unknown field, function or value.

    >>> declared_for({"normalisation": ["reciprocal", "divide"]}, "quantize_blockwise")
    {'normalisation_full': 'reciprocal', 'normalisation_partial': 'divide'}
    """
    chosen: Dialect = {}
    names = {field.name for field in fields_of(function, quant_type)}
    for scope in ("", function, f"{function}[{quant_type}]"):
        part = declared if scope == "" else declared.get(scope, {})
        for name, value in _spread(part):
            if name in names:
                chosen[name] = value
    return chosen


def check_declaration(declared: Any) -> None:
    """Refuse a declaration with a field, function or value that does not exist (UsageError)."""
    if not isinstance(declared, Mapping):
        raise UsageError(f"dialect must be a dict, got {declared!r}")
    for name, part in declared.items():
        function = name.partition("[")[0]
        if isinstance(part, Mapping):
            if not fields_of(function):
                raise UsageError(f"dialect names {name!r}, which is no function with a dialect")
            check_declaration(part)
    for name, value in _spread(declared):
        field = BY_NAME.get(name)
        if field is None:
            raise UsageError(f"dialect has no field {name!r}; it has {', '.join(BY_NAME)}")
        if value not in field.values:
            raise UsageError(
                f"dialect field {name!r} is {value!r}; allowed: {', '.join(field.values)}"
            )


def _spread(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, value), `normalisation` standing for the pair of full and partial blocks."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            continue
        if name == "normalisation":
            pair = (value, value) if isinstance(value, str) else value
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise UsageError(f"normalisation is {value!r}; give one value, or full and partial")
            yield from zip(("normalisation_full", "normalisation_partial"), pair, strict=True)
        else:
            yield name, value


def label(dialect: Dialect, function: str, quant_type: str = "") -> str:
    """Say how a dialect differs from the specification, '' if it does not.

    >>> label({"normalisation_full": "reciprocal", "normalisation_partial": "reciprocal"},
    ...       "quantize_blockwise")
    'reciprocal'
    """
    spec = specification(function, quant_type)
    odd = {k: v for k, v in dialect.items() if v != spec.get(k)}
    full, partial = odd.pop("normalisation_full", None), odd.pop("normalisation_partial", None)
    parts = []
    if full and full == partial:
        parts.append(full)
    elif full or partial:
        parts.append(f"full: {full or 'divide'}, partial: {partial or 'divide'}")
    return "; ".join(parts + [f"{k}: {v}" for k, v in odd.items()])
