"""Imports run one way, and importing a package loads no framework.

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
PACKAGES = {
    "qloracle": "reference",
    "qloracle_gpu": "gpu",
    "qloracle_conformance": "conformance",
}
REFERENCE_NEEDS = {"numpy", "scipy", "ml_dtypes", "safetensors", "qloracle"}
EXAMPLES_MAY_IMPORT = {"matplotlib", "sklearn", "threadpoolctl"}  # the extra `examples`
REFERENCE_MAY_IMPORT = REFERENCE_NEEDS | sys.stdlib_module_names
# A file `torch.py` shadows the real torch for whoever runs a script from its folder.
FRAMEWORKS = {
    "bitsandbytes", "cupy", "jax", "onnxruntime", "openvino", "optax", "peft", "torch", "torchao",
    "transformers", "triton",
}  # fmt: skip
LOADED_ONLY_WHEN_NAMED = FRAMEWORKS | {"hypothesis", "pytest"}


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


def loaded_by(module: str, root: Path) -> set[str]:
    """Of what should wait until it is named: what importing a module loads."""
    roots = os.pathsep.join(str(root / folder) for folder in PACKAGES.values())
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": roots},
        capture_output=True,
        text=True,
        check=True,
    )
    return LOADED_ONLY_WHEN_NAMED.intersection(run.stdout.split())


def plant(root: Path, file: str, text: str) -> None:
    """Write a tree of the three packages, empty but for one file."""
    for package, folder in PACKAGES.items():
        (root / folder / package).mkdir(parents=True)
        (root / folder / package / "__init__.py").touch()
    (root / file).parent.mkdir(exist_ok=True)
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
    assert loaded_by(module, REPOSITORY) == set()


@pytest.mark.parametrize("module", ["hypothesis", "pytest"])
def test_a_framework_that_loads_with_a_package_is_found(tmp_path, module):
    plant(tmp_path, "gpu/qloracle_gpu/__init__.py", f"import {module}")
    assert module in loaded_by("qloracle_gpu", tmp_path)
