"""docs/format.md: every statement names its proof, every proof exists, every number is computed."""

import ast
import doctest
import json
import re
from pathlib import Path

import ml_dtypes  # noqa: F401 (without it safetensors cannot name bfloat16)
import numpy as np
import pytest
from safetensors.numpy import load_file

import qloracle
from qloracle_conformance.contract import dialects
from qloracle_conformance.families import all_checks

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "reference" / "tests" / "data"
PAGE = (REPOSITORY / "conformance" / "docs" / "format.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
PROOF = re.compile(r"\[((?:[PS]\d+/|test_)[^\]]*)\]")
NAMES = ("bnb_nf4_plain_fp32", "bnb_nf4_nested_bf16", "bnb_nf4_nested_fp16_odd")


def statements(page):
    """What claims something: each item of a list, and each paragraph with a proof."""
    sections = page.split("## Decoding", 1)[-1]
    return [line for line in sections.splitlines() if re.match(r"(-|\d\.) ", line)]


def missing_proofs(page):
    """Proofs that name no check and no test."""
    checks = {f"{c.rule}/{c.function}/{c.layer}" for c in all_checks()}
    return [proof for proof in PROOF.findall(page) if proof not in checks and not is_test(proof)]


def is_test(proof):
    file, _, name = proof.partition("::")
    (path,) = [*REPOSITORY.glob(f"*/tests/{file}")] or [None]
    if path is None or not name:
        return path is not None
    tree = ast.parse(path.read_text())
    return name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def fields_table():
    """The dialect fields as the page shows them."""
    lines = ["| field | kind | values | found in | what it is |", "| --- | --- | --- | --- | --- |"]
    for field in dialects.FIELDS:
        values = ", ".join(f"`{value}`" for value in field.values)
        lines.append(
            f"| `{field.name}` | {field.kind} | {values} | {field.layer} | {field.meaning} |"
        )
    return "\n".join(lines)


def test_every_statement_names_a_proof_that_exists():
    assert len(statements(PAGE)) >= 14
    assert [line for line in statements(PAGE) if not PROOF.search(line)] == []
    assert missing_proofs(PROSE) == []


@pytest.mark.parametrize(
    "planted",
    ["- x. [S6/dequantize_4bit/byte]", "- x. [test_gone.py]", "- x. [test_format.py::test_gone]"],
)
def test_a_proof_that_does_not_exist_is_found(planted):
    assert len(missing_proofs(planted)) == 1


def test_a_statement_without_a_proof_is_found():
    assert not PROOF.search(statements("## Decoding\n- Trust me.")[0])


def test_the_page_runs(monkeypatch):
    monkeypatch.chdir(DATA)
    test = doctest.DocTestParser().get_doctest(PAGE, {}, "format.md", "format.md", 0)
    assert len(test.examples) > 20
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0


def test_the_fields():
    shown = re.search(r"<!-- fields -->\n(.*?)\n?<!-- /fields -->", PAGE, re.DOTALL)[1]
    assert shown == fields_table()


def test_the_table_of_nf4():
    rows = re.findall(r"(\d+) \| (-?[\d.]+) \| ([0-9a-f]{8}) \|", PAGE)
    assert sorted(int(code) for code, _, _ in rows) == list(range(16))
    for code, value, bits in rows:
        level = qloracle.nf4_codebook()[int(code)]
        assert f"{level.view(np.uint32):08x}" == bits
        assert float(value) == float(level)


def test_the_table_of_fp4():
    listed = re.search(r"codes 0 to 7 are ([\d/, ]+);", PAGE)[1]
    levels = [float(np.float32(eval(text))) for text in listed.split(", ")]
    table = qloracle.fp4_codebook()
    assert table[:8].tolist() == levels
    assert table[8:].tolist() == [-level for level in levels]


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_of_a_file(name):
    tensors = load_file(DATA / f"{name}.safetensors")
    P = "layer.weight"
    state = json.loads(tensors[f"{P}.quant_state.bitsandbytes__nf4"].tobytes())
    n = int(np.prod(state["shape"]))
    blocks = -(-n // state["blocksize"])
    nested = "nested_offset" in state
    due = {
        "": ("uint8", ((n + 1) // 2, 1)),
        ".absmax": ("uint8" if nested else "float32", (blocks,)),
        ".quant_map": ("float32", (16,)),
    }
    if nested:
        due[".nested_absmax"] = ("float32", (-(-blocks // 256),))
        due[".nested_quant_map"] = ("float32", (256,))
    for suffix, (dtype, shape) in due.items():
        tensor = tensors.pop(P + suffix)
        assert (tensor.dtype.name, tensor.shape) == (dtype, shape)
    assert [key for key in tensors if key.startswith(P)] == [f"{P}.quant_state.bitsandbytes__nf4"]
    fields = {"quant_type", "blocksize", "dtype", "shape"}
    more = {"nested_blocksize", "nested_dtype", "nested_offset"} if nested else set()
    assert set(state) == fields | more
    assert (state["quant_type"], state.get("nested_blocksize", 256)) == ("nf4", 256)


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_offset_is_a_float32(name):
    tensors = load_file(DATA / f"{name}.safetensors")
    (text,) = (t.tobytes() for key, t in tensors.items() if "quant_state" in key)
    offset = json.loads(text)["nested_offset"]
    assert float(np.float32(offset)) == offset
