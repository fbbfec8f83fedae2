"""An executable specification of QLoRA's numerics: what a kernel must return, in NumPy.

    codebook    where the sixteen levels come from
    blockwise   a block, its absmax, and the nearest level: NF4
    nested      the scales of the scales
    ranks       sort or assume: bins that hold equally many values

Each module is a lesson; read them in this order. Rules S1 to S8 are named where they are carried
out. `qloracle.codebook` is the function; the module's other names come by
`from qloracle.codebook import ...`.

>>> import numpy as np
>>> w = np.random.default_rng(0).standard_normal((128, 96)).astype(np.float32)
>>> packed, absmax = quantize_4bit(w)
>>> packed.nbytes + absmax.nbytes, w.nbytes
(6912, 49152)
>>> w_hat = dequantize_4bit(packed, absmax, shape=w.shape)
>>> print(f"{np.mean((w - w_hat) ** 2):.4f}")
0.0085
"""

from qloracle.blockwise import (
    dequantize_4bit,
    dequantize_blockwise,
    pack_4bit,
    quantize_4bit,
    quantize_blockwise,
    unpack_4bit,
)
from qloracle.codebook import (
    codebook,
    dynamic_codebook,
    fp4_codebook,
    int4_codebook,
    nf4_codebook,
    normal_float_codebook,
    normal_quantile,
    notes_codebook,
    thresholds,
)
from qloracle.nested import bits_per_weight, dequantize_absmax, quantize_absmax
from qloracle.ranks import bin_means, normal_codes, rank_codes

__version__ = "0.1.0"
SPEC_VERSION = "1.0"

__all__ = [
    "SPEC_VERSION",
    "__version__",
    "bin_means",
    "bits_per_weight",
    "codebook",
    "dequantize_4bit",
    "dequantize_absmax",
    "dequantize_blockwise",
    "dynamic_codebook",
    "fp4_codebook",
    "int4_codebook",
    "nf4_codebook",
    "normal_codes",
    "normal_float_codebook",
    "normal_quantile",
    "notes_codebook",
    "pack_4bit",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_blockwise",
    "rank_codes",
    "thresholds",
    "unpack_4bit",
]
