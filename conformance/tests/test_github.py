"""What GitHub's runner reads: parsed here by its own grammar, with whatever a message may hold."""

import copy
import re
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qloracle_conformance.reports import failures, github, markdown
from qloracle_conformance.running.known import Known
from qloracle_conformance.running.run import Listener
from qloracle_conformance.running.verify import verify

COMMANDS = ("error", "warning", "notice", "debug", "group", "endgroup", "add-mask", "stop-commands")


def parse(line):
    """A line as the runner reads it: (command, properties, message), or None for plain text.

    Both forms that it knows: ``::name key=value,...::text`` at the start of a line after spaces,
    and ``##[name key=value;...]text`` anywhere in it.
    """
    line = line.lstrip()
    found = re.fullmatch(r"::((?:(?!::).)*)::(.*)", line, re.DOTALL)
    if found is None:
        old = re.search(r"##\[([^\]]*)\](.*)", line, re.DOTALL)
        known = old is not None and old[1].partition(" ")[0] in COMMANDS
        return (old[1].partition(" ")[0], {}, old[2]) if known else None
    name, _, rest = found[1].partition(" ")
    pairs = [pair.partition("=") for pair in rest.strip().split(",") if pair]
    properties = {key: unescaped(value, "\r\n:,%") for key, _, value in pairs}
    return name, properties, unescaped(found[2], "\r\n%")


def unescaped(text, characters):
    for character in characters:
        text = text.replace(f"%{ord(character):02X}", character)
    return text


def obeyed(output):
    """The commands that a runner obeys in an output, those that it is told to ignore left out."""
    found, stopped = [], ""
    for line in re.split(r"\r\n|\r|\n", output):
        if stopped:
            stopped = "" if line.strip() == f"::{stopped}::" else stopped
            continue
        command = parse(line)
        if command is not None and command[0] == "stop-commands":
            stopped = command[2]
        elif command is not None and command[0] in COMMANDS:
            found.append(command)
    return found


HOSTILE = [
    "50 % of it, %25 or %0A",
    "two\nlines\r\nand a third",
    "::error file=other.py::not mine",
    "##[error]nor this",
    "a: b, c=d; e]",
    "µ ✓ 💥",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back(text):
    line = github.command("error", text, file=text, title=text)
    assert "\n" not in line
    assert "\r" not in line
    assert parse(line) == ("error", {"file": text, "title": text}, text)


@given(st.text(), st.text(min_size=1))
def test_any_text_comes_back(message, title):
    line = github.command("warning", message, title=title, line=3)
    name, properties, text = parse(line)
    assert (name, text) == ("warning", message)
    assert properties["title"] == title
    assert properties["line"] == "3"


def test_a_message_is_no_longer_than_the_runner_passes_on():
    assert len(parse(github.command("error", "%" * 5000))[2]) == 4096


# ---- of a run ------------------------------------------------------------------------------------

HELPER = """
import qloracle as q

def dequantize_4bit(packed, absmax, *, shape):
    return -q.dequantize_4bit(packed, absmax, shape=shape)
"""
KERNEL = r"""
import functools
import qloracle as q
from helper_of_the_kernel import dequantize_4bit

def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return function(*arguments, **options)
    return wrapper

@decorated
def quantize_4bit(x, *, blocksize=64):
    packed, absmax = q.quantize_4bit(x, blocksize=blocksize)
    return packed, absmax + (absmax == 0)

def quantize_blockwise(x, codebook):
    raise ValueError("::error::50 %\n##[warning]\x1b")

dequantize_blockwise = q.dequantize_blockwise
quantize_absmax = functools.partial(q.dequantize_absmax)
"""
ONLY = "S1/dequantize_4bit*,S3/*/shapes,S4/quantize_4bit[nf4]/zeros,S8/quantize_absmax/*"
KNOWN = (
    Known("S8/quantize_absmax/offset", "raised TypeError", "https://tracker/1"),
    Known("S3/nothing/shapes", "x", "https://tracker/2"),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def judged(workspace):
    (workspace / "src").mkdir()
    (workspace / "src" / "helper_of_the_kernel.py").write_text(HELPER)
    (workspace / "kernel.py").write_text(KERNEL)
    places = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(workspace / "src"))
        report = verify(
            [str(workspace / "kernel.py")], only=ONLY, known=KNOWN, require="L0",
            listener=Listener(opened=places.__setitem__),
        )  # fmt: skip
    return report, places


@pytest.fixture
def report(judged, workspace, monkeypatch):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(workspace))
    return judged[0].to_dict()


def commands(report, places):
    return [parse(line) for line in github.commands(report, places)]


def of(kind, found):
    return [(properties, text) for name, properties, text in found if name == kind]


def line_of(text, source):
    return str(source.splitlines().index(text) + 1)


def test_an_error_for_each_failure_where_its_function_begins(report, judged):
    found = of("error", commands(report, judged[1]))
    assert len(found) == len(failures.entries(report["implementations"][0])) > 4
    places = {(p.get("file"), p.get("line")) for p, _ in found}
    assert places == {
        ("src/helper_of_the_kernel.py", line_of("def dequantize_4bit(packed, absmax, *, shape):",
                                                HELPER)),
        ("kernel.py", line_of("@decorated", KERNEL)),
        ("kernel.py", line_of("def quantize_blockwise(x, codebook):", KERNEL)),
        ("kernel.py", None),  # a partial function has no line of its own
    }  # fmt: skip
    (scale,) = [(p, text) for p, text in found if "S4" in p["title"]]
    assert scale[0]["title"] == "FAIL S4 quantize_4bit[nf4]"
    assert scale[1].startswith("absmax[0] is 1.0, expected 0.0\nabsmax = max |x| of the block")
    assert "\ncall: quantize_4bit(x=[0.0] float32[1], blocksize=64)\n" in scale[1]


