"""Dialect fields: the lawful ways in which implementations differ, each a closed list of values.

A *format* field decides whether bytes can be exchanged.  A value other than the specification's
must be declared; undeclared it fails, and judging goes on under what was found.  A *rounding*
field is found by the probe, adopted and printed, as in ``PASS[full: reciprocal]``.

A declaration is a dict in the implementation, for all functions that have the field or for one::

    dialect = {"nibble_order": "low_first", "quantize_4bit[fp4]": {"thresholds": "cuda"}}
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import TABLE


class Field(NamedTuple):
    """One dialect field; the first value is the specification's."""

    name: str
    kind: str
    values: tuple[str, ...]
    functions: tuple[str, ...]
    layer: str  # the rule, and its layer of checks, in which an undeclared value is a failure
    meaning: str

    @property
    def rule(self) -> str:
        """The rule that the field belongs to."""
        return self.layer.partition("/")[0]


QUANTIZERS = ("quantize_4bit", "quantize_blockwise")
DECODERS = ("dequantize_4bit", "dequantize_blockwise")
CODERS = (*QUANTIZERS, "quantize_absmax", "quantize_nested")
LINEAR = tuple(f.name for f in TABLE if f.family == "products")
LORA = tuple(f.name for f in TABLE if f.family == "lora" and "x" in f.arrays)
PACKED = (*LINEAR, *(f.name for f in TABLE if f.name in LORA and "packed" in f.arrays))
OPTIMIZERS = tuple(f.name for f in TABLE if f.family == "adam")
NORMALISATIONS = (
    "divide", "reciprocal", "approx(rcp)", "approx(div)", "approx(div2.5)", "approx(rcp2.5)",
)  # fmt: skip
BANDS = {"approx(rcp)": 2, "approx(div)": 2, "approx(div2.5)": 3, "approx(rcp2.5)": 5}

