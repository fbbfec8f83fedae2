"""A repro script shows its fault without us, and says so when the fault is gone.

Each script is really run, in a process in which nothing of the kit (nor ml_dtypes, unless an array
is bfloat16) can be imported.
"""

import functools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle
from qloracle_conformance.calling.loading import load
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.judging.compare import Mismatch
from qloracle_conformance.judging.text import show, value_of
from qloracle_conformance.judging.views import View
from qloracle_conformance.reports import files, repro
from qloracle_conformance.reports.repro import comparing, literals, loaders
from qloracle_conformance.running.verify import verify

OURS = "qloracle,qloracle_conformance,qloracle_gpu"

# NF4 in plain NumPy; a fault is one line of it replaced.
KERNEL = f"""
import numpy as np

LEVELS = np.array({qloracle.nf4_codebook().tolist()}, np.float32)
CUTS = ((LEVELS[1:] + LEVELS[:-1]) / 2).astype(np.float32)


def quantize_4bit(x, *, blocksize=64, quant_type="nf4"):
    only_nf4(quant_type)
    flat = np.append(x.astype(np.float32).reshape(-1), np.zeros(-x.size % blocksize, np.float32))
    blocks = flat.reshape(-1, blocksize)
    absmax = np.abs(blocks).max(axis=1, initial=0)
    q = np.zeros_like(blocks)
    with np.errstate(over="ignore"):
        np.divide(blocks, absmax[:, None], out=q, where=absmax[:, None] != 0)
    codes = np.searchsorted(CUTS, q.reshape(-1), side="left").astype(np.uint8)
    packed = codes[0::2] << 4 | codes[1::2]
    return packed[: (x.size + 1) // 2], absmax


def dequantize_4bit(packed, absmax, *, shape, blocksize=64, quant_type="nf4", dtype=np.float32):
    only_nf4(quant_type)
    n = int(np.prod(shape))
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    scale = absmax[np.arange(n) // blocksize]
    with np.errstate(over="ignore"):
        return (LEVELS[codes] * scale).astype(dtype).reshape(shape)


def only_nf4(quant_type):
    if quant_type != "nf4":
        raise NotImplementedError(quant_type)


BUFFER = np.zeros(1 << 20, np.float32)
CACHE = dict()
RACE = [np.float32(0), np.float32(1)]


def in_the_buffer(absmax):
    BUFFER[: absmax.size] = absmax
    return BUFFER[: absmax.size]
"""

# name: (the right line, the wrong one, the checks that are run, what the script prints)
FAULTS = {
    "a code": ('side="left"', 'side="right"', "S2", "got 1, expected 0"),
    "an absmax": (
        "    return packed[", "    absmax[absmax == 0] = 1\n    return packed[", "S4",
        "got 1.0 (0x1.0000000000000p+0), expected 0.0",
    ),
    "a packed byte": (
        "codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]", "S6/quantize_4bit*",
        "got 0x70, expected 0xf0",
    ),
    "a value": ("np.arange(n) // blocksize", "np.arange(n) // 64", "S3/deq*", "got "),
    "a value of bfloat16": (
        ".astype(dtype)", ".astype(np.float16).astype(dtype)", "S7/*/extremes", "inf), expected ",
    ),
    "a shape": (".reshape(shape)", ".reshape(1, n)", "P1,S3/deq*", "expected float32["),
    "a type": (
        "// 2], absmax", "// 2], absmax.astype(np.float64)", "P1,S3/quant*", "expected float32[1]",
    ),
    "a cache": (
        "scale = absmax[", "scale = CACHE.setdefault(absmax.shape, absmax)[", "S7/deq*/mantissas",
        "got ",
    ),
    "a race": (
        "// 2], absmax", "// 2], absmax + (RACE.reverse() or RACE[0])", "S4", "got ",
    ),
    "an input": (
        "    q = np.zeros", "    x[...] = 0\n    q = np.zeros", "P2", "the call changed its input",
    ),
    "a second call": (
        "    q = np.zeros", "    absmax += np.random.rand()\n    q = np.zeros", "P4",
        "the same call gave other bits",
    ),
    "a late change": (
        "// 2], absmax", "// 2], in_the_buffer(absmax)", "P3,S3/quantize_4bit*",
        "read again after other calls: other results",
    ),
    "a missing result": (
        "// 2], absmax", "// 2]", "S3/quantize*", "returned <class 'numpy.ndarray'>",
    ),
    "a refusal": ("    q = np.zeros", "    x.reshape(-1, 3)\n    q = np.zeros", "S3/quantize*", ""),
}  # fmt: skip


