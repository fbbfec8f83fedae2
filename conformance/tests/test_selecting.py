"""What `--only` selects, and what it says of a text that matches nothing."""

import pytest

import qloracle
from qloracle_conformance.calling.callers import LocalCaller
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine import Engine
from qloracle_conformance.running.selecting import every_check, select


@pytest.mark.parametrize(
    "text",
    [
        "S5", "S5/*", "S5/quantize_4bit[nf4]/full", "S1, S5", "*/full", "s5", "l0", "L0,S9",
        "quantize_4bit", "QUANTIZE_4BIT", "S5/Quantize_4bit[NF4]/full", "*_4bit", "",
    ],
)  # fmt: skip
def test_it_selects(text):
    assert select(text)("S5/quantize_4bit[nf4]/full")


@pytest.mark.parametrize(
    "text", ["S4", "S5/quantize_4bit[fp4]/*", "L1", "dequantize_4bit", "S5/*/zeros"]
)
def test_it_leaves_out(text):
    assert not select(text)("S5/quantize_4bit[nf4]/full")


@pytest.mark.parametrize("text", ["S55", "full", "L6", "S5,quantise_4bit", "S5/*/fool", ","])
def test_what_matches_nothing_is_an_error_that_names_what_is_allowed(text):
    with pytest.raises(UsageError, match="allowed, separated by commas: rules") as error:
        select(text)
    assert repr(text.rpartition(",")[2] or ",") in str(error.value)


def test_a_slip_gets_a_hint():
    with pytest.raises(UsageError, match=r"'quantise_4bit' matches nothing \(quantize_4bit\?\);"):
        select("quantise_4bit")


def test_functions_that_nothing_selected_judges_are_not_needed():
    assert select("S7,l2").needed == [
        "dequantize_4bit", "dequantize_blockwise", "matmul_4bit", "matmul_4bit_backward",
    ]  # fmt: skip
    assert select("S7", ["dequantize_4bit", "quantize_4bit"]).needed == ["dequantize_4bit"]
    assert select().needed == list(FUNCTIONS)


def test_every_check_that_runs_is_in_the_list_and_in_its_order():
    engine = Engine(LocalCaller(qloracle), profile="standard")
    engine.probe()
    ids = [check.id(view) for check, view in engine.planned()]
    assert [check for check in every_check() if check in ids] == ids
    assert len(set(every_check())) == len(every_check())
