"""Low-rank factorization of a layer's weight: forms, error and cost per rank, and writing of the factors.

* matrix (Gemm, MatMul): W [M, K] ~ A [M, r] B [r, K], two products.
* pointwise (Conv): a Conv of r channels with the layer's kernel, then a 1x1 Conv.
* spatial (Conv): a kh x 1 Conv of r channels, then a 1 x kw Conv.

The first two are optimal for the inputs on the samples. With H [K, K] the second moment of the inputs,
|(W - AB) H^1/2| is minimal for A = U and B = U^T W, where U holds the leading eigenvectors of W H W^T. The error is the
sum of the other eigenvalues (the discarded squared singular values of W H^1/2); no inverse of H is needed. The spatial
form uses the second moment of a column of the kernel, as if the columns were independent.

Source: Zhang et al., Accelerating Very Deep Convolutional Networks (2016), for the data-aware and the pointwise form;
Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank Expansions (2014), for the spatial form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import scipy.linalg

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import Moments, input_moments, weight_by_tap
from onnxpress.measure.linear import LinearLayer, linear
from onnxpress.model import edit, read
from onnxpress.model.counts import node_macs
from onnxpress.model.normal_forms.tied_weights import tied_to
from onnxpress.model.trace import Trace
from onnxpress.passes.core.contract import Refusal

MATRIX, POINTWISE, SPATIAL = "matrix", "pointwise", "spatial"
_DAMPING = 1e-6  # relative to the mean diagonal of H, for input directions that do not occur in the samples


@dataclass(frozen=True)
class FactorizableLayer:
    """One layer, or several layers that share one weight.

    Attributes:
        name: name of the first layer.
        nodes: names of all layers.
        op: operator type.
        kernel: kernel size of a Conv, else ().
        weight: [M, K].
    """

    name: str
    nodes: tuple[str, ...]
    op: str
    kernel: tuple[int, ...]
    weight: np.ndarray

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that apply to the layer."""
        if self.op != "Conv":
            return (MATRIX,)
        return (POINTWISE, SPATIAL) if len(self.kernel) == 2 and min(self.kernel) > 1 else (POINTWISE,)

    def sides(self, form: str) -> tuple[int, int]:
        """(rows of A, columns of B) of a form: the full rank is the smaller, a rank takes their sum of weights."""
        rows, columns = self.weight.shape
        return (rows * self.kernel[1], columns // self.kernel[1]) if form == SPATIAL else (rows, columns)


@dataclass(frozen=True)
class RankCurve:
    """Error of one form of one layer at each rank.

    Attributes:
        layer: the layer.
        form: "matrix", "pointwise" or "spatial".
        basis: U [rows, full rank], most important column first.
        error: lost share of the output's power at each rank from 0 to the full rank, [full rank + 1].
    """

    layer: FactorizableLayer
    form: str
    basis: np.ndarray
    error: np.ndarray

    @property
    def full_rank(self) -> int:
        return len(self.error) - 1


def find_layers(model: ir.Model) -> tuple[list[FactorizableLayer], list[Refusal]]:
    """Find the layers whose weight can be factored.

    Returns:
        The layers in graph order, and the other layers with weights with the reason.
    """
    found, refused = [], []
    seen: set[str] = set()
    tied = tied_to(model)
    for node in model.graph:
        if node.op_type not in read.WEIGHTED or not read.standard(node) or node.name in seen:
            continue
        reason = _refusal_reason(node)
        if not reason and node.inputs[1] is not None and node.inputs[1].name in tied:
            reason = "another operator reads its weight turned (a tied embedding)"
        users = [] if reason else _layers_sharing_weight(node)
        if users is None:
            reason = "its weight is shared with an operator that cannot be factored"
        if reason or not users:
            refused.append(Refusal(node.name or "", reason or ""))
            continue
        seen |= {u.name or "" for u in users}
        linear_layer, weight = linear(node), read.constant(node.inputs[1])
        assert linear_layer is not None and weight is not None
        kernel = tuple(weight.shape[2:]) if node.op_type == "Conv" else ()
        names = tuple(u.name or "" for u in users)
        found.append(FactorizableLayer(node.name or "", names, node.op_type, kernel, linear_layer.weight))
    return found, refused


def _refusal_reason(node: ir.Node) -> str:
    """Why a layer cannot be factored; "" where it can."""
    weight = read.constant(node.inputs[1])
    if node.op_type == "ConvTranspose":
        return "transposed convolution"
    if weight is None:
        return "its weight is not a constant"
    if node.op_type == "Conv" and read.int_attribute(node, "group", 1) != 1:
        return "grouped convolution"
    if weight.dtype != np.float32:
        return "its weight is not float32"
    return (
        ""
        if linear(node) is not None
        else "its input is transposed, its weight is not a matrix, or its bias is not constant"
    )


def _layers_sharing_weight(node: ir.Node) -> list[ir.Node] | None:
    """The layers that read the node's weight in the same way, in graph order; None if something reads it otherwise."""
    value = node.inputs[1]
    assert value is not None
    uses = list(value.uses())
    same = [u.node for u in uses if u.idx == 1 and u.node.op_type == node.op_type and linear(u.node) is not None]
    flags = {(_flag(n, "transB"), read.float_attribute(n, "alpha", 1.0)) for n in same}
    if (
        len(same) < len(uses)
        or value.is_graph_output()
        or len(flags) > 1
        or any(n.graph is not node.graph for n in same)
    ):
        return None
    names = {n.name for n in same}
    return [n for n in node.graph or () if n.name in names]


def _flag(node: ir.Node, name: str) -> int:
    """An integer attribute, 0 by default."""
    return read.int_attribute(node, name, 0)


def rank_curves(evidence: Evidence, layers: Sequence[FactorizableLayer]) -> list[RankCurve]:
    """Compute the error of every rank for every form of the layers.

    Args:
        evidence: the model and its samples; without samples, plain singular values are used.
        layers: layers of the model.
    """
    nodes = {n.name: n for n in evidence.model.graph}
    moments: dict[str, tuple[LinearLayer, Moments]] = {}
    if evidence.data is not None:
        wanted = [nodes[n] for s in layers for n in s.nodes]
        moments = {name: (layer, found) for name, layer, found in input_moments(evidence, wanted)}
    curves = []
    for layer in layers:
        statistics = [moments[n] for n in layer.nodes if n in moments]
        curves += [_rank_curve(layer, form, statistics) for form in layer.forms]
    return curves


def _rank_curve(layer: FactorizableLayer, form: str, statistics: Sequence[tuple[LinearLayer, Moments]]) -> RankCurve:
    """The error of every rank for one form of a layer, from the second moments of its inputs."""
    rows, columns = layer.sides(form)
    weight = _unfolded_weight(layer, form)
    second_moment = None
    if statistics:
        second_moment = sum((m.xx for _, m in statistics), np.zeros_like(statistics[0][1].xx)) / max(
            sum(m.count for _, m in statistics), 1
        )
    if (
        second_moment is not None and len(second_moment) != layer.weight.shape[1]
    ):  # layers too wide for a Gram matrix: moments between channels only
        basis, values = _eigen_descending(_power_by_tap(layer, form, statistics[0][0], _add_damping(second_moment)))
    else:
        inputs = (
            None
            if second_moment is None
            else _add_damping(_column_moment(layer, second_moment) if form == SPATIAL else second_moment)
        )
        basis, values = _singular_values(weight, inputs)
    full = min(rows, columns)
    lost = np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])[: full + 1] / max(float(values.sum()), 1e-30)
    lost[full] = 0.0
    return RankCurve(layer, form, basis[:, :full], lost)


