"""A picture of the sixteen NF4 levels under the bell curve, for the lesson of `qloracle.codebook`.

    python -m qloracle.examples.levels --out reference/docs

It needs matplotlib, from the extra `qloracle[examples]`.
"""

import argparse
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from qloracle import nf4_codebook, normal_quantile, thresholds
from qloracle.arguments import Array
from qloracle.codebook import NF4_OFFSET

INK, FAINT = "#333333", "#767676"
LEVEL, ZERO = "#0b5c94", "#c8450c"
BANDS = ("#c9dff0", "#e6f0f8")  # in turn
END = 1.14  # of the axis, in units of absmax
ZERO_CODE = 7


def density(x: Array) -> Array:
    """Return the bell curve that NF4 assumes, with the last quantile at 1; its peak is 1."""
    return np.asarray(np.exp(-((x * normal_quantile(NF4_OFFSET)) ** 2) / 2))


def draw(path: Path) -> None:
    """Draw the levels, their codes, and a band for the values that each of them stands for."""
    from matplotlib.figure import Figure

    # its own white background: a page may be dark
    figure: Any = Figure(figsize=(5.8, 4.1), dpi=150, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots()
    levels = nf4_codebook()
    _bands(axes, levels)
    _levels(axes, levels)
    _words(axes)
    figure.savefig(path)


def _bands(axes: Any, levels: Array) -> None:
    """Fill the area under the curve between the thresholds, and draw the curve over it."""
    ends = [-1, *thresholds(levels), 1]  # no value is larger than its absmax
    for i, (low, high) in enumerate(pairwise(ends)):
        x = np.linspace(low, high, 12)
        axes.fill_between(x, density(x), color=BANDS[i % 2], linewidth=0)
    x = np.linspace(-END, END, 120)
    axes.plot(x, density(x), color=FAINT, linewidth=1.2)


def _levels(axes: Any, levels: Array) -> None:
    """Draw a stem at each level, its code above it and its value below."""
    for code, level in enumerate(levels):
        color, height = ZERO if code == ZERO_CODE else LEVEL, density(level)
        axes.plot([level, level], [0, height], color=color, linewidth=1.6, solid_capstyle="butt")
        axes.plot(level, height, "o", color=color, markersize=4.5)
        bold = {"ha": "center", "color": color, "fontweight": "bold"}
        axes.annotate(code, (level, height), (0, 6), textcoords="offset points", fontsize=9, **bold)
        axes.annotate(
            f"{level:.3f}".replace("-", "\N{MINUS SIGN}"), (level, 0), (0, -5), va="top",
            ha="center", textcoords="offset points", fontsize=9, rotation=90, color=color,
        )  # fmt: skip


def _words(axes: Any) -> None:
    axes.set_title("NF4: sixteen levels under the bell curve", loc="left", fontsize=13, color=INK)
    corners = {"transform": axes.transAxes, "va": "top", "color": INK, "fontsize": 9.5}
    axes.text(0, 0.9, "seven levels below\nzero, codes 0 to 6", **corners)
    axes.text(1, 0.9, "eight levels above\nzero, codes 8 to 15", ha="right", **corners)
    below = "weight / absmax: a value takes the level of its band;\nbands meet at the thresholds"
    axes.set_xlabel(below, labelpad=46, color=INK)
    axes.set(xlim=(-END, END), ylim=(0, 1.12), xticks=[], yticks=[])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def main(arguments: list[str] | None = None) -> None:
    """Draw levels.png in a folder."""
    parser = argparse.ArgumentParser(prog="python -m qloracle.examples.levels")
    parser.add_argument("--out", type=Path, required=True, help="folder for levels.png")
    options = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed: pip install 'qloracle[examples]'")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(options.out / "levels.png")


if __name__ == "__main__":
    main()
