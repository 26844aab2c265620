"""Weights that only sub-graphs (bodies of If, Loop and Scan) read, as int8 with a scale per row.

Values inside sub-graphs are not observed on the samples, so their arithmetic stays in float. The weights are stored
like weight-only integers (`passes/weights/bit_packing.py`), by multiplications that onnxruntime folds at load. The file
gets smaller; the latency stays the same.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.passes.core.weight_matrix import WeightMatrix, find_weights
from onnxpress.passes.weights import codebook
from onnxpress.passes.weights.bit_packing import INT8, BitPacker, packed_bytes


def quantizable_subgraph_weights(model: ir.Model) -> list[str]:
    """Find the weights read only by sub-graphs that get smaller in int8.

    Args:
        model: a model in canonical form.

    Returns:
        Their names, in the order in which they are first read.
    """
    return [w.name for w in _subgraph_weights(model) if packed_bytes(w, _int8_codebook(w)) < w.array.nbytes]


def _subgraph_weights(model: ir.Model) -> list[WeightMatrix]:
    """The weights that only sub-graphs read."""
    return [w for w in find_weights(model)[0] if not any(w.readers)]


def quantize_subgraph_weights(work: ir.Model, names: Collection[str]) -> int:
    """Store weights of sub-graphs in int8, in place.

    Args:
        work: the model to change.
        names: names of the weights.

    Returns:
        The number of weights.

    Raises:
        InputProblem: if a name is not that of such a weight.
    """
    weights = {w.name: w for w in _subgraph_weights(work)}
    unknown = [n for n in names if n not in weights]
    if unknown:
        raise InputProblem(
            "the plan names a weight that no sub-graph of the model reads",
            unknown[0],
            "",
            "use the plan with the model it was made for",
        )
    packer = BitPacker(work)
    for name in names:
        packer.write(weights[name], _int8_codebook(weights[name]))
    return len(names)


def _int8_codebook(weight: WeightMatrix) -> codebook.Codebook:
    """The weight in int8, rounded to nearest, with a scale per row."""
    return codebook.fit_grid(weight.matrix, None, INT8, output_aware=False).compact()
