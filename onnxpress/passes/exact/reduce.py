"""Exact reductions: what can be removed without changing the function, for every input. Carried out by `simplify`.

Foldings (`fold.py`) and channels that provably do not matter:

* never read: every reader's weights for the channel are exactly zero;
* dead: the channel is exactly zero for every input (zero weights and bias, and only operators with f(0) = 0 behind);
* constant: the channel is the same number everywhere (zero weights, also behind depthwise convolutions) and its reader
  takes it without zero padding, so that its share moves into the reader's bias;
* repeated: it is another channel times a number, of which its readers then read more (`duplicate_channels.py`);
* switched off: no input can bring it above zero in front of its Relu (`bounds.py`).

As many go as leave a width on the CPU's kernel grid.

The proof is algebra on the weights, not observation; only the order of additions changes (parity 1e-5).
Also: sizes that are computed though they are known (`reshape_targets.py`), and what is expanded though its readers
broadcast (`expansions.py`).
Also flushed: denormal weights (|w| < 1e-30), which cost a hundredfold in time and carry nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.model import edit, read
from onnxpress.model.channels import groups as ch
from onnxpress.model.channels.removal import remove
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.core.contract import Action
from onnxpress.passes.exact.bounds import drop_redundant_relus
from onnxpress.passes.exact.duplicate_channels import merge_duplicate_channels
from onnxpress.passes.exact.evaluation import evaluate
from onnxpress.passes.exact.expansions import drop_expansions
from onnxpress.passes.exact.fold import FOLDINGS, fold
from onnxpress.passes.exact.inactive_channels import fold_constant_channels, fold_inactive_channels, has_padding
from onnxpress.passes.exact.reshape_targets import fold_reshape_targets

_UNARY = frozenset(
    """Relu Clip LeakyRelu Elu Selu Celu Sigmoid Tanh HardSigmoid HardSwish Softplus Softsign Abs Neg Exp Identity
    Gelu Mish Erf Sqrt""".split()
)
# Operators that hand a constant channel on as it is (averages leave their padding out unless told otherwise).
_KEEPS_CONSTANTS = frozenset(
    """GlobalAveragePool GlobalMaxPool MaxPool Flatten Reshape Squeeze Transpose ReduceMean""".split()
)
_TINY = 1e-30
_TARGETS, _EXPANSIONS = "targets", "expansions"


# Every exact reduction, as the actions of the pass `simplify`.
REDUCTIONS: tuple[Action, ...] = (
    *({"fold": kind} for kind in (_EXPANSIONS, *FOLDINGS, _TARGETS)),
    {"flush": "denormals"},
    {"bounds": "relu"},
    {"merge": "alike"},
    {"remove": "idle"},
)


def reduce(evidence: Evidence, actions: Sequence[Action]) -> tuple[ir.Model, list[str]]:
    """A reduced copy of the evidence's model, and remarks. actions: some of REDUCTIONS, and inactive channels as
    `inactive_channels.py` found them on samples (not exact)."""
    work = canonical(evidence.model)
    notes = []
    kinds = {d["fold"] for d in actions if "fold" in d}
    if _EXPANSIONS in kinds:
        count = drop_expansions(work)
        notes += [f"{count} operators read what was expanded for them"] if count else []
    if kinds:
        done = fold(work, _traced(work, evidence).trace, kinds)
        notes += [f"folded {count} x {kind}" for kind, count in done.items()]
    if _TARGETS in kinds:
        count = fold_reshape_targets(work)
        notes += [f"{count} computed Reshape targets are constants"] if count else []
    if {"flush": "denormals"} in actions:
        count = flush_denormals(work)
        notes += [f"flushed {count} denormal weights"] if count else []
    if {"bounds": "relu"} in actions:
        dropped, silenced = drop_redundant_relus(work, _traced(work, evidence).trace)
        notes += [f"removed {dropped} redundant Relus"] if dropped else []
        notes += [f"{silenced} channels are always zero behind their Relu"] if silenced else []
    if {"merge": "alike"} in actions:
        count = merge_duplicate_channels(work, _traced(work, evidence).channels)
        notes += [f"merged {count} duplicate channels"] if count else []
    notes += fold_inactive_channels(work, [d for d in actions if "inactive" in d])
    if {"remove": "idle"} in actions:
        work, removed = remove_idle(work, evidence)
        notes += [f"removed {removed} channels without effect"] if removed else []
    edit.forget_shapes(work)
    return work, notes


def _traced(work: ir.Model, evidence: Evidence) -> Evidence:
    """Evidence of a model that is being edited, whose graph is not copied."""
    return Evidence(work, evidence.data, evidence.machine)


def flush_denormals(model: ir.Model) -> int:
    """Set weights |w| < 1e-30 of Conv, Gemm and MatMul to zero in place; how many there were.

    Other constants are left alone: a tiny number may guard a division.
    """
    total = 0
    weights = {n.inputs[1] for n in model.graph if n.op_type in read.WEIGHTED and read.standard(n)}
    for value in model.graph.initializers.values():
        array = read.constant(value)
        if value not in weights or array is None or array.dtype != np.float32 or array.ndim < 2:
            continue
        tiny = (np.abs(array) < _TINY) & (array != 0)
        if tiny.any():
            total += int(tiny.sum())
            edit.set_constant(value, np.where(tiny, np.float32(0), array))
    return total


def remove_idle(model: ir.Model, evidence: Evidence) -> tuple[ir.Model, int]:
    """Remove never-read, dead and constant channels until none is left; the new model and how many went."""
    total = 0
    while True:
        facts = _traced(model, evidence).channels
        nodes: dict[str, ir.Node] = {n.name or "": n for n in model.graph}
        removal: dict[str, list[int]] = {}
        for group in facts.groups:
            idle = sorted(set(_never_read(group, nodes)) | set(_constant(model, group, nodes)))
            count = group.size - _on_grid(group.size - len(idle), group.size, evidence)
            if count > 0:
                removal[group.name] = idle[:count]
        removal = _leave_some(facts, removal)
        if not removal:
            return model, total
        total += sum(len(v) for v in removal.values())
        model = remove(model, facts, removal)


def _on_grid(needed: int, size: int, evidence: Evidence) -> int:
    """The least width on the kernel grid that holds the needed channels: an odd width would run slower than the full
    one."""
    step = evidence.machine.grid(max(needed, 1))
    return min(size, max(1, -(-max(needed, 1) // step)) * step)


def _leave_some(facts: ch.Channels, removal: dict[str, list[int]]) -> dict[str, list[int]]:
    """Spare a channel where a removal would empty an axis that several groups share."""
    keep = facts.keep_mask(removal)
    for slot in facts.flow.slots:
        if not slot.stays(keep).any():
            return {}
    return removal


def _never_read(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> list[int]:
    weights = [(p, read.constant(nodes[p.node].inputs[p.operand])) for p in group.readers]
    if not weights or group.multiplied:  # what two computed tensors are multiplied over is read without a weight
        return []
    return [
        j
        for j in range(group.size)
        if all(w is not None and not np.take(w, p.positions[j], axis=p.axis).any() for p, w in weights)
    ]


def _constant(model: ir.Model, group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> list[int]:
    """Channels that are one constant for every input when they reach the group's only reader, and can go.

    The number is followed from the maker (zero weights leave the bias) through unary operators and depthwise
    convolutions.  A constant other than zero is moved into the reader's bias here; that alone changes nothing either,
    as the reader's weights for the channel become zero at once.
    """
    if not group.internal or len(group.readers) != 1:
        return []
    maker = nodes[group.producers[0]]
    place = next(p for p in group.slices if p.role == "out")
    if maker.op_type not in read.WEIGHTED or any(len(p) != 1 for p in place.positions):
        return []
    own = np.array([int(p[0]) for p in place.positions])
    weight = read.constant(maker.inputs[1])
    if weight is None:
        return []
    numbers = _after_weights(maker, weight, place.axis, np.full(weight.shape[place.axis], np.nan))
    reached = _follow(model, maker.outputs[0], numbers)
    if reached is None or reached[0].name != group.readers[0].node:
        return []
    reader, final = reached
    known = np.flatnonzero(np.isfinite(final[own])).tolist()
    place = group.readers[0]
    values = {j: np.full(len(place.positions[j]), final[own][j]) for j in known}
    return fold_constant_channels(model, reader, place, values)


def _after_weights(node: ir.Node, weight: np.ndarray, axis: int, numbers: np.ndarray) -> np.ndarray:
    """Constants behind a weighted node, per output channel (NaN: not constant).

    numbers: constants in front of a depthwise Conv, one a channel; all NaN for a node that mixes channels.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    bias = np.zeros(len(rows)) if node.op_type == "MatMul" else read.column_bias(node, len(rows))
    if bias is None:
        return np.full(len(rows), np.nan)
    shift = bias.astype(np.float64)
    zero = ~rows.any(axis=1) | (numbers == 0)
    flat = shift + (0.0 if has_padding(node) else 1.0) * np.nan_to_num(numbers) * rows.sum(axis=1)
    drop_redundant_relus = np.isfinite(numbers) & (not has_padding(node))
    return np.where(zero, shift, np.where(drop_redundant_relus, flat, np.nan))


def _follow(model: ir.Model, value: ir.Value, numbers: np.ndarray) -> tuple[ir.Node, np.ndarray] | None:
    """Send the channels' constants through unary operators and depthwise convolutions up to the one reader."""
    while True:
        node = read.only_user(value)
        if node is None or not read.standard(node):
            return None
        if read.is_depthwise(node):
            weight = read.constant(node.inputs[1])
            if weight is None or weight.shape[0] != len(numbers):
                return None
            numbers = _after_weights(node, weight, 0, numbers)
        elif node.op_type in read.WEIGHTED:
            return node, numbers
        elif node.op_type in _UNARY and all(read.constant(v) is not None for v in node.inputs[1:] if v is not None):
            given = {value.name or "": numbers.astype(np.float32)}
            numbers = evaluate(model, node, given).astype(np.float64)
        elif node.op_type not in _KEEPS_CONSTANTS and not _plain_average(node):
            return None
        value = node.outputs[0]


def _plain_average(node: ir.Node) -> bool:
    return node.op_type == "AveragePool" and not (
        read.int_attribute(node, "count_include_pad", 0) and has_padding(node)
    )
