"""Least-squares refit of layers whose inputs have changed, so that they reproduce the outputs of the original model.

Layers are visited in topological order. Inputs come from the changed model as refitted so far, targets from the
original, so that each layer also corrects the error accumulated in front of it. The last layer before a residual Add
is fitted to the sum: its target is the original sum minus the shortcut of the changed model, which corrects the
shortcut as well.

W* = (R + lambda W_S)(C + lambda I)^-1 shrinks towards the remaining original weights W_S, where C [K, K] is the second
moment of the inputs and R [M, K] the cross moment of targets and inputs. lambda and the share of the shortcut's error
in the target are chosen on held-out batches. Keeping W_S and refitting only the bias is one of the choices, which
limits overfitting on few samples.

Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (2017), for the reconstruction of
layer outputs by least squares.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import scipy.linalg

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import WIDE, Moments, fit_moments
from onnxpress.measure.layerwise_activations import LayerwiseActivations
from onnxpress.measure.linear import LinearLayer, linear, set_linear
from onnxpress.model import edit, read
from onnxpress.model.channels.groups import Channels, Removal
from onnxpress.model.normal_forms.tied_weights import is_table, tied_to
from onnxpress.passes.core.refit_target import KeptChannels, RefitTarget, refit_target

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SHORTCUT_SHARES = (0.0, 0.5, 1.0)
_HOLDOUT_EVERY = 4  # every fourth batch is held out to choose the ridge


@dataclass(frozen=True)
class RefitResult:
    """Result of refitting one layer.

    Attributes:
        node: name of the layer.
        before: relative squared error on held-out samples with the remaining original weights and the optimal bias.
        after: relative squared error on held-out samples after the refit.
        ridge: chosen regularization relative to the mean diagonal of C; None where the weights were kept.
        share: share of the shortcut's error in the target, 0 to 1.
    """

    node: str
    before: float
    after: float
    ridge: float | None
    share: float = 0.0


def refit_readers(original: Evidence, pruned: ir.Model, channels: Channels, removal: Removal) -> list[RefitResult]:
    """Refit in place every linear layer of a pruned model that reads removed channels.

    Layers further behind are not refitted: their inputs keep all channels, and refitting them gave no gain on held-out
    data.

    Args:
        original: evidence of the original model.
        pruned: the model without the removed channels; changed in place.
        channels: the channel groups of the original model.
        removal: for each group name the indices of the removed channels.

    Returns:
        One result per refitted layer.
    """
    readers = {p.node for name in removal for p in channels.group(name).readers}
    return refit_layers(original, pruned, readers, lambda name: channels.kept(name, removal))


def refit_layers(
    original: Evidence,
    changed: ir.Model,
    names: Collection[str],
    kept: KeptChannels | None = None,
    roles: Mapping[str, str] | None = None,
) -> list[RefitResult]:
    """Refit in place the named nodes of a changed model, in topological order.

    Linear layers are refitted by least squares, BatchNormalization by the mean and variance of its output. Layers too
    wide for a Gram matrix, and those whose matrix is tied to another (an embedding), get a new bias only.

    Args:
        original: evidence of the original model, with samples.
        changed: the model to refit; changed in place.
        names: names of the nodes to refit.
        kept: for the name of a value of the original model the positions of its channel axis that the changed model
            still has; None for all of them.
        roles: maps a value of the changed model to the value of the original model that it replaces, where the names
            differ.

    Returns:
        One result per layer refitted by least squares.
    """
    nodes = [n for n in changed.graph if n.name in names and (n.op_type == "BatchNormalization" or linear(n))]
    if not nodes:
        return []
    refit = _Refit(original, changed, kept or (lambda _: None), roles or {}, nodes)
    return [result for node in nodes if (result := refit.visit(node)) is not None]


@dataclass
class _Refit:
    """A refit in progress.  nodes: to be refitted, in topological order; see `refit_layers` for the rest."""

    original: Evidence
    changed: ir.Model
    kept: KeptChannels
    roles: Mapping[str, str]
    nodes: Sequence[ir.Node]
    _done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tied = tied_to(self.changed)
        data, known = self.original.samples(), self.original.trace.shapes
        values = [v.name or "" for n in self.nodes for v in (n.inputs[0], n.outputs[0]) if v is not None]
        batch = min((self.original.batch_for([name]) for name in values if name in known), default=1)
        self._batch = min(batch, max(1, len(data) // _HOLDOUT_EVERY))
        self._now = LayerwiseActivations(self.changed, data, self._batch, self.nodes)
        self._then = LayerwiseActivations(self.original.model, data, self._batch)

    def visit(self, node: ir.Node) -> RefitResult | None:
        """Refit a node, and those that share its weight; None where it got no new weight."""
        if id(node) in self._done:
            return None
        nodes = _layers_sharing_weight(node) if self._has_own_matrix(node) else [node]
        layer = linear(node)
        result = None
        if layer is None:
            self._refit_batchnorm(node)
        elif self._has_own_matrix(node):
            targets = [(n, refit_target(n, self.original, self.kept, self.roles)) for n in nodes]
            result = self._refit_layer(layer, targets)
        else:
            self._refit_bias(node, layer)
        self._done |= {id(n) for n in nodes}
        self._now.finalize(nodes)
        return result

    def _has_own_matrix(self, node: ir.Node) -> bool:
        """Whether a least-squares refit can change the weight.

        Where something else reads the matrix as well, as a table or turned, there would be two.
        """
        layer, matrix = linear(node), node.inputs[1]
        shared = matrix is not None and (matrix.name in self._tied or is_table(matrix))
        return layer is not None and layer.weight.shape[1] <= WIDE and not shared

    def _paired_activations(
        self, names: Sequence[str], outputs: Sequence[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Activations of the changed and of the original model, batch by batch."""
        yield from zip(self._now.values(names), self._then.values(outputs), strict=True)

    def _refit_bias(self, node: ir.Node, layer: LinearLayer) -> None:
        """Add the mean error of each output to the bias of a layer that is too wide for a least-squares refit."""
        if layer.bias is None:
            return
        axis = 1 if node.op_type == "Conv" else -1
        total, count = np.zeros(len(layer.weight)), 0
        for now, then in self._paired_activations([layer.output], [layer.output]):
            wanted, actual = then[layer.output], now[layer.output]
            if wanted.shape != actual.shape:
                return
            rows = np.moveaxis(wanted - actual, axis, -1).reshape(-1, len(total))
            total += rows.sum(axis=0, dtype=np.float64)
            count += len(rows)
        set_linear(self.changed, node, layer.weight, layer.bias + total / max(count, 1))

    def _refit_batchnorm(self, node: ir.Node) -> None:
        """Give each output channel the mean and standard deviation it has in the original model."""
        scale, shift = (read.constant(node.inputs[i]) for i in (1, 2))
        output = node.outputs[0].name or ""
        if scale is None or shift is None or output not in self.original.trace.shapes:
            return
        sums = np.zeros((2, 2, len(scale)))  # [changed and original, sum and sum of squares, channel]
        count = 0
        for now, then in self._paired_activations([output], [output]):
            for part, values in zip(sums, (now[output], then[output]), strict=True):
                rows = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).astype(np.float64)
                if rows.shape[1] != len(scale):
                    return
                part += rows.sum(axis=0), (rows * rows).sum(axis=0)
            count += len(rows)
        means = sums[:, 0] / max(count, 1)
        deviations = np.sqrt(np.maximum(sums[:, 1] / max(count, 1) - means**2, 0))
        ratio = np.where(
            deviations[0] > 1e-6 * deviations[0].max() + 1e-12, deviations[1] / np.maximum(deviations[0], 1e-12), 1.0
        )
        edit.set_input(self.changed, node, 1, (scale * ratio).astype(scale.dtype), f"{node.name}_scale")
        moved = (shift - means[0]) * ratio + means[1]
        edit.set_input(self.changed, node, 2, moved.astype(shift.dtype), f"{node.name}_shift")

    def _refit_layer(self, layer: LinearLayer, targets: Sequence[tuple[ir.Node, RefitTarget]]) -> RefitResult | None:
        """Refit one layer, or all layers that share its weight, by least squares."""
        node, target = targets[0]
        collected = [self._collect_moments(n, t) for n, t in targets]
        known = [p for p in collected if p is not None]
        if len(known) < len(collected):
            return None
        train, holdout = (functools.reduce(_RefitMoments.__add__, side) for side in zip(*known, strict=True))
        adder = target.adder if len(targets) == 1 else None
        found = _fit_and_write(self.changed, node, layer, adder, train, holdout)
        for other, _ in targets[1:]:
            for place in range(1, len(node.inputs)):
                if place >= len(other.inputs):
                    other.resize_inputs(place + 1)
                other.replace_input_with(place, node.inputs[place])
        return found

    def _collect_moments(self, node: ir.Node, target: RefitTarget) -> tuple[_RefitMoments, _RefitMoments] | None:
        """Moments of a layer's inputs and targets on training and held-out batches; None where sizes do not agree."""
        layer = linear(node)
        assert layer is not None
        names = [layer.source] + ([target.shortcut] if target.shortcut else [])
        outputs = list(dict.fromkeys([target.own, target.output]))
        positions = {name: self.kept(name) for name in outputs}
        count, shape = len(self.original.samples()), layer.weight.shape
        axis = 1 if node.op_type == "Conv" else -1
        sums = [_RefitMoments.empty(shape[1], shape[0], target.shortcut is not None) for _ in range(2)]
        for index, (now, then) in enumerate(self._paired_activations(names, outputs)):
            wanted = {n: y if (rows := positions[n]) is None else np.take(y, rows, axis=axis) for n, y in then.items()}
            if any(y.shape[axis] != shape[0] for y in wanted.values()):
                return None
            into = sums[index % _HOLDOUT_EVERY == _HOLDOUT_EVERY - 1]
            fit_moments(node, layer, now[layer.source], wanted[target.own], count, index, into.own)
            if target.shortcut and into.residual is not None:
                target_values = wanted[target.output] - now[target.shortcut]
                fit_moments(node, layer, now[layer.source], target_values, count, index, into.residual)
        return sums[0], sums[1]


