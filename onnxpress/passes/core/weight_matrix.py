"""The weights that can be kept in fewer bits: which initializers, who reads them, and how each is a matrix of rows.

A row is what one scale fits: an output channel of a Conv, a column of a MatMul, the vector of one word of an embedding.
As the forms that are written (`passes/weights/bit_packing.py`) become plain float constants when onnxruntime loads the file, any reader will do
that takes a weight; all others are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import input_moments
from onnxpress.measure.linear import LinearLayer, linear, set_bias
from onnxpress.model import read
from onnxpress.passes.core.contract import Refusal
from onnxpress.passes.core.rounding import minded

_LEAST = 256  # elements; the nodes that unpack a tensor take about 400 bytes
_OPSET = 7  # Mul broadcasts, Cast and Reshape as they are today
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Stored:
    """One weight. name: of its initializer; readers: node names, "" for those inside sub-graphs; lead: the axes that number its
    rows."""

    name: str
    readers: tuple[str, ...]
    array: np.ndarray
    lead: tuple[int, ...]

    @property
    def rows(self) -> np.ndarray:
        """The weight as a matrix [M, K]; of a Conv columns are (channel, taps), as in `Linear`."""
        front = [self.array.shape[a] for a in self.lead]
        return np.moveaxis(self.array, self.lead, range(len(self.lead))).reshape(int(np.prod(front)), -1)

    @property
    def rows_apart(self) -> bool:
        """Whether the rows are the weight's first axes, or its last."""
        return self.lead in (tuple(range(len(self.lead))), (self.array.ndim - 1,))

    def restored(self, rows: np.ndarray) -> np.ndarray:
        """A matrix [M, K] in the weight's own layout."""
        shape = [self.array.shape[a] for a in self.lead]
        shape += [s for a, s in enumerate(self.array.shape) if a not in self.lead]
        moved = np.moveaxis(rows.reshape(shape), range(len(self.lead)), self.lead)
        return np.ascontiguousarray(moved)

    def spread(self, each: np.ndarray) -> np.ndarray:
        """One number a row [M], so that it multiplies the weight in its own layout."""
        return each.reshape([s if a in self.lead else 1 for a, s in enumerate(self.array.shape)])


def find_weights(model: ir.Model, look: bool = True) -> tuple[list[Stored], list[Refusal]]:
    """The float32 weights of a model in canonical form, in the order they are first read, and those left alone.

    look: whether the numbers are looked at, which must be finite; without it external ones stay on the disk.
    """
    found: dict[str, Stored] = {}
    refused: dict[str, Refusal] = {}
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if (
                value is None
                or not value.name
                or value.graph is not model.graph
                or value.name in found
                or value.name in refused
            ):
                continue
            tensor = read.constant_tensor(value)
            if tensor is None or not value.is_initializer() or len(tensor.shape) < 2:
                if index == 1 and node.op_type in read.WEIGHTED and tensor is None and read.standard(node):
                    refused[value.name] = Refusal(node.name or "", read.why_not_constant(value))
                continue
            if tensor.dtype != ir.DataType.FLOAT:
                if _lead(node, index, len(tensor.shape)) is not None and tensor.dtype.is_floating_point():
                    refused[value.name] = Refusal(node.name or "", f"its weight is {tensor.dtype.name.lower()}")
                continue
            why = _why_not(value) or (
                "" if not look or np.isfinite(tensor.numpy()).all() else "its weight is not finite"
            )
            if why:
                refused[value.name] = Refusal(node.name or "", why)
                continue
            lead = _lead(node, index, len(tensor.shape))
            assert lead is not None
            own = ((u.node.name or "") if u.node.graph is model.graph else "" for u in value.uses())
            readers = tuple(sorted(dict.fromkeys(own), key=lambda name: not name))
            found[value.name] = Stored(value.name, readers, tensor.numpy(), lead)
    return list(found.values()), list(refused.values())


def _why_not(value: ir.Value) -> str | None:
    array = value.const_value
    assert array is not None
    if any(read.node_opset(u.node) < _OPSET for u in value.uses()):
        return f"operator set below {_OPSET} has no operators that unpack weights"
    if value.is_graph_output():
        return "its weight is an output"
    for use in value.uses():
        if _lead(use.node, use.idx, len(array.shape)) is None:
            return f"its weight is read by {use.node.op_type}, too"
    if array.size < _LEAST:
        return "its weight is too small to be worth unpacking"
    return None


def _lead(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """The axes that number the rows of a weight at this input of a node; None where no weight stands there."""
    if not read.standard(node):
        return (1,) if node.op_type == "Attention" and index == 1 and rank == 2 else None
    if node.op_type == "Conv" and index == 1:
        return (0,)
    if node.op_type == "ConvTranspose" and index == 1:
        return (1,) if read.int_attribute(node, "group", 1) == 1 else (0, 1)
    if node.op_type == "Gemm" and index == 1:
        return (0,) if read.int_attribute(node, "transB", 0) else (1,)
    if node.op_type == "MatMul" and index in (0, 1):
        return (rank - 1,) if index == 1 else tuple(range(rank - 1))
    if node.op_type == "Gather" and index == 0:
        return tuple(range(rank - 1))
    if node.op_type in _RECURRENT and index in (1, 2):
        return (0, 1)
    return None


@dataclass(frozen=True)
class Seen:
    """What a weight meets on the samples. gram: [K, K] of its inputs, about the mean where a bias can take that up; [K], its
    diagonal, where the layer is too wide for it; None where it is unknown.  layer, mean: of the node whose bias takes the
    mean error up, and of its inputs [K], or None."""

    gram: np.ndarray | None = None
    layer: LinearLayer | None = None
    mean: np.ndarray | None = None


def seen_by(evidence: Evidence, weights: Sequence[Stored]) -> Iterator[tuple[Stored, Seen]]:
    """Each weight with the second moments of its inputs, in streams of bounded memory; those of other layers than Conv
    (one group), Gemm and MatMul, and of all where there are no samples, come without."""
    nodes = {n.name: n for n in evidence.model.graph}
    owner: dict[str, Stored] = {}
    for weight in weights:
        node = nodes.get(weight.readers[0])
        layer = linear(node) if node is not None else None
        if evidence.data is None or node is None or layer is None or layer.weight.shape != weight.rows.shape:
            yield weight, Seen()
        else:
            owner[layer.node] = weight
    for name, layer, moments in input_moments(evidence, [nodes[name] for name in owner]):
        weight = owner.pop(name)
        wide = len(moments.x) != layer.weight.shape[1]
        steady = len(weight.readers) == 1 and layer.op != "MatMul" and layer.bias is not None and not wide
        gram = minded(moments, layer.weight, steady) if not wide else moments.centred(False)[0]
        if not np.isfinite(gram).all() or not np.diag(gram).max() > 0:
            yield weight, Seen()
        elif wide:
            yield weight, Seen(np.repeat(np.diag(gram), layer.taps))
        elif steady:
            yield weight, Seen(gram, layer, moments.x / max(moments.count, 1.0))
        else:
            yield weight, Seen(gram)
    for weight in owner.values():
        yield weight, Seen()


def keep_mean(work: ir.Model, seen: Seen, change: np.ndarray) -> bool:
    """Take the mean of what a changed weight (by `change` [M, K]) adds to its output back through the layer's bias."""
    if seen.layer is None or seen.mean is None or seen.layer.bias is None:
        return False
    node = next(n for n in work.graph if n.name == seen.layer.node)
    alpha = read.float_attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    set_bias(work, node, seen.layer.bias - alpha * (change @ seen.mean))
    return True
