"""What double quantization shows: its default map, its roundings, how it scales residuals."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from qloracle_conformance.families.codes.probe_quantizers import name_zero
from qloracle_conformance.families.nested import inputs
from qloracle_conformance.judging import expected
from qloracle_conformance.judging.asking import UNNAMED, Asker, Found
from qloracle_conformance.judging.expected import Float32
from qloracle_conformance.judging.numbers import full_mantissa
from qloracle_conformance.judging.views import View

TRIALS = 96  # at most; most residuals do not distinguish the recipes
TELLING = 8  # so many that do are enough


def decoder(ask: Asker, view: View) -> Found:
    """The default map of `dequantize_absmax`, and whether it rounds twice."""
    found = _map(ask, view)
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 256, 1024).astype(np.uint8)
    scale = full_mantissa(rng, 4, -2, 2)
    got = _decode(ask, codes, scale, 0.7123)
    levels, spread = view.levels[codes], np.repeat(scale, 256)
    for recipe in ("separate", "fma"):
        correct = expected.nested_value(levels, spread, 0.7123, {"decode": recipe})
        if got is not None and np.array_equal(correct, got):
            return found | {"decode": (recipe, "1,024 nested values agree")}
    return found


def _map(ask: Asker, view: View) -> Found:
    """Every code at nested_absmax 1 and offset 0; the view takes over the map that it shows."""
    shown = _decode(ask, np.arange(256, dtype=np.uint8), np.ones(1, np.float32), 0.0)
    if shown is None or np.array_equal(shown, view.levels):
        return {}
    wrong = np.flatnonzero(~(shown == view.levels))
    if np.isfinite(shown).all():  # nothing is judged under a map that is no map
        view.levels = shown
    named = "baseline" if np.array_equal(shown, expected.baseline_map()) else UNNAMED
    why = f"{wrong.size} of 256 levels differ, the first at code {wrong[0]}"
    return {"map_8bit": (named, why)}


def _decode(ask: Asker, codes: NDArray[np.uint8], scale: Float32, offset: float) -> Float32 | None:
    got = ask.values(inputs.codes_case(codes, scale, offset))
    if got is None or got[0].size != codes.size:
        return None
    return got[0].reshape(-1).astype(np.float32)


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
        absmax = nested_candidates(rng, view.coder.thresholds, size)
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


def nested_candidates(rng: np.random.Generator, thresholds: Float32, size: int) -> Float32:
    """Absmax values whose residuals lie at the outer thresholds: 1 +- t * n, balanced around 1."""
    scale = np.float32(rng.uniform(0.5, 1.0))
    outer = thresholds[np.abs(thresholds) > 0.12]
    chosen = rng.choice(outer, (size - 2) // 2)
    distance = expected.shift(chosen * scale, rng.integers(-2, 3, chosen.size))
    odd = np.zeros(size % 2, np.float32)  # keeps the mean at 1, without which no threshold is met
    pairs = np.concatenate([[scale, -scale], distance, -distance, odd])
    return (np.float32(1) + pairs).astype(np.float32)
