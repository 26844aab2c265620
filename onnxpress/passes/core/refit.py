"""Least-squares repair: the survivors' weights are refitted so that outputs are what they were.

Layers are visited in topological order.  Inputs come from the model as pruned and repaired so far, targets from the
original, so each layer also corrects the error accumulated in front of it.  The last layer before a residual Add aims
at the sum: its target is the original sum less the pruned shortcut, which corrects the shortcut too.

W* = (R + lam W_S)(C + lam I)^-1 shrinks towards the surviving original weights W_S.  lam, and how much of the
shortcut's error to aim at, are chosen on held-out batches, together with the fallback of keeping W_S and moving only the
bias, so that few samples cannot overfit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import scipy.linalg

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.gram import WIDE, Moments, fit_moments
from onnxpress.measure.linear import LinearLayer, linear, set_linear
from onnxpress.model import edit, read
from onnxpress.model.channels.groups import Channels, Removal

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SHARES = (0.0, 0.5, 1.0)
Kept = Callable[[str], np.ndarray | None]
_HOLD_EVERY = 4  # every fourth batch judges the ridge


@dataclass(frozen=True)
class Fit:
    """What one layer's repair did: held-out relative error before (slice + bias) and after, and the ridge chosen."""

    node: str
    before: float
    after: float
    ridge: float | None
    share: float = 0.0


@dataclass(frozen=True)
class Target:
    """Where a layer's wished output comes from: `output` in the original, less `shortcut` in the changed model.

    own: the value of the original that is the layer's alone; adder: the Add that holds the bias of a MatMul.
    """

    own: str
    output: str
    shortcut: str | None
    adder: ir.Node | None = None


def repair(original: Evidence, pruned: ir.Model, channels: Channels, removal: Removal) -> list[Fit]:
    """Refit in place every linear layer of `pruned` that reads removed channels.

    (Refitting those behind as well gained nothing on held-out data: their inputs keep all their channels.)
    """
    touched = {p.node for name in removal for p in channels.group(name).readers}
    return refit(original, pruned, touched, lambda name: channels.kept(name, removal))


def refit(
    original: Evidence,
    changed: ir.Model,
    names: Collection[str],
    kept: Kept | None = None,
    roles: Mapping[str, str] | None = None,
) -> list[Fit]:
    """Refit in place the named nodes of a changed model, in its order: linear layers by least squares, BatchNormalization
    by the statistics of its output.

    kept: for a value of the original the positions of its channel axis that the changed model has left (None: all);
    roles: for a value of the changed model the value of the original whose part it is to play, where that is another.
    """
    fits: list[Fit] = []
    done: set[int] = set()
    for node in list(changed.graph):
        if node.name not in names or id(node) in done:
            continue
        if node.op_type == "BatchNormalization":
            _match_statistics(original, changed, node)
            continue
        layer = linear(node)
        if layer is None:
            continue
        if layer.weight.shape[1] > WIDE:
            _shift_bias(original, changed, node, layer)
            continue
        twins = _twins(node)
        done |= {id(n) for n in twins}
        wishes = [(n, target_of(n, original, kept or (lambda _: None), roles or {})) for n in twins]
        fit = _repair_layer(original, changed, kept or (lambda _: None), wishes)
        if fit is not None:
            fits.append(fit)
    return fits


def _twins(node: ir.Node) -> list[ir.Node]:
    """The layers of one shared weight (and bias), in the graph's order, which are refitted as one; the node alone where it
    shares none, or not both."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert weight is not None
    users = [u.node for u in weight.uses() if u.idx == 1 and u.node.op_type == node.op_type]
    alike = [n for n in users if (n.inputs[2] if len(n.inputs) > 2 else None) is bias and linear(n) is not None]
    shared = len(alike) == len(weight.uses()) and (bias is None or len(bias.uses()) == len(alike))
    return alike if shared else [node]


def _shift_bias(original: Evidence, pruned: ir.Model, node: ir.Node, layer: LinearLayer) -> None:
    """For a layer too wide to refit: the mean error of each output goes into the bias."""
    if layer.bias is None:
        return
    data = original.samples()
    batch = original.batch_for([layer.output])
    axis = 1 if node.op_type == "Conv" else -1
    total, count = np.zeros(len(layer.weight)), 0
    for now, then in _both(pruned, [layer.output], original.model, [layer.output], data, batch):
        gap = then[layer.output], now[layer.output]
        if gap[0].shape != gap[1].shape:
            return
        rows = np.moveaxis(gap[0] - gap[1], axis, -1).reshape(-1, len(total))
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    set_linear(pruned, node, layer.weight, layer.bias + total / max(count, 1))


def _match_statistics(original: Evidence, changed: ir.Model, node: ir.Node) -> None:
    """Give each channel of a BatchNormalization's output the mean and deviation it has in the original."""
    scale, shift = (read.constant(node.inputs[i]) for i in (1, 2))
    output = node.outputs[0].name or ""
    if scale is None or shift is None or output not in original.trace.shapes:
        return
    sums = np.zeros((2, 2, len(scale)))  # now, then; sum, sum of squares; channel
    count = 0
    for now, then in _both(
        changed, [output], original.model, [output], original.samples(), original.batch_for([output])
    ):
        for part, values in zip(sums, (now[output], then[output]), strict=True):
            rows = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).astype(np.float64)
            if rows.shape[1] != len(scale):
                return
            part += rows.sum(axis=0), (rows * rows).sum(axis=0)
        count += len(rows)
    means = sums[:, 0] / max(count, 1)
    spreads = np.sqrt(np.maximum(sums[:, 1] / max(count, 1) - means**2, 0))
    ratio = np.where(spreads[0] > 1e-6 * spreads[0].max() + 1e-12, spreads[1] / np.maximum(spreads[0], 1e-12), 1.0)
    edit.set_input(changed, node, 1, (scale * ratio).astype(scale.dtype), f"{node.name}_scale")
    moved = (shift - means[0]) * ratio + means[1]
    edit.set_input(changed, node, 2, moved.astype(shift.dtype), f"{node.name}_shift")


