"""equalize: channels of a tensor brought to ranges that one scale fits, the function unchanged.

Where every reader of a tensor multiplies it by constant weights, and all between its maker and them keeps positive
factors (f(s x) = s f(x)), channel j can be divided by any s_j > 0 in its maker's weights and multiplied by it in its
readers'.  That moves rounding error between the tensor's integers and the readers' weights.  With u8 steps over the
tensor's span and s8 weights whose scale follows each output row, the error expected at the readers' outputs is

    J(s) = (max_j h_j / s_j - min_j l_j / s_j)^2 / (12 * 255^2) * sum_j s_j^2 |W_j|^2
         + sum_i (max_j |W_ij| s_j)^2 / (12 * 127^2) * sum_j E[x_j^2] / s_j^2,

h, l being the extremes of each channel on samples and W_j all that channel j is multiplied with.  s_j = r_j^a / w_j^(1
- a) (SmoothQuant, Xiao et al. 2023: r_j = max |x_j|, w_j = max_i |W_ij|; a = 1/2 is cross-layer equalization, Nagel et
al. 2019) and s_j = r_j^a are tried for a few a, and the least J taken.  Behind a normalisation the factors go into its
scale and bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal
from onnxpress.passes.core.options import PassOptions
from onnxpress.passes.int8.qdq.write import histograms_for

# f(s x) = s f(x) for s > 0, each channel by itself, and no axis moves
_KEEPS_FACTORS = frozenset("Relu LeakyRelu Identity MaxPool AveragePool GlobalMaxPool GlobalAveragePool".split())
_MOVES = frozenset("Reshape Flatten Squeeze Unsqueeze".split())
_POWERS = (0.25, 0.5, 0.75, 1.0)
_LEAST = 0.9  # of the error that must be left at most for a change to be worth it
_WIDEST = 100.0  # most that a channel is scaled by
_DIGITS = 5  # of a factor, in plans


@dataclass(frozen=True)
class Place:
    """Constant numbers of a node along whose axis the channels lie. groups: of a Conv that reads them."""

    node: str
    operand: int
    axis: int
    groups: int = 1


@dataclass(frozen=True)
class Site:
    """A tensor whose channels can be scaled. made: what is divided by the factors; read: what is multiplied by them;
    scaled: every value between; given: those of them that the readers are given."""

    tensor: str
    channels: int
    made: tuple[Place, ...]
    read: tuple[Place, ...]
    scaled: tuple[str, ...]
    given: tuple[str, ...]


@dataclass(frozen=True)
class ChannelStatistics:
    """Extremes and mean squares of a site's channels on the samples, each [channels], over all that its readers are
    given."""

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class EqualizeOptions(PassOptions):
    """Cross-layer equalization has no options: every tensor that promises to gain is scaled."""


class Equalize:
    """Cross-layer equalization (Nagel et al. 2019): channels scaled so that one int8 scale fits them, the function
    unchanged."""

    name = "equalize"
    exact = True
    needs_data = False  # an action holds its factors
    extra = None
    Options = EqualizeOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each tensor whose error in int8 is expected to fall."""
        if evidence.data is None:
            return
        for action in plan_equalize(evidence):
            yield Proposal(str(action["tensor"]), action, frozenset({str(action["tensor"])}))

    def plan(self, evidence: Evidence, options: EqualizeOptions) -> Planned:
        """Factors for every tensor whose error in int8 is expected to fall."""
        if evidence.data is None:
            raise InputProblem("equalize needs samples", "`data`", "no data was given", "give `data`")
        actions = plan_equalize(evidence)
        return Planned(actions, [] if actions else ["no tensor gains from equalization"])

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"tensor": name, "by": [a factor a channel]}, …]"""
        if not actions:
            return Applied(evidence.model.clone())
        known = {s.tensor: s for s in sites(evidence.model, evidence.trace)}
        work = evidence.model.clone()
        nodes: dict[str, ir.Node] = {n.name or "": n for n in work.graph}
        for action in actions:
            site, s = known.get(action["tensor"]), np.asarray(action["by"], np.float64)
            if site is None or s.shape != (site.channels,) or not (np.isfinite(s) & (s > 0)).all():
                why = (
                    "its channels cannot be scaled" if site is None else f"expected {site.channels} factors above zero"
                )
                raise InputProblem(
                    "the plan scales channels wrongly", str(action["tensor"]), why, "use the plan with its own model"
                )
            for place in site.made:
                _times(work, nodes[place.node], place, 1 / s)
            for place in site.read:
                _times(work, nodes[place.node], place, s)
        edit.forget_shapes(work)
        return Applied(work, [f"channels of {len(actions)} tensors equalized"])


def plan_equalize(evidence: Evidence) -> list[Action]:
    """For every tensor the factors that the least error is expected with, where that is clearly less than without."""
    nodes: dict[str, ir.Node] = {n.name or "": n for n in evidence.model.graph}
    actions: list[Action] = []
    for site in sites(evidence.model, evidence.trace):
        seen = _seen(evidence, site)
        if seen is None:
            continue
        weights = [
            _matrices(p, w) for p in site.read if (w := read.constant(nodes[p.node].inputs[p.operand])) is not None
        ]
        tried = [factors(seen, weights, a, by) for a in _POWERS for by in (False, True)]
        errors = [expected_error(s, seen, weights) for s in tried]
        best = int(np.argmin(errors))
        if errors[best] < _LEAST * expected_error(np.ones(site.channels), seen, weights):
            actions.append({"tensor": site.tensor, "by": [float(f"{x:.{_DIGITS}g}") for x in tried[best]]})
    return actions


def factors(seen: ChannelStatistics, weights: Sequence[np.ndarray], power: float, by_weights: bool) -> np.ndarray:
    """s [channels], 1 in the geometric mean of those that live. weights: of each reader, [groups, rows, channels,
    taps]."""
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high))
    widest = np.max([np.abs(w).max(axis=(1, 3)).ravel() for w in weights], axis=0)
    alive = (reach > 0) & (widest > 0)
    found = np.ones(len(reach))
    if alive.any():
        logs = power * np.log(reach[alive]) - ((1 - power) * np.log(widest[alive]) if by_weights else 0.0)
        found[alive] = np.exp(np.clip(logs - logs.mean(), -np.log(_WIDEST), np.log(_WIDEST)))
    return found


def expected_error(s: np.ndarray, seen: ChannelStatistics, weights: Sequence[np.ndarray]) -> float:
    """J(s), summed over the readers. s: [channels]; weights: of each reader, [groups, rows, channels, taps]."""
    span = max(float((seen.high / s).max()), 0.0) - min(float((seen.low / s).min()), 0.0)
    total = 0.0
    for weight in weights:
        groups, _, columns, taps = weight.shape
        mine = s.reshape(groups, columns)
        total += span**2 / (12 * 255.0**2) * float((np.square(weight).sum(axis=(1, 3)) * mine**2).sum())
        tops = (np.abs(weight) * mine[:, None, :, None]).max(axis=(2, 3))
        power = (seen.power.reshape(groups, columns) / mine**2).sum(axis=1) * taps
        total += float((np.square(tops).sum(axis=1) * power).sum()) / (12 * 127.0**2)
    return total


def sites(model: ir.Model, trace: Trace) -> list[Site]:
    """Every tensor of the graph whose channels can be scaled exactly, in its order."""
    return [site for node in model.graph if (site := _site(node, trace)) is not None]


def _site(maker: ir.Node, trace: Trace) -> Site | None:
    made = _made(maker, trace)
    shape = trace.shape(maker.outputs[0].name) if made is not None else None
    if made is None or shape is None or not -len(shape) <= made[1] < len(shape):
        return None
    places, axis = made[0], made[1] % len(shape)
    channels = shape[axis]
    readers: list[Place] = []
    scaled: list[str] = []
    given: dict[str, None] = {}
    waiting = [(maker.outputs[0], axis)]
    while waiting:
        value, at = waiting.pop()
        shape = trace.shape(value.name)
        if value.is_graph_output() or shape is None or not list(value.uses()):
            return None
        scaled.append(value.name or "")
        for use in value.uses():
            if use.node.graph is not maker.graph:
                return None
            reader = _reader(use.node, use.idx, at, len(shape))
            if reader is not None:
                readers.append(reader)
                given[value.name or ""] = None
                continue
            after = _passes(use.node, use.idx, at, shape, trace)
            if after is None:
                return None
            places += after[0]
            waiting.append((use.node.outputs[0], after[1]))
    return Site(maker.outputs[0].name or "", channels, tuple(places), tuple(readers), tuple(scaled), tuple(given))


def _own(node: ir.Node, operand: int) -> np.ndarray | None:
    """The float32 constant at an operand, where nobody else reads it."""
    value = node.inputs[operand] if operand < len(node.inputs) else None
    array = read.constant(value)
    if value is None or array is None or array.dtype != np.float32 or len(list(value.uses())) != 1:
        return None
    return array


def _vector(node: ir.Node, operand: int, size: int) -> bool:
    """Whether an operand is a constant of its own with one number a channel, along its last axis."""
    array = _own(node, operand)
    return array is not None and array.ndim > 0 and array.size == array.shape[-1] == size


def _given(node: ir.Node, operand: int) -> bool:
    return operand < len(node.inputs) and node.inputs[operand] is not None


def _made(node: ir.Node, trace: Trace) -> tuple[list[Place], int] | None:
    """(numbers to scale, channel axis of the output) of a node that gives its channels by constants; None where none
    does."""
    if not read.standard(node) or len([v for v in node.outputs if v.name]) != 1:
        return None
    name, shape = node.name or "", trace.shape(node.outputs[0].name) or ()
    if node.op_type in read.WEIGHTED:
        weight = _own(node, 1)
        if weight is None or (node.op_type == "MatMul" and weight.ndim != 2) or read.int_attribute(node, "transA", 0):
            return None
        if node.op_type == "ConvTranspose" and read.int_attribute(node, "group", 1) != 1:
            return None
        axis = 0 if node.op_type == "Conv" or read.int_attribute(node, "transB", 0) else 1
        if _given(node, 2) and not _vector(node, 2, weight.shape[axis]):
            return None
        return [Place(name, 1, axis)] + [Place(name, 2, -1)] * _given(node, 2), -1 if node.op_type in (
            "Gemm",
            "MatMul",
        ) else 1
    if node.op_type in ("BatchNormalization", "InstanceNormalization"):
        return (
            ([Place(name, i, 0) for i in (1, 2)], 1)
            if len(shape) > 1 and all(_vector(node, i, shape[1]) for i in (1, 2))
            else None
        )
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        given = [i for i in (1, 2) if _given(node, i)]
        last = read.int_attribute(node, "axis", -1) in (-1, len(shape) - 1)
        return (
            ([Place(name, i, -1) for i in given], -1)
            if last and shape and all(_vector(node, i, shape[-1]) for i in given)
            else None
        )
    if (
        node.op_type == "Mul" and shape and shape[-1] > 1
    ):  # the last step but one of a normalisation that is spelled out
        scale = [i for i in (0, 1) if _vector(node, i, shape[-1])]
        return ([Place(name, scale[0], -1)], -1) if len(scale) == 1 else None
    return None


def _reader(node: ir.Node, operand: int, axis: int, rank: int) -> Place | None:
    """Where a node multiplies the channels by constant weights of its own."""
    weight = _own(node, 1) if operand == 0 and node.op_type in read.WEIGHTED and read.standard(node) else None
    if weight is None:
        return None
    name = node.name or ""
    if node.op_type == "Conv" and axis == 1:
        return Place(name, 1, 1, read.int_attribute(node, "group", 1))
    if node.op_type == "ConvTranspose" and axis == 1 and read.int_attribute(node, "group", 1) == 1:
        return Place(name, 1, 0)
    if node.op_type == "Gemm" and axis == 1 and not read.int_attribute(node, "transA", 0):
        return Place(name, 1, 1 if read.int_attribute(node, "transB", 0) else 0)
    if node.op_type == "MatMul" and axis == rank - 1 and weight.ndim == 2:
        return Place(name, 1, 0)
    return None


def _passes(
    node: ir.Node, operand: int, axis: int, shape: Sequence[int], trace: Trace
) -> tuple[list[Place], int] | None:
    """(numbers to be scaled along, the channels' axis behind a node that keeps factors); None where it does not."""
    behind = trace.shape(node.outputs[0].name)
    if (
        behind is None
        or not read.standard(node)
        or read.has_subgraph(node)
        or len([v for v in node.outputs if v.name]) != 1
    ):
        return None
    if node.op_type in _KEEPS_FACTORS:
        return [], axis
    if node.op_type == "Pad" and operand == 0 and read.fills_constant(node) and behind[axis] == shape[axis]:
        fill = (
            read.constant(node.inputs[2]) if _given(node, 2) else np.full(1, read.float_attribute(node, "value", 0.0))
        )
        return ([], axis) if fill is not None and not fill.any() else None
    if node.op_type == "Transpose":
        return [], (read.ints_attribute(node, "perm") or list(range(len(shape)))[::-1]).index(axis)
    if node.op_type in _MOVES and operand == 0 and shape[axis] > 1:
        before = int(np.prod(shape[:axis]))
        found = [b for b, size in enumerate(behind) if size == shape[axis] and int(np.prod(behind[:b])) == before]
        return ([], found[0]) if found else None
    if node.op_type in ("Add", "Sub") and tuple(behind) == tuple(shape):
        other, at = _own(node, 1 - operand), axis - len(shape)
        if other is not None and other.ndim >= -at and other.shape[at] == shape[axis]:
            return [Place(node.name or "", 1 - operand, at)], axis
    return None


def _matrices(place: Place, weight: np.ndarray) -> np.ndarray:
    """A reader's weight as [groups, rows, channels of a group, taps]."""
    rows = weight if place.groups > 1 else np.moveaxis(weight, place.axis, 1)
    count, columns = rows.shape[:2]
    return rows.reshape(place.groups, count // place.groups, columns, -1).astype(np.float64)


def _seen(evidence: Evidence, site: Site) -> ChannelStatistics | None:
    """What a site's readers are given on the samples; None where that is not finite, or not read in integers."""
    histograms = [histograms_for(evidence).get(name) for name in site.given]
    low, high, power, count = np.zeros(site.channels), np.zeros(site.channels), np.zeros(site.channels), 0
    for histogram in histograms:
        if (
            histogram is None
            or not histogram.finite
            or histogram.channel_low is None
            or len(histogram.channel_low) != site.channels
        ):
            return None
        assert histogram.channel_high is not None and histogram.channel_square_sums is not None
        low, high = np.minimum(low, histogram.channel_low), np.maximum(high, histogram.channel_high)
        power += histogram.channel_square_sums
        count += histogram.batches
    return ChannelStatistics(low, high, power / max(count, 1))


def _times(work: ir.Model, node: ir.Node, place: Place, s: np.ndarray) -> None:
    """A node's numbers times s, channel by channel, in place."""
    array = read.constant(node.inputs[place.operand])
    assert array is not None
    if place.groups > 1:
        rows, columns = array.shape[:2]
        apart = array.reshape(place.groups, rows // place.groups, columns, -1)
        new = (apart * s.reshape(place.groups, 1, columns, 1)).reshape(array.shape)
    else:
        shape = [1] * array.ndim
        shape[place.axis] = len(s)
        new = array * s.reshape(shape)
    edit.set_input(work, node, place.operand, new.astype(np.float32), f"{node.name}_scaled")


EQUALIZE = Equalize()
