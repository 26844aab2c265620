"""A layer's weight as a product of two: which forms there are, what each rank loses and saves, and the writing of it.

* matrix: Gemm, MatMul. W [M, K] ~ A [M, r] B [r, K]: two products.
* pointwise: a Conv of r channels with the layer's own kernel, then a 1x1 Conv.
* spatial: a kh x 1 Conv of r channels, then a 1 x kw Conv.

The first two are optimal for the inputs seen: with H the second moment of the input, |(W - AB) H^1/2| is least for A = U and
B = U^T W, where U holds the leading eigenvectors of W H W^T, and what is lost is the sum of the other eigenvalues
(the dropped squared singular values of W H^1/2; no inverse of H is needed).  For the spatial form the same holds with the
second moment of a column of the kernel, as if the columns were independent.
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
from onnxpress.model.trace import Trace
from onnxpress.passes.core.contract import Refusal

MATRIX, POINTWISE, SPATIAL = "matrix", "pointwise", "spatial"
_DAMP = 1e-6  # of the mean diagonal of H: directions the samples never took still count a little


@dataclass(frozen=True)
class Site:
    """Layers that share one weight (mostly one layer).  name: of the first; kernel: () but for Conv; weight: [M, K]."""

    name: str
    nodes: tuple[str, ...]
    op: str
    kernel: tuple[int, ...]
    weight: np.ndarray

    @property
    def forms(self) -> tuple[str, ...]:
        if self.op != "Conv":
            return (MATRIX,)
        return (POINTWISE, SPATIAL) if len(self.kernel) == 2 and min(self.kernel) > 1 else (POINTWISE,)

    def sides(self, form: str) -> tuple[int, int]:
        """(rows of A, columns of B): the full rank is the smaller, r weights of each for rank r."""
        rows, columns = self.weight.shape
        return (rows * self.kernel[1], columns // self.kernel[1]) if form == SPATIAL else (rows, columns)


@dataclass(frozen=True)
class Curve:
    """One form of one site.  basis: U [rows, full rank], most important first; error: share of the output's power that
    is lost at each rank, 0 … full."""

    site: Site
    form: str
    basis: np.ndarray
    error: np.ndarray

    @property
    def full(self) -> int:
        return len(self.error) - 1


def find_sites(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    """The layers whose weight can be factored, and why others cannot."""
    found, refused = [], []
    seen: set[str] = set()
    for node in model.graph:
        if node.op_type not in read.WEIGHTED or not read.standard(node) or node.name in seen:
            continue
        reason = _refusal(node)
        users = [] if reason else _users(node)
        if users is None:
            reason = "its weight is shared with an operator that cannot be factored"
        if reason or not users:
            refused.append(Refusal(node.name or "", reason or ""))
            continue
        seen |= {u.name or "" for u in users}
        layer, weight = linear(node), read.constant(node.inputs[1])
        assert layer is not None and weight is not None
        kernel = tuple(weight.shape[2:]) if node.op_type == "Conv" else ()
        names = tuple(u.name or "" for u in users)
        found.append(Site(node.name or "", names, node.op_type, kernel, layer.weight))
    return found, refused


def _refusal(node: ir.Node) -> str:
    weight = read.constant(node.inputs[1])
    if node.op_type == "ConvTranspose":
        return "transposed convolution"
    if weight is None:
        return "its weight is not a constant"
    if node.op_type == "Conv" and read.int_attribute(node, "group", 1) != 1:
        return "grouped convolution"
    if weight.dtype != np.float32:
        return "its weight is not float32"
    return "" if linear(node) is not None else "its input is transposed, its weight a batch, or its bias computed"


def _users(node: ir.Node) -> list[ir.Node] | None:
    """All layers that read the node's weight as it does, in the graph's order; None where something reads it otherwise."""
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
    return read.int_attribute(node, name, 0)


def curves(evidence: Evidence, sites: Sequence[Site]) -> list[Curve]:
    """Every form of every site, from the input's second moments on the samples (plain singular values without samples)."""
    nodes = {n.name: n for n in evidence.model.graph}
    moments: dict[str, tuple[LinearLayer, Moments]] = {}
    if evidence.data is not None:
        wanted = [nodes[n] for s in sites for n in s.nodes]
        moments = {name: (layer, found) for name, layer, found in input_moments(evidence, wanted)}
    made = []
    for site in sites:
        known = [moments[n] for n in site.nodes if n in moments]
        made += [_curve(site, form, known) for form in site.forms]
    return made


