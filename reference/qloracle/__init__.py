"""An executable specification of QLoRA's numerics: what a kernel must return, in NumPy.

The hour's read, about 1,500 lines with the checks that its modules share, in this order:

    codebook       where the sixteen levels come from
    blockwise      NF4: a block, its absmax, and the nearest level
    nested         the scales of the scales
    lora           a thin product beside a frozen weight, and its gradients
    linear4bit     QLoRA: the product with a packed weight, a few rows at a time
    adam           the step, with moments in 32 bits or in 8

Short lessons after it, each of which stands alone:

    merging        what survives a merge: three ways to write an adapter into a weight
    ranks          sort or assume: bins that hold equally many values
    checkpointing  forget the activations, compute them again
    targets        which layers of a model get an adapter
    layers         three projections of one input, and a gated MLP
    paging         more state than memory, a page at a time
    memory         where the memory goes, as arithmetic on shapes
    examples       all of it put to work: python -m qloracle.examples.finetune

A module's docstring is its lesson, as in `help("qloracle.codebook")`. Rules S1 to S12 are named
where they are carried out, and `qloracle explain S5` prints one of them in full. Readers who know
these things by the names of bitsandbytes, torchao or the paper find ours in
reference/docs/glossary.md. `qloracle.codebook` is the function; the other names of that module come
by `from qloracle.codebook import ...`.

>>> import numpy as np
>>> w = np.random.default_rng(0).standard_normal((128, 96)).astype(np.float32)
>>> packed, absmax = quantize_4bit(w)
>>> packed.nbytes + absmax.nbytes, w.nbytes
(6912, 49152)
>>> w_hat = dequantize_4bit(packed, absmax, shape=w.shape)
>>> print(f"{np.mean((w - w_hat) ** 2):.4f}")
0.0085
"""

from qloracle.adam import adam_step, adam_step_8bit
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
from qloracle.linear4bit import matmul_4bit, matmul_4bit_backward, qlora_backward, qlora_forward
from qloracle.lora import draw_dropout_mask, lora_backward, lora_forward, lora_scaling
from qloracle.merging import merge, merge_dequantized, merge_requantized, unmerge
from qloracle.nested import bits_per_weight, dequantize_absmax, quantize_absmax
from qloracle.paging import load as load_paged
from qloracle.paging import make_pager
from qloracle.paging import save as save_paged
from qloracle.ranks import bin_means, normal_codes, rank_codes

__version__ = "0.1.0"
SPEC_VERSION = "1.1"

__all__ = [
    "SPEC_VERSION",
    "__version__",
    "adam_step",
    "adam_step_8bit",
    "bin_means",
    "bits_per_weight",
    "codebook",
    "dequantize_4bit",
    "dequantize_absmax",
    "dequantize_blockwise",
    "draw_dropout_mask",
    "dynamic_codebook",
    "fp4_codebook",
    "int4_codebook",
    "load_paged",
    "lora_backward",
    "lora_forward",
    "lora_scaling",
    "make_pager",
    "matmul_4bit",
    "matmul_4bit_backward",
    "merge",
    "merge_dequantized",
    "merge_requantized",
    "nf4_codebook",
    "normal_codes",
    "normal_float_codebook",
    "normal_quantile",
    "notes_codebook",
    "pack_4bit",
    "qlora_backward",
    "qlora_forward",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_blockwise",
    "rank_codes",
    "save_paged",
    "thresholds",
    "unmerge",
    "unpack_4bit",
]
