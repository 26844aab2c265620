"""Records of commands, and the reports of their contents.

A record is a run folder of `optimize` or `nas` (or its run.json), or the JSON output of `bench`, `quantize`, `optimize`
or `nas`.  Reports only show what was measured; parts without numbers are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from onnxpress.errors import InputProblem
from onnxpress.reporting.benched import bench_page
from onnxpress.reporting.facts import Document, Page
from onnxpress.reporting.optimized import optimize_page
from onnxpress.reporting.quantized import quantize_page
from onnxpress.reporting.searched import search_page
from onnxpress.result import SCHEMA


def read(path: str | Path) -> Document:
    """The record at a path: a run folder or a JSON file.  Raises InputProblem where there is none."""
    where = Path(path)
    file = where / "run.json" if where.is_dir() else where
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        raise InputProblem(
            "there is no run to report", file, "", "name a run folder, or a JSON file written by a command"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputProblem(
            "the run cannot be read", file, str(error), "name a run folder, or a JSON file written by a command"
        ) from error
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputProblem("the run's record is damaged", file, str(error), "run the command again") from error
    kind = body.get("kind") if isinstance(body, dict) else None
    if not isinstance(kind, str) or kind not in _PAGES or body.get("schema") != SCHEMA:
        raise InputProblem("not the record of a run", file, "", f"expected a record of {', '.join(sorted(_PAGES))}")
    plan = where / "plan.json"
    if where.is_dir() and plan.is_file():
        try:
            body["plan"] = json.loads(plan.read_text())
        except (OSError, ValueError, RecursionError):
            body["plan"] = {}
    return dict(body)


def page(body: Document) -> Page:
    """The report of a record.  Raises InputProblem where the record is incomplete."""
    try:
        made = _PAGES[body["kind"]](body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise InputProblem(
            "the run's record is incomplete", str(body.get("kind")), problem, "run the command again"
        ) from error
    made.charts = [c for c in made.charts if c.points]
    made.tables = [t for t in made.tables if t.rows]
    return made


def _run(body: Document) -> Page:
    return (
        search_page(body)
        if body.get("command") == "nas" or "candidates" in (body.get("outcome") or {})
        else optimize_page(body)
    )


_PAGES: dict[str, Callable[[Document], Page]] = {
    "run": _run, "optimize": optimize_page, "nas": search_page, "bench": bench_page, "quantize": quantize_page
}  # fmt: skip