def _curve(site: Site, form: str, known: Sequence[tuple[LinearLayer, Moments]]) -> Curve:
    rows, columns = site.sides(form)
    weight = _folded(site, form)
    second = None
    if known:
        second = sum((m.xx for _, m in known), np.zeros_like(known[0][1].xx)) / max(sum(m.count for _, m in known), 1)
    if second is not None and len(second) != site.weight.shape[1]:  # wide layers: by channel, taps apart
        basis, values = _leading(_power_by_tap(site, form, known[0][0], _damped(second)))
    else:
        inputs = None if second is None else _damped(_columns(site, second) if form == SPATIAL else second)
        basis, values = _singular(weight, inputs)
    full = min(rows, columns)
    lost = np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])[: full + 1] / max(float(values.sum()), 1e-30)
    lost[full] = 0.0
    return Curve(site, form, basis[:, :full], lost)


def _singular(weight: np.ndarray, second: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(left singular vectors, squared singular values) of W H^1/2, largest first."""
    if len(weight) <= weight.shape[1]:
        return _leading(weight @ weight.T if second is None else weight @ second @ weight.T)
    scaled = weight if second is None else weight @ scipy.linalg.cholesky(second, lower=True)
    vectors, values, _ = scipy.linalg.svd(scaled, full_matrices=False)
    return vectors, values**2


def _leading(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = scipy.linalg.eigh(power)
    return vectors[:, ::-1], np.maximum(values[::-1], 0)


def _folded(site: Site, form: str) -> np.ndarray:
    """The weight with the sides of a form as rows and columns, in float64."""
    weight = site.weight.astype(np.float64)
    if form != SPATIAL:
        return weight
    high, wide = site.kernel
    cube = weight.reshape(len(weight), -1, high, wide)
    return cube.transpose(0, 3, 1, 2).reshape(len(weight) * wide, -1)


def _columns(site: Site, second: np.ndarray) -> np.ndarray:
    """The second moment of (channel, row of the kernel), averaged over the kernel's columns."""
    wide = site.kernel[1]
    parts = second.reshape(-1, wide, second.shape[1] // wide, wide)
    return np.asarray(np.einsum("awbw->ab", parts) / wide)


def _damped(second: np.ndarray) -> np.ndarray:
    return np.asarray(second + (_DAMP * float(np.mean(np.diag(second))) + 1e-12) * np.eye(len(second)))


def _power_by_tap(site: Site, form: str, layer: LinearLayer, second: np.ndarray) -> np.ndarray:
    """W H W^T where H is known between channels only, the same at every tap."""
    rows = site.sides(form)[0]
    if form == SPATIAL:
        cube = _folded(site, form).reshape(rows, -1, site.kernel[0])
        return np.asarray(np.einsum("mch,cd,ndh->mn", cube, second, cube, optimize=True))
    taps = weight_by_tap(layer).astype(np.float64).reshape(rows, layer.taps, -1)
    return np.asarray(np.einsum("mtc,cd,ntd->mn", taps, second, taps, optimize=True))


def macs_of(evidence: Evidence, site: Site) -> int:
    nodes = {n.name: n for n in evidence.model.graph}
    return sum(node_macs(nodes[n], evidence.trace) for n in site.nodes)


def factored_macs(evidence: Evidence, site: Site, form: str, rank: int) -> int:
    """Multiply-accumulates of a sample with a form at a rank, all users of the weight together."""
    nodes = {n.name: n for n in evidence.model.graph}
    return sum(_node_macs(nodes[n], evidence.trace, site, form, rank) for n in site.nodes)


def _node_macs(node: ir.Node, trace: Trace, site: Site, form: str, rank: int) -> int:
    rows, columns = site.sides(form)
    source, output = node.inputs[0], node.outputs[0]
    out = trace.shape(output.name) or ()
    positions = int(np.prod(out)) // max(len(site.weight), 1)
    if form != SPATIAL:
        return positions * rank * (rows + columns)
    into = (trace.shape(source.name) if source is not None else None) or out
    between = positions // max(out[-1], 1) * into[-1]  # the first factor keeps the width
    return rank * (between * columns + positions * rows)


def weights_of(site: Site, form: str, rank: int) -> int:
    return rank * sum(site.sides(form))


def factor(model: ir.Model, curve: Curve, rank: int) -> None:
    """Write the factors of one site in place; the node keeps its name, its output and its bias and becomes the second."""
    site = curve.site
    left = curve.basis[:, :rank]
    right = left.T @ _folded(site, curve.form)
    users = [n for n in model.graph if n.name in site.nodes]
    alpha = read.float_attribute(users[0], "alpha", 1.0) if site.op == "Gemm" else 1.0
    first, second = _shaped(site, curve.form, left / alpha, right, _flag(users[0], "transB") == 1)
    one = edit.add_constant(model, first.astype(np.float32), f"{site.name}_factor1")
    two = edit.add_constant(model, second.astype(np.float32), f"{site.name}_factor2")
    for node in users:
        before, after = _attributes(node, curve.form, site.kernel)
        op = "Conv" if site.op == "Conv" else "MatMul"
        inner = edit.insert_before(model, node, op, [node.inputs[0], one], f"{node.name}_inner", before)
        node.replace_input_with(0, inner)
        node.replace_input_with(1, two)
        if site.op == "Conv":
            edit.set_attributes(node, after)


def _shaped(
    site: Site, form: str, left: np.ndarray, right: np.ndarray, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The factors as the operators take them."""
    rank = left.shape[1]
    if form == MATRIX:
        return right.T, left if transposed else left.T
    if form == POINTWISE:
        ones = (1,) * len(site.kernel)
        return right.reshape(rank, -1, *site.kernel), left.reshape(-1, rank, *ones)
    high, wide = site.kernel
    second = left.reshape(-1, wide, rank).transpose(0, 2, 1)
    return right.reshape(rank, -1, high, 1), second.reshape(len(second), rank, 1, wide)


def _attributes(node: ir.Node, form: str, kernel: tuple[int, ...]) -> tuple[dict[str, object], dict[str, object]]:
    """Attributes of the first and the second Conv."""
    if node.op_type != "Conv":
        return {}, {}
    rank = len(kernel)
    mode = read.attribute(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else str(mode)
    whole: dict[str, list[int]] = {
        "strides": read.ints_attribute(node, "strides") or [1] * rank,
        "dilations": read.ints_attribute(node, "dilations") or [1] * rank,
    }
    if mode == "NOTSET":
        whole["pads"] = read.ints_attribute(node, "pads") or [0] * (2 * rank)
    named: dict[str, object] = {} if mode == "NOTSET" else {"auto_pad": mode}
    if form == POINTWISE:
        return {"kernel_shape": list(kernel), **whole, **named}, {"kernel_shape": [1] * rank}

    def side(axis: int) -> dict[str, object]:
        """Only one axis's part of it; auto_pad works by axis anyway."""
        idle = {"strides": 1, "dilations": 1, "pads": 0}
        parts = {k: [v if i % 2 == axis else idle[k] for i, v in enumerate(values)] for k, values in whole.items()}
        return {"kernel_shape": [n if i == axis else 1 for i, n in enumerate(kernel)], **parts, **named}

    return side(0), side(1)


def by_key(found: Iterable[Curve]) -> Mapping[tuple[str, str], Curve]:
    return {(c.site.name, c.form): c for c in found}
