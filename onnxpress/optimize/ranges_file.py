"""Ranges of activations in a file: found once, read again by later runs, and open to anybody's editor.

    {"schema": "onnxpress ranges 1", "ranges": {"tensor": [low, high], ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.files import check_target
from onnxpress.passes import ranges8
from onnxpress.passes.qdq_write import spreads_for

SCHEMA = "onnxpress ranges 1"


def read_ranges(path: Path, evidence: Evidence) -> dict[str, list[float]]:
    """What a file says.  Raises InputProblem where it is no such file, or speaks of tensors that this model does not have."""
    try:
        body = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputProblem("the ranges are not readable JSON", path, str(error), "take it away to have it written anew") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA or not isinstance(body.get("ranges"), dict):
        raise InputProblem("not a file of ranges", path, f"expected schema {SCHEMA!r}", "take it away to have it written anew")
    given: dict[str, list[float]] = body["ranges"]
    ranges8.check(given)
    known = spreads_for(evidence)
    strangers = [name for name in given if name not in known]
    if strangers:
        more = f"{len(strangers)} of {len(given)} tensors"
        raise InputProblem("ranges of a tensor the model does not have", f"{path}: {strangers[0]}", more, "give another file")
    return given


def write_ranges(path: Path, found: Mapping[str, ranges8.Range]) -> None:
    """Raises InputProblem where the file cannot be written."""
    check_target(path)
    body = {"schema": SCHEMA, "ranges": {name: list(ends) for name, ends in found.items()}}
    path.write_text(json.dumps(body, indent=1) + "\n")