FIELDS = (
    Field(
        "codebook", "format", ("pinned", "four_decimals", "paper", "bfloat16"),
        ("dequantize_4bit", "quantize_nested"),
        "S1/levels",
        "the levels: S1's bits, or rounded to four decimals, the paper's offset, or bfloat16",
    ),
    Field(
        "map_8bit", "format", ("fused", "baseline"), ("dequantize_absmax",),
        "S1/map",
        "the default 8-bit map: S1's single rounding, or product and sum rounded apart",
    ),
    Field(
        "nibble_order", "format", ("high_first", "low_first"),
        ("quantize_4bit", "dequantize_4bit", *PACKED),
        "S6",
        "which nibble of a byte holds the first of two elements",
    ),
    Field(
        "layout", "format", ("flat", "per_row"), QUANTIZERS + DECODERS + PACKED,
        "S3/shapes",
        "blocks run over the flattened array, or start again at each row",
    ),
    Field(
        "absmax_type", "format", ("float32", "float16", "bfloat16"), QUANTIZERS,
        "S4/scales",
        "the type to which absmax is rounded before it is stored",
    ),
    Field(
        "zero_block", "format", ("zero", "first", "last"), (*QUANTIZERS, "quantize_absmax"),
        "S5/zeros",
        "the code of a block of zeros: that of q = +0, the first or the last",
    ),
    Field(
        "nested_scale", "format", ("dynamic", "linear"), ("quantize_nested",),
        "S8/scales",
        "how an opaque state codes its scales: by the dynamic map, or in 256 equal steps",
    ),
    Field(
        "normalisation_full", "rounding", NORMALISATIONS, CODERS,
        "S5/full",
        "how a full block is scaled: x / absmax, x * (1 / absmax), or an approximation",
    ),
    Field(
        "normalisation_partial", "rounding", NORMALISATIONS, CODERS,
        "S5/partial",
        "the same for a short last block",
    ),
    Field(
        "thresholds", "rounding", ("midpoint", "nearest", "literal", "cuda"), CODERS,
        "S2/powers",
        "float32 midpoints, argmin of float32 distances, or published decimals as a C compiler "
        "rounds them (literal: NF4; cuda: FP4)",
    ),
    Field(
        "fp4_ties", "rounding", ("toward_zero", "lower_signed"), ("quantize_4bit",),
        "S2/powers",
        "where a tie between two negative FP4 levels goes",
    ),
    Field(
        "input_type", "rounding", ("float32", "own"), (*QUANTIZERS, "quantize_nested"),
        "S5/16bit",
        "the type in which x is scaled: float32, or the type of x",
    ),
    Field(
        "subnormal_input", "rounding", ("kept", "flushed"), QUANTIZERS,
        "S5/extremes",
        "subnormal elements: kept, or read as zero",
    ),
    Field(
        "subnormal_scale", "rounding", ("kept", "flushed"), QUANTIZERS,
        "S5/extremes",
        "a subnormal absmax: kept, or taken as zero when scaling",
    ),
    Field(
        "subnormal_output", "rounding", ("kept", "flushed", "flushed_bfloat16"), DECODERS,
        "S7/extremes",
        "a subnormal float32 product: kept, or returned as zero (in every type, or by the "
        "conversion to bfloat16 alone, as AVX-512's instruction does)",
    ),
    Field(
        "decode", "rounding", ("separate", "output_type", "fma"),
        (*DECODERS, "dequantize_absmax", "quantize_nested"),
        "S7/mantissas",
        "product in float32 then rounded; factors rounded to the output type first; "
        "for nested scales, product and offset in one rounding",
    ),
    Field(
        "product_weights", "rounding", ("float32", "own", "own_factors"), PACKED,
        "S9/weights",
        "the weights of a product: float32, rounded to the type of x, or levels and scales so "
        "rounded before they are multiplied",
    ),
    Field(
        "bias_type", "rounding", ("kept", "own"), ("matmul_4bit",),
        "S9/weights",
        "a float32 bias is added as it is, or rounded to the type of x first",
    ),
    Field(
        "accumulate", "rounding", ("float32", "truncated"), (*PACKED, *LORA[:2]),
        "S9/weights",
        "sums in float32, each addition rounded to nearest, or truncated, as tensor cores do",
    ),
    Field(
        "order", "rounding",
        ("any", "pairwise", "chunk(16)", "chunk(32)", "chunk(64)", "chunk(128)", "chunk(256)"),
        LINEAR,
        "S9/weights",
        "the order of summation; one that is declared has a tighter bound, and is not probed",
    ),
    Field(
        "lora_rounding", "rounding", ("once", "hidden", "separate"), LORA,
        "S10/rounding",
        "what is rounded to a 16-bit type: the result alone, also the hidden h, or the result of "
        "every step",
    ),
    Field(
        "lora_merged", "rounding", ("no", "yes"), ("lora_forward", "qlora_forward"),
        "S10/rounding",
        "whether s B A is added to the weight before the product; it is not probed",
    ),
    Field(
        "betas", "rounding", ("float64", "float32"), OPTIMIZERS,
        "S11/moments",
        "the type in which 1 - beta and the powers of beta are computed from",
    ),
    Field(
        "bias_correction", "rounding", ("float64", "float32"), OPTIMIZERS,
        "S11/step",
        "the type in which 1 - beta^t is computed",
    ),
    Field(
        "decay_order", "rounding", ("before", "after"), OPTIMIZERS,
        "S11/decay",
        "decoupled decay multiplies the parameter before the update is subtracted, or after",
    ),
    Field(
        "decay_mode", "format", ("as_asked", "decoupled", "coupled"), ("adam_step",),
        "S11/decay",
        "decay as `decoupled_weight_decay` asks for it, or always in one way",
    ),
    Field(
        "sign_nudge", "rounding", ("no", "yes"), ("adam_step_8bit",),
        "S11b/states",
        "whether a code of m is moved by one where its level has not the sign of m",
    ),
    Field(
        "state_used", "rounding", ("exact", "rounded"), ("adam_step_8bit",),
        "S11b/step",
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
    found = [field for field in FIELDS if function in field.functions]
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
            if not any(function in field.functions for field in FIELDS):
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
