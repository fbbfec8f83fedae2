"""The CUDA C of every kernel, as one text: what is checked without a GPU is what a GPU gets.

The files below are read in one order and joined, each behind a `#line` that keeps its name in
every message.  None includes anything: no header of CUDA's is needed, so that NVRTC, nvcc and g++
compile the same bytes.

    common.cuh    types, conversions, shuffles: what the kernels share
    codes.cuh     thresholds, and the code of a value over its absmax (S2, S5)
    quantize.cu   absmax and codes, 4 and 8 bits (S3 to S6)
    dequantize.cu levels times scales, plain and nested (S7, S8)
    nested.cu     the offset of double quantization, and the scales coded (S8)
    product.cu    few rows of x times a packed weight (S9)
    adam.cu       one step for many tensors, moments in 32 bits or in 8 (S11, S11b)

>>> text().startswith('#line 1 "common.cuh"')
True
"""

import hashlib
from functools import cache
from importlib.resources import files

FILES = (
    "common.cuh",
    "codes.cuh",
    "quantize.cu",
    "dequantize.cu",
    "nested.cu",
    "product.cu",
    "adam.cu",
)

# Contraction would fuse a multiply and an add that the rules round apart.
OPTIONS = ("-std=c++17", "--fmad=false")


@cache
def text() -> str:
    """Return the one source that every compiler gets."""
    folder = files(__name__)
    parts = [(name, (folder / name).read_text(encoding="utf-8")) for name in FILES]
    return "".join(f'#line 1 "{name}"\n{part}' for name, part in parts)


def digest(source: str) -> str:
    """Return what names a text: the first 16 hex digits of its SHA-256.

    >>> digest("")
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(source.encode()).hexdigest()[:16]
