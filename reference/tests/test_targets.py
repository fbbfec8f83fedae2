"""Which names are meant, and what an adapter starts with."""

import re

import ml_dtypes
import numpy as np
import pytest

import qloracle as q
from qloracle import targets
from qloracle.layers import Linear
from qloracle.linear4bit import Packed
from qloracle.targets import target_modules, with_adapters

PARTS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.proj")
NAMES = [*(f"model.layers.{i}.{part}" for i in (0, 1, 10) for part in PARTS), "lm_head"]


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        (["q_proj"], r".*q_proj"),
        (["proj"], r".*mlp\.proj"),  # no suffix of q_proj
        (("v_proj", "q_proj"), r".*[qv]_proj"),
        (["1.mlp.proj"], r".*\.1\.mlp\.proj"),  # not layer 11, nor 10
        (["lm_head"], "lm_head"),
        ([NAMES[0]], re.escape(NAMES[0])),
        (["lm_head", "up_proj"], r".*up_proj|lm_head"),
        ("all-linear", r"model.*"),
        ("All-Linear", r"model.*"),
        (r".*\.1\..*", r".*\.1\..*"),
        (r".*head", r"lm_head"),
    ],
)
def test_names_that_are_meant(wanted, pattern):
    assert target_modules(NAMES, wanted) == [n for n in NAMES if re.fullmatch(pattern, n)]


def test_a_suffix_that_splits_a_part_is_found(monkeypatch):
    monkeypatch.setattr(targets, "_ends_in", lambda name, word: name.endswith(word))
    with pytest.raises(AssertionError):
        test_names_that_are_meant(["proj"], r".*mlp\.proj")


def test_the_head_may_have_another_name():
    assert target_modules(["fc", "classifier"], "all-linear", head="classifier") == ["fc"]
    assert target_modules(["a.fc", "a.score"], "all-linear", head="score") == ["a.fc"]


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        (
            ["q_proj", "k_proj"],
            ValueError,
            "'k_proj' names no layer; there are model.layers.0.self",
        ),
        ("q_proj", ValueError, "'q_proj' names no layer; there are .*, lm_head$"),
        ("*", ValueError, r"'\*' is not a valid pattern: nothing to repeat"),
        ([], ValueError, "must name a layer; there are model.layers.0"),
        (None, TypeError, "must be a str or a list of str, got None"),
        (["q_proj", 1], TypeError, r"must be a str or a list of str, got \['q_proj', 1\]"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error(wanted, kind, message):
    with pytest.raises(kind, match=f"target_modules:? ?{message}"):
        target_modules(NAMES, wanted)
    with pytest.raises(ValueError, match="'x' names no layer; there are none"):
        target_modules([], ["x"])


def model():
    w = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    packed = Packed(*q.quantize_4bit(w), shape=(12, 8))
    return {"0.up": Linear(packed), "0.down": Linear(w.T.copy()), "lm_head": Linear(w)}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fresh_adapters_change_nothing_yet(dtype):
    before = model()
    rng = np.random.default_rng(1)
    after = with_adapters(before, ["up", "down"], rng, r=4, alpha=6, dtype=dtype)
    x = np.random.default_rng(2).standard_normal((3, 8)).astype(dtype)
    assert list(after) == list(before)
    assert after["lm_head"] is before["lm_head"]
    assert before["0.up"].a is None
    assert after["0.up"].forward(x).tolist() == before["0.up"].forward(x).tolist()
    for name, (out, width) in (("0.up", (12, 8)), ("0.down", (8, 12))):
        a, b = after[name].adapter
        assert (a.shape, b.shape, a.dtype) == ((4, width), (out, 4), np.dtype(dtype))
        assert not b.any()
        bound = 1 / np.sqrt(width)
        assert 0.7 * bound < np.abs(a.astype(np.float64)).max() <= bound * (1 + 2**-8)
        assert after[name].scaling == 1.5


def test_options_of_adapters():
    rng = np.random.default_rng(0)
    options = {"r": 4, "alpha": 6, "rank_stabilized": True, "head": "0.down"}
    after = with_adapters(model(), "all-linear", rng, **options)
    assert after["0.up"].scaling == 3
    assert after["0.down"].a is None
    assert after["lm_head"].a is not None
    assert with_adapters(model(), "all-linear", rng, r=99, alpha=1)["0.up"].a.shape == (99, 8)
    with pytest.raises(ValueError, match="r must be at least 1, got 0"):
        with_adapters(model(), "all-linear", rng, r=0, alpha=1)