def target_of(node: ir.Node, original: Evidence, kept: Kept, roles: Mapping[str, str]) -> Target:
    """What a layer of a changed model should aim at: the sum where it ends in a residual Add, else its own output.

    Between a layer and the Add may stand the bias of a MatMul and, for rows, a Reshape that keeps the last axis.
    """
    shapes = original.trace.shapes
    output = node.outputs[0]
    adder = None
    end = output
    while (following := _behind(node, end, shapes, adder is None)) is not None:
        if following.op_type == "Add":
            adder = following
        end = following.outputs[0]
    if (kept(end.name or "") is None) != (kept(output.name or "") is None):
        end, adder = output, None  # the channels of what lies behind are not known
    own = roles.get(end.name or "", end.name or "")
    use = _only_use(end)
    if use is not None and use[0].op_type == "Add":
        add, other = use[0], use[0].inputs[1 - use[1]]
        total = add.outputs[0].name or ""
        plain = shapes.get(end.name or "") == shapes.get(total)  # a broadcast sum is no target
        if plain and other is not None and other is not end and read.constant(other) is None:
            return Target(own, roles.get(total, total), other.name, adder)
    return Target(own, own, None, adder)


def _only_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The one node that reads a value, and at which input."""
    uses = list(value.uses())
    return (uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


def _behind(node: ir.Node, value: ir.Value, shapes: Mapping[str, tuple[int, ...]], free: bool) -> ir.Node | None:
    """The node behind a Gemm's or MatMul's value that only adds its bias (if it is `free` of one) or regroups its rows."""
    use = _only_use(value)
    if use is None or node.op_type == "Conv" or not read.standard(use[0]):
        return None
    user, place = use
    before, after = shapes.get(value.name or ""), shapes.get(user.outputs[0].name or "")
    if before is None or after is None or not before or not after or before[-1] != after[-1]:
        return None
    if user.op_type == "Reshape" and place == 0 and np.prod(before) == np.prod(after):
        return user
    if user.op_type == "Add" and node.op_type == "MatMul" and free and before == after:
        other = read.constant(user.inputs[1 - place])
        return user if other is not None and other.shape == (before[-1],) else None
    return None


def _repair_layer(
    original: Evidence,
    pruned: ir.Model,
    kept: Kept,
    wishes: Sequence[tuple[ir.Node, Target]],
) -> Fit | None:
    """One layer, or all that share its weight."""
    node, target = wishes[0]
    layer = linear(node)
    assert layer is not None
    parts = [_moments(original, pruned, kept, n, t) for n, t in wishes]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    fit, hold = (functools.reduce(_Sums.__add__, side) for side in zip(*known, strict=True))
    found = _solve(pruned, node, layer, target.adder if len(wishes) == 1 else None, fit, hold)
    for other, _ in wishes[1:]:
        for place in range(1, len(node.inputs)):
            if place >= len(other.inputs):
                other.resize_inputs(place + 1)
            other.replace_input_with(place, node.inputs[place])
    return found


def _moments(
    original: Evidence, pruned: ir.Model, kept: Kept, node: ir.Node, target: Target
) -> tuple[_Sums, _Sums] | None:
    """What a layer sees and should give, on the samples that fit it and on those that judge; None where sizes do not agree."""
    layer = linear(node)
    assert layer is not None
    names = [layer.source] + ([target.shortcut] if target.shortcut else [])
    wishes = list(dict.fromkeys([target.own, target.output]))
    stays = {name: kept(name) for name in wishes}
    data = original.samples()
    batch = min(original.batch_for([*names, *wishes]), max(1, len(data) // _HOLD_EVERY))
    shape = layer.weight.shape
    axis = 1 if node.op_type == "Conv" else -1
    sums = [_Sums.empty(shape[1], shape[0], target.shortcut is not None) for _ in range(2)]
    for index, (now, then) in enumerate(_both(pruned, names, original.model, wishes, data, batch)):
        part = {n: y if (rows := stays[n]) is None else np.take(y, rows, axis=axis) for n, y in then.items()}
        if any(y.shape[axis] != shape[0] for y in part.values()):
            return None
        into = sums[index % _HOLD_EVERY == _HOLD_EVERY - 1]
        fit_moments(node, layer, now[layer.source], part[target.own], len(data), index, into.own)
        if target.shortcut and into.whole is not None:
            wish = part[target.output] - now[target.shortcut]
            fit_moments(node, layer, now[layer.source], wish, len(data), index, into.whole)
    return sums[0], sums[1]


@dataclass
class _Sums:
    """own: towards the layer's own original output; whole: towards the original sum less the pruned shortcut."""

    own: Moments
    whole: Moments | None

    @classmethod
    def empty(cls, columns: int, outputs: int, residual: bool) -> _Sums:
        return cls(Moments.empty(columns, outputs), Moments.empty(columns, outputs) if residual else None)

    def __add__(self, other: _Sums) -> _Sums:
        both = None if self.whole is None or other.whole is None else self.whole + other.whole
        return _Sums(self.own + other.own, both)

    def aim(self, share: float) -> Moments:
        """Moments towards a target between the two; the inputs are the same, so only the cross terms mix."""
        a, b = self.own, self.whole
        if b is None or share == 0.0:
            return a
        return Moments(a.count, a.x, a.xx, a.y + share * (b.y - a.y), a.yx + share * (b.yx - a.yx), b.yy)

    @property
    def judge(self) -> Moments:
        return self.own if self.whole is None else self.whole