def _singular_values(weight: np.ndarray, second_moment: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(left singular vectors, squared singular values) of W H^1/2, in descending order."""
    if len(weight) <= weight.shape[1]:
        return _eigen_descending(weight @ weight.T if second_moment is None else weight @ second_moment @ weight.T)
    scaled = weight if second_moment is None else weight @ _square_root(second_moment)
    vectors, values, _ = scipy.linalg.svd(scaled, full_matrices=False)
    return vectors, values**2


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """S with S S^T = H of a symmetric matrix that is positive semidefinite but for rounding."""
    try:
        return np.asarray(scipy.linalg.cholesky(matrix, lower=True))
    except scipy.linalg.LinAlgError:  # inputs that are multiples of each other
        vectors, values = _eigen_descending(matrix)
        return np.asarray(vectors * np.sqrt(values))


def _eigen_descending(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(eigenvectors, eigenvalues clipped at 0) of a symmetric matrix, in descending order."""
    values, vectors = scipy.linalg.eigh(matrix)
    return vectors[:, ::-1], np.maximum(values[::-1], 0)


def _unfolded_weight(layer: FactorizableLayer, form: str) -> np.ndarray:
    """The weight with the sides of a form as rows and columns, in float64."""
    weight = layer.weight.astype(np.float64)
    if form != SPATIAL:
        return weight
    kernel_height, kernel_width = layer.kernel
    cube = weight.reshape(len(weight), -1, kernel_height, kernel_width)
    return cube.transpose(0, 3, 1, 2).reshape(len(weight) * kernel_width, -1)


def _column_moment(layer: FactorizableLayer, second_moment: np.ndarray) -> np.ndarray:
    """The second moment of (channel, kernel row), averaged over the kernel columns."""
    kernel_width = layer.kernel[1]
    parts = second_moment.reshape(-1, kernel_width, second_moment.shape[1] // kernel_width, kernel_width)
    return np.asarray(np.einsum("awbw->ab", parts) / kernel_width)


def _add_damping(second_moment: np.ndarray) -> np.ndarray:
    """A second moment with damping added to its diagonal."""
    return np.asarray(
        second_moment + (_DAMPING * float(np.mean(np.diag(second_moment))) + 1e-12) * np.eye(len(second_moment))
    )


def _power_by_tap(
    layer: FactorizableLayer, form: str, linear_layer: LinearLayer, second_moment: np.ndarray
) -> np.ndarray:
    """W H W^T where H is known between channels only and is the same at every tap."""
    rows = layer.sides(form)[0]
    if form == SPATIAL:
        cube = _unfolded_weight(layer, form).reshape(rows, -1, layer.kernel[0])
        return np.asarray(np.einsum("mch,cd,ndh->mn", cube, second_moment, cube, optimize=True))
    taps = weight_by_tap(linear_layer).astype(np.float64).reshape(rows, linear_layer.taps, -1)
    return np.asarray(np.einsum("mtc,cd,ntd->mn", taps, second_moment, taps, optimize=True))


def layer_macs(evidence: Evidence, layer: FactorizableLayer) -> int:
    """Multiply-accumulates of a sample, summed over all layers that share the weight."""
    nodes = {n.name: n for n in evidence.model.graph}
    return sum(node_macs(nodes[n], evidence.trace) for n in layer.nodes)


def factored_macs(evidence: Evidence, layer: FactorizableLayer, form: str, rank: int) -> int:
    """Multiply-accumulates of a sample in a form at a rank, summed over all layers that share the weight."""
    nodes = {n.name: n for n in evidence.model.graph}
    return sum(_node_macs(nodes[n], evidence.trace, layer, form, rank) for n in layer.nodes)


def _node_macs(node: ir.Node, trace: Trace, layer: FactorizableLayer, form: str, rank: int) -> int:
    """Multiply-accumulates of a sample of one layer in a form at a rank."""
    rows, columns = layer.sides(form)
    source, output = node.inputs[0], node.outputs[0]
    output_shape = trace.shape(output.name) or ()
    positions = int(np.prod(output_shape)) // max(len(layer.weight), 1)
    if form != SPATIAL:
        return positions * rank * (rows + columns)
    input_shape = (trace.shape(source.name) if source is not None else None) or output_shape
    inner_positions = positions // max(output_shape[-1], 1) * input_shape[-1]  # the first factor keeps the width
    return rank * (inner_positions * columns + positions * rows)


def factored_weights(layer: FactorizableLayer, form: str, rank: int) -> int:
    """Number of weights of the two factors."""
    return rank * sum(layer.sides(form))


def write_factors(model: ir.Model, curve: RankCurve, rank: int) -> None:
    """Replace a layer by its factors, in place; the node keeps its name, output and bias and becomes the second factor.

    Args:
        model: the model to change.
        curve: form and basis of the layer.
        rank: from 1 to the full rank.
    """
    layer = curve.layer
    left = curve.basis[:, :rank]
    right = left.T @ _unfolded_weight(layer, curve.form)
    users = [n for n in model.graph if n.name in layer.nodes]
    alpha = read.float_attribute(users[0], "alpha", 1.0) if layer.op == "Gemm" else 1.0
    first, second = _factor_shapes(layer, curve.form, left / alpha, right, _flag(users[0], "transB") == 1)
    first_value = edit.add_constant(model, first.astype(np.float32), f"{layer.name}_factor1")
    second_value = edit.add_constant(model, second.astype(np.float32), f"{layer.name}_factor2")
    for node in users:
        first_attributes, second_attributes = _attributes(node, curve.form, layer.kernel)
        op = "Conv" if layer.op == "Conv" else "MatMul"
        inner = edit.insert_before(
            model, node, op, [node.inputs[0], first_value], f"{node.name}_inner", first_attributes
        )
        node.replace_input_with(0, inner)
        node.replace_input_with(1, second_value)
        if layer.op == "Conv":
            edit.set_attributes(node, second_attributes)


def _factor_shapes(
    layer: FactorizableLayer, form: str, left: np.ndarray, right: np.ndarray, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The factors in the layout of the operators."""
    rank = left.shape[1]
    if form == MATRIX:
        return right.T, left if transposed else left.T
    if form == POINTWISE:
        unit_kernel = (1,) * len(layer.kernel)
        return right.reshape(rank, -1, *layer.kernel), left.reshape(-1, rank, *unit_kernel)
    kernel_height, kernel_width = layer.kernel
    second = left.reshape(-1, kernel_width, rank).transpose(0, 2, 1)
    return right.reshape(rank, -1, kernel_height, 1), second.reshape(len(second), rank, 1, kernel_width)


def _attributes(node: ir.Node, form: str, kernel: tuple[int, ...]) -> tuple[dict[str, object], dict[str, object]]:
    """Attributes of the first and of the second Conv."""
    if node.op_type != "Conv":
        return {}, {}
    rank = len(kernel)
    mode = read.attribute(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else str(mode)
    spatial: dict[str, list[int]] = {
        "strides": read.ints_attribute(node, "strides") or [1] * rank,
        "dilations": read.ints_attribute(node, "dilations") or [1] * rank,
    }
    if mode == "NOTSET":
        spatial["pads"] = read.ints_attribute(node, "pads") or [0] * (2 * rank)
    padding: dict[str, object] = {} if mode == "NOTSET" else {"auto_pad": mode}
    if form == POINTWISE:
        return {"kernel_shape": list(kernel), **spatial, **padding}, {"kernel_shape": [1] * rank}

    def side(axis: int) -> dict[str, object]:
        """Attributes restricted to one spatial axis; auto_pad works per axis."""
        neutral = {"strides": 1, "dilations": 1, "pads": 0}
        parts = {k: [v if i % 2 == axis else neutral[k] for i, v in enumerate(values)] for k, values in spatial.items()}
        return {"kernel_shape": [n if i == axis else 1 for i, n in enumerate(kernel)], **parts, **padding}

    return side(0), side(1)


def curves_by_form(found: Iterable[RankCurve]) -> Mapping[tuple[str, str], RankCurve]:
    """The curves by layer name and form."""
    return {(c.layer.name, c.form): c for c in found}