def _layers_sharing_weight(node: ir.Node) -> list[ir.Node]:
    """The layers that share one weight and bias, in graph order; only the node itself where not both are shared."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert weight is not None
    users = [u.node for u in weight.uses() if u.idx == 1 and u.node.op_type == node.op_type]
    same = [n for n in users if (n.inputs[2] if len(n.inputs) > 2 else None) is bias and linear(n) is not None]
    all_shared = len(same) == len(weight.uses()) and (bias is None or len(bias.uses()) == len(same))
    return same if all_shared else [node]


@dataclass
class _RefitMoments:
    """Moments towards the layer's own original output, and towards the original sum minus the changed shortcut."""

    own: Moments
    residual: Moments | None

    @classmethod
    def empty(cls, columns: int, outputs: int, has_shortcut: bool) -> _RefitMoments:
        return cls(Moments.empty(columns, outputs), Moments.empty(columns, outputs) if has_shortcut else None)

    def __add__(self, other: _RefitMoments) -> _RefitMoments:
        both = None if self.residual is None or other.residual is None else self.residual + other.residual
        return _RefitMoments(self.own + other.own, both)

    def towards(self, share: float) -> Moments:
        """Moments towards a target between the two; only the cross terms are interpolated, as the inputs are equal."""
        a, b = self.own, self.residual
        if b is None or share == 0.0:
            return a
        return Moments(a.count, a.x, a.xx, a.y + share * (b.y - a.y), a.yx + share * (b.yx - a.yx), b.yy)

    @property
    def evaluation(self) -> Moments:
        """Moments that the error is evaluated with: the residual ones where there is a shortcut."""
        return self.own if self.residual is None else self.residual


