"""The plugin in other people's pytest runs: their folders, their settings, their conftest."""

import re
import subprocess
import sys
import textwrap

import pytest

# On NumPy's arrays: torch takes a second to import (`test_four_roads` has the same on its tensors).
RIGHT = """
import math, qloracle, numpy as np
NF4 = qloracle.nf4_codebook()
def dequantize_4bit(packed, absmax, *, shape, blocksize=64, dtype=np.float32):
    n = math.prod(shape)
    codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n]
    block = np.arange(n) // blocksize
    return (NF4[codes] * absmax[block]).astype(dtype).reshape(shape)
"""
LAST_BLOCK = "// blocksize", "// blocksize % max(n // blocksize, 1)"
WRONG = RIGHT.replace(*LAST_BLOCK)  # the last, short block has another's scale
SMALLEST = re.compile(  # a process that reduces alone may write its options in another order
    r"uint8\[17\], absmax=\[1\.0, 2\.0\] float32\[2\], (?=.{0,60}blocksize=32).{0,60}shape=\(33,\)"
)

JUDGE = ("--pyargs", "qloracle_conformance", "--qloracle-impl", "kernel.py")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernel.py").write_text(WRONG)
    return tmp_path


def pytest_run(folder, *arguments, ini=""):
    """The run in a process of its own: for what depends on what is loaded, and for settings."""
    (folder / "pytest.ini").write_text(f"[pytest]\n{textwrap.dedent(ini)}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *arguments]
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, timeout=200
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run_here(folder, monkeypatch, capsys):
    """The run in this process: a second is saved that a new one takes to start."""

    def run(*arguments, cache=("-p", "no:cacheprovider")):
        (folder / "pytest.ini").write_text("[pytest]\n")
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", [*sys.path])  # the folder of a test file is put in front
            # What it collects at its end takes a second where much is loaded.
            code = pytest.main([*cache, "-p", "no:unraisableexception", "-ra", *arguments])
        sys.modules.pop("test_mine", None)
        return code, "".join(capsys.readouterr())

    return run


def failed(text):
    return set(re.findall(r"^FAILED \S*?::kernel\.py\[(\S+)\] ", text, re.MULTILINE))


def counts(text):
    return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|xfailed)", text)}


FAULTY = {
    "S3/dequantize_4bit[nf4]/shapes", "S3/dequantize_4bit[nf4]/many",
    "S6/dequantize_4bit[nf4]/spare", "S7/dequantize_4bit[nf4]/edits", "verdict/dequantize_4bit",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "ini"),
    [
        ((), ""),
        (("-n", "2"), "addopts = --import-mode=importlib --strict-markers -W error"),
        ((), "python_files = check_*.py\npython_functions = check_*\naddopts = --doctest-modules"),
        (("-p", "qloracle_conformance.plugin"), ""),
    ],
    ids=["plain", "importlib, xdist, strict", "other patterns, doctests", "named twice"],
)
def test_the_same_fault_under_anybodys_settings(folder, arguments, ini):
    code, text = pytest_run(folder, *JUDGE, *arguments, ini=ini)
    assert code == 1, text
    assert failed(text) == FAULTY, text
    assert len(SMALLEST.findall(" ".join(text.split()))) >= 3, text
    assert not (folder / ".hypothesis").exists()


def test_a_right_kernel_passes_and_says_what_it_does_not_offer(run_here, folder):
    (folder / "kernel.py").write_text(RIGHT)
    code, text = run_here(*JUDGE)
    assert code == 0, text
    assert counts(text)["passed"] >= 14
    assert "quantize_4bit MISSING" in text
    assert "takes no quant_type" in text


def test_a_level_that_is_required_fails_where_it_is_missing(run_here, folder):
    (folder / "kernel.py").write_text(RIGHT)
    code, text = run_here(*JUDGE, "--qloracle-require", "L0", "-k", "verdict")
    assert code == 1
    assert failed(text) == {
        f"verdict/{name}"
        for name in ("quantize_4bit", "quantize_blockwise", "dequantize_blockwise")
    }


def test_a_rule_about_all_calls_is_judged_when_it_is_run_alone(run_here):
    code, text = run_here(*JUDGE, "-k", "P1 or P2")
    assert (code, counts(text)) == (0, {"passed": 2})


def test_known_failures_are_xfail_and_stale_entries_fail(run_here, folder):
    (folder / "known.toml").write_text("".join(
        f'[[known]]\ncheck = "{check}"\nmessage = "values"\nlink = "https://example.org/1"\n'
        for check in ("S6/dequantize_4bit[nf4]/spare", "S1/dequantize_4bit[nf4]/levels", "S9/x")
    ))  # fmt: skip
    code, text = run_here(*JUDGE, "--qloracle-known", "known.toml")
    assert code == 1
    assert failed(text) == (
        FAULTY - {"S6/dequantize_4bit[nf4]/spare"}
        | {"S1/dequantize_4bit[nf4]/levels", "known/S9/x"}
    )
    assert counts(text)["xfailed"] == 1