def scripts_of(folder, judgement):
    """The script of each failing check, written."""
    for name, text in repro.scripts(judgement).items():
        files.write(folder / name, text)
    return {check.id: folder / check.repro for check in judgement.checks if check.repro}


@pytest.fixture
def judged(tmp_path):
    """Write a kernel, judge it in this process, and write its scripts."""

    def do(text, only):
        path = tmp_path / "kernel.py"
        path.write_text(text)
        (judgement,) = verify([load(str(path))], only=only).judgements
        judgement.name = str(path)
        return path, judgement, scripts_of(tmp_path, judgement)

    return do


@pytest.fixture
def run(run_script):
    return functools.partial(run_script, blocked=f"{OURS},ml_dtypes")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_is_shown_and_so_is_its_end(judged, fault, run):
    right, wrong, only, said = FAULTS[fault]
    assert KERNEL.count(right) == 1
    path, judgement, scripts = judged(KERNEL.replace(right, wrong), only)
    failing = [check.id for check in judgement.checks if check.status in ("FAIL", "ERROR")]
    assert list(scripts) == failing
    blocked = OURS if "bfloat16" in fault else f"{OURS},ml_dtypes"
    code, text = run(scripts[failing[0]], blocked=blocked)
    assert (code, said in text) == (1, True), text

    path.write_text(f"{KERNEL}# mended\n")
    assert run(scripts[failing[0]], blocked=blocked)[0] == 0
    path.unlink()
    code, text = run(scripts[failing[0]], blocked=blocked)
    assert (code, "could not be loaded: FileNotFoundError" in text) == (2, True), text


# ---- kernels on tensors: views, out=, bfloat16 ---------------------------------------------------

TENSORS = f"""
import math

import torch

arrays = "torch"
LEVELS = torch.tensor({qloracle.nf4_codebook().tolist()})


def plain(tensor):
    return tensor


def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=torch.float32, out=None):
    packed, absmax = plain(packed), plain(absmax)
    n = math.prod(shape)
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n].long()
    scale = absmax.repeat_interleave(blocksize)[:n]
    values = (LEVELS[codes] * scale).to(dtype).reshape(shape)
    return values if out is None else out.copy_(values)
"""

