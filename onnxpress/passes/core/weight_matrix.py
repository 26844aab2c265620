"""The weights that can be stored in fewer bits: their initializers, their readers, and their view as a matrix of rows.

A row is what one scale applies to: an output channel of a Conv, a column of a MatMul, the vector of one token of an
embedding. The stored forms (`passes/weights/bit_packing.py`) become plain float constants when onnxruntime loads the
file, so every operator listed in `_row_axes` can read them; weights with other readers are refused.
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
from onnxpress.passes.core.rounding import add_cross_validated_damping

_MIN_ELEMENTS = 256  # elements; the nodes that unpack a weight take about 400 bytes
_MIN_OPSET = 7  # Mul broadcasts; Cast and Reshape have their present signatures
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class WeightMatrix:
    """One weight and its view as a matrix.

    Attributes:
        name: name of its initializer.
        readers: names of the nodes that read it; "" for nodes inside sub-graphs.
        array: the weight in its own layout.
        row_axes: the axes of `array` that number its rows.
    """

    name: str
    readers: tuple[str, ...]
    array: np.ndarray
    row_axes: tuple[int, ...]

    @property
    def matrix(self) -> np.ndarray:
        """The weight as a matrix [M, K]; the columns of a Conv are (channel, taps), as in `Linear`."""
        front = [self.array.shape[a] for a in self.row_axes]
        return np.moveaxis(self.array, self.row_axes, range(len(self.row_axes))).reshape(int(np.prod(front)), -1)

    @property
    def has_outer_rows(self) -> bool:
        """Whether the rows are the first axes of the weight, or its last axis."""
        return self.row_axes in (tuple(range(len(self.row_axes))), (self.array.ndim - 1,))

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix [M, K] in the layout of the weight."""
        shape = [self.array.shape[a] for a in self.row_axes]
        shape += [s for a, s in enumerate(self.array.shape) if a not in self.row_axes]
        moved = np.moveaxis(matrix.reshape(shape), range(len(self.row_axes)), self.row_axes)
        return np.ascontiguousarray(moved)

    def broadcast_rows(self, values: np.ndarray) -> np.ndarray:
        """One value per row, [M], reshaped to broadcast against the weight in its own layout."""
        return values.reshape([s if a in self.row_axes else 1 for a, s in enumerate(self.array.shape)])


def find_weights(model: ir.Model, check_finite: bool = True) -> tuple[list[WeightMatrix], list[Refusal]]:
    """Find the float32 weights that can be stored in fewer bits.

    Args:
        model: a model in canonical form.
        check_finite: whether to read the values, which must be finite; if False, external data stays on disk.

    Returns:
        The weights in the order in which they are first read, and the refused weights with the reason.
    """
    found: dict[str, WeightMatrix] = {}
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
                if _row_axes(node, index, len(tensor.shape)) is not None and tensor.dtype.is_floating_point():
                    refused[value.name] = Refusal(node.name or "", f"its weight is {tensor.dtype.name.lower()}")
                continue
            why = _refusal_reason(value) or (
                "" if not check_finite or np.isfinite(tensor.numpy()).all() else "its weight is not finite"
            )
            if why:
                refused[value.name] = Refusal(node.name or "", why)
                continue
            row_axes = _row_axes(node, index, len(tensor.shape))
            assert row_axes is not None
            reader_names = ((u.node.name or "") if u.node.graph is model.graph else "" for u in value.uses())
            readers = tuple(sorted(dict.fromkeys(reader_names), key=lambda name: not name))
            found[value.name] = WeightMatrix(value.name, readers, tensor.numpy(), row_axes)
    return list(found.values()), list(refused.values())


def _refusal_reason(value: ir.Value) -> str | None:
    """Why a weight cannot be stored in fewer bits; None where it can."""
    array = value.const_value
    assert array is not None
    if any(read.node_opset(u.node) < _MIN_OPSET for u in value.uses()):
        return f"the operators that unpack weights need operator set {_MIN_OPSET}"
    if value.is_graph_output():
        return "its weight is a graph output"
    for use in value.uses():
        if _row_axes(use.node, use.idx, len(array.shape)) is None:
            return f"its weight is also read by {use.node.op_type}"
    if array.size < _MIN_ELEMENTS:
        return "its weight is too small to save bytes"
    return None


def _row_axes(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """The axes that number the rows of a weight at this input of a node; None where the input is not a weight."""
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
class InputStatistics:
    """Statistics of a weight's inputs on the samples.

    Attributes:
        gram: second moment [K, K] of the inputs, about their mean where a bias can compensate the mean error; its
            diagonal [K] where the layer is too wide; None where unknown.
        layer: the layer whose bias compensates the mean error, or None.
        mean: mean of that layer's inputs, [K], or None.
    """

    gram: np.ndarray | None = None
    layer: LinearLayer | None = None
    mean: np.ndarray | None = None


def input_statistics(
    evidence: Evidence, weights: Sequence[WeightMatrix]
) -> Iterator[tuple[WeightMatrix, InputStatistics]]:
    """Yield each weight with the statistics of its inputs, computed in streams of bounded memory.

    Weights of layers other than Conv (one group), Gemm and MatMul come with empty statistics, as do all weights where
    there are no samples.

    Args:
        evidence: the model and its samples.
        weights: weights of the model.
    """
    nodes = {n.name: n for n in evidence.model.graph}
    owner: dict[str, WeightMatrix] = {}
    for weight in weights:
        node = nodes.get(weight.readers[0])
        layer = linear(node) if node is not None else None
        if evidence.data is None or node is None or layer is None or layer.weight.shape != weight.matrix.shape:
            yield weight, InputStatistics()
        else:
            owner[layer.node] = weight
    for name, layer, moments in input_moments(evidence, [nodes[name] for name in owner]):
        weight = owner.pop(name)
        wide = len(moments.x) != layer.weight.shape[1]
        has_bias = len(weight.readers) == 1 and layer.op != "MatMul" and layer.bias is not None and not wide
        gram = add_cross_validated_damping(moments, layer.weight, has_bias) if not wide else moments.centred(False)[0]
        if not np.isfinite(gram).all() or not np.diag(gram).max() > 0:
            yield weight, InputStatistics()
        elif wide:
            yield weight, InputStatistics(np.repeat(np.diag(gram), layer.taps))
        elif has_bias:
            yield weight, InputStatistics(gram, layer, moments.x / max(moments.count, 1.0))
        else:
            yield weight, InputStatistics(gram)
    for weight in owner.values():
        yield weight, InputStatistics()


def correct_mean_error(work: ir.Model, statistics: InputStatistics, change: np.ndarray) -> bool:
    """Subtract the mean output error of a changed weight from the layer's bias, in place (bias correction).

    Args:
        work: the model with the changed weight.
        statistics: statistics of the inputs of the original weight.
        change: changed weight minus original weight, [M, K].

    Returns:
        Whether the layer has a bias that was corrected.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019).
    """
    if statistics.layer is None or statistics.mean is None or statistics.layer.bias is None:
        return False
    node = next(n for n in work.graph if n.name == statistics.layer.node)
    alpha = read.float_attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    set_bias(work, node, statistics.layer.bias - alpha * (change @ statistics.mean))
    return True
