"""A second moment that is too large, as a repro script computes it."""

import numpy as np

from qloracle_conformance.judging.members import Shown
from qloracle_conformance.judging.text import NIBBLES, number


def script(shown: Shown) -> list[str] | None:
    """The mean square of the error over K, in units of u times the root of the sum of squares.

    Of a single element there is nothing to add.
    """
    if not shown.mismatch.result.startswith("second moment"):
        return None
    case, backward = shown.case, shown.case.function.endswith("backward")
    x = "dy" if backward else "x"
    levels = ", ".join(number(level) for level in shown.view.levels)
    return [
        f"levels = np.array([{levels}], np.float32)",
        NIBBLES[shown.view.dialect["nibble_order"]].replace("np.stack", "codes = np.stack", 1),
        f"n, shape = {int(np.prod(case.options['shape']))}, {tuple(case.options['shape'])}",
        f"scale = np.repeat(absmax, {case.options.get('blocksize', 64)})[:n]",
        "w = (levels[codes[:n]] * scale).reshape(shape).astype(np.float64)",
        f"w, rows = w{'' if backward else '.T'}, {x}.reshape(-1, {case.arrays[x].shape[-1]})",
        "rows = rows.astype(np.float64)",
        "got = result.reshape(rows.shape[0], -1).astype(np.float64)",
        "error = (got - rows @ w) / (2.0**-24 * np.sqrt(rows**2 @ w**2))",
        "moment = float(np.mean(error**2)) / rows.shape[1]",
        f'return int(not moment <= {shown.mismatch.bound}), f"second moment {{moment:.3g}}"',
    ]
