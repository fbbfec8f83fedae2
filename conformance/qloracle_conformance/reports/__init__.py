"""One report, one module: each writes one file, in one form, from the dict of `Report.to_dict`.

A new report is a new module here and one more entry in FILES.  The repro scripts are the one
exception: they hold whole arrays, and so they are written from the judgements themselves.
"""

from functools import partial
from pathlib import Path

from qloracle_conformance.reports import data, files, html, junit, markdown, repro
from qloracle_conformance.reports.report import Report

__all__ = ["FILES", "write_all"]

FILES = {
    "report.json": data.to_json,
    "junit.xml": junit.text,
    "summary.md": markdown.text,
    "report.html": html.text,
}


def write_all(directory: Path, report: Report) -> None:
    """Write every report and the repro scripts."""
    scripts: dict[str, str] = {}
    for judgement in report.judgements:
        scripts |= repro.scripts(judgement)
    whole = report.to_dict()
    for name, text in (FILES | {"report.html": partial(html.text, scripts=scripts)}).items():
        files.write(directory / name, text(whole))
    for name, script in scripts.items():
        files.write(directory / name, script)
