"""4-bit linear layers that differ from the reference and are right (S9)."""

from functools import partial

from qloracle_conformance.mutants.parts import variant
from qloracle_conformance.mutants.products import steps, sums
from qloracle_conformance.mutants.products.steps import both

# fmt: off
SumsOfTheLibrary = variant("", "Products by BLAS, in float32.",
    **both())
SumsInOrder = variant("", "Products added one by one in float32, as one thread does.",
    **both(total=sums.in_order))
SumsFromTheEnd = variant("", "Products added one by one, the last one first.",
    **both(total=sums.from_the_end))
SumsInFusedSteps = variant("", "One fused multiply-add for each product.",
    **both(total=sums.fused))
SumsInPairs = variant("", "A tree of additions, as a parallel reduction makes it.",
    **both(total=sums.tree))
DeclaredTree = variant("order: pairwise", "The same tree, declared: a tighter bound holds.",
    {"dialect": {"order": "pairwise"}}, **both(total=sums.tree))
DeclaredChunks = variant("order: chunk(64)",
    "Chunks of 64 products, then the sum of the chunks: declared.",
    {"dialect": {"order": "chunk(64)"}}, **both(total=sums.chunks))
TensorCores = variant("accumulate: truncated",
    "Eight products a step; what float32 cannot hold beside the largest is cut off.",
    **both(total=sums.tensor_core))
TensorCoresWithGuardBits = variant("accumulate: truncated",
    "Eight products a step are added exactly, and each sum is cut off to float32.",
    **both(total=sums.cut_at_the_end))
EverySumCutOff = variant("accumulate: truncated",
    "Each single addition is cut off: all errors are toward zero, and add up.",
    **both(total=partial(sums.cut_at_the_end, step=1)))
WeightsInTypeOfX = variant("product_weights: own",
    "The weight is decoded into the type of x (bitsandbytes: decode, then a library's product).",
    **both(decode=steps.in_type_of_rows))
FactorsInTypeOfX = variant("product_weights: own_factors",
    "Level and scale are rounded to the type of x first (bitsandbytes' kernels for vectors).",
    **both(decode=steps.factors_in_type_of_rows))
BiasInTypeOfX = variant("bias_type: own",
    "A float32 bias is rounded to x's type before it is added.",
    matmul_4bit=steps.forward(add=steps.biased_in_type_of_x))
