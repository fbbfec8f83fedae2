"""What double quantization shows: its default map, its roundings, how it scales residuals."""

import itertools
from collections.abc import Iterator

import numpy as np

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.codes.probe_quantizers import name_zero
from qloracle_conformance.families.nested import inputs
from qloracle_conformance.families.nested.s08_nested import judge_denested, judge_nested
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.numbers import full_mantissa
from qloracle_conformance.judging.views import View

TRIALS = 96  # groups at most; most residuals do not distinguish the recipes
TELLING = 8  # groups that do are enough
KINDS = ("normalisation_full", "normalisation_partial")


def decoder(ask: Asker, view: View) -> Found:
    """The default map of `dequantize_absmax`, and whether it rounds twice."""
    found, rng = _map(ask, view), np.random.default_rng(11)
    codes = rng.integers(0, 256, 1024).astype(np.uint8)
    case = inputs.codes_case(codes, full_mantissa(rng, 4, -2, 2), 0.7123)
    return found | ask.explain(view, ["decode"], [case], judge_denested)


def _map(ask: Asker, view: View) -> Found:
    """Every code at nested_absmax 1 and offset 0; the view takes over the map that it shows."""
    one, every = np.ones(1, np.float32), np.arange(256, dtype=np.uint8)
    got = ask.values(inputs.codes_case(every, one, 0.0))
    if got is None or got[0].size != 256:
        return {}
    shown = got[0].reshape(-1).astype(np.float32)
    if np.array_equal(shown, view.levels):
        return {}
    wrong = np.flatnonzero(~(shown == view.levels))
    if np.isfinite(shown).all():  # nothing is judged under a map that is no map
        view.levels = shown
    named = "baseline" if np.array_equal(shown, expected.baseline_map()) else UNNAMED
    why = f"{wrong.size} of 256 levels differ, the first at code {wrong[0]}"
    return {"map_8bit": (named, why)}


def quantizer(ask: Asker, view: View) -> Found:
    """The code of a zero group, and how residuals are scaled."""
    found = _zero_group(ask, view)
    for name, size in (("normalisation_full", 256), ("normalisation_partial", 255)):
        cases = itertools.islice(_telling(view, size), TELLING)
        found |= ask.explain(view, [name], cases, judge_nested, {name: ("divide", "reciprocal")})
    return found


def _zero_group(ask: Asker, view: View) -> Found:
    """One absmax is its own mean: the residual, and so the group, is zero."""
    got = ask.values(inputs.scales_case(np.ones(1, np.float32)))
    if got is None or got[0].size != 1 or got[1].size != 1 or got[1].reshape(-1)[0] != 0:
        return {}
    return name_zero(view, int(view.coder.ranks_of(got[0].reshape(-1))[0]), "group")


def _telling(view: View, size: int) -> Iterator[Case]:
    """Groups with residuals that get another code when they are multiplied than when divided."""
    rng, blocks = np.random.default_rng(13), expected.blocks_of((size,), 256)
    for _ in range(TRIALS):
        absmax = inputs.candidates(rng, view.coder.thresholds, size)
        residual = absmax - np.float32(1)  # the mean
        scale = expected.absmax_of(residual, blocks, {})
        divided, multiplied = (
            view.coder.ranks(expected.scaled(residual, scale, blocks, dict.fromkeys(KINDS, how)))
            for how in ("divide", "reciprocal")
        )
        if (divided != multiplied).any():
            yield inputs.scales_case(absmax)
