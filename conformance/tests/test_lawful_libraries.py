"""Libraries that we do not control, and that are right: the bounds must let them pass.

They are lawful variants like those of the mutants' table, with sums in orders that we did not
choose. What is wrong in them elsewhere is left out by `limits`, each with its reason here.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from qloracle_conformance import verify
from qloracle_conformance.calling.loading import load

NEEDED = ("torch", "bitsandbytes", "peft", "jax", "optax")
missing = [library for library in NEEDED if find_spec(library) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

FLOAT32 = {"dtype": ["float32"]}
# In a 16-bit type PEFT and Linear4bit round each step, as their dialects say; on CPUs with AVX-512
# bitsandbytes gives rows that are no multiple of the block the scales of others.
WHOLE_ROWS = FLOAT32 | {"row_multiple": 64, "blocksize": [32, 64]}
SET = {
    "torch.optim": (None, {}),
    "torch.optim.foreach": (None, {}),
    "torch.optim.fused": (None, {}),
    "optax": (None, {}),
    "peft": (["lora_forward", "lora_backward"], FLOAT32),
    "bitsandbytes.train": (None, WHOLE_ROWS),
}


def within(name, limits):
    """The adapter's own object under further limits; its functions are untouched."""
    found = load(name)
    if not limits:
        return found
    members = {key: value for key, value in vars(found).items() if not key.startswith("_")}
    return SimpleNamespace(**members | {"limits": {**getattr(found, "limits", {}), **limits}})


@pytest.mark.slow
@pytest.mark.parametrize("name", SET)
def test_it_passes(name):
    ops, limits = SET[name]
    report = verify(within(name, limits), ops)
    failed = [(run.id, run.message) for run in report.judgements[0].checks if run.status == "FAIL"]
    assert (report.exit_code, failed) == (0, [])
    assert sum(run.comparisons for run in report.judgements[0].checks) > 10_000


def doubled(function):
    return lambda *arrays, **options: 2 * function(*arrays, **options)


@pytest.mark.slow
def test_the_same_road_fails_where_it_is_wrong():
    right = within("bitsandbytes.train", WHOLE_ROWS)
    wrong = SimpleNamespace(**vars(right) | {"matmul_4bit": doubled(right.matmul_4bit)})
    assert verify(wrong, ["matmul_4bit"]).exit_code == 1
