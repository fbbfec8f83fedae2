"""A wrong code or byte, as a repro script compares it."""

import numpy as np

from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.families.codes.judge import declared_order
from qloracle_conformance.judging.compare import blocks_of
from qloracle_conformance.judging.members import Shown
from qloracle_conformance.judging.text import NIBBLES, number, value_of


def script(shown: Shown) -> list[str] | None:
    """A code by the codes that name its level, a packed byte without its spare nibble."""
    compare = {"code": _code, "packed": _byte}.get(shown.mismatch.result)
    return compare(shown) if compare else None


def _code(shown: Shown) -> list[str]:
    """A code, unpacked where it was packed, that was judged on the implementation's own scale."""
    levels = shown.case.arrays.get("codebook", shown.view.levels)
    level = levels[int(value_of(shown.mismatch.expected))]
    codes = np.flatnonzero(levels == level)  # FP4's 0 and 8 are one level
    order = shown.view.dialect.get("nibble_order", "high_first")
    unpack = ["packed = result.astype(np.uint8)", f"result = {NIBBLES[order]}  # {order}"]
    return [
        *_basis(shown),
        *(unpack if shown.view.quant_type else []),
        f"got = int(result[{shown.mismatch.index}])",
        f"expected = {codes.tolist()}",
        "names = ' or '.join(map(str, expected))",
        'return int(got not in expected), f"got {got}, expected {names}"',
    ]


def _basis(shown: Shown) -> list[str]:
    """With another scale (or offset) than it was judged on, another code may be right."""
    case = shown.case
    block = int(blocks_of(case, shown.view).index[shown.mismatch.index])
    lines = []
    for i, name in enumerate(FUNCTIONS[case.function].results[1:], 1):
        own, at = shown.values[i].reshape(-1), 0 if name == "offset" else block
        if at < own.size and np.isfinite(own[at]):
            lines += [
                f"{name} = float({shown.read}(results[{i}]).reshape(-1)[{at}])",
                f"if {name} != {number(own[at])}:",
                f'    return 2, f"{name} is {{{name}}} now: the code must be judged anew"',
            ]
    return lines


def _byte(shown: Shown) -> list[str]:
    """A packed byte, except the nibble after an odd last element, which may hold anything."""
    i, byte = shown.mismatch.index, int(value_of(shown.mismatch.expected))
    mask = 0xFF
    if 2 * i + 1 == shown.case.arrays["x"].size:
        mask = 0xF0 if declared_order(shown.view) == "high_first" else 0x0F
    spare = "" if mask == 0xFF else f" & 0x{mask:02x}  # the other nibble is spare"
    return [
        f"got = int(result[{i}]){spare}",
        f"expected = 0x{byte & mask:02x}",
        'return int(got != expected), f"got 0x{got:02x}, expected 0x{expected:02x}"',
    ]