def _fit_and_write(
    model: ir.Model,
    node: ir.Node,
    layer: LinearLayer,
    adder: ir.Node | None,
    train: _RefitMoments,
    holdout: _RefitMoments,
) -> RefitResult:
    """Choose ridge and shortcut share on the held-out moments, fit on all moments, and write weight and bias."""
    centred = node.op_type != "MatMul" or adder is not None
    start = layer.weight.astype(np.float64)
    evaluation = holdout.evaluation if holdout.own.count else train.evaluation
    before = best = _relative_error(evaluation, start, _optimal_bias(train.evaluation, start, centred))
    choice: tuple[float, float] | None = None
    for ridge in RIDGES if holdout.own.count else ():  # without held-out rows overfitting cannot be detected
        solve = _ridge_solver(train.own, ridge, centred)
        if solve is None:
            continue
        for share in SHORTCUT_SHARES if train.residual is not None else (0.0,):
            weight = solve(train.towards(share), start)
            error = _relative_error(evaluation, weight, _optimal_bias(train.evaluation, weight, centred))
            if error < best * 0.999:
                best, choice = error, (ridge, share)
    total = train + holdout
    final = start
    if choice is not None:
        solve = _ridge_solver(total.own, choice[0], centred)
        final = start if solve is None else solve(total.towards(choice[1]), start)
    bias = _optimal_bias(total.evaluation, final, centred)
    set_linear(model, node, final, bias if centred else None)
    if adder is not None:
        place = 0 if read.constant(adder.inputs[0]) is not None else 1
        edit.set_input(model, adder, place, bias.astype(np.float32), f"{node.name}_bias")
    return RefitResult(node.name or "", before, best, *(choice or (None, 0.0)))


def _ridge_solver(moments: Moments, ridge: float, centred: bool) -> Callable[[Moments, np.ndarray], np.ndarray] | None:
    """A function (target moments, W_S) -> W* for one ridge, which reuses one factorization; None where it fails."""
    c, _ = moments.centred(centred)
    lam = ridge * float(np.mean(np.diag(c))) + 1e-12
    try:
        factor = scipy.linalg.cho_factor(c + lam * np.eye(len(c)))
    except scipy.linalg.LinAlgError:
        return None

    def solve(target: Moments, start: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.linalg.cho_solve(factor, (target.centred(centred)[1] + lam * start).T).T)

    return solve


def _optimal_bias(moments: Moments, weight: np.ndarray, centred: bool) -> np.ndarray:
    """The bias [M] that removes the mean error of a weight; zeros where the layer has no bias."""
    n = max(moments.count, 1.0)
    return moments.y / n - weight @ (moments.x / n) if centred else np.zeros(len(weight))


def _relative_error(m: Moments, weight: np.ndarray, bias: np.ndarray) -> float:
    """Mean squared error of W x + b against y, relative to the variance of y."""
    n = max(m.count, 1.0)
    cross = float(np.sum(m.yx * weight))
    quad = float(np.einsum("mk,kl,ml->", weight, m.xx, weight, optimize=True))
    linear_terms = 2 * float(bias @ (weight @ m.x)) - 2 * float(bias @ m.y) + n * float(bias @ bias)
    variance = max(m.yy - float(m.y @ m.y) / n, 1e-30)
    return max((m.yy - 2 * cross + quad + linear_terms) / variance, 0.0)
