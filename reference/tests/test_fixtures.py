"""Files that bitsandbytes 0.50.2 wrote, decoded and re-made bit for bit.

Each NAME.safetensors is the state of one Linear4bit; NAME.expected holds what bitsandbytes
decodes and, but for one, the weight before quantization. That one, `bnb_nf4_nested_fp32`, can see
the order of roundings in S8, which 16-bit results hide.
"""

import json
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import qloracle as q

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text())
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read(name):
    """The tensors under their short names, the JSON header, and the expected tensors."""
    tensors = load_file(DATA / f"{name}.safetensors")
    short = {key.removeprefix("layer.weight").lstrip("."): t for key, t in tensors.items()}
    header = json.loads(short["quant_state.bitsandbytes__nf4"].tobytes())
    return short, header, load_file(DATA / f"{name}.expected.safetensors")


def scales(t, header):
    """The absmax of a file, plain or nested, the latter with the file's own map."""
    if "nested_absmax" not in t:
        return t["absmax"]
    return q.dequantize_absmax(
        t["absmax"],
        t["nested_absmax"],
        np.float32(header["nested_offset"]),
        codebook=t["nested_quant_map"],
        blocksize=header["nested_blocksize"],
    )


def decode(packed, absmax, header, dtype):
    shape, blocksize = header["shape"], header["blocksize"]
    return q.dequantize_4bit(packed, absmax, shape=shape, blocksize=blocksize, dtype=dtype)


def fused(levels, nested, offset):
    """One rounding for product and sum; checked with fractions for the file's 640 scales."""
    return (levels.astype(np.float64) * nested + np.float64(offset)).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_decode_is_bit_equal(name):
    t, header, expected = read(name)
    dtype = DTYPES[CASES[name]["dtype"]]
    out = decode(t[""].reshape(-1), scales(t, header), header, dtype)
    assert header["dtype"] == CASES[name]["dtype"]
    assert out.dtype == expected["dequantized"].dtype
    assert out.shape == expected["dequantized"].shape
    assert out.tobytes() == expected["dequantized"].tobytes()


@pytest.mark.parametrize("name", [name for name in CASES if name != "bnb_nf4_nested_fp32"])
def test_codes_and_scales_are_made_again(name):
    t, header, expected = read(name)
    packed, absmax = q.quantize_4bit(expected["original"], blocksize=header["blocksize"])
    assert packed.tobytes() == t[""].tobytes()
    if "nested_absmax" not in t:
        assert absmax.tobytes() == t["absmax"].tobytes()
        return
    codes, nested, offset = q.quantize_absmax(absmax)
    # The file's offset is a float32 mean in an order of PyTorch's own.
    assert abs(float(offset) - header["nested_offset"]) <= 2 * np.spacing(offset)
    if offset == np.float32(header["nested_offset"]):
        assert codes.tobytes() == t["absmax"].tobytes()
        assert nested.tobytes() == t["nested_absmax"].tobytes()


@pytest.mark.parametrize("name", CASES)
def test_files_carry_our_tables(name):
    t, _, _ = read(name)
    assert t["quant_map"].tobytes() == q.nf4_codebook().tobytes()
    if "nested_quant_map" in t:
        assert t["nested_quant_map"].tobytes() == q.dynamic_codebook().tobytes()


def test_a_fused_multiply_add_is_another_decode():
    t, header, expected = read("bnb_nf4_nested_fp32")
    levels = t["nested_quant_map"][t["absmax"]]
    nested = np.repeat(t["nested_absmax"], header["nested_blocksize"])[: levels.size]
    absmax = fused(levels, nested, np.float32(header["nested_offset"]))
    out = decode(t[""].reshape(-1), absmax, header, np.float32)
    equal = np.count_nonzero(out.view(np.uint32) == expected["dequantized"].view(np.uint32))
    assert out.size == 40_960
    assert equal == 38_165
    assert np.count_nonzero(absmax != scales(t, header)) == 53


@pytest.fixture(scope="module")
def bitsandbytes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import, and PyTorch's, warn
        return pytest.importorskip(
            "bitsandbytes.functional",
            reason="bitsandbytes is not installed: its live comparison is left out",
            exc_type=ImportError,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [7, 8])
def test_the_installed_bitsandbytes_decodes_with_two_roundings(bitsandbytes, seed):
    import torch

    # 128 columns: with 16 n columns that are no multiple of the block its CPU decode errs.
    w = np.random.default_rng(seed).standard_normal((320, 128)).astype(np.float32)
    packed, state = bitsandbytes.quantize_4bit(
        torch.from_numpy(w.copy()), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    theirs = bitsandbytes.dequantize_4bit(packed, state).numpy()
    codes, nested = state.absmax.numpy().reshape(-1), state.state2.absmax.numpy()
    offset, own_map = np.float32(state.offset.item()), state.state2.code.numpy()
    header = {"shape": (320, 128), "blocksize": 64}
    flat = packed.numpy().reshape(-1)

    absmax = q.dequantize_absmax(codes, nested, offset, codebook=own_map, blocksize=256)
    assert decode(flat, absmax, header, np.float32).tobytes() == theirs.tobytes()
    once = fused(own_map[codes], np.repeat(nested, 256)[: codes.size], offset)
    assert 0 < np.count_nonzero(decode(flat, once, header, np.float32) != theirs) < 0.2 * w.size
