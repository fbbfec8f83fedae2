"""The protocol as one table: which functions exist, what they take, what they return.

An implementation offers any subset of these names.  Everything else reads this table: the child
process learns from it which arguments are positional and what a result looks like, the reports and
`explain` learn the level, the kit the family in whose folder the function's rules stand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5")

FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

FORMS = {  # in which the same array can be handed over (rule P5)
    "strided": "strided: every second element of a larger one",
    "transposed": "transposed: their axes lie in the opposite order",
    "offset": "that start 64 elements into their memory",
    "unaligned": "that start 1 element into their memory",
    "expanded": "expanded where all rows or elements are equal: one in memory stands for all",
    "side_stream": "on a side stream, on which they arrive late",
    "second_device": "on a second device",
    "out": "and out=",
}
VIEWS = ("strided", "transposed", "offset", "unaligned", "expanded")  # of another array

Arrays = Mapping[str, np.ndarray]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class ResultForm:
    """The type and shape that one result must have."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


Forms = Callable[[tuple[str, ...], Arrays, Options], tuple[ResultForm, ...]]


@dataclass(frozen=True)
class Function:
    """One row of the protocol: positional arrays, results and their forms, options with defaults.

    `family` names the folder of its rules, `dialect` the fields in which lawful ones differ.  An
    `optional` function is another way to reach its level: it is never reported as missing.  A
    result that is an opaque state is made readable by the implementation's `decoder`.  A `tool`
    returns no array: a program runs on it, and the results are what was read on the way.
    """

    level: str
    family: str
    name: str
    arrays: tuple[str, ...]
    results: tuple[str, ...]
    forms: Forms
    options: Options = field(default_factory=dict)
    dialect: tuple[str, ...] = ()
    optional: bool = False
    decoder: str = ""
    tool: bool = False

    @property
    def signature(self) -> str:
        """The call as the protocol writes it."""
        options = [k if v is ... else f"{k}={v!r}" for k, v in self.options.items()]
        return f"{self.name}({', '.join([*self.arrays, '*', *options])})"


# ---- the forms of results: type and shape, from the arrays and options of a call -----------------