def test_an_implementation_that_does_not_import_is_one_failing_test(run_here, folder):
    (folder / "kernel.py").write_text("import no_such_module_at_all")
    code, text = run_here(*JUDGE)
    assert (code, counts(text)) == (1, {"failed": 1})
    assert "does not import: ModuleNotFoundError" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--pyargs", "qloracle_conformance", "--qloracle-impl", "nothing"),
            "is no implementation",
        ),
        ((*JUDGE, "--qloracle-profile", "quick"), "allowed: smoke, standard, exhaustive"),
        ((*JUDGE, "--qloracle-dialect", "mine"), "no dialect preset 'mine'"),
        ((*JUDGE, "--qloracle-known", "gone.toml"), "gone.toml"),
        ((*JUDGE, "--qloracle-seed", "-1"), "seed is -1"),
    ],
)
def test_usage_errors_are_one_line(run_here, arguments, said):
    code, text = run_here(*arguments)
    assert code != 0
    assert said in text
    assert "Traceback" not in text


def test_two_implementations_in_one_run(run_here, folder):
    (folder / "other.py").write_text(RIGHT)
    code, text = run_here(*JUDGE, "--qloracle-impl", "other.py", "-k", "S6", "-v")
    assert code == 1
    assert failed(text) == {"S6/dequantize_4bit[nf4]/spare"}
    assert text.count("other.py[S6/dequantize_4bit[nf4]/spare] PASSED") == 1


@pytest.mark.parametrize("judge", [JUDGE, ("test_mine.py",)], ids=["plugin", "own file"])
def test_what_failed_is_run_again(run_here, folder, judge):
    (folder / "test_mine.py").write_text(
        "from qloracle_conformance import conformance_tests\n"
        "test_conformance = conformance_tests('kernel.py')\n"
    )
    narrow = (*judge, "-k", "S3 or S4 or S6")  # two of them fail, and what they are run again with
    code, text = run_here(*narrow, cache=())
    assert (code, counts(text)["failed"]) == (1, 3), text
    code, text = run_here(*judge, "--lf", cache=())
    assert (code, counts(text)) == (1, {"failed": 3}), text
    (folder / "kernel.py").write_text(RIGHT)
    code, text = run_here(*judge, "--lf", cache=())
    assert (code, counts(text)) == (0, {"passed": 3}), text


def test_without_an_implementation_the_package_has_no_tests_and_says_why(run_here):
    code, text = run_here("--pyargs", "qloracle_conformance")
    assert code == 5
    assert "name an implementation: --qloracle-impl IMPL" in text


CONFTEST = """
    import sys
    def pytest_addoption(parser):
        parser.addoption("--impl")
        parser.addoption("--device")
    def pytest_configure(config):
        config.addinivalue_line("markers", "device: mine")
"""


def test_a_conftest_with_options_of_its_own(folder):
    (folder / "conftest.py").write_text(textwrap.dedent(CONFTEST))
    (folder / "test_mine.py").write_text("def test_mine(pytestconfig):\n"
        "    assert pytestconfig.option.impl == 'a'\n"
        "    assert pytestconfig.option.device == 'b'\n"
        "    assert pytestconfig.option.qloracle_impl == []\n")  # fmt: skip
    code, text = pytest_run(folder, "--impl", "a", "--device", "b", "test_mine.py")
    assert (code, counts(text)) == (0, {"passed": 1}), text


def test_it_is_inert_in_other_runs(folder):
    """It loads in every run, and loads nothing else there."""
    (folder / "test_mine.py").write_text(
        "import sys\n"
        "def test_mine():\n"
        "    ours = {m for m in sys.modules if m.partition('.')[0].startswith('qloracle')}\n"
        "    assert ours == {'qloracle_conformance', 'qloracle_conformance.plugin'}\n"
        "    heavy = {'numpy', 'hypothesis.core', 'typer', 'rich', 'torch', 'ml_dtypes', 'scipy'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    code, text = pytest_run(folder, "-p", "no:hypothesispytest", "test_mine.py")
    assert (code, counts(text)) == (0, {"passed": 1}), text


def test_tests_in_ones_own_file(run_here, folder):
    (folder / "test_mine.py").write_text(
        "from qloracle_conformance import conformance_tests\n"
        "test_conformance = conformance_tests('kernel.py')\n"
    )
    code, text = run_here("test_mine.py")
    assert code == 1
    found = set(
        re.findall(r"^FAILED test_mine\.py::test_conformance\[(\S+)\] ", text, re.MULTILINE)
    )
    assert found == FAULTY
    assert SMALLEST.search(" ".join(text.split()))
    assert "Traceback" not in text
    assert "def demand" not in text


def test_an_object_in_ones_own_file(folder):
    (folder / "test_mine.py").write_text(
        "import qloracle\n"
        "from qloracle_conformance import conformance_tests\n"
        "class Kernels:\n"
        "    dequantize_absmax = staticmethod(qloracle.dequantize_absmax)\n"
        "test_conformance = conformance_tests(Kernels)\n"
    )
    code, text = pytest_run(folder, "test_mine.py", "-n", "2")
    assert code == 0, text
    assert counts(text)["passed"] >= 8
