"""Costs of a candidate: multiply-accumulates, parameters, bytes, and peak memory.

They are counted from the shapes that the file declares (the builder declares all of them), so that no run is needed;
a file without them is run once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import counts
from onnxpress.model.files import weight_bytes
from onnxpress.model.parameter_count import parameters
from onnxpress.model.trace import Trace
from onnxpress.runtime.session import trace

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Costs:
    """Costs of a network.

    macs: multiply-accumulates for one sample.
    parameters: number of parameters.
    bytes: size of the weights.
    peak_memory: maximum of the bytes of inner values alive at once.
    """

    macs: int
    parameters: int
    bytes: int
    peak_memory: int


def count_costs(model: ir.Model, sample: Mapping[str, np.ndarray]) -> Costs:
    """Costs of a network.  sample: inputs of one sample, batch axis first."""
    shapes = declared_shapes(model, sample) or trace(model, sample)
    work = sum(counts.macs(model, shapes).values())
    return Costs(work, parameters(model), weight_bytes(model), peak_memory(model, shapes))


def declared_shapes(model: ir.Model, sample: Mapping[str, np.ndarray]) -> Trace | None:
    """Shapes that the file declares, with free axes as in the sample; None where a shape is missing."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for dim, size in zip(value.shape or (), sample[value.name or ""].shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                sizes[dim.value] = size
    shapes = {n: tuple(a.shape) for n, a in sample.items()}
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                return None
            dims = [d if isinstance(d, int) else sizes.get(d.value or "", 0) for d in value.shape]
            if not all(dims):
                return None
            shapes[value.name or ""] = tuple(dims)
    return Trace(shapes)


def peak_memory(model: ir.Model, shapes: Trace) -> int:
    """Maximum of the bytes of inner values alive at once, in a run in the file's order."""
    graph = model.graph
    last = {v: i for i, node in enumerate(graph) for v in node.inputs if v is not None}
    last.update(dict.fromkeys(graph.outputs, len(graph)))
    alive = {v: _size(v, shapes) for v in graph.inputs}
    fullest = 0
    for i, node in enumerate(graph):
        alive.update({v: _size(v, shapes) for v in node.outputs})
        fullest = max(fullest, sum(alive.values()))
        for value in [v for v in alive if last.get(v, -1) <= i]:
            del alive[value]
    return fullest


def _size(value: ir.Value, shapes: Trace) -> int:
    shape = shapes.shape(value.name)
    width = value.dtype.itemsize if value.dtype is not None else _FLOAT_BYTES
    return 0 if shape is None else int(np.prod(shape) * width)
