"""Dialect presets: each is a declaration with a meaning; a kernel passes under its own only."""

import numpy as np
import pytest

from qloracle_conformance import api
from qloracle_conformance.contract import dialects, presets
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.codes import lawful


def packed_low_first(quantize):
    def quantize_4bit(x, *, blocksize=64):
        packed, absmax = quantize(x, blocksize=blocksize, quant_type="nf4")
        return (packed << 4 | packed >> 4).astype(np.uint8), absmax

    return quantize_4bit


class LikeOnnxruntime:
    quantize_4bit = staticmethod(
        parts.Encoder(
            scale=parts.inverted,
            thresholds=lambda table: (
                lawful.literal(table) if table.size == 16 else lawful.cuda_fp4(table)
            ),
        ).four_bit
    )


class LikeOpenvino:
    quantize_4bit = staticmethod(
        packed_low_first(parts.Encoder(thresholds=lawful.literal).four_bit)
    )


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_each_is_a_declaration_with_a_meaning(preset):
    dialects.check_declaration(presets.preset(preset.name))
    assert preset.meaning
    assert [other.name for other in presets.PRESETS].count(preset.name) == 1


def test_an_unknown_one_is_told_what_there_is():
    with pytest.raises(UsageError) as error:
        presets.preset("openvin")
    for preset in presets.PRESETS:
        assert f"{preset.name} ({preset.meaning})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_preset_that_is_changed_stays_as_it_was():
    presets.preset("openvino")["nibble_order"] = "high_first"
    assert presets.preset("openvino")["nibble_order"] == "low_first"


@pytest.mark.parametrize(
    ("kernel", "preset", "others"),
    [
        (LikeOpenvino, "openvino", ("spec", "torchao")),
        (LikeOnnxruntime, "onnxruntime", ("openvino", "bnb-default")),
    ],
)
def test_a_kernel_passes_under_its_own_preset_only(kernel, preset, others):
    assert api.verify(kernel, dialect=preset).ok
    assert not any(api.verify(kernel, dialect=other, only="S5,S6").ok for other in others)
