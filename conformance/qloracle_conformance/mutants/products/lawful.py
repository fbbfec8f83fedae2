"""4-bit linear layers that differ from the reference and are right (S9)."""

from functools import partial

from qloracle_conformance.mutants.parts import variant
from qloracle_conformance.mutants.products import steps, sums
from qloracle_conformance.mutants.products.steps import Linear

# fmt: off
SumsOfTheLibrary = variant("", "Products by BLAS, in float32.",
    **Linear().both())
SumsInOrder = variant("", "Products added one by one in float32, as one thread does.",
    **Linear(total=sums.in_order).both())
SumsFromTheEnd = variant("", "Products added one by one, the last one first.",
    **Linear(total=sums.from_the_end).both())
SumsInFusedSteps = variant("", "One fused multiply-add for each product.",
    **Linear(total=sums.fused).both())
SumsInPairs = variant("", "A tree of additions, as a parallel reduction makes it.",
    **Linear(total=sums.tree).both())
DeclaredTree = variant("order: pairwise", "The same tree, declared: a tighter bound holds.",
    {"dialect": {"order": "pairwise"}}, **Linear(total=sums.tree).both())
DeclaredChunks = variant("order: chunk(64)",
    "Chunks of 64 products, then the sum of the chunks: declared.",
    {"dialect": {"order": "chunk(64)"}}, **Linear(total=sums.chunks).both())
TensorCores = variant("accumulate: truncated",
    "Eight products a step; what float32 cannot hold beside the largest is cut off.",
    **Linear(total=sums.tensor_core).both())
TensorCoresWithGuardBits = variant("accumulate: truncated",
    "Eight products a step are added exactly, and each sum is cut off to float32.",
    **Linear(total=sums.cut_at_the_end).both())
EverySumCutOff = variant("accumulate: truncated",
    "Each single addition is cut off: all errors are toward zero, and add up.",
    **Linear(total=partial(sums.cut_at_the_end, step=1)).both())
WeightsInTypeOfX = variant("product_weights: own",
    "The weight is decoded into the type of x (bitsandbytes: decode, then a library's product).",
    **Linear(decode=steps.in_type_of_rows).both())
FactorsInTypeOfX = variant("product_weights: own_factors",
    "Level and scale are rounded to the type of x first (bitsandbytes' kernels for vectors).",
    **Linear(decode=steps.factors_in_type_of_rows).both())
BiasInTypeOfX = variant("bias_type: own",
    "A float32 bias is rounded to x's type before it is added.",
    **Linear(add=steps.biased_in_type_of_x).forward())