# name: (the right text, the wrong one, the check that is run, what the script prints)
TENSOR_FAULTS = {
    "a value": ("packed >> 4, packed & 15", "packed & 15, packed >> 4", "S6/*bytes", "got "),
    "a value of bfloat16": (".to(dtype)", ".half().to(dtype)", "S7/*/extremes", "got "),
    "a storage": (
        "    return tensor", "    return tensor.as_strided(tensor.shape, (1,), 0)", "P5/*/offset",
        "got ",
    ),
    "a stride": (
        "    return tensor", "    o = tensor.storage_offset()\n"
        "    return tensor.as_strided(tensor.shape, (1,), o)", "P5/*/strided", "got ",
    ),
    "an alignment": (
        "    return tensor", "    o = tensor.storage_offset() // 16 * 16\n"
        "    return tensor.as_strided(tensor.shape, tensor.stride(), o)", "P5/*/unaligned", "got ",
    ),
    "an expansion": (
        "    return tensor", "    return tensor if tensor.stride() != (0,) else tensor * 0",
        "P5/*/expanded", "got ",
    ),
    "a buffer": ("out.copy_(values)", "out", "P5/*/out", "got "),
    "a refusal": (
        "    return tensor", "    assert tensor.is_contiguous()\n    return tensor", "P5/*/strided",
        "AssertionError",
    ),
    "a gap": (
        "    return tensor", "    if tensor.stride() == (2,):\n"
        "        tensor.as_strided(tensor.shape, (2,), 1).zero_()\n    return tensor", "P2,P5",
        "the call changed its input",
    ),
    "a type": (
        "(LEVELS[codes] * scale).to(dtype)", "(LEVELS[codes] * scale)",
        "P1,S7/*extremes", "expected ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_the_fault_of_a_kernel_on_tensors_is_shown_and_so_is_its_end(judged, fault, run_script):
    right, wrong, only, said = TENSOR_FAULTS[fault]
    assert TENSORS.count(right) == 1
    path, judgement, scripts = judged(TENSORS.replace(right, wrong), only)
    failing = [check.id for check in judgement.checks if check.status in ("FAIL", "ERROR")]
    assert failing
    run = functools.partial(run_script, framework="torch")
    code, text = run(scripts[failing[0]])
    assert (code, said in text) == (1, True), text
    path.write_text(TENSORS)
    assert run(scripts[failing[0]])[0] == 0


def test_buffers_of_a_kernel_on_numpy_arrays(judged, run):
    taking_out = KERNEL.replace('"nf4"):', '"nf4", out=None):', 1).replace(
        "    return packed[: (x.size + 1) // 2], absmax",
        "    for buffer, values in zip(out or (), (packed[: (x.size + 1) // 2], absmax)):\n"
        "        buffer[...] = values\n"
        "    return out or (packed[: (x.size + 1) // 2], absmax)",
    )
    path, judgement, scripts = judged(taking_out.replace("] = values", "] = buffer"), "P5")
    assert [check.id for check in judgement.checks if check.failure] == [
        "P5/quantize_4bit[nf4]/out"
    ]
    (script,) = scripts.values()
    assert run(script)[0] == 1
    path.write_text(taking_out)
    assert run(script)[0] == 0


# ---- failures made by hand: what a small kernel would not show -----------------------------------


X = np.array([1, 0], np.float32)
NF4_VIEW = View("quantize_4bit", "nf4", {"nibble_order": "high_first"}, qloracle.nf4_codebook())
FP4_VIEW = View("quantize_4bit", "fp4", {"nibble_order": "low_first"}, qloracle.codebook("fp4"))
NESTED = View("quantize_absmax", "", {}, qloracle.dynamic_codebook())


def failed(view, mismatch, values=(), rule="S5", status="FAIL", **options):
    name = "absmax" if view is NESTED else "x"
    if view.quant_type:
        options["quant_type"] = view.quant_type
    case = Case(view.function, {name: X}, {"blocksize": 64, **options})
    failure = Failure(case, tuple(np.array(v) for v in values), mismatch)
    return CheckRun(
        f"{rule}/{view.name}/x", rule, view.function, view.table, status, failure=failure
    )


@pytest.fixture
def tried(tmp_path, run):
    """Run the script of a check on a kernel whose only function is given by its body."""

    def do(view, check, body):
        path = tmp_path / "kernel.py"
        head = f"import numpy as np\ndef {view.function}(x, *, blocksize=64, **options):\n    "
        path.write_text(head + body)
        judgement = Judgement(str(path), views=[view], checks=[check])
        (script,) = scripts_of(tmp_path, judgement).values()
        return run(script)

    return do


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (0, 0, "got 0, expected 0 or 8"),
        (8, 0, "got 8, expected 0 or 8"),
        (1, 1, "got 1, expected 0 or 8"),
    ],
)
def test_codes_of_one_level_are_equal(tried, code, exit_code, said):
    check = failed(FP4_VIEW, Mismatch("code", 1, "1", "0"), (np.uint8([0x13]), np.float32([1])))
    body = f"return np.array([{code} << 4 | 3], np.uint8), np.array([1], np.float32)"
    got, text = tried(FP4_VIEW, check, body)
    assert (got, said in text) == (exit_code, True), text


def test_a_code_is_not_judged_on_another_scale(tried):
    check = failed(NF4_VIEW, Mismatch("code", 1, "8", "7"), (np.uint8([0xF8]), np.float32([1])))
    code, text = tried(NF4_VIEW, check, "return np.array([0xF7], np.uint8), np.array([1.5])")
    assert (code, "absmax is 1.5 now: the code must be judged anew" in text) == (2, True), text


@pytest.mark.parametrize(("offset", "exit_code"), [(1.25, 0), (1.2500001, 1), ("nan", 1)])
def test_a_number_with_a_bound(tried, offset, exit_code):
    check = failed(NESTED, Mismatch("offset", 0, "1.5", "1.0", "", 0.25, 0.5), rule="S8")
    code, text = tried(NESTED, check, f"return [], [], float('{offset}')")
    assert code == exit_code, text


