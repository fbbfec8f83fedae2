"""The dialect of a LoRA layer: its weight's (if packed), and which steps are kept in 16 bits."""

import numpy as np

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.families.lora import inputs
from qloracle_conformance.families.products import probe as products
from qloracle_conformance.judging.asking import Asker, Found
from qloracle_conformance.judging.views import View

KINDS = {"base": "separate", "hidden": "hidden"}  # a step that is rounded, and what that says


def packed(ask: Asker, view: View) -> Found:
    """How the weight lies and what it is rounded to; how sums are made; what is kept in 16 bits."""
    return products.backward(ask, view) | kept(ask, view)


def kept(ask: Asker, view: View) -> Found:
    """Ask for what a step's rounding leaves: e^2 if it does not round, 0 if it does."""
    dtype = ask.dtype(view, "bfloat16", "float16")
    if dtype == "float32":
        return {}
    for step, kind in KINDS.items():
        got = ask.values(inputs.leftover(view, dtype, step))
        if got is None:
            return {}
        names = FUNCTIONS[view.function].results
        result = got[names.index("db") if step == "hidden" and len(names) > 1 else 0]
        left = result.reshape(-1)[:1].astype(np.float64)
        if left.size and left[0] == 0:
            return {"lora_rounding": (kind, f"(1 + e)^2 less its {dtype} is 0 at {step}")}
    return {"lora_rounding": ("once", f"(1 + e)^2 less its {dtype} is e^2 at every step")}
