"""The package as a reader meets it: its reading order, help, and what others call these things."""

import importlib
import pkgutil
import pydoc
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import qloracle as q

PACKAGE = Path(str(q.__file__)).parent
HOUR, AFTER = (
    re.findall(r"^    (\w+) {2,}\w", part, re.M)
    for part in str(q.__doc__).split("Short lessons after it")
)
GLOSSARY = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
SOURCES = {
    "bitsandbytes": ("bitsandbytes", ["functional.py", "optim/optimizer.py"]),
    "torchao": ("torchao", ["quantization/quantize_/workflows/nf4/nf4_tensor.py"]),
    "PEFT": ("peft", ["tuners/lora/layer.py"]),
    "torch": ("torch", ["optim/adam.py"]),
}


def test_the_docstring_names_every_module():
    modules = {each.name for each in pkgutil.iter_modules([str(PACKAGE)])}
    assert {*HOUR, *AFTER} == modules - {"arguments", "_rounding"}


def test_the_hour_is_an_hour():
    names = [*HOUR, "arguments", "_rounding"]
    lines = sum((PACKAGE / f"{n}.py").read_text(encoding="utf-8").count("\n") for n in names)
    assert lines <= 1600


@pytest.mark.parametrize("name", [*HOUR, *AFTER])
def test_help_reaches_each_lesson(name):
    importlib.import_module(f"qloracle.{name}")
    lesson = PACKAGE / f"{name}.py"
    text = (lesson if lesson.exists() else PACKAGE / name / "__init__.py").read_text("utf-8")
    first = text.partition("\n")[0].strip('"')
    assert first
    assert first in pydoc.plain(pydoc.render_doc(f"qloracle.{name}"))


def named_in_the_glossary():
    """Yield (library, name) for every name in backticks that the glossary gives to a library."""
    for row in re.findall(r"^\| (.+) \|$", GLOSSARY, re.M):
        cells = row.split(" | ")
        pairs = (
            zip(("bitsandbytes", "torchao"), cells[2:4], strict=True)
            if len(cells) == 5
            else re.findall(r"(bitsandbytes|PEFT|torch): (`[^;|]+)", cells[-1])
        )
        for library, words in pairs:
            for name in re.findall(r"`([^`]+)`", words):
                yield library, name.rpartition(".")[2]


@pytest.mark.parametrize("library", SOURCES)
def test_the_names_of_others_are_theirs(library):
    package, files = SOURCES[library]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    root = Path(spec.origin).parent
    source = "\n".join((root / name).read_text(encoding="utf-8") for name in files)
    names = {name for found, name in named_in_the_glossary() if found == library}
    assert len(names) >= 2
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()
