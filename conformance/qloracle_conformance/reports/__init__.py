"""One report, one module: each writes one file, in one form, from the dict of `Report.to_dict`.

A new report is a new module here and one more line in `write_all`.  The repro scripts are the one
exception: they hold whole arrays, and so they are written from the judgements themselves.
"""

from pathlib import Path

from qloracle_conformance.reports import data, files, junit, markdown, repro
from qloracle_conformance.reports.report import Report

__all__ = ["write_all"]


def write_all(directory: Path, report: Report) -> None:
    """Write every report and the repro scripts."""
    from qloracle_conformance.reports import html  # loads Jinja2, which nothing else needs

    scripts: dict[str, str] = {}
    for judgement in report.judgements:
        scripts |= repro.scripts(judgement)
    whole = report.to_dict()
    texts = {
        "report.json": data.to_json(whole),
        "junit.xml": junit.text(whole),
        "summary.md": markdown.text(whole),
        "report.html": html.text(whole, scripts),
    }
    for name, text in (texts | scripts).items():
        files.write(directory / name, text)
