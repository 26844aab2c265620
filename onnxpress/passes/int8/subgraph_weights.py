"""Weights that only bodies of If, Loop and Scan read, as signed 8-bit integers with a scale a row.

What a body computes is not seen on the samples, so its arithmetic stays in float: the integers are written like weight-only ones
(`passes/weights/bit_packing.py`), by multiplications that onnxruntime folds when it loads the file.  The file gets smaller, the speed stays.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.passes.core.weight_matrix import Stored, find_weights
from onnxpress.passes.weights import codebook
from onnxpress.passes.weights.bit_packing import INT8, Packer, bytes_of


def inner(model: ir.Model) -> list[str]:
    """Their names, of a model in canonical form, in the order they are first read; those that get smaller."""
    return [w.name for w in _held(model) if bytes_of(w, _book(w)) < w.array.nbytes]


def _held(model: ir.Model) -> list[Stored]:
    return [w for w in find_weights(model)[0] if not any(w.readers)]


def write(work: ir.Model, names: Collection[str]) -> int:
    """Write these weights in place; how many.  Raises InputProblem where a plan names one that is not there."""
    known = {w.name: w for w in _held(work)}
    strangers = [n for n in names if n not in known]
    if strangers:
        raise InputProblem(
            "the plan names a weight that no body of the model reads",
            strangers[0],
            "",
            "use the plan with the model it was made for",
        )
    packer = Packer(work)
    for name in names:
        packer.put(known[name], _book(known[name]))
    return len(names)


def _book(weight: Stored) -> codebook.Book:
    return codebook.on_grid(weight.rows, None, INT8, polish=False).lean()
