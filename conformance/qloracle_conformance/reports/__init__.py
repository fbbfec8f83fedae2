"""One report, one module: each writes one file, in one form, from the dict of `Report.to_dict`.

A new report is a new module here and one more entry in FILES.  The repro scripts are the one
exception: they hold whole arrays, and so they are written from the judgements themselves.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qloracle_conformance.reports import files, html, json_file, junit, markdown, repro
from qloracle_conformance.reports.details import show
from qloracle_conformance.reports.failures import exit_code, key
from qloracle_conformance.reports.report import Report

__all__ = ["FILES", "exit_code", "show", "write_all"]

FILES = {
    "report.json": json_file.text,
    "junit.xml": junit.text,
    "summary.md": markdown.text,
    "report.html": html.text,
}


def write_all(directory: Path, report: Report) -> dict[str, Path]:
    """Write every report and the repro scripts; name the script of each failing check.

    The keys are those of `failures.key`: implementation and check id.
    """
    scripts: dict[str, Path] = {}
    for judgement in report.judgements:
        written = repro.write_all(directory / "repro", judgement)
        scripts |= {key(judgement.name, check): path for check, path in written.items()}
    data = report.to_dict()
    _name_scripts(data, scripts, directory)
    texts = {name: path.read_bytes().decode() for name, path in scripts.items()}
    for name, text in (FILES | {"report.html": partial(html.text, scripts=texts)}).items():
        files.write(directory / name, text(data))
    return scripts


def _name_scripts(data: dict[str, Any], scripts: Mapping[str, Path], directory: Path) -> None:
    """Enter each script's path, seen from the report's folder: the folder may be moved."""
    for implementation in data["implementations"]:
        for check in implementation["checks"]:
            path = scripts.get(key(implementation["name"], check["id"]))
            if path is not None:
                check["repro"] = path.relative_to(directory).as_posix()