def test_a_crash_is_no_zero(tried):
    check = failed(NF4_VIEW, Mismatch("call", 0, "died", "a result"), status="CRASH")
    code, _ = tried(NF4_VIEW, check, "import os; os.abort()")
    assert code not in (0, 2)


def test_a_hang_ends(tried, monkeypatch):
    monkeypatch.setattr(comparing, "LIMIT", 1)
    check = failed(NF4_VIEW, Mismatch("call", 0, "no answer", "a result"), status="TIMEOUT")
    code, text = tried(NF4_VIEW, check, "import time; time.sleep(30)")
    assert (code, "in quantize_4bit" in text) == (1, True), text


def test_a_function_that_takes_few_parameters(judged, run):
    pairs = "packed >> 4, packed & 15"
    right = f"""
{KERNEL.partition("def ")[0]}
def dequantize_4bit(packed, absmax, *, shape):
    codes = np.stack([{pairs}], axis=1).reshape(-1)[: int(np.prod(shape))]
    return (LEVELS[codes] * absmax[np.arange(codes.size) // 64]).reshape(shape)
"""
    path, _, scripts = judged(right.replace(pairs, "packed & 15, packed >> 4"), "S6")
    script = scripts["S6/dequantize_4bit[nf4]/bytes"]
    code, text = run(script)
    assert (code, "got 1.0" in text) == (1, True), text
    path.write_text(right)
    assert run(script)[0] == 0


def test_a_scale_is_found_by_the_default_blocksize(tried):
    x = np.linspace(0, 1, 200, dtype=np.float32)
    case = Case("quantize_absmax", {"absmax": x}, {})
    values = (np.zeros(200, np.uint8), np.float32([0.5]), np.float32(0.5))
    failure = Failure(case, values, Mismatch("code", 150, "0", "9"))
    check = CheckRun("S8/x", "S8", "quantize_absmax", "", "FAIL", failure=failure)
    body = "return np.full(200, 9), [{}], 0.5"
    assert tried(NESTED, check, body.format(0.5))[0] == 0
    assert tried(NESTED, check, body.format(0.25))[0] == 2


def test_texts_from_outside_stay_texts(tried):
    wild = 'quotes """, \\, \x1b[31m and\nlines'
    check = failed(NF4_VIEW, Mismatch("absmax", 0, "2.0", "1.0", wild), rule="S4")
    check.looks_like = [wild]
    code, text = tried(NF4_VIEW, check, "return [], [1.0]")
    assert code == 0, text


def test_one_fault_found_by_many_checks_is_one_script(tmp_path):
    values = (np.uint8([0xF8]), np.float32([1]))
    checks = [
        failed(NF4_VIEW, Mismatch("code", index, "8", "7"), values, rule)
        for rule, index in (("S2", 1), ("S5", 1), ("S3", 0))
    ]
    checks += [
        failed(NF4_VIEW, Mismatch("call", 0, got, "a result"), rule=rule, status="ERROR", n=n)
        for rule, got, n in (("S4", "raised", 1), ("S6", "raised", 2), ("S7", "other", 1))
    ]
    judgement = Judgement("numpy", views=[NF4_VIEW], checks=checks)
    paths = [path.name for path in scripts_of(tmp_path, judgement).values()]
    rules = ("S2", "S2", "S3", "S4", "S4", "S7")
    assert paths == [f"numpy-{rule}-quantize_4bit-nf4-x.py" for rule in rules]


@pytest.mark.parametrize(
    ("status", "result"), [("PASS", "absmax"), ("UNSUPPORTED", "absmax"), ("FAIL", "second oracle")]
)
def test_what_is_no_fault_has_no_script(tmp_path, status, result):
    check = failed(NF4_VIEW, Mismatch(result, 0, "2.0", "1.0"), status=status)
    judgement = Judgement("numpy", views=[NF4_VIEW], checks=[check])
    assert scripts_of(tmp_path, judgement) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_known_failure_has_a_script(tmp_path):
    check = failed(NF4_VIEW, Mismatch("absmax", 0, "2.0", "1.0"), status="XFAIL")
    judgement = Judgement("numpy", views=[NF4_VIEW], checks=[check])
    assert list(scripts_of(tmp_path, judgement)) == [check.id]


