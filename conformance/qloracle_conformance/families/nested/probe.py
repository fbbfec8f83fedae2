"""What double quantization shows: its default map, its roundings, how it scales residuals."""

import itertools

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.families.codes.probe_quantizers import name_zero
from qloracle_conformance.families.nested import inputs
from qloracle_conformance.families.nested.s08_nested import judge_denested
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.numbers import full_mantissa
from qloracle_conformance.judging.views import View

TRIALS = 96  # at most; most residuals do not distinguish the recipes
TELLING = 8  # so many that do are enough


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
        recipe = _recipe(ask, view, size)
        if recipe is not None:
            found[name] = recipe
    return found


def _zero_group(ask: Asker, view: View) -> Found:
    """One absmax is its own mean: the residual, and so the group, is zero."""
    got = ask.values(inputs.scales_case(np.ones(1, np.float32)))
    if got is None or got[0].size != 1 or got[1].size != 1 or got[1].reshape(-1)[0] != 0:
        return {}
    return name_zero(view, int(view.coder.ranks_of(got[0].reshape(-1))[0]), "group")


def _recipe(ask: Asker, view: View, size: int) -> tuple[str, str] | None:
    """Which recipe explains residuals near the outer thresholds, on its own offset."""
    recipes = itertools.product(("divide", "reciprocal"), ("midpoint", "nearest"))
    wrong = dict.fromkeys(recipes, 0)
    rng, asked, telling = np.random.default_rng(13), 0, 0
    for _ in range(TRIALS):
        if telling >= TELLING:
            break
        absmax = inputs.candidates(rng, view.coder.thresholds, size)
        got = ask.values(inputs.scales_case(absmax))
        if got is None or got[0].size != size or got[1].size != 1 or got[2].size != 1:
            continue
        asked += size
        codes = view.coder.ranks_of(got[0].reshape(-1))
        correct = {recipe: _ranks(view, absmax, got, *recipe) for recipe in wrong}
        telling += int((correct["divide", "midpoint"] != correct["reciprocal", "midpoint"]).sum())
        for recipe, ranks in correct.items():
            wrong[recipe] += int((ranks != codes).sum())
    fits = [
        how for (how, thresholds), count in wrong.items() if not count and thresholds == "midpoint"
    ]
    return (fits[0], f"{asked:,} residuals, 0 mismatches") if asked and fits else None


def _ranks(
    view: View, absmax: Float32, got: tuple[NDArray[np.generic], ...], how: str, thresholds: str
) -> NDArray[np.int64]:
    """The levels that residuals have under one recipe."""
    trial = {"normalisation_full": how, "normalisation_partial": how, "thresholds": thresholds}
    residual = absmax - got[2].reshape(-1).astype(np.float32)
    scale = got[1].reshape(-1).astype(np.float32)
    q = expected.scaled(residual, scale, expected.blocks_of(absmax.shape, 256), trial)
    return expected.coder(view.levels, trial).ranks(q)
