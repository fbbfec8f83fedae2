"""Imports run one way, between packages and between the rooms of the kit; none loads a framework.

Each check is also seen failing, on a tree with a planted fault.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {"qloracle": "reference", "qloracle_gpu": "gpu", "qloracle_conformance": "conformance"}
REFERENCE_NEEDS = {"numpy", "ml_dtypes", "safetensors", "qloracle"}
EXAMPLES_MAY_IMPORT = {"matplotlib", "sklearn", "threadpoolctl"}  # the extra `examples`
REFERENCE_MAY_IMPORT = REFERENCE_NEEDS | sys.stdlib_module_names
# A file `torch.py` shadows the real torch for whoever runs a script from its folder.
FRAMEWORKS = {
    "bitsandbytes", "cupy", "jax", "onnxruntime", "openvino", "optax", "peft", "torch", "torchao",
    "transformers", "triton",
}  # fmt: skip
LOADED_ONLY_WHEN_NAMED = FRAMEWORKS | {"hypothesis", "jinja2", "pytest"}

KIT = "qloracle_conformance"
# The rooms of the kit, from the lowest: each may import those before it, and no other.  What calls
# an implementation (`calling`) stands before all that knows an expected value.
ROOMS = (
    "contract", "adapters", "calling", "judging/exact", "judging",
    "families/codes", "families/nested", "families/products", "families/lora", "families/adam",
    "families/paging", "families/calls", "families",
    "engine", "mutants", "reports", "running", "api", "commands", "plugin",
)  # fmt: skip
MOST_NAMES = 14  # at the top of the kit
LONGEST_CHAIN = 8  # arrows from a room down to the lowest


def sources(root: Path, package: str) -> list[Path]:
    return sorted((root / PACKAGES[package] / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(package: str, module: str) -> bool:
    top, *parts = module.split(".")
    if package == "qloracle":  # safetensors.torch loads torch
        return top not in REFERENCE_MAY_IMPORT or not FRAMEWORKS.isdisjoint(parts)
    return package == "qloracle_gpu" and top == "qloracle_conformance"


def of_an_example(path: Path, module: str) -> bool:
    return path.parent.name == "examples" and module.split(".")[0] in EXAMPLES_MAY_IMPORT


def wrong_imports(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} imports {module}"
        for package in PACKAGES
        for path in sources(root, package)
        for module in imports(path)
        if forbidden(package, module) and not of_an_example(path, module)
    ]


def shadows(root: Path) -> list[str]:
    return [
        str(path.relative_to(root))
        for package in PACKAGES
        for path in sources(root, package)
        if FRAMEWORKS & {path.stem, path.parent.name}
    ]


def room(dotted: str) -> str:
    """The room that a dotted name inside the kit lies in; "" for the kit's own `__init__`."""
    parts = dotted.split(".")
    inner = next((name for name in ROOMS if name.split("/") == parts[:2]), "")
    return inner or (parts[0] if parts[0] != "__init__" else "")


def arrows(root: Path) -> set[tuple[str, str]]:
    """Which room of the kit imports which: (from, to)."""
    base = root / PACKAGES[KIT] / KIT
    found = set()
    for path in sources(root, KIT):
        here = room(".".join(path.relative_to(base).with_suffix("").parts))
        names = [name for name in imports(path) if name.startswith(f"{KIT}.")]
        found |= {(here, room(name.removeprefix(f"{KIT}."))) for name in names}
    return {(here, there) for here, there in found if here and here != there}


def upward(root: Path) -> list[str]:
    """The arrows that do not lead down, or to no room: without them no circle is possible."""
    place = {name: i for i, name in enumerate(ROOMS)}
    return sorted(
        f"{here} -> {there}"
        for here, there in arrows(root)
        if not place.get(there, len(ROOMS)) < place.get(here, 0)
    )


def longest_chain(root: Path) -> int:
    """How many arrows lie between the highest room and the lowest, if none leads up."""
    height = dict.fromkeys(ROOMS, 0)
    for here, there in sorted(arrows(root), key=lambda arrow: ROOMS.index(arrow[0])):
        height[here] = max(height[here], height[there] + 1)
    return max(height.values())


def top_level(root: Path) -> list[str]:
    """The packages and modules at the top of the kit."""
    paths = (root / PACKAGES[KIT] / KIT).iterdir()
    python = [p for p in paths if p.suffix == ".py" or (p / "__init__.py").exists()]
    return sorted(path.stem for path in python if path.stem != "__init__")


def loaded_by(code: str, root: Path) -> set[str]:
    """Of what should wait until it is named: what running a piece of code loads."""
    roots = os.pathsep.join(str(root / folder) for folder in PACKAGES.values())
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": roots},
        capture_output=True,
        text=True,
        check=True,
    )
    return LOADED_ONLY_WHEN_NAMED.intersection(run.stdout.split())