def test_what_a_kernel_says_stays_text(report, judged):
    lines = github.commands(report, judged[1])
    errors = of("error", commands(report, judged[1]))
    (said,) = [text for properties, text in errors if "quantize_blockwise" in properties["title"]]
    assert r"raised ValueError: ::error::50 % ##[warning]\x1b" in said
    assert obeyed("\n".join(lines)) == commands(report, judged[1])


def test_warnings_for_what_is_known_or_not_met(report, judged):
    found = of("warning", commands(report, judged[1]))
    titles = [properties["title"] for properties, _ in found]
    assert "XFAIL S8/quantize_absmax/offset" in titles
    assert ("known failures", "known failure S3/nothing/shapes matches no check of this run") in [
        (properties["title"], text) for properties, text in found
    ]
    assert titles.count("required") == len(report["unmet"])


def test_the_verdict_is_a_notice(report, judged):
    name, properties, text = commands(report, judged[1])[-1]
    assert (name, properties) == ("notice", {"title": "qloracle verify"})
    assert text == "a failure, an unexpected pass or an unmet requirement: exit code 1"


def test_ten_errors_are_shown_and_the_rest_counted(report, judged):
    kernel = report["implementations"][0]
    model = next(c for c in kernel["checks"] if c["id"] == "S4/quantize_4bit[nf4]/zeros")
    kernel["checks"] = []
    for i in range(14):
        check = copy.deepcopy(model) | {"id": f"S4/{i}"}
        check["failure"]["index"] = i
        kernel["checks"].append(check)
    kernel["faults"] = [{"checks": [c["id"] for c in kernel["checks"]], "consequences": []}]
    found = commands(report, judged[1])
    assert len(of("error", found)) == 10
    assert "\n4 more errors are not annotated: GitHub shows 10 of a step" in found[-1][2]


def test_a_run_that_fails_without_a_failure_has_a_red_line(report, judged):
    report["implementations"][0].update(checks=[], faults=[])
    report.update(exit_code=3)
    (error,) = of("error", commands(report, judged[1]))
    assert error[1] == "nothing was compared: exit code 3"
    report.update(exit_code=0)
    assert of("error", commands(report, judged[1])) == []


@pytest.mark.parametrize("folder", ["elsewhere", "venv/lib/site-packages"])
def test_what_is_not_in_the_checkout_has_no_line(report, judged, workspace, folder, monkeypatch):
    place = workspace / folder / "kernel.py"
    place.parent.mkdir(parents=True)
    place.write_text("")
    outside = folder == "elsewhere"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(workspace / "src" if outside else workspace))
    name = report["implementations"][0]["name"] = "numpy"
    found = of("error", commands(report, {name: {"quantize_4bit": (str(place), 3)}}))
    assert all("file" not in properties for properties, _ in found)


def test_an_import_that_fails_names_the_file(workspace, monkeypatch):
    path = workspace / "broken.py"
    path.write_text("raise RuntimeError('no driver')")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(workspace))
    (error,) = of("error", commands(verify([str(path)]).to_dict(), {}))
    assert error[0] == {"file": "broken.py", "title": f"ERROR {path}"}
    assert error[1] == "does not import: RuntimeError: no driver"


# ---- the step's summary, and commands that are switched off --------------------------------------


def test_the_summary_is_appended(report, tmp_path, monkeypatch):
    path = tmp_path / "summary"
    path.write_text("what was there")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert github.write_summary(report) == ""
    assert path.read_text() == "what was there\n" + markdown.text(report)


def test_a_summary_that_github_would_refuse_is_not_written(report, tmp_path, monkeypatch):
    path = tmp_path / "summary"
    path.write_bytes(b"x" * ((1 << 20) - 100))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert "bytes more than GitHub takes (1,048,576 in all)" in github.write_summary(report)
    assert path.stat().st_size == (1 << 20) - 100


def test_a_summary_that_cannot_be_written_says_why(report, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert github.write_summary(report) == f"{tmp_path}: Is a directory"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert github.write_summary(report) == "GITHUB_STEP_SUMMARY is not set"


def test_nothing_is_obeyed_while_commands_are_off(monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    with github.commands_off():
        print("  ::error::from a message")
        print("got ##[warning]from another")
    print("::notice::mine")
    assert obeyed(capsys.readouterr().out) == [("notice", {}, "mine")]


def test_elsewhere_nothing_is_printed(monkeypatch, capsys):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    with github.commands_off():
        print("text")
    assert capsys.readouterr().out == "text\n"
    assert not github.here()


def test_the_parser_here_sees_what_is_not_escaped():
    assert parse(textwrap.dedent("  ::error title=a,b::text")) == ("error", {"title": "a", "b": ""},
                                                                   "text")  # fmt: skip
    assert obeyed("a line\n::error::one\nanother ##[warning]two") == [
        ("error", {}, "one"),
        ("warning", {}, "two"),
    ]