def _both(
    pruned: ir.Model, names: Sequence[str], original: ir.Model, outputs: Sequence[str], data: Dataset, batch: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The two activation streams side by side."""
    now = stream(pruned, list(dict.fromkeys(names)), data, batch)
    then = stream(original, outputs, data, batch)
    yield from zip(now, then, strict=True)


def _solve(model: ir.Model, node: ir.Node, layer: LinearLayer, adder: ir.Node | None, fit: _Sums, hold: _Sums) -> Fit:
    centre = node.op_type != "MatMul" or adder is not None
    start = layer.weight.astype(np.float64)
    judge = hold.judge if hold.own.count else fit.judge
    before = best = _error(judge, start, _bias(fit.judge, start, centre))
    choice: tuple[float, float] | None = None
    for ridge in RIDGES if hold.own.count else ():  # without held-out rows nothing tells a fit from an overfit
        solve = _solver(fit.own, ridge, centre)
        if solve is None:
            continue
        for share in SHARES if fit.whole is not None else (0.0,):
            weight = solve(fit.aim(share), start)
            error = _error(judge, weight, _bias(fit.judge, weight, centre))
            if error < best * 0.999:
                best, choice = error, (ridge, share)
    total = fit + hold
    final = start
    if choice is not None:
        solve = _solver(total.own, choice[0], centre)
        final = start if solve is None else solve(total.aim(choice[1]), start)
    bias = _bias(total.judge, final, centre)
    set_linear(model, node, final, bias if centre else None)
    if adder is not None:
        place = 0 if read.constant(adder.inputs[0]) is not None else 1
        edit.set_input(model, adder, place, bias.astype(np.float32), f"{node.name}_bias")
    return Fit(node.name or "", before, best, *(choice or (None, 0.0)))


def _solver(moments: Moments, ridge: float, centre: bool) -> Callable[[Moments, np.ndarray], np.ndarray] | None:
    """(target moments, W_S) -> W* for one ridge; the factorisation is shared by all targets. None where it fails."""
    c, _ = moments.centred(centre)
    lam = ridge * float(np.mean(np.diag(c))) + 1e-12
    try:
        factor = scipy.linalg.cho_factor(c + lam * np.eye(len(c)))
    except scipy.linalg.LinAlgError:
        return None

    def solve(target: Moments, start: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.linalg.cho_solve(factor, (target.centred(centre)[1] + lam * start).T).T)

    return solve


def _bias(moments: Moments, weight: np.ndarray, centre: bool) -> np.ndarray:
    n = max(moments.count, 1.0)
    return moments.y / n - weight @ (moments.x / n) if centre else np.zeros(len(weight))


def _error(m: Moments, weight: np.ndarray, bias: np.ndarray) -> float:
    """Mean squared error of W x + b against y, relative to y's variance."""
    n = max(m.count, 1.0)
    cross = float(np.sum(m.yx * weight))
    quad = float(np.einsum("mk,kl,ml->", weight, m.xx, weight, optimize=True))
    linear_terms = 2 * float(bias @ (weight @ m.x)) - 2 * float(bias @ m.y) + n * float(bias @ bias)
    variance = max(m.yy - float(m.y @ m.y) / n, 1e-30)
    return max((m.yy - 2 * cross + quad + linear_terms) / variance, 0.0)