# ---- how the implementation is reached -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["kernel.py", "module:kernel", "kernel:Kernels", "kernel:Outer.Kernels", "kernel.py:Kernels"],
)
def test_by_every_road(tmp_path, monkeypatch, name, run):
    monkeypatch.chdir(tmp_path)
    function = "quantize_4bit = staticmethod(lambda x, **options: ([], [2.0]))"
    text = f"class Kernels:\n    {function}\n\nclass Outer:\n    Kernels = Kernels\n\n"
    (tmp_path / "kernel.py").write_text(text + "quantize_4bit = Kernels.quantize_4bit\n")
    check = failed(NF4_VIEW, Mismatch("absmax", 0, "2.0", "1.0"), rule="S4")
    judgement = Judgement(name, views=[NF4_VIEW], checks=[check])
    (script,) = scripts_of(tmp_path, judgement).values()
    monkeypatch.chdir("/")
    code, text = run(script)
    assert (code, "got 2.0" in text) == (1, True), text


def test_the_reference_is_imported(tmp_path, run):
    check = failed(NF4_VIEW, Mismatch("absmax", 0, "2.0", "3.0"), rule="S4")
    judgement = Judgement("numpy", views=[NF4_VIEW], checks=[check])
    (script,) = scripts_of(tmp_path, judgement).values()
    code, text = run(script)
    assert (code, "could not be loaded: ModuleNotFoundError: qloracle is blocked" in text) == (
        2,
        True,
    )
    code, text = run(script, blocked="nothing")
    assert (code, "got 1.0" in text) == (1, True), text


def test_an_object_that_has_no_name_has_no_script(tmp_path):
    check = failed(NF4_VIEW, Mismatch("absmax", 0, "2.0", "1.0"), rule="S4")
    judgement = Judgement("<object>", views=[NF4_VIEW], checks=[check])
    assert scripts_of(tmp_path, judgement) == {}


@pytest.mark.parametrize("source", ["a = 1\n", "a = '\\n'\n", "a = '''b'''\n", "a = 'x'", "\\"])
def test_an_adapters_text_is_carried_exactly(source):
    assert eval(loaders.quoted(source)) == source


@pytest.mark.slow
def test_bitsandbytes(tmp_path, run):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    judgement = verify(["bitsandbytes"], only="S4,S8/quantize_absmax/*", device="cpu").judgements[0]
    scripts = scripts_of(tmp_path, judgement)
    assert scripts
    for path in set(scripts.values()):
        code, text = run(path, blocked=OURS, framework="torch")
        assert (code, "got " in text) == (1, True), text


# ---- arrays and numbers as text ------------------------------------------------------------------

TYPES = [np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.uint8)]


def bound(statements):
    """What the statements bind to `x`."""
    names = {"np": np, "ml_dtypes": ml_dtypes}
    text = "\n".join(["import base64, zlib", *literals.UNPACK, literals.HEX, *statements])
    exec(text, names)
    return names["x"]


@st.composite
def arrays(draw):
    """Any bits in any shape, few kinds of them or many."""
    dtype = draw(st.sampled_from(TYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    bits = np.dtype(f"u{dtype.itemsize}")
    some = st.sampled_from(draw(st.lists(hnp.from_dtype(bits), min_size=1, max_size=2)))
    elements = some if draw(st.booleans()) else hnp.from_dtype(bits)
    return draw(hnp.arrays(bits, shape, elements=elements)).view(dtype)


@given(arrays())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_an_array_comes_back_to_the_bit(array):
    back = bound(literals.statements("x", array))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.writeable


@pytest.mark.parametrize("odd", [[], [3], [0, 999]])
def test_a_nearly_constant_array_is_short(odd):
    x = np.full((10, 100), np.float32(0.1))
    x.flat[odd] = -0.0
    lines = literals.statements("x", x)
    assert len("\n".join(lines)) < 100
    assert bound(lines).tobytes() == x.tobytes()


def test_a_large_array_is_written_in_lines():
    x = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)
    lines = literals.statements("x", x)
    assert max(map(len, lines)) <= 100
    assert bound(lines).tobytes() == x.tobytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from(TYPES))
@settings(derandomize=True, deadline=None)
def test_what_the_report_shows_is_read_back_exactly(bits, dtype):
    number = np.array([bits], np.uint32).view(dtype)[0]
    if not np.isnan(np.float64(number)):
        assert value_of(show(number)) == float(number)
