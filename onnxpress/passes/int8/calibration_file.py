"""Calibration file: activation ranges that later runs read again, and that can be edited.

    {"schema": "onnxpress ranges 1", "ranges": {"tensor": [low, high], ...}, "rounding": "nearest",
     "equalized": [{"tensor": ..., "by": [...]}, ...]}

equalized: factors of the cross-layer equalization that was applied first; the ranges are those of the equalized model.
rounding: rounding of weights, used where none is requested. Both are optional.
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
from onnxpress.passes.int8.qdq.write import histograms_for
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe, RecipeOptions, equalized_evidence

SCHEMA = "onnxpress ranges 1"


def read_ranges(path: Path, evidence: Evidence, options: RecipeOptions) -> RecipeOptions:
    """Read a calibration file.

    Args:
        path: the file.
        evidence: the model and its samples.
        options: the requested options.

    Returns:
        The options with ranges and factors of the file, and its rounding where none is requested.

    Raises:
        InputProblem: if the file is not a calibration file, or names tensors that are not in the model.
    """
    try:
        body = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputProblem(
            "the calibration file is not valid JSON", path, str(error), "delete it to have it written again"
        ) from error
    if (
        not isinstance(body, dict)
        or body.get("schema") != SCHEMA
        or not isinstance(body.get("ranges"), dict)
        or not _valid_factors(body)
    ):
        raise InputProblem(
            "not a calibration file", path, f"expected schema {SCHEMA!r}", "delete it to have it written again"
        )
    factors = tuple(body.get("equalized", ()))
    found = replace(
        options,
        ranges=body["ranges"],
        factors=factors,
        equalize=bool(factors),
        rounding=options.rounding or body.get("rounding"),
    )
    found.check()
    known = histograms_for(equalized_evidence(evidence, QuantizationRecipe(found.ranges, found.factors or ())))
    unknown = [name for name in body["ranges"] if name not in known]
    if unknown:
        count = f"{len(unknown)} of {len(body['ranges'])} tensors"
        raise InputProblem(
            "the calibration file names a tensor that is not in the model",
            f"{path}: {unknown[0]}",
            count,
            "use another file",
        )
    return found


def _valid_factors(body: dict[str, Any]) -> bool:
    """Whether the equalization factors of a file have the right form."""
    factors = body.get("equalized", [])
    return isinstance(factors, list) and all(
        isinstance(d, dict) and isinstance(d.get("by"), list) and "tensor" in d for d in factors
    )


def write_ranges(path: Path, evidence: Evidence, recipe: QuantizationRecipe) -> None:
    """Write the ranges of every tensor that can be quantized.

    Args:
        path: the file to write.
        evidence: the model and its samples.
        recipe: the quantization recipe.

    Raises:
        InputProblem: if the file cannot be written.
    """
    check_target(path)
    scaled = equalized_evidence(evidence, recipe)
    found = calibration.activation_ranges(scaled, recipe.ranges, list(histograms_for(scaled)))
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "ranges": {name: list(ends) for name, ends in found.items()},
        "rounding": recipe.rounding,
    }
    if recipe.equalized:
        body["equalized"] = list(recipe.equalized)
    path.write_text(json.dumps(body, indent=1) + "\n")