def plant(root: Path, file: str, text: str) -> None:
    """Write a file into a tree of the three packages, which is made if there is none."""
    for package, folder in PACKAGES.items():
        (root / folder / package).mkdir(parents=True, exist_ok=True)
        (root / folder / package / "__init__.py").touch()
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def test_imports_run_one_way():
    assert all(sources(REPOSITORY, package) for package in PACKAGES), "a package has no files"
    assert wrong_imports(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "text", "module"),
    [
        ("reference/qloracle/lora.py", "def f():\n    import torch", "torch"),
        ("reference/qloracle/lora.py", "from qloracle_gpu import adam", "qloracle_gpu.adam"),
        ("reference/qloracle/lora.py", "import qloracle_conformance", "qloracle_conformance"),
        ("reference/qloracle/files.py", "from safetensors import torch", "safetensors.torch"),
        ("reference/qloracle/adam.py", "import sklearn.datasets", "sklearn.datasets"),
        ("reference/qloracle/examples/tune.py", "import torch", "torch"),
        ("gpu/qloracle_gpu/adam.py", "import numpy, qloracle_conformance", "qloracle_conformance"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path, file, text, module):
    plant(tmp_path, file, text)
    assert wrong_imports(tmp_path) == [f"{file} imports {module}"]


def test_an_import_the_right_way_is_allowed(tmp_path):
    plant(tmp_path, "gpu/qloracle_gpu/adam.py", "import torch, qloracle\nfrom . import runner")
    assert wrong_imports(tmp_path) == []


def test_no_module_is_named_like_a_framework():
    assert shadows(REPOSITORY) == []


@pytest.mark.parametrize(
    "file", ["gpu/qloracle_gpu/cupy.py", "reference/qloracle/torch/__init__.py"]
)
def test_a_module_named_like_a_framework_is_found(tmp_path, file):
    plant(tmp_path, file, "")
    assert shadows(tmp_path) == [file]


@pytest.mark.parametrize("module", [*PACKAGES, "qloracle_conformance.commands.main"])
def test_importing_a_package_loads_no_framework(module):
    assert loaded_by(f"import {module}", REPOSITORY) == set()


def test_only_a_page_loads_the_library_for_pages(tmp_path):
    code = "from qloracle_conformance.commands.main import app; app({}, standalone_mode=False)"
    judge = ["verify", "example", "--only", "S1"]
    assert "jinja2" not in loaded_by(code.format(judge), REPOSITORY)
    assert "jinja2" in loaded_by(code.format([*judge, "--report", str(tmp_path)]), REPOSITORY)


@pytest.mark.parametrize("module", ["hypothesis", "jinja2", "pytest"])
def test_a_framework_that_loads_with_a_package_is_found(tmp_path, module):
    plant(tmp_path, "gpu/qloracle_gpu/__init__.py", f"import {module}")
    assert module in loaded_by("import qloracle_gpu", tmp_path)


def test_the_rooms_of_the_kit_import_downward():
    assert {here for here, _ in arrows(REPOSITORY)} <= set(ROOMS)
    assert upward(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "text", "arrow"),
    [
        ("calling/calls.py", "from {kit} import judging", "calling -> judging"),
        ("calling/calls.py", "def f():\n    import {kit}.families", "calling -> families"),
        ("families/codes/cases.py", "from {kit}.families import MEMBERS",
         "families/codes -> families"),
        ("families/codes/cases.py", "import {kit}.families.nested.probe",
         "families/codes -> families/nested"),
        ("judging/views.py", "from {kit}.judging.exact import rational", ""),
        ("judging/exact/rational.py", "from {kit}.judging import views",
         "judging/exact -> judging"),
        ("reports/html.py", "from {kit}.running.known import apply", "reports -> running"),
        ("api.py", "from {kit} import cellar", "api -> cellar"),
    ],
)  # fmt: skip
def test_an_import_upward_is_found(tmp_path, file, text, arrow):
    path = f"conformance/{KIT}/{file}"
    plant(tmp_path, path, text.format(kit=KIT))
    assert upward(tmp_path) == ([arrow] if arrow else [])


def test_the_rooms_stand_on_few_levels():
    assert longest_chain(REPOSITORY) <= LONGEST_CHAIN


def test_every_arrow_of_a_chain_counts(tmp_path):
    plant(tmp_path, f"conformance/{KIT}/api.py", f"from {KIT}.running import verify")
    for here, there in (("running", "engine"), ("engine", "contract")):
        plant(tmp_path, f"conformance/{KIT}/{here}/it.py", f"import {KIT}.{there}.it")
    assert longest_chain(tmp_path) == 3


def test_the_kit_has_few_names_at_the_top():
    assert len(top_level(REPOSITORY)) <= MOST_NAMES


def test_names_at_the_top_are_counted(tmp_path):
    plant(tmp_path, f"conformance/{KIT}/engine/__init__.py", "")
    plant(tmp_path, f"conformance/{KIT}/cellar.py", "")
    assert top_level(tmp_path) == ["cellar", "engine"]
