"""Reports as one HTML file, or as Markdown or JSON.

The HTML contains its style, its script and the chart library (page/README.md), makes no network requests, and holds all
measurements as JSON in which nothing can end the enclosing script element: names of nodes and files are untrusted.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress.errors import missing_extra
from onnxpress.model.files import check_target, write_atomic
from onnxpress.reporting.facts import Page, ReportTable
from onnxpress.reporting.reading import page, read
from onnxpress.result import plain

if TYPE_CHECKING:
    from jinja2 import Environment

FORMATS = ("html", "md", "json")
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def report(run: str | Path, output: str | Path | None = None, format: str = "html") -> Page:
    """The contents of the report of a run.

    run:    run folder, or a JSON file written by a command
    output: file to write the report to; None: no file
    format: of the file, one of FORMATS

    Raises InputProblem where there is no such record, EnvironmentProblem without jinja2, which HTML needs.

    >>> page = onnxpress.report("fast.run", "report.md", format="md")
    """
    made = page(read(run))
    if output is not None:
        check_target(output, run)
        write_atomic(Path(output), render(made, format).encode())
    return made


def render(shown: Page, format: str) -> str:
    """The report in one of FORMATS.  Raises EnvironmentProblem without jinja2, which HTML needs."""
    if format == "html":
        return html(shown)
    return markdown(shown) if format == "md" else json.dumps(plain(shown), indent=1) + "\n"


def html(shown: Page) -> str:
    """One self-contained HTML file."""
    folder = files("onnxpress.reporting") / "page"
    style, script, library = ((folder / name).read_text() for name in ("page.css", "page.js", "chart.umd.js"))
    template = _environment().from_string((folder / "page.html").read_text())
    return template.render(
        page=shown, data=script_json(plain(shown.charts)), style=style, script=script, library=library
    )


def _environment() -> Environment:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing_extra("jinja2", "report", "HTML reports") from error
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def script_json(value: object) -> str:
    """JSON that is safe within a script element, whatever its strings contain."""
    text = json.dumps(value)
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    return text


def markdown(shown: Page) -> str:
    """The report without the charts."""
    parts = [f"# {_cell(shown.title)}", *([_cell(shown.subtitle)] if shown.subtitle else [])]
    if shown.headlines:
        parts.append(
            "\n".join(
                f"- **{_cell(h.value)}** {_cell(h.label)}{': ' + _cell(h.note) if h.note else ''}"
                for h in shown.headlines
            )
        )
    parts += [_table(t) for t in shown.tables]
    if shown.remarks:
        parts.append("## Remarks\n\n" + "\n".join(f"- {_cell(r)}" for r in shown.remarks))
    return "\n\n".join(parts) + "\n"


def _table(table: ReportTable) -> str:
    lines = [" | ".join(_cell(c) for c in row) for row in (table.columns, ("---",) * len(table.columns), *table.rows)]
    return f"## {_cell(table.title)}\n\n" + "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
