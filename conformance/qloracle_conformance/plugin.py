"""The pytest plugin: ``pytest --pyargs qloracle_conformance --qloracle-impl IMPL``.

An installed plugin is loaded in every pytest run of its environment.  So this module imports only
the standard library and pytest, and does nothing unless an implementation is named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qloracle_conformance.running.pytest_suite import Suite

PACKAGE = Path(__file__).parent
SUITE = PACKAGE / "plugin.py"  # the one file of the package that is collected
OPTIONS: dict[str, dict[str, Any]] = {  # those of `running.options.read`
    "profile": {"default": "smoke", "help": "smoke, standard or exhaustive"},
    "device": {"default": "", "help": "device of its arrays: cpu, cuda, cuda:1"},
    "limit": {"default": 20.0, "type": float, "help": "seconds that one call may take"},
    "seed": {"default": 0, "type": int, "help": "a whole number"},
    "dialect": {"default": "", "metavar": "PRESET", "help": "judge as declared by it"},
    "require": {"default": "", "metavar": "LEVEL", "help": "fail if a function is missing"},
    "known": {"default": None, "metavar": "FILE", "help": "file of known failures"},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every option begins with --qloracle: other plugins may have an `--impl` or a `--device`."""
    group = parser.getgroup("qloracle", "conformance of quantization kernels (qloracle)")
    judge = "judge this implementation (a short name, module:NAME, path/file.py); repeatable"
    group.addoption("--qloracle-impl", action="append", default=[], metavar="IMPL", help=judge)
    for name, settings in OPTIONS.items():
        group.addoption(f"--qloracle-{name}", **settings)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave our other files alone, whatever patterns the user's settings have for test files."""
    inside = PACKAGE in collection_path.parents
    return True if config.option.qloracle_impl and inside and collection_path != SUITE else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the suite where implementations are named."""
    if file_path == SUITE and parent.config.option.qloracle_impl:
        return SuiteFile.from_parent(parent, path=file_path)
    return None


def pytest_sessionfinish() -> None:
    """End the child processes."""
    suite = sys.modules.get("qloracle_conformance.running.pytest_suite")
    if suite is not None:
        suite.close_all()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what is missing where the package was named and no implementation."""
    if "qloracle_conformance" in config.args and not config.option.qloracle_impl:
        terminalreporter.write_line("qloracle: name an implementation: --qloracle-impl IMPL")


class SuiteFile(pytest.File):
    """The checks of all implementations named."""

    def collect(self) -> Iterator[CheckItem]:
        """One item a check."""
        from qloracle_conformance.calling import objects
        from qloracle_conformance.running import options
        from qloracle_conformance.running.pytest_suite import Suite

        given = {name: getattr(self.config.option, f"qloracle_{name}") for name in OPTIONS}
        try:
            read = options.read(**given)
            for impl in dict.fromkeys(self.config.option.qloracle_impl):
                suite = Suite(objects.target(impl), **read)
                for check in suite.names():
                    name = f"{impl}[{check}]"  # as pytest names a parametrized test
                    # As a text: pytest 9.2 reads it as it reads the cache, or --lf finds nothing.
                    whole = f"{self.nodeid}::{name}"
                    yield CheckItem.from_parent(
                        self, name=name, nodeid=whole, suite=suite, check=check
                    )
        except (ImportError, ValueError) as error:  # UsageError is a ValueError
            raise pytest.UsageError(f"qloracle: {error}") from error


class CheckItem(pytest.Item):
    """One check of one implementation."""

    def __init__(self, *, suite: Suite, check: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.suite, self.check = suite, check

    def runtest(self) -> None:
        """Run the check."""
        self.suite.demand(self.check)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The failure in words; a traceback only for what is a fault of the kit."""
        from qloracle_conformance.running.pytest_suite import Failed

        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """How the item is named in reports."""
        return self.path, None, f"{self.suite.name} {self.check}"
