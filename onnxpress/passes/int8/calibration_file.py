"""Ranges of activations in a file: found once, read again by later runs, and open to anybody's editor.

    {"schema": "onnxpress ranges 1", "ranges": {"tensor": [low, high], ...}, "rounding": "nearest",
     "equalized": [{"tensor": ..., "by": [...]}, ...]}

equalized: the factors that channels were brought to like ranges by before; ranges are of the model behind them.  rounding: of weights,
where none is asked for.  Both may be left out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.files import check_target
from onnxpress.passes.int8 import calibration
from onnxpress.passes.int8.qdq_write import histograms_for
from onnxpress.passes.int8.quantization_recipe import Recipe, Wish, equalized

SCHEMA = "onnxpress ranges 1"


def read_ranges(path: Path, evidence: Evidence, wish: Wish) -> Wish:
    """The wish with what a file says.  Raises InputProblem where it is no such file, or speaks of tensors that this model does not
    have."""
    try:
        body = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputProblem(
            "the ranges are not readable JSON", path, str(error), "take it away to have it written anew"
        ) from error
    if (
        not isinstance(body, dict)
        or body.get("schema") != SCHEMA
        or not isinstance(body.get("ranges"), dict)
        or not _factors(body)
    ):
        raise InputProblem(
            "not a file of ranges", path, f"expected schema {SCHEMA!r}", "take it away to have it written anew"
        )
    factors = tuple(body.get("equalized", ()))
    found = replace(
        wish,
        ranges=body["ranges"],
        factors=factors,
        equalize=bool(factors),
        rounding=wish.rounding or body.get("rounding"),
    )
    found.check()
    known = histograms_for(equalized(evidence, Recipe(found.ranges, found.factors or ())))
    strangers = [name for name in body["ranges"] if name not in known]
    if strangers:
        more = f"{len(strangers)} of {len(body['ranges'])} tensors"
        raise InputProblem(
            "ranges of a tensor the model does not have", f"{path}: {strangers[0]}", more, "give another file"
        )
    return found


def _factors(body: dict[str, Any]) -> bool:
    """Whether what a file says of factors can be that."""
    given = body.get("equalized", [])
    return isinstance(given, list) and all(
        isinstance(d, dict) and isinstance(d.get("by"), list) and "tensor" in d for d in given
    )


def write_ranges(path: Path, evidence: Evidence, recipe: Recipe) -> None:
    """The ranges of every tensor by a recipe.  Raises InputProblem where the file cannot be written."""
    check_target(path)
    scaled = equalized(evidence, recipe)
    found = calibration.ranges(scaled, recipe.ranges, list(histograms_for(scaled)))
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "ranges": {name: list(ends) for name, ends in found.items()},
        "rounding": recipe.rounding,
    }
    if recipe.equalized:
        body["equalized"] = list(recipe.equalized)
    path.write_text(json.dumps(body, indent=1) + "\n")