def form(name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> ResultForm:
    """Make a ResultForm, of a type or of its name."""
    return ResultForm(name, np.dtype(dtype), shape)


def alike(results: tuple[str, ...], arrays: Arrays, _: Options) -> tuple[ResultForm, ...]:
    """Each result is like the array of its name, and a gradient dz like z."""
    like = [arrays[name if name in arrays else name.removeprefix("d")] for name in results]
    return tuple(ResultForm(n, a.dtype, a.shape) for n, a in zip(results, like, strict=True))


def _coded(results: tuple[str, ...], arrays: Arrays, options: Options) -> tuple[ResultForm, ...]:
    """Codes, two in a byte where they are packed, an absmax a block; of coded scales an offset."""
    codes, absmax, *offset = results
    n = _source(arrays).size
    bytes_ = (n + 1) // 2 if codes == "packed" else n
    blocks = -(-n // options["blocksize"])
    scales = form(absmax, np.float32, (blocks,)), *(form(name, np.float32, ()) for name in offset)
    return form(codes, np.uint8, (bytes_,)), *scales


def _decoded(results: tuple[str, ...], arrays: Arrays, options: Options) -> tuple[ResultForm, ...]:
    """The type and shape that were asked for, or float32 in the shape of what is decoded."""
    shape = options.get("shape", _source(arrays).shape)
    return (form(results[0], options.get("dtype", np.float32), tuple(shape)),)


def _source(arrays: Arrays) -> np.ndarray:
    return next(arrays[name] for name in ("x", "absmax", "codes") if name in arrays)


def _applied(results: tuple[str, ...], arrays: Arrays, options: Options) -> tuple[ResultForm, ...]:
    """y has x's type and leading axes, and as many columns as W has rows."""
    out, _ = arrays["w"].shape if "w" in arrays else options["shape"]
    x = arrays["x"]
    return (ResultForm(results[0], x.dtype, (*x.shape[:-1], out)),)


def _gradients(
    results: tuple[str, ...], arrays: Arrays, options: Options
) -> tuple[ResultForm, ...]:
    """dx has dy's type and leading axes; gradients of adapters are like the adapters."""
    _, into = arrays["w"].shape if "w" in arrays else options["shape"]
    dy = arrays["dy"]
    dx = ResultForm(results[0], dy.dtype, (*dy.shape[:-1], into))
    return (dx, *alike(results[1:], arrays, options))


def _read(*_: Any) -> tuple[ResultForm, ...]:
    """A tool returns no array."""
    return ()


BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
GROUP_SIZES = (64, 63, 65, 255, 257, 100)  # of scales: no library groups by an odd number

FOUR_BIT = {"blocksize": 64, "quant_type": "nf4"}

# ---- the functions -------------------------------------------------------------------------------

SCALING = ("normalisation_full", "normalisation_partial", "thresholds")  # of codes
CODING = (
    "layout", "absmax_type", "zero_block", *SCALING, "input_type", "subnormal_input",
    "subnormal_scale",
)  # fmt: skip
DECODING = ("layout", "subnormal_output", "decode")
PACKED = ("nibble_order", "layout", "product_weights", "accumulate")  # of products
ADAM = ("betas", "bias_correction", "decay_order")

LAYER = {"shape": ..., **FOUR_BIT}
ADAPTER = {"scaling": ..., "dropout_mask": None}
NESTED = {"codebook": None, "blocksize": 256}
QLORA = {"shape": ..., "scaling": ..., **FOUR_BIT, "dropout_mask": None}
STEP = {
    "step": ..., "lr": ..., "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0,
}  # fmt: skip

TABLE = (
    Function(
        "L0", "codes", "quantize_4bit", ("x",), ("packed", "absmax"), _coded, FOUR_BIT,
        ("nibble_order", *CODING, "fp4_ties"),
    ),
    Function(
        "L0", "codes", "dequantize_4bit", ("packed", "absmax"), ("values",), _decoded,
        {**LAYER, "dtype": "float32"}, ("codebook", "nibble_order", *DECODING),
    ),
    Function(
        "L0", "codes", "quantize_blockwise", ("x", "codebook"), ("codes", "absmax"), _coded,
        {"blocksize": 256}, CODING,
    ),
    Function(
        "L0", "codes", "dequantize_blockwise", ("codes", "absmax", "codebook"), ("values",),
        _decoded, {"shape": ..., "blocksize": 256, "dtype": "float32"}, DECODING,
    ),
    Function(
        "L1", "nested", "quantize_absmax", ("absmax",), ("codes", "nested_absmax", "offset"),
        _coded, NESTED, ("zero_block", *SCALING),
    ),
    Function(
        "L1", "nested", "dequantize_absmax", ("codes", "nested_absmax", "offset"), ("absmax",),
        _decoded, NESTED, ("map_8bit", "decode"),
    ),
    Function(
        "L1", "nested", "quantize_nested", ("x",), ("values",), _decoded,
        {**FOUR_BIT, "dtype": "float32"},
        ("codebook", "nested_scale", *SCALING, "input_type", "decode"),
        optional=True, decoder="dequantize_nested",
    ),
    Function(
        "L2", "products", "matmul_4bit", ("x", "packed", "absmax"), ("y",), _applied,
        {**LAYER, "bias": None}, (*PACKED, "bias_type", "order"),
    ),
    Function(
        "L2", "products", "matmul_4bit_backward", ("dy", "packed", "absmax"), ("dx",), _gradients,
        LAYER, (*PACKED, "order"),
    ),
    Function(
        "L3", "lora", "lora_forward", ("x", "w", "a", "b"), ("y",), _applied,
        ADAPTER, ("accumulate", "lora_rounding", "lora_merged"),
    ),
    Function(
        "L3", "lora", "lora_backward", ("dy", "x", "w", "a", "b"), ("dx", "da", "db"), _gradients,
        ADAPTER, ("accumulate", "lora_rounding"),
    ),
    Function(
        "L3", "lora", "qlora_forward", ("x", "packed", "absmax", "a", "b"), ("y",), _applied,
        QLORA, (*PACKED, "lora_rounding", "lora_merged"),
    ),
    Function(
        "L3", "lora", "qlora_backward", ("dy", "x", "packed", "absmax", "a", "b"),
        ("dx", "da", "db"), _gradients, QLORA, (*PACKED, "lora_rounding"),
    ),
    Function(
        "L4", "adam", "adam_step", ("param", "grad", "m", "v"), ("param", "m", "v"), alike,
        {**STEP, "decoupled_weight_decay": True}, (*ADAM, "decay_mode"),
    ),
    Function(
        "L4", "adam", "adam_step_8bit",
        ("param", "grad", "m_codes", "m_absmax", "v_codes", "v_absmax"),
        ("param", "m_codes", "m_absmax", "v_codes", "v_absmax"), alike,
        {**STEP, "blocksize": 256, "m_codebook": None, "v_codebook": None},
        (*ADAM, "sign_nudge", "state_used"),
    ),
    Function(
        "L5", "paging", "make_pager", (), ("read", "log", "words", "plain"), _read,
        {"capacity_bytes": None, "page_bytes": None}, tool=True,
    ),
)  # fmt: skip

LINEAR, LORA, OPTIMIZERS = (
    tuple(function.name for function in TABLE if function.family == family)
    for family in ("products", "lora", "adam")
)

FUNCTIONS = {function.name: function for function in TABLE}


def result_forms(name: str, arrays: Arrays, options: Options) -> tuple[ResultForm, ...]:
    """State type and shape of every result of a call (flat layout, as the protocol fixes it).

    >>> x = np.zeros((3, 5), np.float32)
    >>> [str(form) for form in result_forms("quantize_4bit", {"x": x}, {"blocksize": 64})]
    ['packed uint8[8]', 'absmax float32[1]']
    """
    function = FUNCTIONS[name]
    return function.forms(function.results, arrays, {**function.options, **options})
