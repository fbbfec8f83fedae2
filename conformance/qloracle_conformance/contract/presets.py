"""Dialects of known libraries, by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qloracle_conformance.contract.errors import UsageError


class Preset(NamedTuple):
    """A named declaration: a library's dialect, as it is known."""

    name: str
    meaning: str
    declared: Mapping[str, Any]


# bnb-default and torchao are checked on the libraries by tests.  The others cannot be: there is no
# adapter for onnxruntime 1.32.0 and openvino 2026.4.1, whose quantizers were run by hand and passed
# as declared; bnb-triton was read in the code that Triton 3.9.0 compiles from bitsandbytes 0.50.2's
# kernels (division is `div.full`, and Python's floats round to the midpoints); bnb-cuda was read in
# its sources.  What is not known is not here: how flush-to-zero shows in CUDA, what its 8-bit codes
# of zeros are, and what Triton makes of 0 / 0.
PRESETS = (
    Preset("spec", "as specified: every field has its first value", {}),
    Preset(
        "bnb-default",
        "bitsandbytes without CUDA: multiplies by 1 / absmax in full blocks, divides in short ones",
        {
            "normalisation": ["reciprocal", "divide"],
            "quantize_4bit[fp4]": {"fp4_ties": "lower_signed"},
        },
    ),
    Preset(
        "bnb-cuda",
        "bitsandbytes' CUDA kernels: approximate reciprocals, published decimals, zeros as code 0",
        {
            "normalisation": "approx(rcp)",
            "quantize_4bit": {"zero_block": "first"},
            "quantize_4bit[nf4]": {"thresholds": "literal"},
            "quantize_4bit[fp4]": {"thresholds": "cuda"},
        },
    ),
    Preset(
        "bnb-triton",
        "bitsandbytes' Triton kernels: approximate quotients; for FP4, published decimals",
        {"normalisation": "approx(div)", "quantize_4bit[fp4]": {"thresholds": "cuda"}},
    ),
    Preset(
        "onnxruntime",
        "ONNX Runtime's MatMulBnb4: multiplies by 1 / absmax, published decimals",
        {
            "normalisation": "reciprocal",
            "quantize_4bit[nf4]": {"thresholds": "literal"},
            "quantize_4bit[fp4]": {"thresholds": "cuda"},
        },
    ),
    Preset(
        "openvino",
        "OpenVINO's type nf4: low nibble first, published decimals; the caller scales",
        {"nibble_order": "low_first", "quantize_4bit[nf4]": {"thresholds": "literal"}},
    ),
    Preset(
        "torchao",
        "torchao's NF4Tensor: four decimals, all in the type of x, scales in 256 equal steps",
        {
            "codebook": "four_decimals",
            "nested_scale": "linear",
            "thresholds": "nearest",
            "input_type": "own",
            "decode": "output_type",
        },
    ),
)


def preset(name: str) -> dict[str, Any]:
    """Return a named dialect; UsageError, with the meaning of each, if no preset has that name.

    >>> preset("openvino")["nibble_order"]
    'low_first'
    """
    found = {preset.name: preset for preset in PRESETS}
    if name not in found:
        known = "; ".join(f"{preset.name} ({preset.meaning})" for preset in PRESETS)
        raise UsageError(f"no dialect preset {name!r}; there are {known}")
    return dict(found[name].declared)
